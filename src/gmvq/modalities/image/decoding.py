"""Decoding of image files: each file becomes one uint8 tensor, or an error that names the file.

::

    path --read_header--> Header (size and channels, without decoding)
    path --read_image---> uint8 (C, H, W)

Differences between formats are resolved here: bit depth, palette, transparency, orientation and color space. All other
modules of this package receive uint8 with 1, 3 or 4 channels.
"""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gmvq.data.labels import printable
from gmvq.modalities.image.png import check_chunks
from gmvq.modalities.image.readable import FORMATS, SUFFIXES, reason_unread
from gmvq.modalities.image.tiff import Page, is_tiff, read_page, read_samples, several_pages

IMAGE_SUFFIXES = SUFFIXES
CHANNEL_CHOICES = (1, 3, 4)

OVERSHOOT = 0.01
"""Fraction of the range by which values may exceed it, as after resampling."""

ROWS_AT_ONCE = 1 << 22
"""Pixels that are copied from Pillow at a time: it joins the bytes of what it exports in a second copy."""

_EXIF_ORIENTATION = 0x0112
_LIMIT = "2 * PIL.Image.MAX_IMAGE_PIXELS"
_QUARTER_TURNS = (5, 6, 7, 8)
_PAGED = frozenset({"DCX", "IM"})
"""Formats other than TIFF whose frames are pages, not an animation."""
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


class ImageError(ValueError):
    """A file cannot be read as an image; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keeps the path and the reason apart for lists of skipped files."""
        super().__init__(
            f"Cannot read the image '{printable(path)}': {printable(reason)}. Replace the file or remove it from the "
            "data."
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path, str]]:
        """Makes the error picklable for worker processes."""
        return type(self), (self.path, self.reason)


class RangeError(ImageError):
    """The values of a file are out of range, so that the value of white has to be given for such files."""


class Header(NamedTuple):
    """Size and channels of an image file, read without decoding the pixels.

    Attributes:
        height: Rows in pixels, after the orientation.
        width: Columns in pixels, after the orientation.
        channels: 1 for a gray file, 3 for a colored one; alpha is not counted.
    """

    height: int
    width: int
    channels: int


def read_header(path: str | Path) -> Header:
    """Reads size and channels without decoding the pixels.

    Args:
        path: An image file.

    Returns:
        The header, which agrees with the result of :func:`read_image`; the pixels may still be damaged.

    Raises:
        ImageError: If the file is not an image, has no pixels or too many (:func:`most_pixels`), or holds several
            pages.
    """
    path = Path(path)
    try:
        with _opened(path) as (header, _):
            return header
    except Exception as error:
        raise _as_image_error(path, error) from error


def read_image(path: str | Path, channels: int | None = None, maximum: float | None = None) -> Tensor:
    """Decodes one image file of a format that Pillow reads (PNG, JPEG, WebP, TIFF, AVIF, ...).

    Of an animation the first frame is read; a file of several pages is an error, since it holds several images.

    Values of more than 8 bits are scaled from [0, white] to [0, 255]. White is 1 for floats and 2^bits - 1 for unsigned
    integers of up to 16 bits, unless ``maximum`` is given; values that exceed the range by up to 1 % of it are clipped.
    Pillow keeps the high byte of 16-bit color. The orientation is applied. A transparent image is composited onto
    white unless ``channels`` is 4. Color becomes gray by the luma of ITU-R 601.

    Args:
        path: An image file.
        channels: 1 (gray), 3 (RGB), 4 (RGBA) or None for the file's own, 1 or 3.
        maximum: Value of white in float files and in gray files of more than 8 bits; None for their type's default.

    Returns:
        uint8, shape ``(C, H, W)``.

    Raises:
        ImageError: If the file is missing, damaged, empty or larger than :func:`most_pixels`, or holds several pages,
            values out of range (:class:`RangeError`), or signed or 32-bit integers without ``maximum``.
        ValueError: If ``channels`` or ``maximum`` is out of range.
    """
    path = Path(path)
    check_channels(channels)
    check_maximum(maximum)
    try:
        with _opened(path) as (header, decode):
            pixels = decode(maximum)
        del decode  # and with it the image in Pillow's memory
        if pixels.shape[:2] != header[:2]:
            height, width = pixels.shape[:2]
            raise ValueError(f"it has {width} x {height} pixels, its header states {header.width} x {header.height}")
    except Exception as error:
        raise _as_image_error(path, error) from error
    pixels = convert_channels(pixels, channels)
    # a copy of what is Pillow's memory, which is read-only
    return torch.from_numpy(np.require(pixels.transpose(2, 0, 1), requirements=("C", "W")))


