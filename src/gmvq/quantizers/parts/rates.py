r"""A least rate for the widest directions of the latents, so that none of them starves.

With :math:`\lambda_j` the variances of the latents along the eigen-directions of their covariance, and :math:`\sigma^2`
the squared error that codes leave in each feature, direction j has a rate of about

.. math:: r_j = \tfrac12 \log_2 (\lambda_j / \sigma^2) \quad \text{bits.}

Codes of least squared error give bits to a direction by its variance (reverse water-filling; Cover and Thomas, Elements
of Information Theory, 10.3), and early in training that is a greedy choice: a direction of which the decoder makes
little yet gets no bits, so the decoder learns nothing of it, nothing widens it, and it is lost for good. Here it keeps
a least rate instead, until it has shown what it is worth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmvq.distributed import sum_over_ranks
from gmvq.quantizers.parts.codebook import snapshot

FAIR = 2.25
"""Bits of an even share that a direction must have to count: at most log2(K) / 2.25 directions have a least rate, and
that is at least 0.75 bits. With half a bit, a fourth of eight directions starved all the same."""

MOST, BELOW_FAIR = 1.0, 1.5
"""A least rate is one bit, or 1.5 bits below an even share of all bits where that is less. Trained without trouble, the
weakest of four directions stays about 1.2 bits below it."""

DECAY = 0.98
"""Share of the past in the covariance."""

SPEED = 0.01
"""Share by which one step widens the variance of a direction at most."""

FAINTEST = 1e-6
"""Variance against that of the widest direction below which there is nothing to widen but rounding errors."""


class LeastRates(nn.Module):
    """Finds the directions that fall short, and the map that widens them.

    Args:
        code_dim: Features L.
        number: Number of directions with a least rate, the widest ones.
        bits: Least rate of each, above 0.
    """

    covariance: Tensor
    has_started: Tensor
    pull: Tensor
    """Symmetric ``(L, L)``: the identity, but 0 along directions that fall short."""
    pending_count: Tensor
    pending_squares: Tensor

    def __init__(self, code_dim: int, number: int, bits: float) -> None:
        super().__init__()
        self.number, self.least = number, 4.0**bits
        self.register_buffer("covariance", torch.zeros(code_dim, code_dim))
        self.register_buffer("has_started", torch.zeros(()))
        self.register_buffer("pull", torch.eye(code_dim))
        self.register_buffer("pending_count", torch.zeros(()))
        self.register_buffer("pending_squares", torch.zeros(code_dim, code_dim))

    def pulled(self, rows: Tensor) -> Tensor:
        """Rows ``(N, L)`` without a gradient along directions that fall short: a pull to codes would narrow them."""
        fixed = rows.detach()
        return fixed + (rows - fixed) @ snapshot(self.pull, self.training).to(rows.dtype)

    @torch.no_grad()
    def collect(self, rows: Tensor, weights: Tensor) -> None:
        """Adds rows ``(N, L)`` of this rank, with weights ``(N,)``, to what the next update folds in."""
        total = sum_over_ranks(torch.cat([weights.sum()[None], weights @ rows]))
        centered = rows - total[1:] / total[0].clamp_min(1e-20)
        self.pending_count.add_(total[0])
        self.pending_squares.add_(sum_over_ranks((centered * weights[:, None]).T @ centered))

    @torch.no_grad()
    def update(self, variance: Tensor) -> Tensor:
        """Folds the collected rows in.

        Args:
            variance: Squared error that codes leave in each feature, ``()``.

        Returns:
            The symmetric map ``(L, L)`` by which latents and codes are to be multiplied.
        """
        pending = self.pending_count > 0
        step = torch.where(self.has_started > 0, 1 - DECAY, 1.0) * pending
        self.covariance.lerp_(self.pending_squares / self.pending_count.clamp_min(1e-20), step)
        self.has_started.masked_fill_(pending, 1)
        self.pending_count.zero_()
        self.pending_squares.zero_()
        variances, directions = torch.linalg.eigh(self.covariance)
        ratio = variances.clamp_min(0) / (self.least * variance)
        ratio[: len(ratio) - self.number] = torch.inf  # the narrowest come first
        is_short = (ratio < 1) & (variances > FAINTEST * variances.amax()) & pending
        widening = torch.where(is_short, ratio.clamp_min(1e-20).reciprocal().clamp_max(1 + SPEED), 1).sqrt()
        stretch = _along(directions, widening)
        self.covariance.copy_(stretch @ self.covariance @ stretch)
        # in full again where the variance is half above the least: a threshold would go back and forth
        self.pull.copy_(torch.where(pending, _along(directions, (2 * ratio - 2).clamp(0, 1)), self.pull))
        return stretch


def _along(directions: Tensor, factors: Tensor) -> Tensor:
    """The symmetric map by factors ``(L,)`` along directions ``(L, L)``; exactly the identity where all are 1."""
    identity = torch.eye(len(factors), dtype=factors.dtype, device=factors.device)
    return torch.where((factors == 1).all(), identity, (directions * factors) @ directions.T)


def least_rate(codebook_size: int, code_dim: int) -> tuple[int, float]:
    """Number of directions with a least rate, and that rate in bits; (0, 0) where no two can have one.

    Example:
        >>> least_rate(1024, 4), least_rate(512, 64), least_rate(16, 4)
        ((4, 1.0), (4, 0.75), (0, 0.0))
    """
    bits = math.log2(codebook_size)
    number = min(code_dim, int(bits / FAIR))
    return (number, min(MOST, bits / number - BELOW_FAIR)) if number > 1 else (0, 0.0)
