import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gmvq.modalities.image.decoding import ImageError, RangeError, convert_channels, read_header, read_image, reason_of

Save = Callable[..., NDArray[np.uint8]]
Pixels = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp", "webp", "PNG", "ppm"])
@pytest.mark.parametrize("shape", [(6, 8, 3), (6, 8)])
def test_lossless_formats_give_the_pixels_back(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)  # other formats ignore the option
    expected = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if suffix == "webp":  # WebP has no gray
        expected = np.broadcast_to(expected, (3, 6, 8))
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.numpy(), expected)
    assert read_header(path) == (6, 8, len(expected))


def test_jpeg_and_gif_are_close(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 16).astype(np.uint8)[:, None], (16, 16))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    frames = [Image.fromarray(ramp), Image.fromarray(255 - ramp)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / "a.jpg")[0].numpy().astype(int) - ramp).max() <= 8
    assert np.array_equal(read_image(tmp_path / "a.gif", 1)[0].numpy(), ramp)  # the first frame, gray palette
    assert read_header(tmp_path / "a.gif").channels == 1


def test_sixteen_bit_gray_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 128 * 257 + 1]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name).flatten().tolist() == [0, 1, 255, 128]
        assert read_header(tmp_path / name) == (1, 4, 1)


def test_transparency_is_laid_on_white_unless_four_channels(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[255] * 3, [10, 20, 30], [204] * 3]]
    assert np.array_equal(read_image(tmp_path / "a.png", 4).permute(1, 2, 0).numpy(), pixels)
    Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA").save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").tolist() == [[[255, 10]]]
    assert read_image(tmp_path / "gray.png", 4).permute(1, 2, 0).tolist() == [[[10, 10, 10, 0], [10, 10, 10, 255]]]


def test_palette_with_transparent_color(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 100])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[255, 255, 255], [0, 0, 100]]]
    assert read_header(tmp_path / "a.png").channels == 3


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").tolist() == [np.rot90(pixels, -1).tolist()]
    assert read_header(tmp_path / "a.png") == (3, 2, 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16", "YCbCr"])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_every_mode_becomes_the_channels_asked_for(mode: str, channels: int | None, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (3, 2), (40, 40, 40)).convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    image = read_image(path, channels)
    assert image.shape == (channels or read_header(path).channels, 2, 3)
    assert image.is_contiguous()


def test_gray_color_gray_is_exact(random_pixels: Pixels) -> None:
    gray = random_pixels(16, 16, 1)
    assert np.array_equal(convert_channels(convert_channels(gray, 3), 1), gray)
    assert convert_channels(gray, 1) is gray


def test_luma_is_that_of_pillow(random_pixels: Pixels) -> None:
    color = random_pixels(16, 16, 3)
    assert np.array_equal(convert_channels(color, 1)[..., 0], np.asarray(Image.fromarray(color).convert("L")))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("keep", [0, 3, 0.5])
def test_truncated_files_are_named(suffix: str, keep: float, tmp_path: Path, save_image: Save) -> None:
    save_image(f"a.{suffix}", 40, 40, 3)
    path = tmp_path / f"a.{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else int(keep)])
    with pytest.raises(ImageError, match=rf"a\.{suffix}") as caught:
        read_image(path)
    assert caught.value.path == path
    assert caught.value.reason


def test_errors_name_the_reason(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match="not an image of a known format"):
        read_header(tmp_path / "text.png")
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        read_header(tmp_path / "empty.tif")
    with pytest.raises(ValueError, match="'channels' must be 1"):
        read_image(tmp_path / "text.png", 2)
    save_image("large.png", 8, 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    for read in (read_header, read_image):
        with pytest.raises(ImageError, match=r"large\.png"):
            read(tmp_path / "large.png")


def test_image_without_pixels_is_refused(tmp_path: Path) -> None:
    gif = bytearray(b"GIF89a\0\0\0\0\x80\0\0" + b"\0" * 6 + b",\0\0\0\0\0\0\0\0\0\x02\x02D\x01\0;")
    (tmp_path / "a.gif").write_bytes(gif)
    with pytest.raises(ImageError, match=r"a\.gif"):
        read_header(tmp_path / "a.gif")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(ImageError, match="no regular file"):
            read_image(path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(ImageError, match="too many levels of symbolic links"):
        read_header(tmp_path / "loop.png")


def test_pixels_that_differ_from_the_header_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr("gmvq.modalities.image.decoding._turned", lambda pixels, orientation: pixels[:2])
    with pytest.raises(ImageError, match="it has 4 x 2 pixels, its header states 4 x 3"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("maximum", [0, -1.0, float("nan"), float("inf")])
def test_maximum_is_checked(maximum: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'maximum' must be a number above 0"):
        read_image(tmp_path / "a.png", maximum=maximum)


def test_transparent_gray_of_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png", transparency=257)
    assert read_image(tmp_path / "a.png").flatten().tolist() == [0, 255, 255]
    assert read_image(tmp_path / "a.png", 4)[3].flatten().tolist() == [255, 0, 255]


def test_maximum_is_of_more_than_eight_bits(tmp_path: Path, random_pixels: Pixels) -> None:
    pixels = random_pixels(4, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", maximum=4095)[0].numpy(), pixels)
    Image.fromarray(np.array([[0, 2048, 4095, 4130]], np.uint16)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", maximum=4095).flatten().tolist() == [0, 128, 255, 255]
    Image.fromarray(np.array([[4095, 4200]], np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(RangeError, match=r"b\.png.*\[4095, 4200\], outside \[0, 4095\].*'maximum'"):
        read_image(tmp_path / "b.png", maximum=4095)


def test_errors_are_sentences() -> None:
    errors = {
        KeyError(0): "it is damaged or cut off (KeyError: 0)",
        AssertionError(): "it is damaged or cut off (AssertionError)",
        ValueError("0"): "it is damaged or cut off (ValueError: 0)",
        ValueError("corrupted IFD structure"): "it is damaged or cut off (ValueError: corrupted IFD structure)",
        OSError("image file is truncated."): "image file is truncated",
        PermissionError(13, "Permission denied", "x"): "permission denied",
    }
    for error, reason in errors.items():
        assert reason_of(error) == reason


def test_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(ImageError(Path("a.png"), "broken")))
    assert (error.path, error.reason) == (Path("a.png"), "broken")