def most_pixels() -> float:
    """Returns the number of pixels of the largest image that is read: 178,956,970, half a gigabyte of 8-bit color.

    Pillow refuses larger files, too: beyond twice ``PIL.Image.MAX_IMAGE_PIXELS``, which you may set. Beyond once that
    number it only warns: photographs of 100 megapixels are no attack.
    """
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


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
        channels: 1, 3, 4 or None for 1 or 3, the channels without alpha.

    Returns:
        uint8 ``(*, channels)``; the argument itself if there is nothing to change.
    """
    has = pixels.shape[-1]
    wanted = channels if channels is not None else (1 if has < 3 else 3)
    if has == wanted:
        return pixels
    color, alpha = (pixels[..., :-1], pixels[..., -1:]) if has in (2, 4) else (pixels, None)
    if wanted == 4:
        opaque = np.full_like(pixels[..., :1], 255) if alpha is None else alpha
        return np.concatenate([np.broadcast_to(color, (*color.shape[:-1], 3)), opaque], axis=-1)
    if alpha is not None:
        weight = alpha.astype(np.uint32)
        color = ((color * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    if wanted == 1 and color.shape[-1] == 3:
        # Pillow's integer luma: a gray pixel keeps its value.
        luma = color.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]
    return np.repeat(color, 3, axis=-1) if wanted == 3 and color.shape[-1] == 1 else color


def check_maximum(maximum: float | None) -> None:
    """Raises ValueError unless ``maximum`` is None or a finite number above 0."""
    if maximum is not None and not 0 < maximum < math.inf:
        raise ValueError(f"'maximum' must be a number above 0, got {maximum!r}. It is the value of white, e.g. 255.")


def sixteen_to_eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scales [0, 65535] to [0, 255], rounded to nearest."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


class _OutsideError(ValueError):
    """The values are out of range."""


Decode = Callable[[float | None], NDArray[np.uint8]]
"""Function from the value of white to oriented pixels: uint8 ``(H, W, C)`` with C in 1, 2 (gray + alpha), 3, 4."""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Decode]]:
    """Opens a file and yields its header and its decoder: both use one reading, so that they agree."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
        raise ValueError("it is no regular file")
    with path.open("rb") as file:  # Pillow memory-maps files that it opens itself, and then rotates TIFF wrongly
        page = read_page(file) if is_tiff(file) else None
        if page is not None:
            _check_size(page.width, page.height)
        image = _open_image(file, page)
        if image is None:
            assert page is not None
            yield _header(page, page.orientation, page.gray), partial(_decode_samples, file, page)
            return
        _check_size(image.width, image.height)
        if page is not None:
            image.seek(page.number)
        elif image.format in _PAGED and getattr(image, "n_frames", 1) > 1:
            raise ValueError(several_pages(getattr(image, "n_frames", 1)))
        gray = _is_gray(image)  # before reading the orientation, for which Pillow may decode the file
        orientation = _orientation(image) if page is None else page.orientation
        yield _header(page or image, orientation, gray), partial(_decode_image, file, image, page, gray, orientation)


def _open_image(file: BinaryIO, page: Page | None) -> Image.Image | None:
    """Opens a file with Pillow; returns None for a TIFF whose samples Pillow does not support."""
    if page is not None and page.misread:
        return None
    file.seek(0)
    formats = FORMATS if page is None else ("TIFF",)
    try:
        try:
            return Image.open(file, formats=formats)
        except Image.DecompressionBombWarning:  # only where warnings are errors; the size is checked later
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return Image.open(file, formats=formats)
    except Image.UnidentifiedImageError:
        if page is None:
            raise
        return None


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels (width {width}, height {height})")
    if width * height > most_pixels():
        raise ValueError(f"it has {width} x {height} pixels, more than {_LIMIT} = {most_pixels()}")


def _header(stored: Page | Image.Image, orientation: int, gray: bool) -> Header:
    sides = stored.height, stored.width
    height, width = sides[::-1] if orientation in _QUARTER_TURNS else sides
    return Header(height, width, 1 if gray else 3)


