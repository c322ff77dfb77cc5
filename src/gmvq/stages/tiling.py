"""Cuts items into tiles of one size and of whole tokens, for a prior or a judge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from gmvq.data import ArrayItems, Items
from gmvq.modalities import Data, Modality

_CENTRAL = np.array([0.5, 0.5, 1.0])
"""The window in the middle of an item, not mirrored."""

WHOLE = 4
"""Sequences of up to this many training windows are modelled whole."""

COVERED = 0.95
"""Share of the sequences that fit into a tile, so that a few long ones do not make all of them long."""


def tiled(data: Data, size: int | None, stride: int) -> Data:
    """Cuts items into tiles of one size and of whole tokens, or returns items of one size unchanged.

    Sequences of up to 4 windows stay whole, padded to the 95th percentile of their lengths; longer ones are cut.

    Args:
        data: The items.
        size: Window size of the tokenizer's training in samples along each axis; None for whole items.
        stride: Samples per token along each axis.

    Raises:
        ValueError: If all items are smaller than a token.
    """
    side = tile_side(data, size, stride)
    if side is None:
        return data
    return data._replace(train=cut(data.train, side, data.modality), held_out=cut(data.held_out, side, data.modality))


def tile_side(data: Data, size: int | None, stride: int) -> int | None:
    """Returns the side of the tiles of :func:`tiled`, None if items are not cut.

    Raises:
        ValueError: If all items are smaller than a token.
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
    """Cuts each item into adjacent tiles, with its label, named ``item/start``.

    The rest at the borders is dropped. Images smaller than a tile are left out; if all images are smaller, each is
    padded to one tile as in training. Shorter sequences are padded as their modality does.

    Args:
        items: The items.
        side: Samples of a tile along each axis.
        modality: Kind of the items.
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
    """Returns the 95th percentile of the lengths."""
    return sorted(lengths)[math.ceil(COVERED * len(lengths)) - 1]
