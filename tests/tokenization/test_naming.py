import numpy as np
import pytest
import torch
from PIL import Image

from gmvq.modalities import Image as Images
from gmvq.modalities.image.pictures import to_bytes
from gmvq.tokenization import file_names, inside, targets


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b/c.PNG", "00012"], ["a.png", "b/c.png", "00012.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.jpg", "A.tif"], ["a.jpg.png", "A.tif.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.png", "a.jpg-2.png"]),
        (["x", "x", "x"], ["x.png", "x-2.png", "x-3.png"]),
        (["data.2024", "d.e/f"], ["data.2024.png", "d.e/f.png"]),
    ],
)
def test_names_stay_and_stay_apart(names, expected):
    assert file_names(names, ".png") == expected


@pytest.mark.parametrize("name", ["", "/etc/x.png", "../x.png", "a/../../x.png", "a\0.png", "."])
def test_names_that_would_escape(tmp_path, name):
    with pytest.raises(ValueError, match="would lead out"):
        inside(tmp_path, name)


def test_links_that_would_escape(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="by a link"):
        inside(tmp_path / "out", "link/x.png")


def test_names_inside(tmp_path):
    assert inside(tmp_path, "a/b..c.png") == tmp_path / "a" / "b..c.png"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_holds_the_rounded_image(tmp_path, channels):
    image = torch.rand(channels, 3, 5, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    Images(channels).write(tmp_path / "deep" / "x.png", [image])
    written = to_bytes(image)
    with Image.open(tmp_path / "deep" / "x.png") as file:
        pixels = np.asarray(file).reshape(3, 5, channels)
    assert np.array_equal(pixels, written.movedim(0, -1).numpy())
    # half a grey level of rounding
    assert np.abs(pixels / 255 - image.clamp(0, 1).movedim(0, -1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_png_with_too_many_channels(tmp_path):
    with pytest.raises(ValueError, match="1 to 4 channels"):
        Images(5).write(tmp_path / "x.png", [torch.zeros(5, 2, 2)])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a", "a.png/b"], "of a file and of a folder"),
        (["ok", "x" * 5000], "too long"),
        (["ok", "x/" * 2000 + "y"], "too long"),
        (["ok", "\ud800"], "not valid Unicode"),
        (["ok", "../b"], "would lead out"),
    ],
)
def test_names_that_cannot_be_written_are_refused_before_the_first_file(tmp_path, names, reason):
    with pytest.raises(ValueError, match=reason):
        targets(tmp_path / "out", names, ".png")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder"):
        targets(tmp_path / "out", ["a"], ".png")
