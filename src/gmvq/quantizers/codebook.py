r"""A codebook that follows its data in closed form, and where codebooks start.

The running sums are those of online expectation maximization (Cappé and Moulines, 2009): with responsibilities
:math:`r_{nc}` of code c for row n, which are one-hot for a hard assignment,

.. math:: n_c \leftarrow \gamma n_c + (1 - \gamma) \sum_n r_{nc}, \quad
          m_c \leftarrow \gamma m_c + (1 - \gamma) \sum_n r_{nc} z_n, \quad \mu_c = m_c / n_c
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.distributed import gather_rows, sum_over_ranks
from gmvq.kernels import code_sums, nearest_code

SMALLEST_COUNT = 1e-20
"""A code whose running weight is below this has nothing left to average and stays where it is."""


@torch.no_grad()
def k_means(rows: Tensor, codebook_size: int, iterations: int = 10) -> Tensor:
    """Codes by Lloyd's algorithm, from rows drawn without replacement.

    Args:
        rows: Data ``(N, L)``; with fewer rows than codes, codes repeat rows, each shifted a little.
        codebook_size: Number of codes K.
        iterations: Rounds of assignment and averaging.

    Returns:
        Codes ``(K, L)``, all finite.
    """
    generator = torch.Generator().manual_seed(0)  # on the CPU, so that all ranks and devices draw the same
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    codes = rows[order[torch.arange(codebook_size, device=rows.device) % len(rows)]].clone()
    if len(rows) < codebook_size:
        spread = rows.std(0, correction=0).clamp_min(1e-3 * rows.abs().mean().clamp_min(1e-3))
        jitter = torch.randn(codes.shape, generator=generator, dtype=torch.float32).to(codes) * spread * 1e-2
        jitter[: len(rows)] = 0
        return codes + jitter
    for _ in range(iterations):
        counts, sums = code_sums(rows, nearest_code(rows, codes), rows.new_ones(len(rows)), codebook_size)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], codes)
    return codes


def in_backward() -> bool:
    """True while autograd runs a backward pass, where activation checkpointing repeats forwards."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class MovingAverageCodebook(nn.Module):
    """Codes that are running averages of the latents assigned to them.

    A forward only *collects* sums; the codes change in :meth:`update`, which the next forward calls by itself. So a
    codebook is the same from the forward that used it until the next one: values equal decoded codes in training
    too, and a forward that activation checkpointing repeats counts once.

    Args:
        codebook_size: Number of codes K.
        code_dim: Features L.
        decay: gamma, in [0, 1).
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    pending_counts: Tensor
    pending_sums: Tensor
    pending_fresh: Tensor
    started: Tensor

    def __init__(self, codebook_size: int, code_dim: int, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"'decay' must lie in [0, 1), got {decay}. Use for example 0.99.")
        self.decay = decay
        self.register_buffer("codes", torch.randn(codebook_size, code_dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("pending_counts", torch.zeros(codebook_size))
        self.register_buffer("pending_sums", torch.zeros(codebook_size, code_dim))
        self.register_buffer("pending_fresh", torch.zeros(codebook_size, dtype=torch.bool))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # on the host: reading the buffers in each forward would wait for the GPU
        self._has_started = False
        self._has_pending = False
        self.register_load_state_dict_post_hook(lambda module, _: module._recall())

    def _recall(self) -> None:
        self._has_started = bool(self.started)
        self._has_pending = bool(self.pending_counts.any())

    @property
    def has_started(self) -> bool:
        """True once the codes stand where data is."""
        return self._has_started

    @torch.no_grad()
    def start(self, rows: Tensor, kept: Tensor, counts: Tensor | None = None) -> bool:
        """Puts the codes at the k-means of the first rows of all ranks; does nothing without a row.

        Args:
            rows: Latents ``(N, L)``.
            kept: Rows that count ``(N,)``.
            counts: Weight that each code starts with ``(K,)``; by default its share of the rows.

        Returns:
            True if the codes stand now.
        """
        rows = gather_rows(rows.detach(), kept)
        if not len(rows):
            return False
        codes = k_means(rows, len(self.codes))
        if counts is None:
            counts = code_sums(rows, nearest_code(rows, codes), rows.new_ones(len(rows)), len(codes))[0]
        self.place(codes, counts.clamp_min(0.1))
        return True

    @torch.no_grad()
    def place(self, codes: Tensor, counts: Tensor) -> None:
        """Sets codes ``(K, L)`` and their weights ``(K,)`` and forgets what was pending."""
        self.codes.copy_(codes)
        self.counts.copy_(counts)
        self.sums.copy_(self.codes * self.counts[:, None])
        self._forget_pending()
        self.started.fill_(True)
        self._has_started = True

    @torch.no_grad()
    def collect(self, counts: Tensor, sums: Tensor, fresh: Tensor | None = None) -> None:
        """Adds to what the next update folds in.

        Args:
            counts: Weight of this rank's rows for each code ``(K,)``.
            sums: Their weighted sums ``(K, L)``.
            fresh: Codes that forget their past ``(K,)``, the same on all ranks.
        """
        if fresh is not None:
            self.pending_fresh.logical_or_(fresh)
        self.pending_counts.add_(sum_over_ranks(counts.detach()).to(self.counts.dtype))
        self.pending_sums.add_(sum_over_ranks(sums.detach()).to(self.sums.dtype))
        self._has_pending = True

    @torch.no_grad()
    def update(self) -> bool:
        """Folds the collected sums into the codes.

        Returns:
            True if there was anything to fold.
        """
        if not self._has_pending:
            return False
        step = torch.where(self.pending_fresh, 1.0, 1 - self.decay).to(self.counts.dtype)
        self.counts.lerp_(self.pending_counts, step)
        self.sums.lerp_(self.pending_sums, step[:, None].expand_as(self.sums))
        alive = self.counts > SMALLEST_COUNT
        self.codes.copy_(
            torch.where(alive[:, None], self.sums / self.counts.clamp_min(SMALLEST_COUNT)[:, None], self.codes)
        )
        self._forget_pending()
        return True

    def _forget_pending(self) -> None:
        self.pending_counts.zero_()
        self.pending_sums.zero_()
        self.pending_fresh.zero_()
        self._has_pending = False
