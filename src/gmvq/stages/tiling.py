"""Items of one size for a prior or a judge: as they are, or cut into tiles of whole tokens."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from gmvq.data import ArrayItems, Items
from gmvq.modalities import Data, Modality

_CENTRAL = np.array([0.5, 0.5, 1.0])
"""The chance of the middle of an item, which is not mirrored."""

WHOLE = 4
"""Sequences of up to this many training windows are modelled whole."""

COVERED = 0.99
"""Share of the sequences that fit into a tile, so that a few long ones do not make all of them long."""


def tiled(data: Data, size: int | None, stride: int) -> Data:
    """Items of one size: as they are, or cut into tiles of whole tokens.

    Sequences of up to 4 windows are kept whole, and continued to the length that 99 of 100 of them have at most.

    Args:
        data: The items.
        size: Samples of the windows that the tokenizer saw along each axis; None if it saw whole items.
        stride: Samples of a token.

    Raises:
        ValueError: If no item is as large as a token.
    """
    side = tile_side(data, size, stride)
    if side is None:
        return data
    return data._replace(train=cut(data.train, side, data.modality), held_out=cut(data.held_out, side, data.modality))


def tile_side(data: Data, size: int | None, stride: int) -> int | None:
    """Side of the tiles that :func:`tiled` cuts, None where items stay as they are.

    Raises:
        ValueError: If no item is as large as a token.
    """
    if not data.signal.axes:
        return None
    sizes = {*data.train.sizes, *data.held_out.sizes}
    if size is None and len(sizes) == 1 and not any(length % stride for length in next(iter(sizes))):
        return None
    if data.signal.axes == 1:
        whole = _covering([length for (length,) in data.train.sizes])
        if size is None or whole <= WHOLE * size:
            return whole + -whole % stride
    side = min(min(lengths) for lengths in sizes) if size is None else size
    side -= side % stride
    if side < 1:
        raise ValueError(f"Items must have sides of at least {stride} samples, those of a token. Leave others out.")
    return side


def cut(items: Items, side: int, modality: Modality) -> ArrayItems:
    """Tiles side by side of each item, with its label, named ``item/start``.

    What is left at the borders is dropped. Images that are smaller than a tile have none; where all are, each is
    continued to one tile as training did. Shorter sequences are continued as their modality does.

    Args:
        items: The items.
        side: Samples of a tile along each axis.
        modality: What they are.
    """
    tiles, names, places = [], [], []
    for index, (name, size) in enumerate(zip(items.names, items.sizes, strict=True)):
        item = modality.padded(items[index], side) if items.axes == 1 else items[index]
        lengths = (max(side, size[0]),) if items.axes == 1 else size
        for start in itertools.product(*(range(0, length - side + 1, side) for length in lengths)):
            tiles.append(item[(..., *(slice(first, first + side) for first in start))])
            names.append(f"{name}/{'-'.join(map(str, start))}")
            places.append(index)
    if not tiles:
        places, names = list(range(len(items))), items.names
        tiles = [modality.window(items[index], side, _CENTRAL) for index in places]
    labels = None if items.labels is None else items.labels[torch.tensor(places)]
    return ArrayItems(torch.stack(tiles), items.axes, labels, names)


def _covering(lengths: list[int]) -> int:
    """The smallest length that enough of the sequences have at most."""
    return sorted(lengths)[math.ceil(COVERED * len(lengths)) - 1]
