r"""How much a latent counts in statistics, so that one far from all others does not stay in them.

.. math:: w_n \propto \min\!\big(1, (r / |z_n - m|)^2\big), \qquad
          r = R \max\!\big(Q_{0.9}\{|\mu_c - m|\}, (\tfrac{1}{N} \textstyle\sum_n |z_n - m|^{1/4})^4\big)

with m amid the codes, and weights of mean 1. Both measures of spread hardly notice a few far members. Latents within
the reach r, which all of ordinary data are, count fully. What one beyond it adds to a sum of squares is at most
:math:`r^2`, wherever it lies, and to a code's average of n latents :math:`r^2 / n |z - m|`: it leaves with the decay of
the average, by then unnoticed. A far cluster that stays, though, draws a code in the end: all of the code's latents
have the same small weight, and those that it had before fade.

References:
    weights with such a tail: Robust Regression Using Iteratively Reweighted Least-Squares (Holland and Welsch, 1977),
    https://doi.org/10.1080/03610927708827533
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmvq.checks import can_look_at
from gmvq.distributed import sum_over_ranks, world_size
from gmvq.kernels.origin import evenly_spread, origin_of

REACH = 10.0
"""R: distances, in radii that hold nine of ten codes, up to which a latent counts fully."""

ORDINARY = 0.5
"""Weight above which a latent is fit to place a code at."""


def radius_of(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """A point amid the codes ``(K, L)`` and the distance from it that holds nine of ten of them: ``(L,)``, ``()``."""
    origin = origin_of(codebook)
    lengths = (evenly_spread(codebook.detach()) - origin).norm(dim=-1).nan_to_num(torch.inf).sort().values
    return origin, lengths[9 * (len(lengths) - 1) // 10]


@torch.no_grad()
def is_ordinary(rows: Tensor, others: Tensor) -> Tensor:
    """Finds rows ``(N, L)`` within ten radii of other rows ``(M, L)``: ``(N,)``, all True if those are equal."""
    origin, radius = radius_of(others)
    return ((rows - origin).norm(dim=-1) <= REACH * radius) | (radius == 0)


@torch.no_grad()
def counting_weights(rows: Tensor, kept: Tensor, codebook: Tensor) -> Tensor:
    """Weight of each row in statistics, of mean 1 over the rows of all ranks that count: exactly 1 if none is far.

    Args:
        rows: Latents ``(N, L)``, finite.
        kept: Rows that count ``(N,)``.
        codebook: Codes ``(K, L)``.

    Returns:
        Weights ``(N,)``, 0 where not kept.
    """
    origin, radius = radius_of(codebook.to(rows.dtype))
    lengths = (rows - origin).norm(dim=-1)
    counted = kept.to(rows.dtype)
    if world_size() == 1 and can_look_at(rows) and bool((lengths <= REACH * radius).all()):
        return counted  # what all that follows would end in
    roots, number = sum_over_ranks(torch.stack([(lengths**0.25 * counted).sum(), counted.sum()])).unbind()
    reach = REACH * torch.maximum(radius, (roots / number.clamp_min(1)) ** 4)
    weights = counted * torch.where(lengths > reach, reach / lengths, 1.0).square()
    total = sum_over_ranks(weights.sum())
    return torch.where(total > 0, weights * (number / total), counted)