def _decode_image(
    file: BinaryIO, image: Image.Image, page: Page | None, gray: bool, orientation: int, maximum: float | None
) -> NDArray[np.uint8]:
    if image.format == "PNG":
        check_chunks(file)
    image.load()
    if image.mode.startswith(("I", "F")):
        white = page.white if page is not None else (1.0 if image.mode.startswith("F") else 65535.0)
        values = np.asarray(image)[..., None]
        pixels = _scaled(values, white, maximum)
        if page is not None and page.photometric == 0:  # Pillow inverts all others itself
            pixels = 255 - pixels
        if isinstance(transparent := image.info.get("transparency"), int):
            pixels = np.concatenate([pixels, np.where(values == transparent, 0, 255).astype(np.uint8)], axis=-1)
    else:
        pixels = _to_bytes(image, gray)
    return _turned(pixels, orientation) if page is None else pixels  # Pillow rotates TIFF itself


def _decode_samples(file: BinaryIO, page: Page, maximum: float | None) -> NDArray[np.uint8]:
    return _turned(_of_samples(read_samples(file, page), page, maximum), page.orientation)


def _of_samples(samples: NDArray[np.generic], page: Page, maximum: float | None) -> NDArray[np.uint8]:
    pixels = _scaled(samples, page.white, maximum)
    if page.alpha is None:
        return pixels if page.photometric else 255 - pixels
    color, alpha = pixels[..., : page.alpha], pixels[..., page.alpha :]
    if page.premultiplied:
        color = np.minimum(color.astype(np.uint32) * 255 // np.maximum(alpha, 1), 255).astype(np.uint8)
    return np.concatenate([color if page.photometric else 255 - color, alpha], axis=-1)


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Applies an EXIF orientation of 1 to 8 to pixels ``(H, W, C)``."""
    if orientation in _QUARTER_TURNS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _to_bytes(image: Image.Image, gray: bool) -> NDArray[np.uint8]:
    if image.mode == "La":  # premultiplied, which Pillow can only convert to LA
        image = image.convert("LA")
    transparent = image.has_transparency_data
    if transparent:
        # Through RGBA, the only mode for which Pillow converts all kinds of transparent colors.
        image = image.convert("RGBA")
    mode = ("LA" if transparent else "L") if gray else ("RGBA" if transparent else "RGB")
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.empty((len(mode), image.height, image.width), np.uint8)  # planes, as items have them
    rows = max(1, ROWS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        part = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        pixels[:, top : top + rows] = part[None] if part.ndim == 2 else part.transpose(2, 0, 1)
    return pixels.transpose(1, 2, 0)


def _scaled(values: NDArray[np.generic], white: float | None, maximum: float | None) -> NDArray[np.uint8]:
    """Scales [0, white] to [0, 255]; ``maximum`` replaces white for types of more than 8 bits."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and white is not None and white <= 255:
        maximum = white
    limit = white if maximum is None else maximum
    if kind == "u" and limit == 2 ** (8 * size) - 1:
        return values.astype(np.uint8) if size == 1 else sixteen_to_eight_bits(values)
    if kind not in "uif":
        raise ValueError(f"it holds {values.dtype} values: save it with 8 or 16 bits")
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("it holds values that are not finite")
    span = f"[{wide.min():g}, {wide.max():g}]"
    if limit is None:
        raise ValueError(
            f"it holds {values.dtype} values of unknown range, here {span}: state the value of white as 'maximum'"
        )
    if wide.min() < -OVERSHOOT * limit or wide.max() > (1 + OVERSHOOT) * limit:
        raise _OutsideError(
            f"its values span {span}, outside [0, {limit:g}]: state the value of white in these files as 'maximum', "
            "e.g. 255"
        )
    return np.rint(wide.clip(0, limit) * 255 / limit).astype(np.uint8)


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    # Pillow opens 16-bit gray with alpha as RGBA; the raw mode has the original one
    tiles = getattr(image, "tile", []) if image.format == "PNG" else []
    return image.mode in _GRAY_MODES or any(str(tile[3]).startswith("LA") for tile in tiles)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the pixels can still be read if metadata are damaged
        return 1
    return orientation if orientation in range(1, 9) else 1


def _as_image_error(path: Path, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, _OutsideError):
        return RangeError(path, str(error))
    unread = reason_unread(path) if isinstance(error, Image.UnidentifiedImageError) else None
    return ImageError(path, unread or reason_of(error, empty=_is_empty(path)))


def reason_of(error: Exception, *, empty: bool = False) -> str:
    """Describes in one line why a file cannot be read; ``empty`` if it has no bytes."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.UnidentifiedImageError):  # its message contains a memory address
        return "it is empty" if empty else "its content is not an image of a known format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has too many pixels, more than {_LIMIT} = {most_pixels()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip().rstrip(".").split("\n")[0]
    if isinstance(error, ValueError | OSError | SyntaxError) and len(text.split()) > 3:
        return text
    return f"it is damaged or cut off ({type(error).__name__}{text and ': '}{text})"


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False
