r"""A codebook that follows its data in closed form, and where codebooks start.

The running sums are those of online expectation maximization (Cappé and Moulines, 2009): with responsibilities
:math:`r_{nc}` of code c for row n, which are one-hot for a hard assignment,

.. math:: n_c \leftarrow \gamma n_c + (1 - \gamma) \sum_n r_{nc}, \quad
          m_c \leftarrow \gamma m_c + (1 - \gamma) \sum_n r_{nc} z_n, \quad \mu_c = m_c / n_c
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.checks import can_look_at
from gmvq.distributed import broadcast, gather_rows, rank, sum_over_ranks, world_size
from gmvq.kernels import nearest_code
from gmvq.quantizers.parts.clustering import (
    GOLDEN,
    clusters,
    finest_type,
    groups,
    may_repeat,
    off_codes,
    shift_of,
    spread_rows,
)

STARVED = 1e-2
"""Share of the mean weight below which a code is compared with all others."""

MEMORY = 80.0
"""Rows for each code that averages remember: fewer are noise, by which latents and codes drift apart."""

STEPS, SHARE_OF_STEPS = 20.0, 0.05
"""Steps that averages remember at most, or a share of the steps so far if that is more: a longer memory lags behind an
encoder that moves fast."""

SMALLEST_COUNT = 1e-20
"""A code whose running weight is below this has nothing left to average and stays where it is."""


@torch.library.custom_op("gmvq::clusters_of_all_ranks", mutates_args=())
def _clusters_of_all_ranks(rows: Tensor, kept: Tensor, codebook_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``(K, L)``, their counts and which have rows of their own: one operator, opaque to a compiled graph."""
    rows = gather_rows(rows, kept)
    if not len(rows):
        raise ValueError(
            "The first batch under torch.compile has no latent that counts, so the codebook cannot start from it. "
            "Call the quantizer once on a batch with finite latents."
        )
    codes, counts, own = clusters(rows, codebook_size, spread=False)
    return codes, counts, own


@_clusters_of_all_ranks.register_fake
def _(rows: Tensor, kept: Tensor, codebook_size: int) -> tuple[Tensor, Tensor, Tensor]:
    counts = rows.new_empty(codebook_size)
    return rows.new_empty(codebook_size, rows.shape[1]), counts, counts.bool()


