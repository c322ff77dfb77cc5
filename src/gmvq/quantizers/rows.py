"""Latents as rows: in which precision, which of them count, and means over those that do."""

from __future__ import annotations

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks, world_size

LARGEST = 1e10
"""Latents are clamped to this magnitude: their squares, over the smallest variance, still fit in float32."""


def rows_dtype(latents: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    return torch.float64 if latents.dtype == torch.float64 else torch.float32


def mask_of_lengths(lengths: Tensor, shape: torch.Size) -> Tensor:
    """True in the first ``lengths`` places of each sequence: ``(B,)`` -> ``(B, T)`` for latents ``(B, T, dim)``.

    Raises:
        ValueError: If the latents are no batch of sequences, or lengths are not integers ``(B,)``.
    """
    if len(shape) != 3 or lengths.shape != shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"'lengths' must be integers (B,) for latents (B, T, dim), got {lengths.dtype} {tuple(lengths.shape)} for "
            f"{tuple(shape)}. Give a boolean 'mask' for other shapes."
        )
    on_host = lengths.device.type == "cpu" and not torch.compiler.is_compiling()  # no wait for a GPU
    if on_host and bool(((lengths < 0) | (lengths > shape[1])).any()):
        raise ValueError(f"'lengths' must lie in [0, {shape[1]}], the places of a sequence, got {lengths.tolist()}.")
    return torch.arange(shape[1], device=lengths.device) < lengths[:, None]


def row_weights(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights ``(N,)`` whose weighted sum is the mean over the rows that count, ``kept`` (N,).

    Ranks may have different numbers of them: the mean over ranks of such sums, which data parallel training takes, is
    the mean over the rows of all ranks.
    """
    number = sum_over_ranks(kept.sum().to(dtype)) / world_size()
    return kept.to(dtype) / number.clamp_min(1 / world_size())


def row_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of ``(N,)`` over the rows that count: ``()``, as :func:`row_weights` says."""
    return (torch.where(kept, values, 0) * row_weights(kept, values.dtype)).sum()


def mean_square(difference: Tensor, kept: Tensor) -> Tensor:
    """Mean over features and over the rows that count, of ``(N, L)`` and ``(N,)``: ``()``."""
    return row_mean(difference.square().mean(-1), kept)
