"""One image file becomes one uint8 tensor, or an error that names the file.

::

    path --read_header--> Header (size and channels, nothing decoded)
    path --read_image---> uint8 (C, H, W)

Every difference between formats ends here: bit depth, palette, transparency, orientation and colour space. All other
files of this room see uint8 with 1, 3 or 4 channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pnm"}
)
CHANNEL_CHOICES = (1, 3, 4)

_EXIF_ORIENTATION = 0x0112
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


class ImageError(ValueError):
    """A file cannot be read as an image; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keeps both parts, so that a list of skipped files can show them apart."""
        super().__init__(f"Cannot read the image '{path}': {reason}. Replace the file or remove it from the data.")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path, str]]:
        """Lets it cross to another process, e.g. from a pool of workers."""
        return type(self), (self.path, self.reason)


class Header(NamedTuple):
    """What an image file says of itself before it is decoded.

    Attributes:
        height: Rows in pixels, after the EXIF orientation.
        width: Columns in pixels, after the EXIF orientation.
        channels: 1 for a gray file, 3 for a coloured one; transparency is not counted.
    """

    height: int
    width: int
    channels: int


def read_header(path: str | Path) -> Header:
    """Reads size and channels without decoding the pixels.

    Args:
        path: An image file.

    Returns:
        The header; the pixels may still turn out to be damaged.

    Raises:
        ImageError: If the file is no image, has no pixels or too many (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    path = Path(path)
    try:
        return _pillow_header(path)
    except Exception as error:
        if _needs_tifffile(path, error):
            try:
                pixels = _read_with_tifffile(path)
            except Exception as second:
                raise _as_image_error(path, second) from second
            return Header(pixels.shape[0], pixels.shape[1], 1 if pixels.shape[2] < 3 else 3)
        raise _as_image_error(path, error) from error


def read_image(path: str | Path, channels: int | None = None) -> Tensor:
    """Decodes one image file (PNG, JPEG, WebP, TIFF, BMP, GIF, PNM; the first frame of an animation).

    16-bit gray is scaled by 255 / 65535; Pillow keeps the high byte of 16-bit colour. Float pixels may span [0, 1],
    [0, 255] or [0, 65535]: the smallest of these ranges that holds the image is taken. The EXIF orientation is applied.
    A transparent image is laid on white unless ``channels`` is 4. Colour becomes gray by the luma of ITU-R 601.

    Args:
        path: An image file.
        channels: 1 (gray), 3 (RGB), 4 (RGBA) or None for the file's own, 1 or 3.

    Returns:
        uint8, shape ``(C, H, W)``.

    Raises:
        ImageError: If the file is missing, damaged, empty or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
        ValueError: If ``channels`` is none of the above.
    """
    path = Path(path)
    check_channels(channels)
    try:
        pixels = _decode(path)
    except Exception as error:
        raise _as_image_error(path, error) from error
    pixels = convert_channels(pixels, channels)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))  # a copy: Pillow's memory is read-only


def check_channels(channels: int | None) -> None:
    """Raises ValueError unless ``channels`` is 1, 3, 4 or None."""
    if channels is not None and channels not in CHANNEL_CHOICES:
        raise ValueError(
            f"'channels' must be 1 (gray), 3 (RGB) or 4 (RGBA), got {channels!r}. Leave it out to follow the data."
        )


