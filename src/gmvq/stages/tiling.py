"""Items of one size for a prior or a judge: as they are, or cut into tiles of whole tokens."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from gmvq.data import ArrayItems, Items
from gmvq.modalities import Data, Modality

_CENTRAL = np.array([0.5, 0.5, 1.0])
"""The chance of the middle of an item, which is not mirrored."""


def tiled(data: Data, size: int | None, stride: int) -> Data:
    """Items of one size: as they are, or cut into tiles of whole tokens.

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
    if size is None and data.signal.axes == 1:  # shorter sequences are continued
        side = max(length for (length,) in sizes)
        return side + -side % stride
    side = min(min(lengths) for lengths in sizes) if size is None else size
    side -= side % stride
    if side < 1:
        raise ValueError(f"Items must have sides of at least {stride} samples, those of a token. Leave others out.")
    return side


def cut(items: Items, side: int, modality: Modality) -> ArrayItems:
    """Tiles side by side of each item, with its label, named ``item/start``.

    Images that are smaller than a tile have none, and what is left at their borders is dropped; where all are, each is
    continued to one tile as training did. The last tile of a sequence is continued as its modality does.

    Args:
        items: The items.
        side: Samples of a tile along each axis.
        modality: What they are.
    """
    tiles, names, places = [], [], []
    for index, (name, size) in enumerate(zip(items.names, items.sizes, strict=True)):
        item = _continued(items[index], side, modality)
        lengths = item.shape[item.ndim - items.axes :] if items.axes == 1 else size
        for start in itertools.product(*(range(0, length - side + 1, side) for length in lengths)):
            tiles.append(item[(..., *(slice(first, first + side) for first in start))])
            names.append(f"{name}/{'-'.join(map(str, start))}")
            places.append(index)
    if not tiles:
        places, names = list(range(len(items))), items.names
        tiles = [modality.window(items[index], side, _CENTRAL) for index in places]
    labels = None if items.labels is None else items.labels[torch.tensor(places)]
    return ArrayItems(torch.stack(tiles), items.axes, labels, names)


def _continued(item: Tensor, side: int, modality: Modality) -> Tensor:
    """A sequence whose length is a multiple of a tile's; other items as they are."""
    if modality.signal.axes != 1:
        return item
    length = item.shape[-1]
    return modality.padded(item, length + -length % side)
