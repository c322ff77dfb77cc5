from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loading_images import load
from numpy.typing import NDArray
from PIL import Image

from gmvq.modalities.image.decoding import IMAGE_SUFFIXES, ImageError, read_image
from gmvq.modalities.image.readable import COMMON_SUFFIXES, FORMATS, UNREADABLE

Save = Callable[..., NDArray[np.uint8]]


def test_what_pillow_reads_is_read() -> None:
    assert {"PNG", "JPEG", "TIFF", "JPEG2000", "TGA", "WEBP"} <= set(FORMATS)
    assert not {"PDF", "EPS", "MPEG", "WMF", "HDF5"} & set(FORMATS)
    assert {".png", ".jpeg", ".jfif", ".pgm", ".tga", ".j2k", ".mpo"} <= IMAGE_SUFFIXES
    assert not {".pdf", ".mpg", ".ps", ".h5", ".ttf"} & {*IMAGE_SUFFIXES, *UNREADABLE}
    assert set(COMMON_SUFFIXES.split(", ")) <= {*IMAGE_SUFFIXES, *UNREADABLE}  # .avif: not with each version of Pillow


def test_no_suffix_is_both_read_and_not() -> None:
    assert not IMAGE_SUFFIXES & set(UNREADABLE)
    assert {".heic", ".dng", ".cr2", ".svg", ".psd", ".dcm"} <= set(UNREADABLE)
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in {*IMAGE_SUFFIXES, *UNREADABLE})


def test_formats_beside_the_common_ones_are_found_in_a_folder(tmp_path: Path, save_image: Save) -> None:
    names = {
        name for name in ("a.jp2", "b.TGA", "c.qoi", "d.avif", "e.ico") if Path(name).suffix.lower() in IMAGE_SUFFIXES
    }
    for name in names:
        save_image(name, 16, 16, 4)
    data = load(tmp_path)
    assert {*data.train.names, *data.held_out.names} == names
    assert data.skipped == ()


def test_images_that_cannot_be_read_are_named_and_counted(tmp_path: Path, save_image: Save) -> None:
    for name in ("a.png", "b.png", "c/d.png"):
        save_image(name)
    for name in ("IMG_1.HEIC", "c/IMG_2.heic", "e.svg", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"something")
    for name in ("notes.txt", "report.pdf", "clip.mp4"):  # no images, and no reason to warn
        (tmp_path / name).write_bytes(b"something")
    with pytest.warns(
        UserWarning, match=r"Skipped 3 .*IMG_1\.HEIC \(HEIC cannot be read here: convert it to PNG or JPEG"
    ):
        data = load(tmp_path)
    assert [skipped.path.name for skipped in data.skipped] == ["IMG_1.HEIC", "e.svg", "IMG_2.heic"]
    assert len(data.train) + len(data.held_out) == 3


def test_only_images_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.nef").write_bytes(b"something")
    for source in (tmp_path, tmp_path / "a.nef"):
        with pytest.raises(ValueError, match=r"a\.nef.*RAW \(NEF\) cannot be read here"):
            load(source)
    with pytest.raises(ImageError, match=r"RAW \(NEF\) cannot be read here"):
        read_image(tmp_path / "a.nef")


def test_the_content_decides_but_for_documents(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png", "JPEG")
    assert read_image(tmp_path / "a.png").shape == (3, 3, 4)
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match="not an image of a known format"):  # no other program is started
        read_image(tmp_path / "b.png")
