r"""Quantizers of signs that train as vector-quantize-pytorch's ``LFQ`` does.

.. math:: \mathcal{L} = w \big(E H(q) + \gamma\, \mathrm{KL}(q_B \| \mathrm{uniform})\big) + \beta |x - \mu_c|^2

Our own quantizers of signs have this loss of all latents, and pass the gradient straight through. Here the entropies
may be those of a random share of the latents, the gradient may pass through an activation, and the entropies through

.. math:: \mathrm{softplus}\big(E H(q) - \gamma H(q_B) + o\big)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.quantizers.binary import (
    AbstractBinaryQuantizer,
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    coins_entropy,
)
from gmvq.quantizers.parts.estimators import with_gradient_of
from gmvq.quantizers.parts.rows import mean_square, row_mean
from gmvq.quantizers.parts.schedules import as_schedule
from gmvq.types import Quantized


@dataclass(frozen=True)
class SignWays:
    """Ways of the other library's quantizer of signs that ours does not have.

    Attributes:
        share: Share of the latents whose entropies count, in (0, 1].
        offset: Of the softplus of the entropy loss, None without one.
        activation: What the gradient passes through, None for nothing.
    """

    share: float = 1.0
    offset: float | None = None
    activation: nn.Module | None = None


class PeerSigns(AbstractBinaryQuantizer):
    """Signs of latents with the other library's ways to train; a mixin before one of our two quantizers."""

    ways = SignWays()
    activation: nn.Module | None  # not a value of the class, which would hide the module

    def with_ways(self, ways: SignWays) -> PeerSigns:
        """Takes the ways, and gives the quantizer itself."""
        self.ways = ways
        self.activation = ways.activation
        return self

    @contextmanager
    def at(self, temperature: float) -> Iterator[None]:
        """Has another temperature in one forward."""
        before, self.temperature = self.temperature, as_schedule(temperature, "temperature")
        try:
            yield
        finally:
            self.temperature = before

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        placed = self._placed(rows)
        codes = self._encode_rows(rows)
        nearest = self._decode_rows(codes).to(rows.dtype)
        commitment = mean_square(placed - nearest, kept)
        logits, counted = self._logits(placed), self._counted(kept)
        entropy = row_mean(coins_entropy(logits).sum(-1), counted)
        divergence = self._aggregated_divergence(logits, counted) if self._compares_codes else torch.zeros_like(entropy)
        of_entropies = entropy + self.diversity_gamma * divergence
        if self.ways.offset is not None:
            most = self.diversity_gamma * self.codebook_dim * math.log(2)
            of_entropies = F.softplus(of_entropies - most + self.ways.offset)
        loss = self.commitment_weight * commitment + self.entropy_weight * of_entropies
        terms = {"commitment": commitment.detach(), "posterior_entropy": entropy.detach()}
        if self._compares_codes:
            terms["aggregated_divergence"] = divergence.detach()
        surrogate = placed if self.activation is None else self.activation(placed)
        return Quantized(with_gradient_of(nearest, surrogate), codes, loss, terms)

    @property
    def _compares_codes(self) -> bool:
        return self.entropy_weight * self.diversity_gamma > 0

    def _counted(self, kept: Tensor) -> Tensor:
        """Which latents count in the entropies: in training a random share of those that are kept, ``(N,)``."""
        if self.ways.share == 1 or not self.training:
            return kept
        number = int(kept.sum())
        order = torch.randn(number).argsort(-1).to(kept.device)
        return kept.masked_scatter(kept, order < int(number * self.ways.share))


class PeerLookupFree(PeerSigns, LookupFreeQuantizer):
    """:class:`PeerSigns` of a cube."""


class PeerSpherical(PeerSigns, BinarySphericalQuantizer):
    """:class:`PeerSigns` of a sphere."""
