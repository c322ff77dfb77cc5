r"""The continuous bottleneck of the variational autoencoder.

.. math:: q(z \mid x) = \mathcal{N}(m, \mathrm{diag}(s^2)), \quad p(z) = \mathcal{N}(0, I), \quad z = m + s \epsilon
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck
from gmvq.quantizers.parts.rows import row_mean, rows_dtype
from gmvq.types import PosteriorSample, Quantized

LOG_VARIANCE_RANGE = (-20.0, 10.0)


class GaussianBottleneck(AbstractBottleneck):
    r"""Reparametrized normal latents with a KL divergence to the standard normal.

    .. math:: \mathrm{KL} = \tfrac12 \sum_l (m_l^2 + s_l^2 - 1 - \log s_l^2)

    Means and log-variances are linear in the latents. "Codes" are the means: ``encode`` gives floats ``(*, L)``.

    Args:
        dim: Features of a latent.
        codebook_dim: Features L of z, ``dim`` by default.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, L)``, loss ``()`` in nats per token.

    Raises:
        ValueError: If ``codebook_dim`` is more than ``dim``, or the last axis of the latents is not ``dim``.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> bottleneck = GaussianBottleneck(dim=8, codebook_dim=3)
        >>> values, means, loss, terms = bottleneck(torch.randn(2, 10, 8))
        >>> values.shape, means.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10, 3]))
    """

    loss_in_nats: ClassVar[bool] = True
    citations: tuple[str, ...] = ("vae_kingma2013",)

    def __init__(self, dim: int, codebook_dim: int | None = None) -> None:
        super().__init__(dim, codebook_dim)
        self.moments = nn.Linear(self.codebook_dim, 2 * self.codebook_dim)
        with torch.no_grad():  # start as the identity with small noise, so that the decoder sees the data at once
            self.moments.weight.copy_(torch.eye(2 * self.codebook_dim, self.codebook_dim))
            self.moments.bias.zero_()
            self.moments.bias[self.codebook_dim :] = -4.0

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if codes.shape[-1:] != (self.codebook_dim,) or not codes.is_floating_point():
            raise ValueError(
                f"'codes' of a continuous bottleneck are floats with {self.codebook_dim} features last, "
                f"got {codes.dtype} of shape {tuple(codes.shape)}. Pass what encode() returned."
            )
        rows = codes.reshape(-1, self.codebook_dim).to(dtype or rows_dtype(codes))
        return self._outside(rows).reshape(*codes.shape[:-1], self.dim)

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = nn.functional.linear(
            rows, self.moments.weight.to(rows.dtype), self.moments.bias.to(rows.dtype)
        ).chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        mean, log_variance = self._moments(rows)
        loss = row_mean(self._kl(mean, log_variance), kept)
        values = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return Quantized(values, mean, loss, {"divergence": loss.detach()})

    @staticmethod
    def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
        return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).clamp_min(0) / 2

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._moments(rows)[0]

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._moments(rows)[0]

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return self._kl(*self._moments(rows))

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        mean, log_variance = self._moments(rows)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        values = mean + (log_variance / 2).exp() * noise
        constant = self.codebook_dim * math.log(2 * math.pi)
        log_prior = -(values.square().sum(-1) + constant) / 2
        log_posterior = -(noise.square().sum(-1) + log_variance.sum(-1) + constant) / 2
        return PosteriorSample(values, log_prior, log_posterior)
