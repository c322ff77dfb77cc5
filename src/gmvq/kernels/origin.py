r"""The point around which distances are computed.

In :math:`|z|^2 - 2 z \cdot \mu + |\mu|^2` rounding errors grow with the lengths of z and of the code, so both are first
taken relative to a point amid the codes. A mean would follow a single far code, and all others would lose their digits
to it. The median of each feature stays amid most of the codes, wherever the rest of them are.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE = 63
"""Largest number of codes that the median is taken of, spread evenly over the codebook: more would only cost time."""


def evenly_spread(codebook: Tensor) -> Tensor:
    """Up to :data:`SAMPLE` codes, evenly spread over a codebook ``(K, L)``, K > 0: a view of it."""
    return codebook[:: -(-codebook.shape[0] // SAMPLE)]


def origin_of(codebook: Tensor) -> Tensor:
    """Median of each feature over up to :data:`SAMPLE` codes, of two in the middle the lower; without gradient.

    Args:
        codebook: Codes ``(K, L)``.

    Returns:
        A finite point ``(L,)``: NaN is left out, and 0 stands for the median of no code and for an infinite one.
    """
    if codebook.shape[0] == 0:
        return codebook.new_zeros(codebook.shape[1])
    median = evenly_spread(codebook.detach()).T.contiguous().nanmedian(-1).values
    return torch.where(median.isfinite(), median, 0.0)


def within_reach(half_norms: Tensor) -> Tensor:
    """True for each code whose energy is a number, with room for products with gradients ``(K,)``.

    Args:
        half_norms: p |mu|^2 / 2 of codes relative to the origin, ``(K,)``.
    """
    return half_norms.detach() < torch.finfo(half_norms.dtype).max * 2**-20  # not of NaN
