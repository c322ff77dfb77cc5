r"""Statistics of the use of a codebook.

From the number of times n_c that each of K codes was chosen, with the frequencies f_c = n_c / sum_c n_c:

.. math::
    \text{usage} = |\{c : n_c > 0\}| / K \qquad
    H = -\sum_c f_c \log f_c \qquad
    \text{perplexity} = \exp H

A collapsed codebook has a usage near 0 and a perplexity near 1; an evenly used one has usage 1 and perplexity K.

A code that was never chosen is dead. Where the quantizer has a posterior q(c | x), the information of the codes about
the data is less than their entropy, since a token does not determine its code:

.. math:: I_q(x; c) = H(q(c)) - \mathbb{E}_x H(q(c \mid x))

Counts are summed over a data set, since the mean perplexity of its batches is not the perplexity of the whole. The
codebook may be of any size: beyond 2^24 codes memory holds only the codes seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.metrics.counting import DENSE_CODES, CodeCounts
from gmvq.metrics.information import MixtureInformation
from gmvq.metrics.precision import in_float64


class CodebookStatistics:
    """Counts how often each code of a codebook is used.

    The metrics are those of the codes that this process has seen. Under ``torch.distributed`` take them from
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
        >>> statistics.dead_codes
        tensor([1, 3])
    """

    def __init__(self, codebook_size: int) -> None:
        if codebook_size < 1:
            raise ValueError(f"'codebook_size' must be at least 1, got {codebook_size}. Give the number of codes.")
        self.codebook_size = codebook_size
        self.code_counts = CodeCounts(codebook_size)
        self.information = MixtureInformation(codebook_size)

    def update(self, codes: Tensor, mask: Tensor | None = None, responsibilities: Tensor | None = None) -> None:
        """Counts codes; an error leaves the counts as they were.

        Args:
            codes: Integers in [0, K), any shape ``(*)``. The code -1 marks a masked place and is left out.
            mask: Booleans ``(*)``, False where a code is left out; None to count all.
            responsibilities: q(c | x) of a quantizer with a posterior, ``(*, K)``, for the mutual information: give
                them in each call or never.

        Raises:
            ValueError: If codes are not integers, lie outside of the codebook, or mask or responsibilities do not fit.
        """
        self._count(self._checked(codes, mask, responsibilities))

    def _checked(self, codes: Tensor, mask: Tensor | None, responsibilities: Tensor | None) -> _Tokens:
        """Checks the arguments and sets codes that do not count to -1."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"'codes' must be integers, got {codes.dtype}. Give the indices that encode() returns.")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != codes.shape):
            raise ValueError(
                f"'mask' must be boolean with the shape {tuple(codes.shape)} of 'codes', "
                f"got {mask.dtype} {tuple(mask.shape)}. Convert it with .bool()."
            )
        codes = codes.long()  # before the comparison: as uint8, -1 is 255
        codes = codes if mask is None else codes.masked_fill(~mask, -1)
        if codes.numel():
            low, high = (int(bound) for bound in codes.aminmax())
            if low < -1 or high >= self.codebook_size:
                raise ValueError(
                    f"'codes' must lie in [0, {self.codebook_size}) (-1 where masked), got {low} to {high}. "
                    "Is 'codebook_size' that of the quantizer that made them?"
                )
        if responsibilities is None:
            return _Tokens(codes, None)
        if responsibilities.shape[:-1] != codes.shape:
            raise ValueError(
                f"'responsibilities' must have the shape {tuple(codes.shape)} of 'codes' and K last, got "
                f"{tuple(responsibilities.shape)}. Give posterior(latents).responsibilities of the same latents."
            )
        return _Tokens(codes, self.information.checked(responsibilities, codes != -1))

    def _count(self, tokens: _Tokens) -> None:
        self.code_counts.add(tokens.codes)
        if tokens.responsibilities is not None:
            self.information.add(tokens.responsibilities)

    def merged(self) -> CodebookStatistics:
        """Sums the counts over all ranks into new statistics; without a process group they are a copy.

        This is a collective: when a process group exists at the call, every rank must call it.
        """
        merged = CodebookStatistics(self.codebook_size)
        merged.code_counts = self.code_counts.merged()
        merged.information = self.information.merged()
        return merged

    @property
    def counts(self) -> Tensor:
        """Number of times that each code was chosen, int64 ``(K,)``; beyond 2^24 codes a sparse tensor."""
        return self.code_counts.counts

    @property
    def total(self) -> int:
        """Number of codes counted."""
        return int(self.code_counts.times.sum())

    @property
    def used(self) -> int:
        """Number of codes that were chosen at least once."""
        return len(self.code_counts.times)

    @property
    def usage(self) -> float:
        """Fraction of the codebook that was chosen at least once, in [0, 1]."""
        return self.used / self.codebook_size

    @property
    def dead_codes(self) -> Tensor:
        """Codes that were never chosen, int64 in ascending order.

        Raises:
            ValueError: If there are more than 2^24 codes, which are not listed.
        """
        if not self.code_counts.is_dense:
            raise ValueError(
                f"Dead codes are listed for at most {DENSE_CODES} codes, got {self.codebook_size}. Take the used "
                "codes, code_counts.seen, or the number of dead codes, codebook_size - used."
            )
        return (self.counts == 0).nonzero()[:, 0]

    @property
    def entropy(self) -> float:
        """Entropy of the frequencies of the codes in nats, in [0, log K].

        Raises:
            ValueError: If no code was counted.
        """
        times = self.code_counts.times
        if len(times) == 0:
            raise ValueError("The entropy needs at least 1 counted code, got 0. Call update(codes) first.")
        frequencies = in_float64(times) / int(times.sum())
        # Rounding may lift an evenly used codebook above its bound by an ulp.
        return min(float(torch.special.entr(frequencies).sum()), math.log(self.codebook_size))

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy, in [1, K]: the number of evenly used codes that have this entropy.

        Raises:
            ValueError: If no code was counted.
        """
        return math.exp(self.entropy)

    @property
    def mutual_information(self) -> float:
        """Information of the codes about the data in nats, in [0, log K].

        That of the posterior if responsibilities were given, otherwise the :attr:`entropy`, since a hard code is a
        function of its token.

        Raises:
            ValueError: If no code was counted, or responsibilities were given for some tokens only.
        """
        tokens, total = self.information.tokens, self.total
        if tokens not in (0, total):
            raise ValueError(
                f"The mutual information needs 'responsibilities' for all tokens or for none, got them for {tokens} of "
                f"{total}. Give them in each update(), or leave them out."
            )
        return self.information.mutual_information if tokens else self.entropy


MOST_COMBINED = DENSE_CODES
"""Largest number of combinations of a token's codes that is counted as one codebook."""


