r"""Codes as classes: the gradient goes through the choice itself, to all codes.

.. math::
    \ell_k = z \cdot \mu_k, \quad p = \mathrm{softmax}(\ell / \tau), \quad c = \arg\max_k \ell_k, \quad
    \hat z = \sum_k \big(1_{k = c} + p_k - \mathrm{sg}[p_k]\big)\, \mu_k = \mu_c   \qquad (1)

In a VQ-VAE the gradient skips the choice, and only the chosen code learns. Here it goes back through the softmax, so
that all codes learn where the latents are, and unused ones do not stay behind.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.distributed import mean_over_ranks
from gmvq.kernels import in_blocks
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import non_negative
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.divergences import divergence_from_uniform
from gmvq.quantizers.parts.estimators import with_gradient_of
from gmvq.quantizers.parts.rows import mean_square, row_weights
from gmvq.quantizers.parts.schedules import Schedule, as_schedule, temperature_at
from gmvq.types import Posterior, PosteriorSample, Quantized

BLOCK_ELEMENTS = 1 << 20
"""Number of logits held at a time where no gradient keeps them."""


class IndexBackpropagationQuantizer(AbstractQuantizer):
    r"""Assigns each latent to the code of the largest dot product, with the gradient of the softmax over all codes.

    .. math::
        \mathcal{L} = w_I\, |\hat z - z|^2 + \beta\, |\mathrm{sg}[\mu_c] - z|^2 + w\, |\mu_c - \mathrm{sg}[z]|^2
                      + w_E \big(E_n[H(p_n)] + \mathrm{KL}(\bar p \,\|\, \mathrm{uniform})\big)    \qquad (2)

    The first three are the double quantization loss: through (1) and, as in a VQ-VAE, past the choice. The last makes
    each choice sure and all codes used; :math:`\bar p` is the mean of :math:`p_n` over all ranks. The paper writes it
    :math:`E[H(p_n)] - H(\bar p)`, which is negative; since :math:`\mathrm{KL}(\bar p \| \mathrm{uniform}) = \log K -
    H(\bar p)`, ours is the same plus log K: its gradient is the paper's, it is at least 0, and 0 is the best.

    Dot products favor long codes: without ``cosine`` the code of a decoded code may be another, longer one. Training
    needs memory N x K.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        cosine: Scale latents and codes to length 1. The logits then lie in [-1, 1] and want a ``temperature`` well
            below 1.
        temperature: tau in (1), a number above 0 or a schedule.
        index_weight: w_I.
        commitment_weight: beta, what the latents pay for their distance.
        quantization_weight: w, what the codes pay for it.
        entropy_weight: w_E, for each nat.
        entropy_temperature: tau of the p in the entropies of (2).

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Scalable Image Tokenization with Index Backpropagation Quantization (Shi et al., 2024),
        https://arxiv.org/abs/2412.02692

    Example:
        >>> quantizer = IndexBackpropagationQuantizer(dim=8, codebook_size=32)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.sum().backward()
        >>> bool((quantizer.learned.grad.abs().sum(-1) > 0).all())  # all codes, not only those that were chosen
        True
    """

    citations: tuple[str, ...] = ("ibq_shi2024",)
    has_posterior: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        cosine: bool = False,
        temperature: float | Schedule = 1.0,
        index_weight: float = 1.0,
        commitment_weight: float = 1.0,
        quantization_weight: float = 0.25,
        entropy_weight: float = 0.05,
        entropy_temperature: float | Schedule = 0.01,
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        self.cosine = cosine
        self.temperature = as_schedule(temperature, "temperature")
        self.entropy_temperature = as_schedule(entropy_temperature, "entropy_temperature")
        self.index_weight = non_negative("index_weight", index_weight)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.quantization_weight = non_negative("quantization_weight", quantization_weight)
        self.entropy_weight = non_negative("entropy_weight", entropy_weight)
        # of the paper's size: in the direction of its own code a latent's logit stands out from those of the others
        self.learned = nn.Parameter(torch.randn(codebook_size, self.codebook_dim))

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        return direction(self.learned) if self.cosine else self.learned

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        log_posterior = self._log_posterior(rows)
        return Posterior(log_posterior.exp(), _entropies(log_posterior), None)  # the dot products are no density

    def _scaled(self, rows: Tensor) -> Tensor:
        return direction(rows) if self.cosine else rows

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        rows, codebook = self._scaled(rows), self.code_vectors.to(rows.dtype)
        weights = row_weights(kept, rows.dtype)
        blocks = zip(
            self._blocks(rows),
            in_blocks(weights, self.codebook_size, BLOCK_ELEMENTS),
            strict=True,
        )
        codes, expected, entropies, totals = zip(
            *[self._block_choice(block, weight, codebook) for block, weight in blocks], strict=True
        )
        codes = torch.cat(codes)
        nearest = codebook[codes]
        # (1): one path to the chosen code, the other through p with the codes held fixed
        values = with_gradient_of(nearest, nearest + torch.cat(expected))
        commitment = mean_square(rows - nearest.detach(), kept)
        loss = self.commitment_weight * commitment
        loss = loss + self.index_weight * mean_square(values - rows, kept)
        loss = loss + self.quantization_weight * mean_square(nearest - rows.detach(), kept)  # (2)
        terms = {"commitment": commitment.detach()}
        if self.entropy_weight > 0:
            doubt = torch.stack(entropies).sum()
            unevenness = divergence_from_uniform(mean_over_ranks(torch.stack(totals).sum(0)))
            loss = loss + self.entropy_weight * (doubt + unevenness)
            terms |= {"posterior_entropy": doubt.detach(), "aggregated_divergence": unevenness.detach()}
        return Quantized(values, codes, loss, terms)

    def _block_choice(self, rows: Tensor, weights: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reduces N x K logits for (1) and (2): codes, expected codes, and weighted sums of entropies and of p."""
        logits = rows @ codebook.T
        codes, expected = logits.detach().argmax(-1), torch.zeros_like(rows)
        if torch.is_grad_enabled():  # only its gradient is seen
            temperature = temperature_at(self.temperature, self.training_progress)
            expected = (logits / temperature).softmax(-1) @ codebook.detach()
        if self.entropy_weight == 0:
            return codes, expected, rows.new_zeros(()), rows.new_zeros(len(codebook))
        logits = logits / temperature_at(self.entropy_temperature, self.training_progress)
        # probabilities below the least normal float32 are as good as 0, but cost a CPU ten times the time
        log_p = logits.clamp_min(logits.detach().amax(-1, keepdim=True) - 75).log_softmax(-1)
        p = log_p.exp()
        return codes, expected, -(weights @ (p * log_p).sum(-1)), weights @ p

    def _log_posterior(self, rows: Tensor) -> Tensor:
        logits = self._scaled(rows) @ self.code_vectors.to(rows.dtype).T
        return (logits / temperature_at(self.temperature, self.training_progress)).log_softmax(-1)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        codebook = self.code_vectors.to(rows.dtype)
        return torch.cat([(block @ codebook.T).argmax(-1) for block in self._blocks(self._scaled(rows))])

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        codebook = self.code_vectors.to(rows.dtype)
        return torch.cat([self._log_posterior(block).exp() @ codebook for block in self._blocks(rows)])

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = self._log_posterior(rows)
        codes = torch.multinomial(log_posterior.exp(), 1, generator=generator)
        log_prior = rows.new_full((len(rows),), -math.log(self.codebook_size))
        return PosteriorSample(
            self.code_vectors.to(rows.dtype)[codes[:, 0]], log_prior, log_posterior.gather(-1, codes)[:, 0]
        )

    def _blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return in_blocks(rows, self.codebook_size, BLOCK_ELEMENTS)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return (math.log(self.codebook_size) - _entropies(self._log_posterior(rows))).clamp_min(0)


def _entropies(log_probabilities: Tensor) -> Tensor:
    """Entropies ``(N,)`` in nats of log-probabilities ``(N, K)``."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
