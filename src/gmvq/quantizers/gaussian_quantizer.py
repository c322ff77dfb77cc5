r"""Vector quantization without training: a Gaussian VAE's posteriors name the vectors of a random codebook.

.. math::
    q(z \mid x) &= \mathcal{N}(m, \mathrm{diag}(s^2)), \qquad p(z) = \mathcal{N}(0, I), \qquad
    \mu_1, \dots, \mu_K \sim p(z)                                                                         \qquad (1) \\
    c &= \arg\max_k \log \frac{q(\mu_k \mid x)}{p(\mu_k)^\omega}
       = \arg\min_k \sum_l \frac{(m_l - \mu_{kl})^2}{s_l^2} - \omega\, \mu_{kl}^2                          \qquad (2) \\
    R &= \mathrm{KL}(q(z \mid x) \,\|\, p(z)) = \tfrac12 \sum_l (m_l^2 + s_l^2 - 1 - \log s_l^2)            \qquad (3)

Of exp(R) draws from p about one lies where q has its mass. So with K above exp(R) some code lies there, and the
decoder, trained on draws from q, does not see the difference. The chance that none does falls as
:math:`\exp(-\mathrm{const} \cdot e^t)` with :math:`t = \log K - R`, and goes to 1 as K falls below the rate. All L
features in one code would need the exponential of their whole rate, so m features at a time make a group, and each
group takes a code of its own from one codebook of m features.

With omega = 0 the code is the one nearest to the posterior's mean, in units of its deviation. That pulls codes toward
0, where noise is dense. With omega = 1 the criterion is q(z | x) / p(z), which for an exact posterior is the likelihood
p(x | z) up to a constant: the code that explains the data best.

**Target divergence constraint.** Training should give each group of each token the rate log K: no more, which its code
could not hold, and no less, which would waste codes. What a rate weighs in the loss depends on where it stands:

.. math::
    \mathcal{L} = \lambda \sum_g w_g R_g, \qquad
    w_g = \lambda_{\max} \text{ if } R_g > \log K + \alpha, \quad
          \lambda_{\min} \text{ if } R_g < \log K - \alpha, \quad 1 \text{ else}                           \qquad (4)

With each step lambda grows by the factor 1.01 if the batch's mean rate is above log K, lambda_max >= 1 if its largest
rate is too high, and 1 / lambda_min >= 1 if its least is too low; otherwise they shrink by it.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.distributed import rank, sum_over_ranks, world_size
from gmvq.kernels import in_blocks, weighted_squared_distances
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.gaussian import LOG_VARIANCE_RANGE, GaussianBottleneck
from gmvq.quantizers.parts.checks import checked_codes, non_negative, positive_integer
from gmvq.quantizers.parts.codebook import snapshot
from gmvq.quantizers.parts.estimators import with_gradient_of
from gmvq.quantizers.parts.rows import row_mean
from gmvq.types import Posterior, PosteriorSample, Quantized

WEIGHT_STEP = 1.01
"""Factor by which an update moves each weight of (4), as in the paper."""

WEIGHT_RANGE = 1e3
"""The weights stay between this and its reciprocal, as in the paper."""


class GaussianQuantizer(AbstractQuantizer):
    r"""Codes of a Gaussian VAE: the vectors of a fixed random codebook that its posteriors point to (2).

    Trained from the start, it is a VAE whose divergence is held at log K nats for each group of features (4). For a
    trained VAE :meth:`from_bottleneck` is enough; check with :meth:`group_divergences` that log K is above its rate.

    Means and log-variances are linear in the latents, as in
    :class:`~gmvq.quantizers.gaussian.GaussianBottleneck`. What the decoder sees is z and not a latent, so once these
    maps are trained the codes of decoded codes are others. The codebook is a buffer: a saved model holds it.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K of a group. For a VAE that is trained already, with log K two nats above the
            rate the error is that of the VAE's own draws.
        codebook_dim: Features L of z, ``dim`` by default.
        group_dim: Features m of a group, a divisor of L; L by default.
        seed: Of the codebook.
        prior_weight: omega: 1 takes the code of the largest q(z | x) / p(z), as the authors' code does; 0 the one
            nearest to the mean.
        hard: Show the decoder the code in training too, with the gradient of m + s epsilon at the epsilon that leads
            there. By default training is that of the VAE: ``values`` is a draw and differs from ``decode(codes)``.
        margin: alpha, how far a rate may lie from log K, in nats; by default half a bit.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, L / m)``, or ``(*)`` for a single group, loss ``()`` in
        nats per token.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Vector Quantization using Gaussian Variational Autoencoder (Xu et al., 2025), https://arxiv.org/abs/2512.06609;
        what it is trained as: Auto-Encoding Variational Bayes (Kingma and Welling, 2013),
        https://arxiv.org/abs/1312.6114

    Example:
        >>> quantizer = GaussianQuantizer(dim=8, codebook_size=256, group_dim=4)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10, 2]))
    """

    citations: tuple[str, ...] = ("gaussianquant_xu2025", "vae_kingma2013")
    has_posterior: ClassVar[bool] = True
    loss_in_nats: ClassVar[bool] = True

    noise: Tensor
    """The codebook of all groups, ``(K, m)``."""

    divergence_weights: Tensor
    """lambda_min, lambda and lambda_max of (4), ``(3,)``."""

    pending_rows: Tensor
    pending_excess: Tensor
    """The least rate less log K, or 0 if none is below, the sum of all of them, and the largest, or 0, ``(3,)``."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        group_dim: int | None = None,
        seed: int = 0,
        prior_weight: float = 1.0,
        hard: bool = False,
        margin: float = 0.5 * math.log(2),
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        self.group_dim = self.codebook_dim if group_dim is None else positive_integer("group_dim", group_dim)
        if self.codebook_dim % self.group_dim:
            raise ValueError(
                f"'group_dim' must divide the {self.codebook_dim} features of z, got {group_dim}. Use a divisor, or "
                "leave it out for a single group."
            )
        if not 0 <= prior_weight <= 1:
            raise ValueError(f"'prior_weight' must lie in [0, 1], got {prior_weight}. Use 1.0.")
        self.prior_weight = prior_weight
        self.hard = hard
        self.margin = non_negative("margin", margin)
        self.moments = GaussianBottleneck(self.codebook_dim).moments  # starts as that of the VAE
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that all devices and ranks draw the same
        self.register_buffer("noise", torch.randn(codebook_size, self.group_dim, generator=generator))
        self.register_buffer("divergence_weights", torch.ones(3))
        self.register_buffer("pending_rows", torch.zeros(()))
        self.register_buffer("pending_excess", torch.zeros(3))

    @classmethod
    def from_bottleneck(
        cls,
        bottleneck: GaussianBottleneck,
        codebook_size: int,
        *,
        group_dim: int | None = None,
        seed: int = 0,
        prior_weight: float = 1.0,
    ) -> Self:
        """Converts the bottleneck of a trained VAE, without training; encoder and decoder stay as they are.

        Args:
            bottleneck: Of the trained model; its parameters are copied.
            codebook_size: Number of codes K of a group, above exp of its rate (3).
            group_dim: Features m of a group; all of them by default.
            seed: Of the codebook.
            prior_weight: omega.

        Raises:
            ValueError: If the bottleneck is not that of a Gaussian VAE.
        """
        if not isinstance(bottleneck, GaussianBottleneck):
            raise ValueError(
                f"'bottleneck' must be a GaussianBottleneck, got {type(bottleneck).__name__}. Train a VAE with one."
            )
        quantizer = cls(
            bottleneck.dim,
            codebook_size,
            codebook_dim=bottleneck.codebook_dim,
            group_dim=group_dim,
            seed=seed,
            prior_weight=prior_weight,
        )
        quantizer.load_state_dict({**quantizer.state_dict(), **bottleneck.state_dict()})
        quantizer.train(bottleneck.training)
        return quantizer.to(bottleneck.moments.weight)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.codebook_dim // self.group_dim

    @property
    def code_shape(self) -> tuple[int, ...]:  # noqa: D102
        return () if self.groups == 1 else (self.groups,)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:  # noqa: D102
        return (self.codebook_size,) * self.groups

    @property
    def code_vectors(self) -> Tensor:
        """The codebook inside the projection, ``(K, L)``.

        Raises:
            TypeError: If there are several groups.
        """
        if self.groups > 1:
            raise TypeError("A code stands for one group and not for a latent. Use .noise, the codebook of all groups.")
        return self.noise

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self.groups == 1:
            return super()._look_up(codes, dtype)
        codes = checked_codes(codes, self.codebook_size)
        if codes.shape[-1:] != self.code_shape:
            raise ValueError(
                f"The last axis of 'codes' must have {self.groups} groups, got shape {tuple(codes.shape)}. "
                "Pass what encode() returned."
            )
        rows = codes.reshape(-1, self.groups)
        values = self._decode_rows(rows)
        values = self._outside(values.to(dtype or values.dtype)) * (rows >= 0).any(-1, keepdim=True)
        return values.reshape(*codes.shape[:-1], self.dim)

    @torch.no_grad()
    def group_divergences(self, latents: Tensor) -> Tensor:
        """The rate R of each group (3), which log K should exceed, in nats: ``(*, dim)`` -> ``(*, groups)``."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self._rates(*self._moments(rows)).reshape(*latents.shape[:-1], self.groups)

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        r"""Distribution over the codes of each group: :math:`q(\mu_k \mid x) / p(\mu_k)^\omega`, normalized.

        With omega = 1 these are the importance weights that make draws from the prior stand for q(z | x), and for an
        exact posterior the posterior over codes under a uniform prior. The entropy is that of all groups together, and
        the log-density None: means and variances follow from the latent, so no density of latents is there.
        """
        log_posterior = self._log_posterior(rows)
        probabilities = log_posterior.exp()
        entropy = -(probabilities * log_posterior).sum((-2, -1))
        return Posterior(probabilities.reshape(-1, *self.code_shape, self.codebook_size), entropy, None)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the weights of (4) by what past forwards have collected, unless they are frozen."""
        if self.frozen:
            return
        least, total, most = self.pending_excess.unbind()
        up = torch.stack([least >= -self.margin, total > 0, most > self.margin])
        weights = self.divergence_weights * torch.where(up, WEIGHT_STEP, 1 / WEIGHT_STEP).to(least.dtype)
        lambda_min, lambda_mean, lambda_max = weights.clamp(1 / WEIGHT_RANGE, WEIGHT_RANGE).unbind()
        weights = torch.stack([lambda_min.clamp_max(1), lambda_mean, lambda_max.clamp_min(1)])
        self.divergence_weights.copy_(torch.where(self.pending_rows > 0, weights, self.divergence_weights))
        self.pending_rows.zero_()
        self.pending_excess.zero_()

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = F.linear(rows, self.moments.weight.to(rows.dtype), self.moments.bias.to(rows.dtype)).chunk(
            2, dim=-1
        )
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def _rates(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """R of each group in nats, ``(N, groups)``."""
        divergences = (mean.square() + log_variance.exp() - 1 - log_variance) / 2  # (3)
        return divergences.unflatten(-1, (self.groups, self.group_dim)).sum(-1).clamp_min(0)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        mean, log_variance = self._moments(rows)
        rates = self._rates(mean, log_variance)
        excess = torch.where(kept[:, None], rates.detach() - math.log(self.codebook_size), 0)
        lambda_min, lambda_mean, lambda_max = snapshot(self.divergence_weights, self.training).to(rows.dtype).unbind()
        w = torch.where(excess > self.margin, lambda_max, torch.where(excess < -self.margin, lambda_min, 1.0))
        loss = lambda_mean * row_mean((w * rates).sum(-1), kept)  # (4)
        codes = self._choose(mean, log_variance)
        values = self._decode_rows(codes).to(rows.dtype)
        draws = self.training and not self.hard
        deviation = (log_variance / 2).exp()
        # a code, too, is m + s epsilon: with the epsilon that leads there, held constant
        epsilon = torch.randn_like(mean) if draws else (values - mean.detach()) / deviation.detach()
        z = mean + deviation * epsilon
        values = z if draws else with_gradient_of(values, z)
        if self.learning:
            self._collect(excess, kept)
        # the neutral 0 stands for the target, and for a batch without a row
        least, most = _extremes(excess)
        figures = {
            "divergence": row_mean(rates.detach().sum(-1), kept),
            "least_excess": least,
            "most_excess": most,
            "divergence_weight": lambda_mean.clone(),  # not a view of the state
        }
        return Quantized(values, codes, loss, figures)

    @torch.no_grad()
    def _collect(self, excess: Tensor, kept: Tensor) -> None:
        """Adds rates less log K ``(N, groups)``, 0 in rows that do not count, to what the next update goes by."""
        own = torch.zeros(world_size(), 2, dtype=excess.dtype, device=excess.device)
        own[rank()] = torch.stack(_extremes(excess))
        of_ranks = sum_over_ranks(own)
        least, total, most = self.pending_excess.unbind()
        total = total + sum_over_ranks(excess.sum())  # its sign is that of the mean
        lowest, highest = torch.minimum(least, of_ranks[:, 0].amin()), torch.maximum(most, of_ranks[:, 1].amax())
        self.pending_excess.copy_(torch.stack([lowest, total, highest]))
        self.pending_rows.add_(sum_over_ranks(kept.sum().to(excess.dtype)))

    def _log_weights(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Logarithm of q / p^omega up to a constant for each row, ``(N, K)`` for moments ``(N, m)`` of a group."""
        noise = self.noise.to(mean.dtype)
        distances = weighted_squared_distances(mean, noise, (-log_variance).exp())
        return (self.prior_weight * noise.square().sum(-1) - distances) / 2  # (2)

    @torch.no_grad()
    def _choose(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Codes ``(N, *code_shape)`` of moments ``(N, L)``, in memory O(N + K)."""
        parts = (in_blocks(moment.reshape(-1, self.group_dim), self.codebook_size) for moment in (mean, log_variance))
        codes = torch.cat([self._log_weights(*block).argmax(-1) for block in zip(*parts, strict=True)])
        return codes.reshape(-1, *self.code_shape)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._choose(*self._moments(rows))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        values = self.noise[codes.clamp_min(0)] * (codes >= 0)[..., None]
        return values.reshape(-1, self.codebook_dim)

    # z is the code that the posterior over codes draws for each group, so its density is a probability

    def _log_posterior(self, rows: Tensor) -> Tensor:
        """Logarithms of the responsibilities ``(N, groups, K)``."""
        mean, log_variance = (moment.reshape(-1, self.group_dim) for moment in self._moments(rows))
        return self._log_weights(mean, log_variance).log_softmax(-1).reshape(-1, self.groups, self.codebook_size)

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return (self._log_posterior(rows).exp() @ self.noise.to(rows.dtype)).flatten(1)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        log_posterior = self._log_posterior(rows)
        negative_entropy = (log_posterior.exp() * log_posterior).sum((-2, -1))
        return (negative_entropy + self.groups * math.log(self.codebook_size)).clamp_min(0)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = self._log_posterior(rows)
        codes = torch.multinomial(log_posterior.exp().flatten(0, 1), 1, generator=generator)
        drawn = log_posterior.flatten(0, 1).gather(-1, codes).reshape(-1, self.groups).sum(-1)
        values = self._decode_rows(codes.reshape(-1, self.groups)).to(rows.dtype)
        return PosteriorSample(values, torch.full_like(drawn, -self.groups * math.log(self.codebook_size)), drawn)


def _extremes(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of any number of values, or 0 where they are on the other side of it."""
    values = torch.cat([excess.flatten(), excess.new_zeros(1)])
    return values.amin(), values.amax()
