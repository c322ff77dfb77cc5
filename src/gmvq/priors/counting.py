r"""Priors that count codes: baselines for learned priors, and models for a codec without a network.

:class:`Frequencies` counts how often each code occurs. :class:`NGram` counts how often it occurs after the codes of
neighbors, and interpolates longer contexts with shorter ones by the method of Witten and Bell:

.. math:: p_n(c \mid h_n) = \frac{N(h_n, c) + T(h_n)\, p_{n-1}(c \mid h_{n-1})}{N(h_n) + T(h_n)}

with N(h) the number of times that a context occurred, and T(h) the number of different codes that followed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from gmvq.priors.base import AbstractSequentialPrior, CodeShape, Integers, Reader

PSEUDO_COUNT = 0.5
"""Count of each code before any is seen: Krichevsky and Trofimov's estimator."""

LARGEST_KEY = 2**62
"""Largest number of a context: 63 bits, with a margin."""


class Frequencies(AbstractSequentialPrior):
    """Predicts each code by how often it was seen at its level, whatever its neighbors.

    Args:
        shape: Shape of the codes. Classes are ignored.

    References:
        The Performance of Universal Encoding (Krichevsky and Trofimov, 1981), https://doi.org/10.1109/TIT.1981.1056331

    Example:
        >>> prior = Frequencies(CodeShape((2, 2), (4,)))
        >>> prior.fit([torch.tensor([[[0, 0], [0, 1]], [[0, 2], [0, 0]]])])
        >>> prior.next_probabilities(torch.zeros(1, 0, dtype=torch.int64))
        tensor([[0.6500, 0.1500, 0.1500, 0.0500]])
    """

    citations: ClassVar[tuple[str, ...]] = ("kt_krichevsky1981",)
    counts: Tensor

    def __init__(self, shape: CodeShape) -> None:
        super().__init__(shape)
        self.register_buffer("counts", torch.zeros(shape.levels, max(shape.codebook_sizes), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, batches: Iterable[Integers]) -> None:
        """Adds the counts of codes ``(B, *grid[, levels])`` to those so far."""
        for codes in batches:
            by_level = self.shape.checked(codes).to(self.device).reshape(-1, self.shape.levels)
            for level, size in enumerate(self.shape.codebook_sizes):
                self.counts[level, :size] += torch.bincount(by_level[:, level], minlength=size)

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:  # noqa: D102
        by_level = self.shape.checked(codes).to(self.device).reshape(-1, self.shape.places, self.shape.levels)
        self.shape.checked_labels(labels, len(codes), self.device)
        parts = [self.log_probabilities(level)[by_level[..., level]] for level in range(self.shape.levels)]
        return torch.stack(parts).sum((0, 2)).float()

    def log_probabilities(self, level: int) -> Tensor:
        """Log-probabilities of all codes of a level in nats, float64 ``(K,)``."""
        counts = self.counts[level, : self.shape.codebook_sizes[level]].double() + PSEUDO_COUNT
        return (counts / counts.sum()).log()

    def _reader(self, batch: int, labels: Tensor | None) -> Reader:
        return _FrequencyReader(self, batch)


class _FrequencyReader(Reader):
    def __init__(self, prior: Frequencies, batch: int) -> None:
        self.prior, self.batch, self.step = prior, batch, 0

    def logits(self) -> Tensor:
        return self.prior.log_probabilities(self.step % self.prior.shape.levels).expand(self.batch, -1)

    def add(self, codes: Tensor) -> None:
        self.step += 1


class NGram(AbstractSequentialPrior):
    """Predicts each code from two neighbors: the codes of the places to the left and above.

    In a sequence they are the last code and the one before it; at a later level of a place, the level before it and the
    same level to the left. Neighbors outside the grid count as one more code.

    Args:
        shape: Shape of the codes. Classes are ignored.

    Raises:
        ValueError: If the codebook is too large to number contexts by.

    References:
        The Zero-Frequency Problem (Witten and Bell, 1991), https://doi.org/10.1109/18.87000
    """

    citations: ClassVar[tuple[str, ...]] = ("ngram_witten1991",)
    NEIGHBORS: ClassVar[int] = 2

    def __init__(self, shape: CodeShape) -> None:
        super().__init__(shape)
        base = max(shape.codebook_sizes) + 1
        if base ** (self.NEIGHBORS + 1) * shape.levels >= LARGEST_KEY:
            raise ValueError(
                f"'codebook_sizes' must be below 2**20 for contexts of {self.NEIGHBORS} codes, got "
                f"{shape.codebook_sizes}. Use Frequencies."
            )
        self.base = base
        self.frequencies = Frequencies(shape)
        for order in range(1, self.NEIGHBORS + 1):
            self.register_buffer(f"keys_{order}", torch.zeros(0, dtype=torch.int64))
            self.register_buffer(f"counts_{order}", torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, batches: Iterable[Integers]) -> None:
        """Adds the counts of codes ``(B, *grid[, levels])`` to those so far."""
        for codes in batches:
            self.frequencies.fit([codes])
            sequence = self.sequence(self.shape.checked(codes)).to(self.device)
            for order, contexts in enumerate(self._contexts(sequence), 1):
                self._count(order, (contexts * self.base + sequence).flatten())

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:  # noqa: D102
        sequence = self.sequence(self.shape.checked(codes).to(self.device))
        self.shape.checked_labels(labels, len(codes), self.device)
        levels = self._levels(sequence.shape[1])
        tables = torch.stack([self._padded(level) for level in range(self.shape.levels)])
        probabilities = tables[levels, sequence].exp()
        for order, contexts in enumerate(self._contexts(sequence), 1):
            seen, followers = self._totals(order, contexts)
            counted = self._lookup(order, contexts * self.base + sequence)
            probabilities = torch.where(
                seen > 0, (counted + followers * probabilities) / (seen + followers).clamp_min(1), probabilities
            )
        return probabilities.log().sum(1).float()

    def _reader(self, batch: int, labels: Tensor | None) -> Reader:
        return _NGramReader(self, batch)

    def table(self, order: int) -> tuple[Tensor, Tensor]:
        """Counts after contexts of ``order`` codes: keys in ascending order, and the count of each."""
        return getattr(self, f"keys_{order}"), getattr(self, f"counts_{order}")

    def _count(self, order: int, keys: Tensor) -> None:
        known, counts = self.table(order)
        merged, places = torch.cat([known, keys]).unique(return_inverse=True)
        total = torch.zeros_like(merged)
        total.scatter_add_(0, places, torch.cat([counts, torch.ones_like(keys)]))
        setattr(self, f"keys_{order}", merged)
        setattr(self, f"counts_{order}", total)

    def _levels(self, length: int) -> Tensor:
        return torch.arange(length, device=self.device) % self.shape.levels

    def _padded(self, level: int) -> Tensor:
        found = self.frequencies.log_probabilities(level)
        return torch.nn.functional.pad(found, (0, self.base - 1 - len(found)), value=-torch.inf)

    def _contexts(self, sequence: Tensor) -> list[Tensor]:
        """Numbers of the contexts of all codes, with one neighbor, with two ...: each int64 ``(B, S)``."""
        neighbors = self._neighbors(sequence)
        contexts = self._levels(sequence.shape[1]).expand_as(sequence)
        found = []
        for neighbor in neighbors:
            contexts = contexts * self.base + neighbor
            found.append(contexts)
        return found

    def _neighbors(self, sequence: Tensor) -> list[Tensor]:
        """The neighbors of each code, the nearest first: each ``(B, S)``, K outside the grid."""
        places, levels, none = self.shape.places, self.shape.levels, self.base - 1
        by_place = sequence.reshape(len(sequence), places, levels)
        row = self.shape.grid[-1] if len(self.shape.grid) == 2 else 1
        left, above = torch.full_like(by_place, none), torch.full_like(by_place, none)
        left[:, 1:] = by_place[:, :-1]
        if len(self.shape.grid) == 2:
            left[:, ::row] = none
            above[:, row:] = by_place[:, :-row]
        else:
            above[:, 2:] = by_place[:, :-2]
        first, second = left.clone(), above.clone()
        first[..., 1:], second[..., 1:] = by_place[..., :-1], left[..., 1:]
        return [first.flatten(1), second.flatten(1)]

    def _lookup(self, order: int, keys: Tensor) -> Tensor:
        known, counts = self.table(order)
        if not len(known):
            return torch.zeros_like(keys)
        places = torch.searchsorted(known, keys).clamp_max(len(known) - 1)
        return torch.where(known[places] == keys, counts[places], 0)

    def _totals(self, order: int, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """How often contexts occurred, and how many different codes followed them; both of the contexts' shape."""
        known, counts = self.table(order)
        begin, end = (torch.searchsorted(known, (contexts + more) * self.base) for more in (0, 1))
        sums = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return sums[end] - sums[begin], end - begin

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *rest: Any,  # noqa: ANN401
    ) -> None:
        for order in range(1, self.NEIGHBORS + 1):  # the length of the tables depends on the data
            for name in (f"keys_{order}", f"counts_{order}"):
                if f"{prefix}{name}" in state_dict:
                    setattr(self, name, torch.zeros_like(state_dict[f"{prefix}{name}"], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _NGramReader(Reader):
    """Keeps the whole sequence, with 0 for codes to come, which no context contains."""

    def __init__(self, prior: NGram, batch: int) -> None:
        self.prior, self.step = prior, 0
        self.sequence = torch.zeros(batch, prior.shape.length, dtype=torch.int64, device=prior.device)

    def logits(self) -> Tensor:
        prior, level = self.prior, self.step % self.prior.shape.levels
        size = prior.shape.codebook_sizes[level]
        probabilities = prior.frequencies.log_probabilities(level).exp().expand(len(self.sequence), -1)
        for order, contexts in enumerate(prior._contexts(self.sequence), 1):
            here = contexts[:, self.step]
            seen, followers = prior._totals(order, here)
            keys = here[:, None] * prior.base + torch.arange(size, device=here.device)
            counted = prior._lookup(order, keys)
            blended = (counted + followers[:, None] * probabilities) / (seen + followers).clamp_min(1)[:, None]
            probabilities = torch.where(seen[:, None] > 0, blended, probabilities)
        return probabilities.log()

    def add(self, codes: Tensor) -> None:
        self.sequence[:, self.step] = codes
        self.step += 1
