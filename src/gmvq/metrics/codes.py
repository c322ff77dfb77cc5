r"""How a codebook is used.

From the number of times n_c that each of K codes was chosen, with the frequencies f_c = n_c / sum_c n_c:

.. math::
    \text{usage} = |\{c : n_c > 0\}| / K \qquad
    H = -\sum_c f_c \log f_c \qquad
    \text{perplexity} = \exp H

A collapsed codebook has a usage near 0 and a perplexity near 1; an even one has usage 1 and perplexity K.

Counts are streamed: statistics of batches would not do, since a code that is rare in each batch may be common in none,
and the mean perplexity of batches is not the perplexity of their union.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks


class CodebookStatistics:
    """Counts how often each code of a codebook is used.

    The figures are those of the codes that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call.

    Args:
        codebook_size: Number of codes K.

    Raises:
        ValueError: If ``codebook_size`` is less than 1.

    Example:
        >>> statistics = CodebookStatistics(4)
        >>> statistics.update(torch.tensor([[0, 0, 2, 2]]))
        >>> statistics.used, statistics.usage, round(statistics.perplexity, 6)
        (2, 0.5, 2.0)
    """

    def __init__(self, codebook_size: int) -> None:
        if codebook_size < 1:
            raise ValueError(f"'codebook_size' must be at least 1, got {codebook_size}. Give the number of codes.")
        self.codebook_size = codebook_size
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, codes: Tensor, mask: Tensor | None = None) -> None:
        """Count codes.

        Args:
            codes: Integers in [0, K), any shape ``(*)``. The code -1 marks a masked place and is left out.
            mask: Booleans ``(*)``; where False the code is left out. All count without it.

        Raises:
            ValueError: If codes are not integers, lie outside of the codebook, or the mask does not fit.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"'codes' must be integers, got {codes.dtype}. Give the indices that encode() returns.")
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != codes.shape:
                raise ValueError(
                    f"'mask' must be boolean with the shape {tuple(codes.shape)} of 'codes', "
                    f"got {mask.dtype} {tuple(mask.shape)}. Convert it with .bool()."
                )
            codes = codes[mask]
        codes = codes.long()  # before the comparison: as uint8, -1 is 255
        codes = codes[codes != -1]
        if codes.numel() == 0:
            return
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"'codes' must lie in [0, {self.codebook_size}) (-1 where masked), got {low} to {high}. "
                "Is 'codebook_size' that of the quantizer that made them?"
            )
        self.counts += torch.bincount(codes, minlength=self.codebook_size).cpu()

    def merged(self) -> CodebookStatistics:
        """Sum the counts over all ranks into new statistics; without a process group they are a copy.

        A collective: when a process group exists at the call, every rank must call it.
        """
        merged = CodebookStatistics(self.codebook_size)
        merged.counts = sum_over_ranks(self.counts).clone()
        return merged

    @property
    def total(self) -> int:
        """Number of codes counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        """Number of codes that were chosen at least once."""
        return int((self.counts > 0).sum())

    @property
    def usage(self) -> float:
        """Fraction of the codebook that was chosen at least once, in [0, 1]."""
        return self.used / self.codebook_size

    @property
    def entropy(self) -> float:
        """Entropy of the frequencies of the codes in nats, in [0, log K].

        Raises:
            ValueError: If no code was counted.
        """
        if self.total == 0:
            raise ValueError("The entropy needs at least 1 counted code, got 0. Call update(codes) first.")
        frequencies = self.counts.double() / self.total
        # Rounding may lift an even codebook above its bound by an ulp.
        return min(float(torch.special.entr(frequencies).sum()), math.log(self.codebook_size))

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy: how many evenly used codes would be as diverse, in [1, K].

        Raises:
            ValueError: If no code was counted.
        """
        return math.exp(self.entropy)


def in_float64(values: Tensor) -> Tensor:
    """The values in float64, on their device if it has that type (Apple's MPS has not) and on the CPU otherwise."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
