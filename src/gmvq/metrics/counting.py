"""Counts of the codes of a codebook of any size.

Up to 2^24 codes each has its own count, which is fastest. Beyond that the codes seen are kept, sorted, with their
counts: memory is in proportion to the number of different codes seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmvq.distributed import gather_rows, sum_over_ranks

DENSE_CODES = 1 << 24
"""Size of the largest codebook with a count for each code: 128 MB."""

WAITING = 1 << 20
"""Number of codes that may wait, unsorted, before they are counted together: 8 MB."""


class CodeCounts:
    """Counts of the codes of one codebook, on one device; adding codes rarely waits for it.

    Args:
        codebook_size: Number of codes K.
        device: Device of the counts.

    Example:
        >>> numbers = CodeCounts(2**40)
        >>> numbers.add(torch.tensor([7, 2**39, 7, -1]))
        >>> numbers.seen, numbers.times
        (tensor([           7, 549755813888]), tensor([2, 1]))
    """

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu") -> None:
        self.codebook_size = codebook_size
        self.is_dense = codebook_size <= DENSE_CODES
        self._counts = torch.zeros(codebook_size if self.is_dense else 0, dtype=torch.int64, device=device)
        self._codes = self._counts.new_zeros(0)
        self._waiting: list[Tensor] = []

    def add(self, codes: Tensor) -> None:
        """Counts codes in [0, K), int64 of any shape; -1 is left out."""
        codes = codes.detach().flatten().to(self._counts.device)
        if self.is_dense:  # not bincount, which waits for the device
            self._counts.scatter_add_(0, codes.clamp_min(0), (codes >= 0).long())
            return
        self._waiting.append(codes.clone())
        if sum(part.numel() for part in self._waiting) >= WAITING:
            self._sort()

    def place(self, times: Tensor, codes: Tensor | None = None) -> None:
        """Sets the counts ``(K,)``, or beyond 2^24 codes the counts of the given distinct codes, both ``(U,)``."""
        self.clear()
        if codes is None:
            self._counts.copy_(times)
        else:
            self._merge(codes.to(self._counts.device), times.to(self._counts.device))

    def clear(self) -> None:
        """Sets all counts to 0."""
        self._waiting = []
        if self.is_dense:
            self._counts.zero_()
        else:
            self._codes, self._counts = self._codes.new_zeros(0), self._counts.new_zeros(0)

    @property
    def seen(self) -> Tensor:
        """Codes that were counted at least once, int64 in ascending order ``(U,)``."""
        self._sort()
        return self._counts.nonzero()[:, 0] if self.is_dense else self._codes

    @property
    def times(self) -> Tensor:
        """Number of times that each code of :attr:`seen` was counted, int64 ``(U,)``."""
        self._sort()
        return self._counts[self._counts > 0] if self.is_dense else self._counts

    @property
    def counts(self) -> Tensor:
        """Number of times that each code was counted, int64 ``(K,)``; beyond 2^24 codes a sparse tensor."""
        if self.is_dense:
            return self._counts
        return torch.sparse_coo_tensor(
            self.seen[None], self.times, (self.codebook_size,), is_coalesced=True, check_invariants=False
        )

    def merged(self) -> CodeCounts:
        """Sums over all ranks into new counts, on the CPU. A collective: every rank must call it."""
        merged = CodeCounts(self.codebook_size)
        if self.is_dense:
            merged.place(sum_over_ranks(self._counts.cpu()))
        else:
            own = torch.stack([self.seen, self.times], dim=1).cpu()
            rows = gather_rows(own, torch.ones(len(own), dtype=torch.bool))
            merged.place(rows[:, 1], rows[:, 0])
        return merged

    def _sort(self) -> None:
        if self._waiting:
            codes = torch.cat(self._waiting)
            self._waiting = []
            codes = codes[codes >= 0]
            self._merge(codes, torch.ones_like(codes))

    def _merge(self, codes: Tensor, times: Tensor) -> None:
        codes, times = torch.cat([self._codes, codes]), torch.cat([self._counts, times])
        self._codes, place = codes.unique(return_inverse=True)
        self._counts = times.new_zeros(len(self._codes)).scatter_add_(0, place, times)
