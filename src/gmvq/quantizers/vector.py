r"""Vector quantization: each latent becomes the nearest vector of a codebook.

.. math:: c = \arg\min_k |z - \mu_k|^2, \qquad
          \mathcal{L} = |\mathrm{sg}[z] - \mu_c|^2 + \beta\, |z - \mathrm{sg}[\mu_c]|^2
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.kernels import code_sums, nearest_code
from gmvq.quantizers.base import AbstractQuantizer, mean_square
from gmvq.quantizers.codebook import MovingAverageCodebook, random_rows
from gmvq.quantizers.estimators import AbstractEstimator, StraightThrough
from gmvq.types import Quantized


class VectorQuantizer(AbstractQuantizer):
    r"""The quantizer of the VQ-VAE.

    The codebook learns by the gradient of :math:`|\mathrm{sg}[z] - \mu_c|^2` (``decay=None``) or as the moving average
    of the latents assigned to each code.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        decay: Share of the past in the moving averages, in [0, 1); None trains the codebook by gradient.
        commitment_weight: beta.
        cosine: Compare directions instead of points: latents and codes are scaled to length 1.
        kmeans_start: Put the codes at the k-means of the first batch instead of at random.
        revive_below: Moving count, in latents for each batch, below which a code is replaced by a random latent of the
            batch; 0 leaves dead codes dead. Needs ``decay``.
        estimator: How the gradient passes the choice of a code.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    References:
        Neural Discrete Representation Learning (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937;
        revival: Jukebox (Dhariwal et al., 2020), https://arxiv.org/abs/2005.00341

    Example:
        >>> quantizer = VectorQuantizer(dim=8, codebook_size=32)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10]))
    """

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
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        if not (math.isfinite(commitment_weight) and commitment_weight >= 0):
            raise ValueError(f"'commitment_weight' must be at least 0, got {commitment_weight}. Use for example 0.25.")
        if not (math.isfinite(revive_below) and revive_below >= 0):
            raise ValueError(f"'revive_below' must be at least 0, got {revive_below}. Use 1.0, or 0 for no revival.")
        if decay is None and revive_below > 0:
            raise ValueError("'revive_below' needs the counts of a moving average. Set 'decay', for example to 0.99.")
        self.commitment_weight = commitment_weight
        self.cosine = cosine
        self.kmeans_start = kmeans_start
        self.revive_below = revive_below
        self.estimator = StraightThrough() if estimator is None else estimator
        self.moving = MovingAverageCodebook(codebook_size, self.codebook_dim, 0.0 if decay is None else decay)
        # of the paper's size where a gradient moves them; k-means replaces them by default
        start = torch.empty(codebook_size, self.codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.learned = nn.Parameter(start) if decay is None else None
        self.register_buffer("revivals", torch.zeros(codebook_size, self.codebook_dim) if revive_below > 0 else None)

    revivals: Tensor | None
    """Latents of the last batch that stand ready to replace dead codes."""

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        codes = self.moving.codes if self.learned is None else self.learned
        return F.normalize(codes, dim=-1) if self.cosine else codes

    def update(self) -> None:
        """Folds the collected sums into the codebook and replaces dead codes."""
        if self.learned is not None:
            return
        moved = self.moving.update()
        if self.revivals is not None:
            dead = (self.moving.counts < self.revive_below) & moved
            self.moving.replace(dead, self.revivals, self.revive_below)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        rows = F.normalize(rows, dim=-1) if self.cosine else rows
        if self.learning:
            self._start(rows, kept)
        # a copy, since the next update changes the moving averages in place before autograd may have used them
        codebook = (
            self.code_vectors.to(rows.dtype) if self.learned is not None else self.code_vectors.to(rows.dtype).clone()
        )
        codes = nearest_code(rows, codebook)
        nearest = codebook[codes]
        commitment = mean_square(rows - nearest.detach(), kept)
        loss = self.commitment_weight * commitment
        if self.learned is not None:
            loss = loss + mean_square(rows.detach() - nearest, kept)
        elif self.learning:
            self._collect(rows.detach(), codes, kept)
        return Quantized(self.estimator(rows, nearest), codes, loss, {"commitment": commitment.detach()})

    def _start(self, rows: Tensor, kept: Tensor) -> None:
        if self.moving.has_started:
            return
        if not self.kmeans_start:
            self.moving.place(self.code_vectors.detach(), self.moving.counts)
        elif self.moving.start(rows, kept) and self.learned is not None:
            with torch.no_grad():
                self.learned.copy_(self.moving.codes)

    @torch.no_grad()
    def _collect(self, rows: Tensor, codes: Tensor, kept: Tensor) -> None:
        self.moving.collect(*code_sums(rows, codes, kept, self.codebook_size))
        if self.revivals is not None:
            drawn, any_drawn = random_rows(rows, kept, self.codebook_size)
            self.revivals.copy_(torch.where(any_drawn, drawn, self.revivals))

    def _encode_rows(self, rows: Tensor) -> Tensor:
        rows = F.normalize(rows, dim=-1) if self.cosine else rows
        return nearest_code(rows, self.code_vectors.to(rows.dtype))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]
