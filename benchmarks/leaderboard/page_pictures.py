"""A picture of what several runs make of the same images, for the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gmvq import hub
from gmvq.training.figures import pixels

MOST_BYTES = 300_000
MARGIN, LABELS = 12, 260
"""Pixels around the rows, and for their titles."""
_GAP, _SIDE, _WIDTH = 4, 96, 1290
_INK, _MUTED, _GROUND = "#222222", "#5c5c5c", "#ffffff"


def reconstructions(
    runs: Mapping[str, str | Path], images: Sequence[Tensor] | Tensor, out: str | Path, *, most_bytes: int = MOST_BYTES
) -> Path:
    """Writes a JPEG: the originals in the first row, then a row of reconstructions from hard codes for each run.

    Beside each row stand its title and the mean squared error of the images in it.

    Args:
        runs: The run's folder by the title of its row.
        images: Images ``(C, H, W)`` of one size, uint8 or float in [0, 1].
        out: File to write, by the page's custom ``docs/images/experiment/reconstructions-PROTOCOL.jpg``.
        most_bytes: Largest size of the file; the quality is lowered until it fits.

    Returns:
        The path that was written.

    Raises:
        ValueError: If there are no runs, no images, or images of several sizes.
        OSError: If a run cannot be read or the file cannot be written.
    """
    sizes = {tuple(image.shape) for image in images}
    if not runs or len(sizes) != 1:
        raise ValueError(
            "'runs' must be at least one and 'images' of one size, got "
            f"{len(runs)} runs and sizes {', '.join(map(str, sorted(sizes))) or 'of no image'}. Choose others."
        )
    originals = torch.stack([_as_float(image) for image in images])
    rows = [("original", "", originals)]
    for title, folder in runs.items():
        decoded = hub.load(folder).reconstruct(originals).clamp(0, 1)
        rows.append((title, f"MSE {1e3 * float((decoded - originals).square().mean()):.2f}e-3", decoded))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    hub.write_atomically(out, _small_jpeg(_sheet(rows), most_bytes))
    return out


def _as_float(image: Tensor) -> Tensor:
    return image.float() if image.is_floating_point() else image.float() / 255


def _sheet(rows: Sequence[tuple[str, str, Tensor]]) -> Image.Image:
    """Rows of pictures with their labels to the left, small ones magnified without smoothing."""
    columns, side = len(rows[0][2]), rows[0][2].shape[-1]
    room = (_WIDTH - 2 * MARGIN - LABELS) // columns - _GAP
    factor = max(1, min(_SIDE, room) // side)
    height, width = rows[0][2].shape[-2] * factor, side * factor
    size = (
        2 * MARGIN + LABELS + columns * (width + _GAP) - _GAP,
        2 * MARGIN + len(rows) * (height + _GAP) - _GAP,
    )
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (title, note, images) in enumerate(rows):
        top = MARGIN + row * (height + _GAP)
        _label(draw, title, note, top + height // 2)
        for column, image in enumerate(images):
            shown = Image.fromarray(np.asarray(pixels(image))).convert("RGB")
            shown = shown.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + LABELS + column * (width + _GAP), top))
    return sheet


def _label(draw: ImageDraw.ImageDraw, title: str, note: str, middle: int) -> None:
    """Title and note, one under the other; a long title is broken between words."""
    large, small = _font(15), _font(13)
    lines: list[str] = []
    for word in title.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", large) <= LABELS - 12:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    top = middle - (18 * len(lines) + (17 if note else 0)) / 2
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + 18 * number), line, _INK, large)
    if note:
        draw.text((MARGIN, top + 18 * len(lines)), note, _MUTED, small)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same picture on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _small_jpeg(sheet: Image.Image, most_bytes: int) -> bytes:
    for quality in (92, 85, 75, 65, 50, 35):
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 80 else 2)
        if buffer.tell() <= most_bytes:
            break
    else:
        raise ValueError(
            f"'images' must fit {most_bytes:,} bytes as a JPEG, got {buffer.tell():,} at the lowest quality. "
            "Show fewer images or runs."
        )
    return buffer.getvalue()
