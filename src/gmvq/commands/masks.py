"""Masks: parts of items."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gmvq.checks import one_of
from gmvq.commands.common import foreign_data
from gmvq.modalities import Image

HALVES = ("lower", "upper", "left", "right", "middle")
"""Names of masks: halves, and the middle quarter; of sequences, lower is the second half."""


def read_mask(words: str, size: tuple[int, ...]) -> Tensor:
    """Reads a mask: booleans of the size of an item, True where it is masked.

    Args:
        words: One of :data:`HALVES`; for images also the path of a picture of that size, white where it is masked.
        size: Lengths of the item's axes: height and width.

    Raises:
        ValueError: If the mask is unknown or has another size, or the item has no axes.
        OSError: If the picture cannot be read.
    """
    if not size:
        raise ValueError("'mask' needs items with axes, along which a part is masked. Vectors have none.")
    if words not in HALVES:
        path = Path(words)
        if len(size) != 2 or not path.is_file():
            one_of("mask", words, (*HALVES, *(["a picture"] if len(size) == 2 else [])))
        mask = foreign_data(path, Image(channels=1)).train[0][0] >= 128
        if tuple(mask.shape) != size:
            raise ValueError(
                f"'mask' must have {size[1]}x{size[0]} pixels, got {mask.shape[1]}x{mask.shape[0]}. Resize {path}."
            )
        return mask
    mask = torch.zeros(size, dtype=torch.bool)
    if words == "middle":
        mask[tuple(slice(length // 4, length - length // 4) for length in size)] = True
        return mask
    # rows are the first axis, columns the last: a sequence has one that is both
    axis = 0 if words in ("lower", "upper") else len(size) - 1
    half = size[axis] // 2
    where = slice(half, None) if words in ("lower", "right") else slice(half)
    mask[(*[slice(None)] * axis, where)] = True
    return mask
