"""Writing of image files, and pictures of reports."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gmvq.data.writing import replacing, write_atomically
from gmvq.modalities.base import Picture
from gmvq.types import as_stored

VISIBLE = 64
"""Side in pixels that small images of a sheet are magnified to."""
SMALL = 96
"""Images whose longer side is at most this number of pixels are magnified without smoothing."""
SHOWN = 192
"""Longer side in pixels of these magnified images."""


MOST_SHOWN = 2048
"""Longer side in pixels to which pictures of larger images are reduced."""
ROWS_AT_ONCE = 1 << 22
"""Pixels that are handed to Pillow at a time: it wants another order of bytes, in a copy."""


def to_bytes(image: Tensor) -> Tensor:
    """Converts floats in [0, 1] to 8-bit values, rounded to the nearest; 8-bit values stay."""
    return as_stored(image, "unit").cpu()


def write_image(path: Path, image: Tensor) -> None:
    """Writes an image, atomically.

    Args:
        path: The file: PNG for 1 to 4 channels; TIFF or ``.npy`` ``(C, H, W)`` for any number.
        image: Float in [0, 1] or uint8 ``(C, H, W)``.

    Raises:
        ValueError: If the file's format cannot hold that number of channels.
        OSError: If the file cannot be written.
    """
    pixels, buffer = to_bytes(image), BytesIO()
    suffix = path.suffix.lower()
    if suffix == ".png":
        drawn = _in_pillow(pixels)
        with replacing(path) as file:
            drawn.save(file, "PNG")
        return
    if suffix == ".npy":
        np.save(buffer, pixels.numpy())
    elif suffix in (".tif", ".tiff"):
        planar = pixels.shape[0] not in (1, 3, 4)
        array = pixels.numpy() if planar else pixels.movedim(0, -1).numpy()
        gray = pixels.shape[0] == 1
        kind = "minisblack" if planar or gray else "rgb"
        tifffile.imwrite(
            buffer, array[..., 0] if gray else array, photometric=kind, planarconfig="separate" if planar else None
        )
    else:
        raise ValueError(f"Images are written as .png, .tiff or .npy, got {path}. Use {path.with_suffix('.png')}.")
    write_atomically(path, buffer.getvalue())


def sheet(images: Sequence[Tensor], columns: int, gap: int = 2) -> Tensor:
    """Arranges images side by side on white, in rows of one height: ``(C, rows, columns)``.

    Images smaller than 64 pixels are magnified by an integer factor; larger ones are scaled to the height of the
    smallest of them.

    Args:
        images: Float in [0, 1] or uint8 ``(C, H, W)``, at least one.
        columns: Images in a row.
        gap: Pixels between images.
    """
    height = min(max(VISIBLE, image.shape[1]) for image in images)
    shown = [_of_height(_as_floats(image), height) for image in images]
    tallest = max(image.shape[1] for image in shown)
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    width = max(sum(image.shape[2] + gap for image in row) for row in rows) - gap
    pasted = torch.ones(shown[0].shape[0], len(rows) * (tallest + gap) - gap, width)
    for place, row in enumerate(rows):
        left = 0
        for image in row:
            top = place * (tallest + gap)
            pasted[:, top : top + image.shape[1], left : left + image.shape[2]] = image
            left += image.shape[2] + gap
    return pasted


def _as_floats(image: Tensor) -> Tensor:
    floats = image.detach().float().cpu()
    return floats / 255 if image.dtype == torch.uint8 else floats


def _of_height(image: Tensor, height: int) -> Tensor:
    """Scales an image to about the given height: small ones by an integer factor, larger ones smoothly."""
    if image.shape[1] <= height:
        times = max(1, height // image.shape[1])
        return image.repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
    width = max(1, round(image.shape[2] * height / image.shape[1]))
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def png(pixels: Tensor) -> bytes:
    """Encodes uint8 ``(C, H, W)`` as a PNG file.

    Raises:
        ValueError: If PNG does not support that number of channels.
    """
    buffer = BytesIO()
    _in_pillow(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _in_pillow(pixels: Tensor) -> Image.Image:
    """Copies uint8 ``(C, H, W)`` to an image of Pillow, some rows at a time.

    Raises:
        ValueError: If Pillow has no such number of channels.
    """
    channels, height, width = pixels.shape
    if not 1 <= channels <= 4:
        raise ValueError(f"A PNG file has 1 to 4 channels, got {channels}. Write .tiff or .npy.")
    image, rows = Image.new(("L", "LA", "RGB", "RGBA")[channels - 1], (width, height)), max(1, ROWS_AT_ONCE // width)
    for top in range(0, height, rows):
        part = pixels[:, top : top + rows].movedim(0, -1).contiguous().numpy()
        image.paste(Image.fromarray(part[..., 0] if channels == 1 else part), (0, top))
    return image


def item_picture(image: Tensor, text: str) -> Picture:
    """Shows an image in a report, a large one reduced; of more channels than a screen has, only the first."""
    pixels = to_bytes(image)
    pixels = pixels if pixels.shape[0] in (1, 3, 4) else pixels[: 3 if pixels.shape[0] > 4 else 1]
    if max(pixels.shape[1:]) <= SMALL:  # magnified without smoothing
        return Picture(png(pixels), "png", text, pixels.shape[2] * max(1, SHOWN // max(pixels.shape[1:])))
    buffer = BytesIO()  # a fifth of the size of PNG for a photograph
    drawn = _in_pillow(pixels)
    if max(drawn.size) > MOST_SHOWN:
        drawn.thumbnail((MOST_SHOWN, MOST_SHOWN))
    drawn.save(buffer, "WEBP", quality=92, method=4)
    return Picture(buffer.getvalue(), "webp", text, drawn.width)


def code_picture(codes: Tensor, text: str) -> Picture:
    """Draws codes ``(h, w[, levels])`` of the first level as colors, distant ones for neighboring numbers.

    Of a large map every second code is drawn, every third, and so on.
    """
    step = -(-max(codes.shape[:2]) // MOST_SHOWN)
    first = (codes if codes.ndim == 2 else codes[..., 0])[::step, ::step].cpu()
    golden = 0.618033988749895  # steps of the golden ratio around the color wheel never come close to each other
    colors = [
        colorsys.hsv_to_rgb(code * golden % 1, 0.65, 0.9 - 0.25 * (code % 3) / 2) for code in first.flatten().tolist()
    ]
    pixels = torch.tensor(colors).reshape(*first.shape, 3).movedim(-1, 0)
    return item_picture(pixels, text)