def countable(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the codebook sizes by which tokens with several levels of codes are counted.

    Up to 2^24 combinations of codes are counted as one codebook of that size; beyond that almost no combination is seen
    twice, and each level is counted by itself.

    Example:
        >>> countable((32, 32)), countable((1024, 1024, 1024))
        ((1024,), (1024, 1024, 1024))
    """
    number = math.prod(codebook_sizes)
    return (number,) if number <= MOST_COMBINED else tuple(codebook_sizes)


def counted(codes: Tensor, codebook_sizes: Sequence[int]) -> Tensor:
    """Converts codes to those of the codebooks of :func:`countable`: int64 ``(*, levels)`` -> ``(*, places)``.

    A combination with -1 at any level is -1.

    Example:
        >>> counted(torch.tensor([[1, 2], [-1, -1]]), (32, 32))
        tensor([[34],
                [-1]])
    """
    if len(countable(codebook_sizes)) == len(codebook_sizes):
        return codes
    number = torch.zeros_like(codes[..., 0])
    for level, size in zip(codes.unbind(-1), codebook_sizes, strict=True):
        number = number * size + level
    return number.masked_fill((codes < 0).any(-1), -1)[..., None]


class _Tokens(NamedTuple):
    """Checked codes and responsibilities.

    Attributes:
        codes: int64 ``(*)``, -1 where a code does not count.
        responsibilities: Rows of the codes that count, float64 ``(N, K)``, or None.
    """

    codes: Tensor
    responsibilities: Tensor | None


class CompositeStatistics:
    """Codebook statistics of a quantizer whose latents have several codes, one for each place.

    A place without counted codes, as a level of a residual quantizer that was always dropped, has an entropy of 0 and a
    perplexity of 1.

    Args:
        codebook_sizes: Number of codes of each place, as ``quantizer.codebook_sizes``.

    Attributes:
        places: The :class:`CodebookStatistics` of each place.

    Raises:
        ValueError: If there is no place, or a size is less than 1.

    Example:
        >>> statistics = CompositeStatistics([4, 2])
        >>> statistics.update(torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]]))
        >>> statistics.usage, round(statistics.bits_per_token, 6)
        (1.0, 3.0)
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        if len(codebook_sizes) == 0:
            raise ValueError("'codebook_sizes' must hold at least 1 size, got none. Give quantizer.codebook_sizes.")
        self.places = [CodebookStatistics(size) for size in codebook_sizes]

    def update(self, codes: Tensor, mask: Tensor | None = None, responsibilities: Tensor | None = None) -> None:
        """Counts codes; an error leaves the counts as they were.

        Args:
            codes: Integers ``(*, P)``, -1 where masked. Flatten places of more than one axis first.
            mask: Booleans ``(*)``, False where a token is left out.
            responsibilities: q(c | x) of each place, ``(*, P, K)`` with the largest K, 0 beyond the codes of a smaller
                codebook, as ``posterior(latents)`` of a product returns them.

        Raises:
            ValueError: If the last axis of codes is not P, codes do not fit their codebook, or mask or responsibilities
                do not fit.
        """
        if codes.ndim < 1 or codes.shape[-1] != len(self.places):
            raise ValueError(
                f"The last axis of 'codes' must have {len(self.places)} places, got shape {tuple(codes.shape)}. "
                "Flatten the axes of code_shape with codes.flatten(-len(code_shape))."
            )
        largest = max(place.codebook_size for place in self.places)
        if responsibilities is not None and responsibilities.shape != (*codes.shape, largest):
            raise ValueError(
                f"'responsibilities' must have the shape {(*codes.shape, largest)} of 'codes' and K last, got "
                f"{tuple(responsibilities.shape)}. Give posterior(latents).responsibilities of the same latents."
            )
        parts = [None] * len(self.places) if responsibilities is None else responsibilities.unbind(-2)
        tokens = [
            place._checked(own, mask, None if part is None else part[..., : place.codebook_size])
            for place, own, part in zip(self.places, codes.unbind(-1), parts, strict=True)
        ]
        for place, own in zip(self.places, tokens, strict=True):
            place._count(own)

    def merged(self) -> CompositeStatistics:
        """Sums the counts over all ranks into new statistics. A collective: every rank must call it."""
        merged = CompositeStatistics([place.codebook_size for place in self.places])
        merged.places = [place.merged() for place in self.places]
        return merged

    @property
    def usage(self) -> float:
        """Fraction of all codes of all codebooks that were chosen at least once, in [0, 1]."""
        return sum(place.used for place in self.places) / sum(place.codebook_size for place in self.places)

    @property
    def perplexities(self) -> tuple[float, ...]:
        """Perplexity of each place.

        Raises:
            ValueError: If no code was counted.
        """
        return tuple(place.perplexity if place.used else 1.0 for place in self._counted())

    @property
    def bits_per_token(self) -> float:
        """Sum of the entropies of the places, in bits: the rate of an entropy coder without context.

        Raises:
            ValueError: If no code was counted.
        """
        return sum(place.entropy for place in self._counted() if place.used) / math.log(2)

    @property
    def mutual_informations(self) -> tuple[float, ...]:
        """Information of each place about the data in nats, as :attr:`CodebookStatistics.mutual_information`.

        Raises:
            ValueError: If no code was counted, or responsibilities were given for some tokens only.
        """
        return tuple(place.mutual_information if place.used else 0.0 for place in self._counted())

    def _counted(self) -> list[CodebookStatistics]:
        if not any(place.used for place in self.places):
            raise ValueError("Statistics of codes need at least 1 counted code, got 0. Call update(codes) first.")
        return self.places
