r"""A vector quantizer that trains step for step as vector-quantize-pytorch's codebook does.

::

    rows --own step of the codebook--> rows, codes --nearest, or drawn--> values, codes, loss
                                                    |
                                                    +--> counts and sums, folded in before the next step

Our own :class:`~gmvq.VectorQuantizer` has one way to do each of these. Here are the ways that the other library has
beside them: codes that are drawn, a network between the codebook and its codes, an optimizer of its own, statistics
that are weighted or accumulated, a commitment by cross-entropy. The loss of codes that learn is

.. math:: \mathcal{L} = w\, |z - \mu_c|^2, \quad \text{with its gradient to } z \text{ and to } \mu_c
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.peer_ways import Call, RowCodes, Ways, Weight
from gmvq.distributed import sum_over_ranks, world_size
from gmvq.kernels import code_sums, nearest_code, squared_distances
from gmvq.quantizers.parts.codebook import random_rows, snapshot, uniform
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.quantizers.parts.rows import mean_squared_error, row_mean
from gmvq.quantizers.parts.vector_parts import AbstractRegularizer, Affine, AffineCodebook, Orthogonal, Part
from gmvq.quantizers.vector import VectorQuantizer
from gmvq.types import Quantized

BLOCK_ELEMENTS = 1 << 22
"""Number of features of codes that depend on the row, held at a time."""


class PeerAffine(AffineCodebook):
    """An affine codebook whose running variances are the mean of those of the batches."""

    def _fold(
        self, running_mean: Tensor, running_variance: Tensor, mean: Tensor, variance: Tensor, share: Tensor
    ) -> None:
        running_mean.lerp_(mean, share)
        running_variance.lerp_(variance, share)


class PeerQuantizer(VectorQuantizer):
    r"""Quantizes latents to the nearest codes, and trains as the other library's codebook.

    .. math:: c = \arg\min_k |z - \mu_k|^2, \qquad \mathcal{L} = w\, |z - \mu_c|^2

    Args:
        dim: Features of a latent and of a code.
        codebook_size: Number of codes K.
        ways: What our own quantizer does not have.
        averages: True if codes are moving averages, False if they learn by gradient.
        commitment_weight: w.
        cosine: Compare directions.
        kmeans_start: Put the codes at the k-means of the first batch.
        revive_below: Moving count below which a code is replaced.
        estimator: How the gradient passes the choice of a code.
        parts: Of our quantizer, but :class:`InPlaceStep`.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``; the terms ``loss`` and ``targets`` have
        their gradient.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        ways: Ways,
        averages: bool = True,
        commitment_weight: float = 1.0,
        cosine: bool = False,
        kmeans_start: bool = False,
        revive_below: float = 0.0,
        estimator: AbstractEstimator | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            decay=0.5 if averages else None,
            commitment_weight=commitment_weight,
            cosine=cosine,
            kmeans_start=kmeans_start,
            revive_below=revive_below,
            estimator=estimator,
            parts=[part for part in parts if isinstance(part, Affine)],
        )
        if self.affine is not None:
            self.affine = PeerAffine(self.affine.part, self.codebook_dim)
        # those of moving averages move the latents
        self.regularizers = tuple(part for part in parts if isinstance(part, AbstractRegularizer))
        self.moving.decay = ways.decay  # 1 is a codebook that stays, too
        self.ways = ways
        self.bridge = ways.bridge
        self.call = Call()
        self.accumulating = False
        self.own_optimizer = None if ways.optimizer is None else ways.optimizer(self._own_parameters())

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        changes = self.training and (self.learned is None or self.revivals is not None)
        codes = snapshot(self.free_codes, changes or self.own_optimizer is not None)
        codes = codes if self.bridge is None else self.bridge(codes[None])[0]
        codes = codes if self.affine is None else self.affine(codes)
        return F.normalize(codes, dim=-1) if self.cosine else codes

    def _own_parameters(self) -> list[nn.Parameter]:
        bridge = () if self.bridge is None else self.bridge.parameters()
        return [*(() if self.learned is None else (self.learned,)), *bridge]

    @contextmanager
    def during(self, call: Call) -> Iterator[None]:
        """Does in one forward what a call asks for."""
        self.call = call
        try:
            yield
        finally:
            self.call = Call()

    def update(self) -> None:
        """Folds what past forwards collected into the codebook, unless more is to be accumulated."""
        if not self.accumulating:
            super().update()

    def step_in_place(self) -> None:
        """Takes the codebook's own step down the gradient that forwards have left, and forgets the gradient."""
        if self.own_optimizer is not None:
            self.own_optimizer.step()
            self.own_optimizer.zero_grad()

    def scores(self, rows: Tensor, codebook: Tensor) -> Tensor:
        """What the best code has most of, ``(N, K)``: the negative distance, or the cosine."""
        if self.cosine:
            return rows @ codebook.T
        return -squared_distances(rows, codebook).clamp_min(1e-8).sqrt()

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        return self.step(rows, kept, rows)

    def step(self, rows: Tensor, kept: Tensor, compared: Tensor, row_codes: RowCodes | None = None) -> Quantized:
        """Quantizes rows.

        Args:
            rows: Latents ``(N, L)``, which get the gradient of the values.
            kept: Which of them count ``(N,)``.
            compared: The same latents, which get the gradient of the loss.
            row_codes: What the codes become, where they depend on the row.
        """
        if self.cosine:
            rows, compared = direction(rows), direction(compared)
        terms: dict[str, Tensor] = {}
        if self.learning:
            self._start(rows, kept)
            if self.own_optimizer is not None:
                terms["in_place"] = self._descend(rows.detach(), kept, row_codes)
        elif self._repeats and self.own_optimizer is not None and self._temperature is not None:
            _noised(rows.new_zeros(len(rows), self.codebook_size), self._temperature)
        codebook = self.code_vectors.to(rows.dtype)
        codes = self._choose(rows, codebook, row_codes)
        nearest = F.embedding(codes, codebook)
        nearest = nearest if row_codes is None else row_codes.chosen(nearest)
        values = self.estimator(rows, nearest)
        compared_to = nearest.detach() if self.frozen else nearest
        loss = self._losses(compared, kept, codebook, codes, compared_to, terms)
        if self.learning:
            self._collect(rows.detach(), codes, kept, codebook.detach())
        elif self._repeats and self.revivals is not None:
            uniform(self.codebook_size, rows.device)
        return Quantized(values, codes, loss, {**terms, "loss": loss})

    def _losses(
        self, rows: Tensor, kept: Tensor, codebook: Tensor, codes: Tensor, nearest: Tensor, terms: dict[str, Tensor]
    ) -> Tensor:
        """The loss ``()``; its parts are added to the terms."""
        if self.call.targets is not None:
            scores = self.scores(rows, codebook)
            # a sum: heads may have different numbers of targets
            terms["targets"] = F.cross_entropy(scores, self.call.targets, ignore_index=-1, reduction="sum")
        if self.ways.cross_entropy and self.training:
            entropies = F.cross_entropy(self.scores(rows, codebook), codes, reduction="none")
            commitment = row_mean(entropies, kept)
        else:
            commitment = mean_squared_error(rows, nearest, kept)
        terms["commitment"] = commitment.detach()
        loss = self.commitment_weight * commitment
        for regularizer in self.regularizers:
            value = regularizer(self.regularized(regularizer, codebook, codes[kept]), rows, kept)
            loss, terms[regularizer.name] = loss + value, value.detach()
        return loss

    def regularized(self, regularizer: AbstractRegularizer, codebook: Tensor, taken: Tensor) -> Tensor:
        """The codes that a regularizer is a loss of, where the batch has taken some."""
        if not isinstance(regularizer, Orthogonal):
            return codebook
        free = snapshot(self.free_codes, self.training).to(codebook.dtype)
        return free[taken.unique()] if self.ways.active_only and len(taken) else free

    @torch.no_grad()
    def _choose(self, rows: Tensor, codebook: Tensor, row_codes: RowCodes | None = None) -> Tensor:
        """Code of each row ``(N,)``."""
        if row_codes is None and self._temperature is None:
            return self._nearest(rows, codebook)
        scores = self.scores(rows, codebook) if row_codes is None else _scores(rows, codebook, row_codes)
        return _noised(scores, self._temperature).argmax(-1)

    @torch.no_grad()
    def best(self, rows: Tensor, codebook: Tensor, number: int) -> Tensor:
        """The k best codes of each row, the best first: rows ``(N, L)``, codes ``(K, L)`` -> ``(N, k)``."""
        scores = _noised(self.scores(rows, codebook), self._temperature)
        if self._temperature is None:  # where several are as near, the first is that of a forward
            scores = scores.scatter(1, self._nearest(rows, codebook)[:, None], torch.inf)
        return scores.topk(number, -1).indices

    @property
    def _temperature(self) -> float | None:
        """Temperature of drawn codes, None where the best are taken."""
        temperature = self.ways.temperature if self.call.temperature is None else self.call.temperature
        return temperature if self.training and self.ways.stochastic and temperature > 0 else None

    def _nearest(self, rows: Tensor, codebook: Tensor) -> Tensor:
        if not self.cosine:
            return nearest_code(rows, codebook)
        # a code of length 0 has cosine 0 with every latent: one more feature makes it as far as a right angle
        missing = (1 - codebook.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
        missing = torch.where(missing > 0.5, missing, 0)
        codes = nearest_code(F.pad(rows, (0, 1)), torch.cat([codebook, missing], -1))
        return codes.masked_fill(~rows.any(-1), 0)  # a latent of length 0 is as near to all: the first, not a rounding

    def nearest(self, rows: Tensor, row_codes: RowCodes | None = None) -> tuple[Tensor, Tensor]:
        """Nearest code ``(N,)`` of each row ``(N, L)``, and its vector ``(N, L)``."""
        rows = direction(rows) if self.cosine else rows
        codebook = self.code_vectors.to(rows.dtype)
        if row_codes is None:
            codes = self._nearest(rows, codebook)
            return codes, codebook[codes]
        codes = _scores(rows, codebook, row_codes).argmax(-1)
        return codes, row_codes.chosen(codebook[codes])

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self.nearest(rows)[0]

    def _start(self, rows: Tensor, kept: Tensor) -> None:
        begins = not self.moving.has_started
        super()._start(rows, kept)
        if self.affine is None or not self.moving.has_started:
            return
        free = self.free_codes.detach()
        if begins:  # the map takes the codes' moments to the latents' at once
            self.affine.codes_mean.copy_(free.mean(0))
            self.affine.codes_variance.copy_(free.var(0, correction=0))
        else:
            self.affine.collect(rows.detach(), kept.to(rows.dtype))
            self.affine.update(free)

    @property
    def _repeats(self) -> bool:
        """True in a forward that checkpointing repeats, which must draw as many random numbers as the first."""
        return self.training and not self.frozen and not self.learning

    def _descend(self, rows: Tensor, kept: Tensor, row_codes: RowCodes | None) -> Tensor:
        """The codebook's own step: gives the loss before it."""
        # what this graph saves is none of what checkpointing counts, since a repeated forward has no step
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            codebook = self.code_vectors.to(rows.dtype)
            nearest = F.embedding(self._choose(rows, codebook, row_codes), codebook)
            nearest = nearest if row_codes is None else row_codes.chosen(nearest)
            loss = mean_squared_error(nearest, rows, kept)
            own = [parameter for parameter in self._own_parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(self.ways.share * loss, own, allow_unused=True)
        before = [parameter.grad for parameter in own]
        for parameter, gradient, earlier in zip(own, gradients, before, strict=True):
            if gradient is not None:
                mean = sum_over_ranks(gradient) / world_size()
                parameter.grad = mean if earlier is None or not self.ways.steps_by_hand else earlier + mean
            elif not self.ways.steps_by_hand:
                parameter.grad = None
        if not self.ways.steps_by_hand:
            self.step_in_place()
            for parameter, earlier in zip(own, before, strict=True):
                parameter.grad = earlier  # what others have left for an optimizer of theirs
        return loss.detach()

    @torch.no_grad()
    def _collect(self, rows: Tensor, codes: Tensor, kept: Tensor, codebook: Tensor) -> None:
        if self.call.averages:
            self.take(rows, codes, kept)
        if self.revivals is not None and self.revivals_distinct is not None:
            drawn, any_drawn = random_rows(rows, kept, self.codebook_size)
            self.revivals.copy_(torch.where(any_drawn, drawn, self.revivals))
            self.revivals_distinct.fill_(1)  # theirs are drawn with replacement, at codes, too

    @torch.no_grad()
    def take(self, rows: Tensor, codes: Tensor, kept: Tensor) -> None:
        """Adds rows ``(N, L)`` and their codes ``(N,)`` to the statistics, of which ``kept`` (N,) count."""
        self.accumulating = self.call.accumulates
        if not (self.averages or self.revivals is not None):
            return
        averaged = self.affine.inverse(rows) if self.affine is not None and self.averages else rows
        counts, sums = code_sums(averaged, codes, kept, self.codebook_size)
        self.moving.collect(counts, sums)
        if self.call.weight is not None:
            self._weigh(self.call.weight, sum_over_ranks(sums), sum_over_ranks(counts))

    def _weigh(self, weight: Weight, sums: Tensor, counts: Tensor) -> None:
        """Blends pending statistics with the past ones, so that the next update takes a share of its step."""
        moving = self.moving
        weight = weight if isinstance(weight, Tensor) else weight(sums[None], counts[None])
        weight = weight.to(moving.counts).reshape(-1).expand_as(moving.counts)
        moving.pending_counts.copy_(torch.lerp(moving.counts, moving.pending_counts, weight))
        moving.pending_sums.copy_(torch.lerp(moving.sums, moving.pending_sums, weight[:, None].expand_as(moving.sums)))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _scores(rows: Tensor, codebook: Tensor, row_codes: RowCodes) -> Tensor:
    """Negative distances of rows ``(N, L)`` from the codes of each, ``(N, K)``."""
    number = max(1, BLOCK_ELEMENTS // codebook.numel())
    blocks = [slice(start, start + number) for start in range(0, len(rows), number)]
    parts = [-(row_codes.crossed(codebook, block) - rows[block, None]).norm(dim=-1) for block in blocks]
    return torch.cat(parts) if parts else rows.new_zeros(0, len(codebook))


def _noised(scores: Tensor, temperature: float | None) -> Tensor:
    """Scores ``(N, K)`` whose largest is drawn with probabilities softmax(scores / temperature), by Gumbel noise."""
    if temperature is None:
        return scores
    chance = torch.zeros_like(scores).uniform_()
    return scores / temperature - chance.clamp_min(1e-20).log().neg().clamp_min(1e-20).log()
