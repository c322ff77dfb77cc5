"""Orders in which the places of a grid are drawn."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gmvq.checks import one_of

OrderName = Literal["raster", "columns", "snake", "spiral", "coarse"]
ORDERS: tuple[str, ...] = get_args(OrderName)


def places_in_order(name: OrderName, grid: tuple[int, ...]) -> Tensor:
    """Places of a grid in the order in which they are drawn, as indices in reading order, int64 ``(T,)``.

    Args:
        name: ``raster`` (reading order), ``columns`` (the last axis slowest), ``snake`` (reading order with every other
            row reversed), ``spiral`` (from the middle outward) or ``coarse`` (coarse to fine: every other place of
            every other row first). On a sequence, the first three go from its start to its end.
        grid: Number of places along each axis, at most 2 axes; without axes there is one place.

    Raises:
        ValueError: If the order is unknown, or the grid has other axes.

    Example:
        >>> places_in_order("columns", (2, 3))
        tensor([0, 3, 1, 4, 2, 5])
        >>> places_in_order("coarse", (3, 3))
        tensor([0, 2, 6, 8, 1, 3, 4, 5, 7])
    """
    one_of("order", name, ORDERS)
    if len(grid) > 2 or any(places < 1 for places in grid):
        raise ValueError(f"'grid' must have at most 2 axes of at least 1 place, got {grid}. Give for example (8, 8).")
    indices = torch.arange(math.prod(grid)).reshape(grid if len(grid) == 2 else (1, -1))
    if name == "columns":
        return indices.T.flatten() if len(grid) == 2 else indices.flatten()
    if name == "snake":
        backwards = indices.clone()
        backwards[1::2] = backwards[1::2].flip(1)
        return backwards.flatten()
    if name == "spiral":
        return _spiral(indices)
    return _coarse(indices) if name == "coarse" else indices.flatten()


def _spiral(indices: Tensor) -> Tensor:
    """Peels off the outermost places until none is left, and reverses their order."""
    parts = []
    while indices.numel():
        parts.append(indices[0])
        indices = indices[1:].T.flip(0)
    return torch.cat(parts).flip(0)


def _coarse(indices: Tensor) -> Tensor:
    """Sorts places by the largest power of two that divides both coordinates, the largest first."""
    rows, columns = torch.meshgrid(*map(torch.arange, indices.shape), indexing="ij")
    steps = torch.zeros_like(indices)
    step = 2
    while step < max(indices.shape):
        steps += (rows % step == 0) & (columns % step == 0)
        step *= 2
    return indices.flatten()[torch.argsort(-steps.flatten(), stable=True)]
