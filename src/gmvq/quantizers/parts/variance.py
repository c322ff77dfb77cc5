r"""Variances of a mixture at their running maximum-likelihood value.

.. math:: \sigma^2 = \frac{1}{N L} \sum_n |z_n - \mu_{c(n)}|^2

with c(n) the most likely code of row n: one value for all, for each code, or for each feature. There is no gradient:
learned freely, sigma goes to 0 and the loss to infinity.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gmvq.distributed import sum_over_ranks
from gmvq.quantizers.parts.outliers import radius_of

RELATIVE_FLOOR = 1e-6
"""Least variance against that of the codebook: float32 cannot tell distances below it apart."""

ABSOLUTE_FLOOR = 1e-12


class MixtureVariance(nn.Module):
    """sigma^2 of a mixture.

    Args:
        kind: A number above 0 for a fixed variance, or ``"shared"``, ``"code"``, ``"feature"``.
        codebook_size: Number of codes K.
        code_dim: Features L.
    """

    sums: Tensor
    weights: Tensor
    pending_sums: Tensor
    pending_weights: Tensor

    def __init__(self, kind: float | Literal["shared", "code", "feature"], codebook_size: int, code_dim: int) -> None:
        super().__init__()
        if isinstance(kind, str):
            valid, fixed_value = kind in ("shared", "code", "feature"), None
        else:
            valid, fixed_value = math.isfinite(kind) and kind > 0, float(kind)
        if not valid:
            words = "'shared', 'code' or 'feature'"
            raise ValueError(f"'variance' must be a number above 0, {words}, got {kind!r}. Use 'shared'.")
        self.kind = kind if fixed_value is None else "fixed"
        self.code_dim = code_dim
        shape = (codebook_size if kind == "code" else 1, code_dim if kind == "feature" else 1)
        self.register_buffer("sums", torch.full(shape, 1.0 if fixed_value is None else fixed_value))
        self.register_buffer("weights", torch.ones(shape))
        self.register_buffer("pending_sums", torch.zeros(shape))
        self.register_buffer("pending_weights", torch.zeros(shape))

    def value(self, codes: Tensor) -> Tensor:
        """The variance for a codebook ``(K, L)``: shape ``(1 or K, 1 or L)``, above 0."""
        if self.kind == "fixed":
            return self.sums
        sums, weights = self.sums, self.weights
        if self.kind == "code":  # as if each code had one row more, of the mean variance: rare codes stay sane
            sums, weights = sums + self.code_dim * sums.sum() / weights.sum(), weights + self.code_dim
        _, radius = radius_of(codes)
        return (sums / weights).clamp_min(RELATIVE_FLOOR * radius.square() / self.code_dim + ABSOLUTE_FLOOR)

    @torch.no_grad()
    def start(self, counts: Tensor, squares: Tensor) -> None:
        """Begins from counts ``(K,)`` and sums of squared residuals ``(K, L)`` of this rank."""
        if self.kind == "fixed":
            return
        sums, weights = self._reduce(counts, squares)
        self.sums.copy_(sums)
        self.weights.copy_(weights.clamp_min(1e-3))

    @torch.no_grad()
    def collect(self, counts: Tensor, squares: Tensor) -> None:
        """Adds counts ``(K,)`` and squared residuals ``(K, L)`` of this rank to what the next update folds in."""
        if self.kind == "fixed":
            return
        sums, weights = self._reduce(counts, squares)
        self.pending_sums.add_(sums)
        self.pending_weights.add_(weights)

    @torch.no_grad()
    def update(self, share: Tensor | float) -> None:
        """Folds the collected sums into the variance, with the share that they get in the averages."""
        # without pending rows both are scaled alike, so the variance stays what it is
        share = torch.where(self.pending_weights.sum() > 0, share, 0.0)
        self.sums.lerp_(self.pending_sums, share)
        self.weights.lerp_(self.pending_weights, share).clamp_min_(1e-20)
        self.pending_sums.zero_()
        self.pending_weights.zero_()

    def _reduce(self, counts: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        sums, weights = squares, counts[:, None].expand_as(squares)
        for axis, kept in enumerate(self.sums.shape):
            if kept == 1:
                sums, weights = sums.sum(axis, keepdim=True), weights.sum(axis, keepdim=True)
        return sum_over_ranks(sums).to(self.sums.dtype), sum_over_ranks(weights.contiguous()).to(self.sums.dtype)