@torch.library.custom_op("gmvq::rows_for_codes", mutates_args=())
def _rows_for_codes(rows: Tensor, kept: Tensor, codes: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``(K, L)``, those that wait at far rows of all ranks as far as there are, and which have found one."""
    number = int(waiting.sum())
    if not number:  # the same on all ranks
        return codes.clone(), torch.zeros_like(waiting)
    standing = codes[~waiting]
    off = off_codes(rows, standing[nearest_code(rows, standing)], standing)
    found = spread_rows(gather_rows(rows, kept & off), standing, number)
    chosen = waiting.nonzero()[: len(found), 0]
    return codes.index_copy(0, chosen, found), torch.zeros_like(waiting).index_fill(0, chosen, True)


@_rows_for_codes.register_fake
def _(rows: Tensor, kept: Tensor, codes: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codes), torch.empty_like(waiting)


def uniform(number: int, device: torch.device) -> Tensor:
    """Random numbers in [0, 1) ``(number,)``, as fine as the device has them."""
    return torch.rand(number, dtype=finest_type(device), device=device)


@torch.no_grad()
def random_rows(rows: Tensor, kept: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Rows drawn with replacement out of all ranks, the same on every rank.

    Args:
        rows: Data of this rank ``(N, L)``.
        kept: Rows that may be drawn ``(N,)``.
        number: How many to draw, M.

    Returns:
        Rows ``(M, L)``, and ``()`` True if there was any to draw from; they are 0 otherwise.
    """
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = kept.sum()
    counts = sum_over_ranks(counts)
    total = counts.sum()
    drawn = (broadcast(uniform(number, rows.device)) * total).long()
    # ranks hold consecutive ranges of the drawn numbers
    own = drawn.clamp_max(total - 1) - (counts.cumsum(0) - counts)[rank()]
    here = (own >= 0) & (own < counts[rank()])
    order = kept.logical_not().int().argsort(stable=True)
    padded = torch.cat([rows[order], rows.new_zeros(1, rows.shape[1])])  # a row to point to where there is none
    return sum_over_ranks(torch.where(here[:, None], padded[own.clamp(0, len(rows))], 0)), total > 0


@torch.library.custom_op("gmvq::snapshot", mutates_args=())
def _snapshot(values: Tensor) -> Tensor:
    return values.clone()


@_snapshot.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _pass_gradient(_: object, gradient: Tensor) -> Tensor:
    return gradient


_snapshot.register_autograd(_pass_gradient)


def snapshot(values: Tensor, training: bool) -> Tensor:
    """A copy, in training, of what changes in place before autograd has used it.

    A compiled step needs an operator that is never computed again: it would take a plain copy from the statistics anew
    in the backward pass, when they have changed.

    Args:
        values: Statistics, what is computed from them, or a parameter that revival writes into.
        training: False where nothing changes: the values themselves.
    """
    if not training:
        return values
    return _snapshot(values) if torch.compiler.is_compiling() else values.clone()


def in_backward() -> bool:
    """True while autograd runs a backward pass, where activation checkpointing repeats forwards."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _recall(module: nn.Module, _: object) -> None:
    # not a lambda, which could not be pickled
    if isinstance(module, MovingAverageCodebook):
        placed = module.placed > 0
        module._has_started, module._is_complete = bool(placed.any()), bool(placed.all())


class MovingAverageCodebook(nn.Module):
    """Codes that are running averages of the latents assigned to them.

    A forward only *collects* sums; the codes change in :meth:`update`, which the next forward calls by itself. So a
    codebook is the same from the forward that used it until the next one: values equal decoded codes in training
    too, and a forward that activation checkpointing repeats counts once.

    Args:
        codebook_size: Number of codes K.
        code_dim: Features L.
        decay: gamma, in [0, 1); None follows the number of rows: averages remember 80 for each code, but at most 20
            steps or a twentieth of the steps so far.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    pending_counts: Tensor
    pending_sums: Tensor
    pending_fresh: Tensor
    placed: Tensor
    """Above 0 for codes that stand where a row was."""
    updates: Tensor | None
    """Number of updates with rows, where it matters."""

    def __init__(self, codebook_size: int, code_dim: int, decay: float | None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"'decay' must lie in [0, 1), got {decay}. Use for example 0.99.")
        self.decay = decay
        self.register_buffer("codes", torch.randn(codebook_size, code_dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("pending_counts", torch.zeros(codebook_size))
        self.register_buffer("pending_sums", torch.zeros(codebook_size, code_dim))
        # flags are numbers, 0 or above, so that an average over models is one of states
        self.register_buffer("pending_fresh", torch.zeros(codebook_size))
        self.register_buffer("placed", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.zeros(()) if decay is None else None)
        # on the host: reading the buffer in each forward would wait for the GPU
        self._has_started = self._is_complete = False
        self.register_load_state_dict_post_hook(_recall)

    @property
    def has_started(self) -> bool:
        """True once codes stand where data is."""
        if not self._has_started and not torch.compiler.is_compiling():
            self._has_started = bool((self.placed > 0).any())  # an average over models writes the buffer alone
        return self._has_started

    @property
    def is_complete(self) -> bool:
        """True once each code has had a row of its own, as far as is known without waiting in a compiled graph."""
        if not self._is_complete and not torch.compiler.is_compiling():
            self._is_complete = bool((self.placed > 0).all())
        return self._is_complete

    @torch.no_grad()
    def start(self, rows: Tensor, kept: Tensor, even: bool = False) -> bool:
        """Puts the codes at the k-means of the first rows of all ranks; does nothing without a row.

        With fewer distinct rows than codes, the others wait for :meth:`found`.

        Args:
            rows: Latents ``(N, L)``.
            kept: Rows that count ``(N,)``.
            even: Give all codes the same weight instead of their share of the rows.

        Returns:
            True if the codes stand now.
        """
        if not torch.compiler.is_compiling() and not bool(sum_over_ranks(kept.sum())):
            return False
        codes, counts, own = _clusters_of_all_ranks(rows.detach(), kept, len(self.codes))
        self.place(codes, (counts.mean().expand_as(counts) if even else counts).clamp_min(0.1), own)
        return True

    @torch.no_grad()
    def found(self, rows: Tensor, kept: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Looks for rows for the codes that wait for one: the start goes on until each has had a row of its own.

        Args:
            rows: Latents ``(N, L)``.
            kept: Rows that count ``(N,)``.
            codes: The codebook as latents see it ``(K, L)``.

        Returns:
            Which codes go to a new place ``(K,)``, and codes ``(K, L)`` that have those places.
        """
        places, chosen = _rows_for_codes(rows.detach(), kept, codes.detach().to(rows.dtype), self.placed <= 0)
        self.placed.masked_fill_(chosen, 1)
        return chosen, places.to(self.codes.dtype)

    @torch.no_grad()
    def place(self, codes: Tensor, counts: Tensor, own: Tensor | None = None) -> None:
        """Sets codes ``(K, L)`` and their weights ``(K,)`` and forgets what was pending.

        Args:
            codes: The codes.
            counts: Their weights.
            own: Codes that do not wait for a row, booleans ``(K,)``; by default all.
        """
        self.codes.copy_(codes)
        self.counts.copy_(counts)
        self.sums.copy_(self.codes * self.counts[:, None])
        self._forget_pending()
        self.placed.copy_(torch.ones_like(self.placed) if own is None else own)
        self._has_started, self._is_complete = True, own is None

    @torch.no_grad()
    def collect(self, counts: Tensor, sums: Tensor, fresh: Tensor | None = None) -> None:
        """Adds to what the next update folds in.

        Args:
            counts: Weight of this rank's rows for each code ``(K,)``.
            sums: Their weighted sums ``(K, L)``.
            fresh: Codes that forget their past ``(K,)``, the same on all ranks.
        """
        if fresh is not None:
            self.pending_fresh.masked_fill_(fresh, 1)
        self.pending_counts.add_(sum_over_ranks(counts.detach()).to(self.counts.dtype))
        self.pending_sums.add_(sum_over_ranks(sums.detach()).to(self.sums.dtype))

    def new_share(self) -> Tensor | float:
        """Returns the share 1 - gamma that what is collected has in the next averages."""
        if self.decay is not None:
            return 1 - self.decay
        assert self.updates is not None  # made where there is no decay
        steps = MEMORY / self.pending_counts.mean()
        return -torch.expm1(-1 / steps.minimum((SHARE_OF_STEPS * self.updates).clamp_min(STEPS)))

    @torch.no_grad()
    def update(self, deviation: Tensor | float = 0.0) -> Tensor:
        """Folds the collected sums into the codes, and splits codes that are equal.

        Args:
            deviation: Of the rows of a code, ``()``: what equal codes are split by; a tensor where starved codes are
                fed, so that equal ones can stay so.

        Returns:
            True if there was anything to fold, ``()``. It stays on the device, where all branches are taken by it.
        """
        pending = self.pending_counts.any()
        step = torch.where(self.pending_fresh > 0, 1.0, self.new_share()).to(self.counts.dtype) * pending
        self.counts.lerp_(self.pending_counts, step)
        self.sums.lerp_(self.pending_sums, step[:, None].expand_as(self.sums))
        moved = (self.counts > SMALLEST_COUNT) & pending
        means = self.sums / self.counts.clamp_min(SMALLEST_COUNT)[:, None]
        self.codes.copy_(torch.where(moved[:, None], means, self.codes))
        self._split(pending, deviation)
        self._forget(pending)
        return pending

    def _split(self, pending: Tensor, deviation: Tensor | float) -> None:
        """Shifts codes that equal another and shares their weight: else one would take all rows of both."""
        # of equal codes only the first gets rows, and the weight of the others falls, unless something feeds them
        fed = isinstance(deviation, Tensor)
        if can_look_at(pending) and not ((fed or self._any_starved()) and may_repeat(self.codes)):
            return
        group, first = groups(self.codes)
        equal = ~first & pending
        numbers = torch.arange(self.codes.numel(), device=self.codes.device).view_as(self.codes)
        shifts = ((numbers * GOLDEN).frac() - 0.5).to(self.codes.dtype) * (shift_of(self.codes) + deviation)
        self.codes.add_(shifts * equal[:, None])
        size = torch.zeros_like(self.counts).index_add(0, group, torch.ones_like(self.counts))
        shares = torch.zeros_like(self.counts).index_add(0, group, self.counts) / size
        shared = (size[group] > 1) & pending
        self.counts.copy_(torch.where(shared, shares[group], self.counts))
        self.sums.copy_(torch.where(shared[:, None], self.codes * self.counts[:, None], self.sums))

    def _any_starved(self) -> bool:
        return bool((self.counts < STARVED * self.counts.mean()).any())

    @torch.no_grad()
    def stretch(self, by: Tensor) -> None:
        """Multiplies codes and sums by a map ``(L, L)``."""
        self.codes.copy_(self.codes @ by)
        self.sums.copy_(self.sums @ by)

    @torch.no_grad()
    def update_counts(self) -> Tensor:
        """Folds only the counts in, for codes that something else moves; returns what :meth:`update` does."""
        pending = self.pending_counts.any()
        self.counts.lerp_(self.pending_counts, self.new_share() * pending.to(self.counts.dtype))
        self._forget(pending)
        return pending

    @torch.no_grad()
    def replace(self, chosen: Tensor, codes: Tensor, count: float | Tensor) -> None:
        """Puts the chosen codes ``(K,)`` at new places ``(K, L)`` with a weight, ``()``."""
        self.codes.copy_(torch.where(chosen[:, None], codes, self.codes))
        self.counts.masked_fill_(chosen, count)
        self.sums.copy_(torch.where(chosen[:, None], codes * count, self.sums))

    def _forget(self, pending: Tensor) -> None:
        if self.updates is not None:
            self.updates.add_(pending)
        self._forget_pending()

    def _forget_pending(self) -> None:
        self.pending_counts.zero_()
        self.pending_sums.zero_()
        self.pending_fresh.zero_()
