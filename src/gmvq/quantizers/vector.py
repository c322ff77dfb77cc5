r"""Vector quantization: each latent becomes the nearest vector of a codebook.

.. math:: c = \arg\min_k |z - \mu_k|^2, \qquad
          \mathcal{L} = |\mathrm{sg}[z] - \mu_c|^2 + \beta\, |z - \mathrm{sg}[\mu_c]|^2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.kernels import code_sums, nearest_code, squared_distances
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator, non_negative
from gmvq.quantizers.parts.clustering import groups, off_codes
from gmvq.quantizers.parts.codebook import MovingAverageCodebook, random_rows, snapshot, uniform
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.estimators import AbstractEstimator, relaxed_sample
from gmvq.quantizers.parts.outliers import ORDINARY, counting_weights
from gmvq.quantizers.parts.rows import mean_squared_error
from gmvq.quantizers.parts.vector_parts import AbstractRegularizer, Affine, AffineCodebook, InPlaceStep, Part
from gmvq.types import Quantized

COUNT_DECAY = 0.99
"""Share of the past in the counts of a codebook that has no moving averages of its own."""

PartType = TypeVar("PartType")


class VectorQuantizer(AbstractQuantizer):
    r"""The quantizer of the VQ-VAE.

    .. math:: c = \arg\min_k |z - \mu_k|^2, \qquad
              \mathcal{L} = |\mathrm{sg}[z] - \mu_c|^2 + \beta\, |z - \mathrm{sg}[\mu_c]|^2

    The codebook is moved by the first term's gradient (``decay=None``), by steps of its own down the same term
    (:class:`InPlaceStep`), or, in place of the first term, by moving averages of the latents assigned to each code.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        decay: Share of the past in the moving averages, in [0, 1); None trains the codebook by gradient.
        commitment_weight: beta.
        cosine: Compare directions instead of points: latents and codes are scaled to length 1.
        kmeans_start: Put the codes at the k-means of the first batch instead of at random. Where it has fewer distinct
            latents than codes, the others wait for latents of later batches that lie far from all codes.
        revive_below: Moving count, in latents for each batch, below which a code is replaced by a random latent of the
            batch that does not lie at its code, each by another one; 0 leaves dead codes dead.
        estimator: How the gradient passes the choice of a code. ``GumbelSoftmax`` draws codes with probabilities
            :math:`\mathrm{softmax}_c(-|z - \mu_c|^2)` in training.
        parts: Any of :class:`Affine`, :class:`InPlaceStep`, :class:`Orthogonal`, :class:`Diversity`.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    Raises:
        ValueError: If an argument is out of range, or parts contradict ``decay``.

    References:
        Neural Discrete Representation Learning (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937;
        cosine and low code dimension: Vector-quantized Image Modeling with Improved VQGAN (Yu et al., 2021),
        https://arxiv.org/abs/2110.04627;
        revival: Jukebox (Dhariwal et al., 2020), https://arxiv.org/abs/2005.00341

    Example:
        >>> quantizer = VectorQuantizer(dim=8, codebook_size=32)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10]))
    """

    citations: tuple[str, ...] = ("vqvae_oord2017", "improved_vqgan_yu2021", "jukebox_dhariwal2020")

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        decay: float | None = 0.99,
        commitment_weight: float = 0.25,
        cosine: bool = False,
        kmeans_start: bool = True,
        revive_below: float = 0.0,
        estimator: AbstractEstimator | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.cosine = cosine
        self.kmeans_start = kmeans_start
        self.revive_below = non_negative("revive_below", revive_below)
        self.estimator = checked_estimator(estimator, draws=True)
        plain = not cosine and self.projection is None
        unused = {"improved_vqgan_yu2021": plain, "jukebox_dhariwal2020": revive_below == 0}
        self.citations = tuple(key for key in type(self).citations if not unused.get(key))
        self._take_parts(parts, decay)
        self.moving = MovingAverageCodebook(codebook_size, self.codebook_dim, COUNT_DECAY if decay is None else decay)
        # of the paper's size where a gradient moves them; k-means replaces them by default
        start = torch.empty(codebook_size, self.codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.learned = nn.Parameter(start) if decay is None and self.in_place is None else None
        if self.in_place is not None:
            self.moving.codes.copy_(start)
        self.averages = decay is not None
        revives = revive_below > 0
        self.register_buffer("revivals", torch.zeros(codebook_size, self.codebook_dim) if revives else None)
        self.register_buffer("revivals_distinct", torch.zeros(codebook_size) if revives else None)

    revivals: Tensor | None
    """Latents of the last batch that stand ready to replace dead codes."""
    revivals_distinct: Tensor | None
    """Above 0 for the first of equal ones, 0 for all where each latent lies at its code."""

    def _take_parts(self, parts: Sequence[Part], decay: float | None) -> None:
        if not isinstance(parts, Sequence):
            raise ValueError(f"'parts' must be a sequence, got {parts!r}. Use [{type(parts).__name__}(...)].")
        affine, self.in_place = _only(parts, Affine), _only(parts, InPlaceStep)
        self.regularizers = tuple(part for part in parts if isinstance(part, AbstractRegularizer))
        if len(parts) != len(self.regularizers) + (affine is not None) + (self.in_place is not None):
            raise ValueError(
                f"'parts' must be Affine, InPlaceStep, Orthogonal or Diversity, one of a kind, got {parts!r}. Use ()."
            )
        if decay is not None and (self.in_place is not None or self.regularizers):
            raise ValueError(
                "InPlaceStep, Orthogonal and Diversity need a codebook that learns by gradient, got moving averages "
                f"with 'decay' = {decay}. Set decay=None."
            )
        self.affine = None if affine is None else AffineCodebook(affine, self.codebook_dim)

    @property
    def free_codes(self) -> Tensor:
        """Codes that learn, ``(K, L)``: before the affine map, and before they are scaled to length 1."""
        return self.moving.codes if self.learned is None else self.learned

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        changes = self.training and (self.learned is None or self.revivals is not None or not self.moving.is_complete)
        codes = snapshot(self.free_codes, changes)
        codes = codes if self.affine is None else self.affine(codes)
        return F.normalize(codes, dim=-1) if self.cosine else codes

    def update(self) -> None:
        """Folds what past forwards collected into the codebook and replaces dead codes, unless it is frozen."""
        if self.frozen:
            return
        if self.in_place is not None:
            self._step(self.in_place)
        if self.averages:
            moved = self.moving.update()
        elif self.revivals is not None or self.in_place is not None:
            moved = self.moving.update_counts()
        else:
            moved = None
        if self.affine is not None:
            self.affine.update(self.free_codes.detach())
        if self.revivals is not None and self.revivals_distinct is not None and moved is not None:
            dead = (self.moving.counts < self.revive_below) & (self.moving.placed > 0) & moved
            self._replace(*self._matched(dead, self.revivals, self.revivals_distinct > 0), self.revive_below)

    @torch.no_grad()
    def _matched(self, dead: Tensor, rows: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Gives each free row ``(K, L)`` to one dead code, the least used first: which codes, and codes ``(K, L)``."""
        waiting = self.moving.counts.masked_fill(~dead, torch.inf).argsort(stable=True)
        rank = torch.empty_like(waiting).scatter_(0, waiting, torch.arange(len(waiting), device=waiting.device))
        order = (~free).to(torch.uint8).argsort(stable=True)
        return dead & (rank < free.sum()), rows[order[rank]]

    @torch.no_grad()
    def _replace(self, chosen: Tensor, codes: Tensor, count: float) -> None:
        """Puts the chosen codes ``(K,)`` at latents ``(K, L)`` with a weight."""
        codes = codes if self.affine is None else self.affine.inverse(codes)
        self.moving.replace(chosen, codes, count)
        if self.learned is not None:
            self.learned.copy_(torch.where(chosen[:, None], codes, self.learned))

    @torch.no_grad()
    def _step(self, step: InPlaceStep) -> None:
        counts, sums = self.moving.pending_counts[:, None], self.moving.pending_sums
        for _ in range(step.steps):
            codes = self.free_codes if self.affine is None else self.affine(self.free_codes)
            lengths = codes.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            shown = codes / lengths if self.cosine else codes
            gradient = 2 * (counts * shown - sums) / (counts.sum().clamp_min(1) * self.codebook_dim)
            if self.cosine:  # the derivative of a direction
                gradient = (gradient - shown * (shown * gradient).sum(-1, keepdim=True)) / lengths
            if self.affine is not None:
                gradient = gradient * self.affine.scale
            self.moving.codes.sub_(step.learning_rate * gradient)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        rows = direction(rows) if self.cosine else rows
        if self.learning:
            self._start(rows, kept)
        codebook = self.code_vectors.to(rows.dtype)
        values, codes, nearest = self._chosen(rows, codebook)
        commitment = mean_squared_error(rows, nearest.detach(), kept)
        loss, terms = self.commitment_weight * commitment, {"commitment": commitment.detach()}
        if self.learned is not None and not self.estimator.trains_codebook:
            loss = loss + mean_squared_error(nearest, rows.detach(), kept)
        for regularizer in self.regularizers:
            value = regularizer(codebook, rows, kept)
            loss, terms[regularizer.name] = loss + value, value.detach()
        if self.learning:
            self._collect(rows.detach(), codes, kept, codebook.detach())
        elif self.training and not self.frozen and self.revivals is not None:
            # a repeated forward draws as many numbers as the first, for the sake of all that draw after it
            uniform(self.codebook_size, rows.device)
        return Quantized(values, codes, loss, terms)

    def _chosen(self, rows: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(N, L)``, codes ``(N,)`` and their vectors ``(N, L)``."""
        temperature = self.estimator.temperature_at(self.training_progress) if self.training else None
        if temperature is not None:
            log_posterior = (-squared_distances(rows, codebook)).log_softmax(-1)
            values, codes, _ = relaxed_sample(log_posterior, codebook, temperature, self.estimator.hard)
            return values, codes, F.embedding(codes, codebook)
        codes = nearest_code(rows, codebook)
        nearest = F.embedding(codes, codebook)  # indexing takes longer, its backward most of all
        return self.estimator(rows, nearest), codes, nearest

    def _start(self, rows: Tensor, kept: Tensor) -> None:
        if self.moving.is_complete:
            return
        if self.moving.has_started:
            self._replace(*self.moving.found(rows, kept, self.code_vectors), 1.0)
            return
        if not self.kmeans_start:
            self.moving.place(self.free_codes.detach(), self.moving.counts)
        elif not self.moving.start(rows, kept):
            return
        elif self.learned is not None:
            with torch.no_grad():
                self.learned.copy_(self.moving.codes)
        if self.affine is not None:
            self.affine.start(rows.detach(), counting_weights(rows, kept, self.moving.codes))

    @torch.no_grad()
    def _collect(self, rows: Tensor, codes: Tensor, kept: Tensor, codebook: Tensor) -> None:
        if self.affine is None and not self.averages and self.revivals is None and self.in_place is None:
            return
        weights = counting_weights(rows, kept, codebook)
        if self.affine is not None:
            self.affine.collect(rows, weights)
        if self.averages or self.revivals is not None or self.in_place is not None:
            # moving averages are taken where the free codes are; steps go down the error of the codes themselves
            averaged = self.affine.inverse(rows) if self.affine is not None and self.averages else rows
            self.moving.collect(*code_sums(averaged, codes, weights, self.codebook_size))
        if self.revivals is not None and self.revivals_distinct is not None:
            # a code at the place of another would take nothing from it
            off = off_codes(rows, codebook[codes], codebook)
            drawn, any_drawn = random_rows(rows, (weights > ORDINARY) & off, self.codebook_size)
            self.revivals.copy_(torch.where(any_drawn, drawn, self.revivals))
            self.revivals_distinct.copy_(groups(drawn)[1] & any_drawn)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        rows = direction(rows) if self.cosine else rows
        return nearest_code(rows, self.code_vectors.to(rows.dtype))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]


def _only(parts: Sequence[Part], kind: type[PartType]) -> PartType | None:
    found = [part for part in parts if isinstance(part, kind)]
    return found[0] if found else None
