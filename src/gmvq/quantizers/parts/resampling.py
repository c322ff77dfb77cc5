r"""Maps on coarser and finer grids, of which only the places that count have a part.

.. math:: (D x)_p = \frac{\sum_{q \in p} k_q x_q}{\sum_{q \in p} k_q}, \qquad
          (U x)_q = \frac{\sum_p w_{qp} k_p x_p}{\sum_p w_{qp} k_p}

k is 1 for places that count and 0 for others; an average is over the fine places q of a coarse place p, and w are the
weights of linear or cubic interpolation. All weights are those of torch's resampling, taken axis by axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["linear", "cubic"]
"""How coarse maps are enlarged."""

Grid = tuple[int, ...]
"""Number of places along each axis."""

Scale = int | float | tuple[int | float, ...]
"""Places along each axis: a number of them, or their share of the full grid as a float in (0, 1]; one for all axes, or
one for each."""


def average(maps: Tensor, kept: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Means over areas of the places that count: ``(B, *grid, dim)``, and which have any, ``(B, *grid)``."""
    maps = torch.where(kept[..., None], maps, 0)
    if tuple(kept.shape[1:]) == grid:
        return maps, kept
    shares = resized(kept[..., None].to(maps.dtype), grid, "area")
    # the least share is one place of the largest area, far above rounding
    return resized(maps, grid, "area") / torch.where(shares > 0, shares, 1), shares[..., 0] > 0


def enlarge(values: Tensor, counted: Tensor, size: Grid, interpolation: Interpolation) -> Tensor:
    """Interpolates ``(B, *grid, dim)`` between the places that count: ``(B, *size, dim)``.

    Args:
        values: Coarse maps ``(B, *grid, dim)``.
        counted: Coarse places that count, ``(B, *grid)``.
        size: The fine grid.
        interpolation: ``"linear"``, or ``"cubic"`` where all coarse places that it takes count.
    """
    values = torch.where(counted[..., None], values, 0)
    if tuple(counted.shape[1:]) == size:
        return values
    weights = counted[..., None].to(values.dtype)
    linear = resized(values, size, "linear") / resized(weights, size, "linear").clamp_min(1e-6)
    if interpolation == "linear":
        return linear
    complete = resized(1 - weights, size, "cubic", absolute=True) == 0
    return torch.where(complete, resized(values, size, "cubic"), linear)


def resized(maps: Tensor, size: Grid, kind: Literal["area", "linear", "cubic"], absolute: bool = False) -> Tensor:
    """Maps ``(B, *grid, C)`` on another grid ``(B, *size, C)``, axis by axis; ``absolute`` drops the weights' signs."""
    for axis, places in enumerate(size, start=1):
        if maps.shape[axis] != places:
            weights = _weights(maps.shape[axis], places, kind, maps)
            weights = weights.abs() if absolute else weights
            maps = torch.movedim(torch.movedim(maps, axis, -1) @ weights, -1, axis)
    return maps


def _weights(places: int, wanted: int, kind: Literal["area", "linear", "cubic"], like: Tensor) -> Tensor:
    """Weights of the places of an axis for the wanted ones, ``(places, wanted)``: torch's, of unit vectors."""
    units = torch.eye(places, dtype=like.dtype, device=like.device)
    if kind == "cubic":  # which torch has for two axes only
        return F.interpolate(units[None, :, :, None], size=(wanted, 1), mode="bicubic")[0, :, :, 0]
    return F.interpolate(units[None], size=wanted, mode=kind)[0]


def grid_of(scale: Scale, size: Grid) -> Grid:
    """The grid of a scale for maps of a size.

    Raises:
        ValueError: If the scale has another number of axes.
    """
    parts = scale if isinstance(scale, tuple) else (scale,) * len(size)
    if len(parts) != len(size):
        raise ValueError(f"'scales' must have {len(size)} axes for maps of {size}, got {scale}. Give one number.")
    return tuple(
        max(1, round(part * whole)) if isinstance(part, float) else part
        for part, whole in zip(parts, size, strict=True)
    )


def checked_scales(scales: Sequence[Scale]) -> tuple[Scale, ...]:
    """Checks scales, coarse to fine.

    Raises:
        ValueError: If there are none, or they do not go from coarse to the full grid.
    """
    checked = tuple(scales) if isinstance(scales, Sequence) and not isinstance(scales, str) else ()
    checked = tuple(tuple(scale) if isinstance(scale, list) else scale for scale in checked)
    for scale in checked:
        for part in scale if isinstance(scale, tuple) else (scale,):
            whole = isinstance(part, int) and not isinstance(part, bool) and part >= 1
            if not (whole or (isinstance(part, float) and 0 < part <= 1)):
                raise ValueError(
                    f"'scales' must be integers of at least 1 or floats in (0, 1], got {scale!r}. Use for example "
                    "(1, 2, 4, 1.0)."
                )
    if not checked or any(scale == () for scale in checked):
        raise ValueError(f"'scales' must have at least one grid, got {scales!r}. Use for example (1, 2, 4, 1.0).")
    _check_order(checked)
    return checked


def _check_order(scales: tuple[Scale, ...]) -> None:
    axes = max((len(scale) for scale in scales if isinstance(scale, tuple)), default=1)
    if any(len(scale) != axes for scale in scales if isinstance(scale, tuple)):
        raise ValueError(f"'scales' must all have one number of axes, got {scales!r}. Give one number for all axes.")
    parts = [scale if isinstance(scale, tuple) else (scale,) * axes for scale in scales]
    for (coarse, fine), axis in itertools.product(itertools.combinations(parts, 2), range(axes)):
        # a number of places and a share of the grid compare only once there is a grid
        if isinstance(coarse[axis], float) == isinstance(fine[axis], float) and coarse[axis] > fine[axis]:
            raise ValueError(
                f"'scales' must go from coarse to fine, got {scales!r} with {coarse[axis]} before {fine[axis]}. Sort "
                "them."
            )
    if any(isinstance(part, float) and part < 1 for part in parts[-1]):
        raise ValueError(
            f"'scales' must end with the full grid, got {scales!r}. Make the last scale 1.0, or its numbers of places."
        )
