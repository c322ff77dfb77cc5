"""Masks in, sheets of images out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gmvq import tokenization
from gmvq.data import read_image
from gmvq.generation import sheet

VISIBLE = 64
"""Pixels to whose side small images are magnified."""
HALVES = ("lower", "upper", "left", "right", "middle")
"""Words for masks: the half, or the middle quarter, that is masked."""


def read_mask(words: str, size: tuple[int, int]) -> Tensor:
    """Booleans ``(H, W)``, True where an image is masked.

    Args:
        words: One of :data:`HALVES`, or a picture of that size that is white there.
        size: Height and width.

    Raises:
        ValueError: If there is no such mask, or it has another size.
        OSError: If the picture cannot be read.
    """
    height, width = size
    if words not in HALVES:
        path = Path(words)
        if not path.is_file():
            raise ValueError(f"'mask' must be one of {', '.join(HALVES)} or a picture, got {words!r}. Use lower.")
        mask = read_image(path, 1)[0] >= 128
        if tuple(mask.shape) != size:
            raise ValueError(
                f"'mask' must have {width}x{height} pixels, got {mask.shape[1]}x{mask.shape[0]}. Resize {path}."
            )
        return mask
    mask = torch.zeros(size, dtype=torch.bool)
    if words == "middle":
        mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return mask
    rows, columns = slice(None), slice(None)
    if words in ("lower", "upper"):
        rows = slice(height // 2, None) if words == "lower" else slice(height // 2)
    else:
        columns = slice(width // 2, None) if words == "right" else slice(width // 2)
    mask[rows, columns] = True
    return mask


def write_sheet(path: Path, images: Tensor, columns: int) -> None:
    """Small images are magnified, so that they can be seen."""
    tokenization.write_png(path, sheet(images, columns, magnify=max(1, VISIBLE // max(images.shape[-2:]))))
