"""Latents as rows: their precision, which of them count, and means over those."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.checks import can_look_at
from gmvq.distributed import places_per_rank
from gmvq.quantizers.parts.checks import checked_tensor

LARGEST = 1e10
"""Latents are clamped to this magnitude: their squares, over the smallest variance, still fit in float32."""


def rows_dtype(latents: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    return torch.float64 if latents.dtype == torch.float64 else torch.float32


def as_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another type, where a finite number stays finite: one out of its range becomes its largest.

    So do gradients on their way back, in the type of ``values``. What is not finite stays so, for scalers of losses.
    """
    if values.dtype == dtype:
        return values
    # a compiled graph takes no such function: there gradients are plainly converted
    return _saturated(values, dtype) if torch.compiler.is_compiling() else _AsType.apply(values, dtype)


class _AsType(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, dtype: torch.dtype) -> Tensor:
        return _saturated(values, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:  # noqa: ANN401
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _saturated(gradients[0], ctx.dtype), None


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    if torch.finfo(values.dtype).max > largest:
        values = torch.where(values.isinf(), values, values.clamp(-largest, largest))  # of which NaN stays NaN
    return values.to(dtype)


class CleanRows(NamedTuple):
    """Rows that are safe to compute with.

    Attributes:
        rows: Finite and of at most :data:`LARGEST`, 0 where not kept, ``(N, L)``.
        finite: Which were finite ``(N,)``.
        kept: Which of these count ``(N,)``.
        unchanged: True if all rows are known to count and to be as they were given.
    """

    rows: Tensor
    finite: Tensor
    kept: Tensor
    unchanged: bool


def cleaned(rows: Tensor, mask: Tensor | None) -> CleanRows:
    """Clears rows ``(N, L)`` of what is not finite or too large, and of the rows that a mask ``(N,)`` leaves out."""
    largest = rows.detach().abs().amax(-1)  # a NaN goes through
    finite = largest < math.inf
    kept = finite if mask is None else finite & mask
    if can_look_at(rows) and bool((kept & (largest <= LARGEST)).all()):
        # a copy, as of other rows: nothing that a caller gets lies in the memory of the latents
        return CleanRows(rows.clone(), finite, kept, True)
    return CleanRows(torch.where(kept[:, None], rows, 0).clamp(-LARGEST, LARGEST), finite, kept, False)


def mask_of_lengths(lengths: Tensor, shape: torch.Size) -> Tensor:
    """True in the first ``lengths`` places of each sequence: ``(B,)`` -> ``(B, T)`` for latents ``(B, T, dim)``.

    Raises:
        ValueError: If the latents are not a batch of sequences, or lengths are not a tensor of integers ``(B,)``.
    """
    lengths = checked_tensor("lengths", lengths)
    if len(shape) != 3 or lengths.shape != shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"'lengths' must be integers (B,) for latents (B, T, dim), got {lengths.dtype} {tuple(lengths.shape)} for "
            f"{tuple(shape)}. Give a boolean 'mask' for other shapes."
        )
    if can_look_at(lengths) and bool(((lengths < 0) | (lengths > shape[1])).any()):
        raise ValueError(f"'lengths' must lie in [0, {shape[1]}], the places of a sequence, got {lengths.tolist()}.")
    return torch.arange(shape[1], device=lengths.device) < lengths[:, None]


def row_weights(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights ``(N,)`` whose weighted sum is the mean over the rows that count, ``kept`` (N,).

    Ranks may have different numbers of them: the mean over ranks of such sums, which data parallel training takes, is
    the mean over the rows of all ranks.
    """
    return kept.to(dtype) / places_per_rank(kept.sum().to(dtype))


def row_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of ``(N,)`` over the rows that count: ``()``, as :func:`row_weights` says."""
    return (torch.where(kept, values, 0) * row_weights(kept, values.dtype)).sum()


def mean_square(difference: Tensor, kept: Tensor) -> Tensor:
    """Mean over features and over the rows that count, of ``(N, L)`` and ``(N,)``: ``()``."""
    return row_mean(difference.square().mean(-1), kept)


def mean_squared_error(values: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """:func:`mean_square` of a difference of ``(N, L)``, which is never held."""
    return row_mean(F.mse_loss(values, targets, reduction="none").sum(-1) / values.shape[-1], kept)