def convert_channels(pixels: NDArray[np.uint8], channels: int | None) -> NDArray[np.uint8]:
    """Changes the number of channels, the last axis: gray, gray + alpha, RGB, RGBA to gray, RGB or RGBA.

    Args:
        pixels: uint8 ``(*, C)`` with C = 1, 2, 3 or 4.
        channels: 1, 3, 4 or None for 1 or 3, whatever the pixels have without transparency.

    Returns:
        uint8 ``(*, channels)``; the argument itself if nothing is to be done.
    """
    has = pixels.shape[-1]
    wanted = channels if channels is not None else (1 if has < 3 else 3)
    if has == wanted:
        return pixels
    colour, alpha = (pixels[..., :-1], pixels[..., -1:]) if has in (2, 4) else (pixels, None)
    if wanted == 4:
        opaque = np.full_like(pixels[..., :1], 255) if alpha is None else alpha
        return np.concatenate([np.broadcast_to(colour, (*colour.shape[:-1], 3)), opaque], axis=-1)
    if alpha is not None:
        weight = alpha.astype(np.uint32)
        colour = ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    if wanted == 1 and colour.shape[-1] == 3:
        # Pillow's integer luma: a gray pixel stays exactly what it is.
        luma = colour.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]
    return np.repeat(colour, 3, axis=-1) if wanted == 3 and colour.shape[-1] == 1 else colour


def sixteen_to_eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scales [0, 65535] to [0, 255], rounded to nearest."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _decode(path: Path) -> NDArray[np.uint8]:
    """Pixels as stored, oriented: uint8 ``(H, W, C)`` with C in 1, 2 (gray + alpha), 3, 4."""
    try:
        with Image.open(path) as image:
            _check_size(image.width, image.height)
            image.load()
            return _to_bytes(_oriented(image))
    except Exception as error:
        if _needs_tifffile(path, error):
            return _read_with_tifffile(path)
        raise


def _to_bytes(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        return _wide_to_bytes(np.asarray(image))[..., None]
    gray, transparent = _is_gray(image), image.has_transparency_data
    if transparent:
        # Through RGBA, the only target that understands every way a file can state its transparent colour.
        image = image.convert("RGBA")
    image = image.convert(("LA" if transparent else "L") if gray else ("RGBA" if transparent else "RGB"))
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _wide_to_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integers are 16-bit values; floats take the smallest of [0, 1], [0, 255], [0, 65535] that holds them."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(wide.min()), float(wide.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values span [{low:g}, {high:g}], outside [0, 65535]; save it with 8 or 16 bits")
    if np.issubdtype(values.dtype, np.integer):
        return sixteen_to_eight_bits(values)
    scale = 255.0 if high <= 1 else (1.0 if high <= 255 else 255 / 65535)
    return np.rint(wide * scale).astype(np.uint8)


def _pillow_header(path: Path) -> Header:
    with Image.open(path) as image:
        _check_size(image.width, image.height)
        width, height = (image.height, image.width) if _is_turned(image) else image.size
        return Header(height, width, 1 if _is_gray(image) else 3)


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GRAY_MODES


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps rows and columns."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # damaged metadata says nothing about the pixels
        return False


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels (width {width}, height {height})")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"it has {width} x {height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")


def _needs_tifffile(path: Path, error: Exception) -> bool:
    """Pillow knows no TIFF with several float or some 16-bit samples for each pixel."""
    return isinstance(error, Image.UnidentifiedImageError) and path.suffix.lower() in (".tif", ".tiff")


def _read_with_tifffile(path: Path) -> NDArray[np.uint8]:
    import tifffile  # comes with scikit-image; needed by few files

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        _check_size(page.imagewidth, page.imagelength)
        values = np.asarray(page.asarray())
        if values.ndim == 3 and page.planarconfig == 2:  # samples stored one plane after the other
            values = values.transpose(1, 2, 0)
    pixels = _wide_to_bytes(values if values.ndim == 3 else values[..., None])
    if pixels.ndim != 3 or pixels.shape[2] > 4:
        raise ValueError(f"its shape {values.shape} is not (H, W) or (H, W, 1 to 4)")
    return pixels


def _as_image_error(path: Path, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError(path, "there is no such file")
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError(path, "it is empty" if _is_empty(path) else "its content is no image that is known here")
    text = str(error).strip().rstrip(".") or type(error).__name__
    return ImageError(path, text.splitlines()[0])


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False
