"""Codes as the binary digits of their numbers, in either order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BitOrder = Literal["big", "little"]
"""Whether the first feature is the most or the least significant bit of a code."""


def code_of_bits(bits: Tensor, order: BitOrder = "big") -> Tensor:
    """Numbers whose binary digits are the bits: ``(*, L)`` -> int64 ``(*)``.

    Args:
        bits: Booleans or 0 and 1.
        order: ``"big"`` if the first is the most significant, ``"little"`` if it is the least.
    """
    return (bits.long() << _exponents(bits.shape[-1], order, bits.device)).sum(-1)


def bits_of_code(codes: Tensor, bits: int, order: BitOrder = "big") -> Tensor:
    """Binary digits of numbers, in the order of :func:`code_of_bits`: int64 ``(*)`` -> booleans ``(*, L)``."""
    return (codes[..., None] >> _exponents(bits, order, codes.device) & 1).bool()


def _exponents(bits: int, order: BitOrder, device: torch.device) -> Tensor:
    """Exponents of 2 of the bits, int64 ``(L,)``."""
    exponents = torch.arange(bits, device=device)
    return exponents if order == "little" else exponents.flip(0)
