import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from loading_images import load
from numpy.typing import NDArray
from PIL import Image

from gmvq.modalities.image.decoding import ImageError, RangeError, read_header, read_image

Pixels = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tif"


def values_of(path: Path, **options: Any) -> list[int]:
    return read_image(path, **options).flatten().tolist()


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 3)])
@pytest.mark.parametrize("maximum", [None, 1.0, 255.0, 65535.0, 0.25])
def test_floats_are_scaled_by_their_white_alone(path: Path, maximum: float | None, shape: tuple[int, ...]) -> None:
    white = np.float32(maximum or 1)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    for brightest, expected in ((1.0, 255), (1.009, 255), (0.5, 128), (1 / 255, 1)):
        values = np.full(shape, brightest, np.float32) * white
        values.flat[0] = -0.009 * white
        tifffile.imwrite(path, values, photometric=photometric)
        assert set(values_of(path, maximum=maximum)) == {0, expected}  # a dark image is not made brighter


@pytest.mark.parametrize("brightest", [1.02, -0.02, 255.4, 1e6])
def test_floats_out_of_range_ask_for_it(path: Path, brightest: float) -> None:
    tifffile.imwrite(path, np.array([[0, brightest]], np.float32))
    with pytest.raises(RangeError, match=r"a\.tif.*outside \[0, 1\].*value of white.*'maximum'"):
        read_image(path)


def test_a_file_out_of_range_is_not_skipped(tmp_path: Path) -> None:
    for index, brightest in enumerate([0.9, 200.0, 254.0, 255.4]):
        tifffile.imwrite(tmp_path / f"{index}.tif", np.full((4, 4), brightest, np.float32))
    with pytest.raises(RangeError, match=r"1\.tif.*'maximum'"):
        load(tmp_path)
    data = load(tmp_path, maximum=255)
    images = [side[index] for side in (data.train, data.held_out) for index in range(len(side))]
    assert sorted(int(image.max()) for image in images) == [1, 200, 254, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_floats_that_are_not_finite_are_refused(path: Path, bad: float) -> None:
    tifffile.imwrite(path, np.array([[0, bad]], np.float32))
    with pytest.raises(ImageError, match=r"a\.tif.*finite"):
        read_image(path, maximum=255)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
def test_integers_of_unknown_range_ask_for_it(path: Path, dtype: type[np.integer]) -> None:
    tifffile.imwrite(path, np.array([[0, 50, 100]], dtype))
    with pytest.raises(ImageError, match=r"a\.tif.*unknown range, here \[0, 100\].*'maximum'"):
        read_image(path)
    assert read_header(path) == (1, 3, 1)
    assert values_of(path, maximum=100) == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(path: Path, dtype: type[np.generic]) -> None:
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max  # pyright: ignore[reportArgumentType]
    tifffile.imwrite(path, np.array([[0, white]], dtype), photometric="miniswhite")
    assert values_of(path) == [255, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
def test_premultiplied_colors_are_divided_by_alpha(path: Path, dtype: type[np.generic]) -> None:
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max  # pyright: ignore[reportArgumentType]
    values = np.array([[[0.25, 0.5], [0.0, 0.0], [0.6, 1.0]]]) * white
    tifffile.imwrite(path, values.astype(dtype), photometric="minisblack", planarconfig="contig", extrasamples=[1])
    gray, _, _, alpha = read_image(path, 4).flatten(1).tolist()
    assert np.allclose(gray, [128, 0, 153], atol=2)  # rounded to 8 bits before the division
    assert np.allclose(alpha, [128, 0, 255], atol=1)
    assert np.allclose(values_of(path), [191, 255, 153], atol=1)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_several_pages_are_refused(path: Path, count: int, dtype: type[np.generic]) -> None:
    tifffile.imwrite(path, np.zeros((count, 20, 30), dtype), photometric="minisblack")
    for read in (read_header, read_image):
        with pytest.raises(ImageError, match=f"it holds {count} pages: save each in a file of its own"):
            read(path)


def test_slices_of_one_page_are_refused(path: Path) -> None:
    volume = np.zeros((16, 32, 32), np.uint8)
    tifffile.imwrite(path, volume, volumetric=True, tile=(16, 16, 16), photometric="minisblack")
    with pytest.raises(ImageError, match="it holds 16 pages"):
        read_image(path)


@pytest.mark.parametrize("first", ["picture", "thumbnail"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_reduced_copies_are_passed_over(path: Path, first: str, dtype: type[np.generic]) -> None:
    picture, thumbnail = np.full((20, 30), 1, dtype), np.zeros((10, 15), dtype)
    parts = [(picture, 0), (thumbnail, 1)]
    with tifffile.TiffWriter(path) as writer:
        for values, kind in parts if first == "picture" else parts[::-1]:
            writer.write(values, subfiletype=kind, photometric="minisblack")
    assert read_header(path) == (20, 30, 1)
    assert set(values_of(path)) == {255 if dtype is np.float32 else 1}


@pytest.mark.parametrize(
    ("samples", "photometric", "extra"),
    [(2, "minisblack", [0]), (6, "minisblack", [0] * 5), (3, "minisblack", [2, 0]), (8, "rgb", [2, 0, 0, 0, 0])],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_samples_without_a_meaning_are_refused(
    path: Path, samples: int, photometric: str, extra: list[int], dtype: type[np.generic]
) -> None:
    values = np.zeros((4, 5, samples), dtype)
    tifffile.imwrite(path, values, photometric=photometric, planarconfig="contig", extrasamples=extra)
    for read in (read_header, read_image):
        with pytest.raises(ImageError, match=rf"{samples} samples for each pixel.*\.npy"):
            read(path)


def test_colors_that_nobody_reads_are_named(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((4, 5, 4), np.float32), photometric="separated")
    with pytest.raises(ImageError, match="combination of colors and number of bits is unknown"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("keep", [3, 4, 8, 10, 100, 0.5, 0.99])
def test_the_reason_of_a_truncated_file_is_a_sentence(path: Path, keep: float, dtype: type[np.generic]) -> None:
    tifffile.imwrite(path, np.zeros((50, 50, 3), dtype), photometric="rgb")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else int(keep)])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert len(caught.value.reason.split()) >= 4, caught.value.reason


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_strips_that_are_missing_are_not_read_as_black(path: Path, dtype: type[np.generic]) -> None:
    tifffile.imwrite(path, np.ones((8, 5), dtype), rowsperstrip=8, metadata=None)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<HHIHH", 257, 4, 1, 8, 0), struct.pack("<HHIHH", 257, 4, 1, 800, 0)))
    with pytest.raises(ImageError, match="damaged or cut off: it holds 1 of 100 strips"):
        read_image(path)


def test_pages_that_lead_in_a_circle_end(path: Path, random_pixels: Pixels) -> None:
    tifffile.imwrite(path, random_pixels(8, 9), photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    path.write_bytes(data)
    assert read_header(path) == (8, 9, 1)


def test_bombs_are_refused_before_they_are_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for dtype in (np.uint8, np.float32):
        tifffile.imwrite(path, np.zeros((20, 30, 3), dtype), photometric="rgb")
        for read in (read_header, read_image):
            with pytest.raises(ImageError, match="it has 30 x 20 pixels, more than"):
                read(path)
