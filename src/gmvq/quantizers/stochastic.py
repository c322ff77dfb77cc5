r"""Stochastic quantization: codes drawn from a posterior whose width is learned (SQ-VAE).

.. math::
    p(c) &= 1 / K, \qquad p(z \mid c) = \mathcal{N}(\mu_c, \Sigma)                                        \qquad (1) \\
    q(c \mid z) &= \mathrm{softmax}_c(-e_c), \qquad
                   e_c = \tfrac12 (z - \mu_c)^T \Sigma^{-1} (z - \mu_c)                                   \qquad (2) \\
    \mathcal{L} &= E_{q(c \mid z)}[e_c] + \mathrm{KL}(q(c \mid z) \,\|\, p(c))
                 = -\log \textstyle\frac1K \sum_c \exp(-e_c)                                              \qquad (3)

In training a code is drawn from (2), relaxed by Gumbel-softmax; in evaluation it is the most likely one. The bound of
the paper is the reconstruction's log-likelihood minus (3), summed over tokens. The encoder's q(z | x) is a normal with
the covariance of p(z | c), so their normalizers cancel; as in the authors' code, z is its mean.

By (2) the two terms of (3) are one free energy, and it falls as Sigma grows. The reconstruction suffers from the draws
of a wide posterior and pulls the other way, the more the better it gets: the quantization *anneals itself*.

A variance is shared by all tokens (I), those of a sample (II), the features of a token (III), or not at all (IV).

On the unit sphere the normal becomes the von Mises-Fisher distribution and the energy of (2)

.. math:: e_c = \kappa\, (1 - \mu_c^T z), \qquad |z| = |\mu_c| = 1, \qquad \kappa = 1 / \sigma^2           \qquad (4)
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.kernels import in_blocks, squared_distances, weighted_squared_distances
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.estimators import AbstractEstimator, GumbelSoftmax, relaxed_sample
from gmvq.quantizers.parts.rows import row_mean
from gmvq.quantizers.parts.schedules import Geometric
from gmvq.types import Posterior, PosteriorSample, Quantized

VarianceName = Literal["shared", "sample", "token", "feature"]
DistributionName = Literal["gaussian", "von-mises-fisher"]

VARIANCE_PER_FEATURE = 20 / 64
"""The paper starts at a variance of 20 for codes of 64 features, drawn from a standard normal."""

LARGEST_LOG_VARIANCE = 20.0
"""log sigma^2 stays between this and its negative: energies and their gradients then fit in float32."""

LARGEST_HEAD_INPUT = 1e4
"""What the variance's head sees of a latent: an energy times a latent of 1e10 does not fit in float32."""


class StochasticQuantizer(AbstractQuantizer):
    r"""Draws the code of each latent from a posterior whose variance is learned: the quantizer of the SQ-VAE.

    .. math:: q(c \mid z) = \mathrm{softmax}_c\Big(-\sum_l \frac{(z_l - \mu_{cl})^2}{2 \sigma_l^2}\Big), \qquad
              \log \sigma^2 = B \tanh\big((b + W z) / B\big), \quad B = 20

    W starts at 0, so that all variances start equal. The bound B keeps them in [2e-9, 5e8] and lets a gradient lead
    back from its ends. The codebook learns by gradient, and is drawn from a standard normal like the paper's.

    The loss is (3) in nats per token, never negative, with the expectation over codes in closed form (the authors'
    code takes the relaxed draw for it). Beside a Gaussian likelihood at its maximum, D/2 log MSE, its sum over tokens
    gives the objective of the paper, and :attr:`loss_in_nats` says so to a model; beside a bare mean squared error it
    needs a weight of your own.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        variance: Who shares a sigma^2: ``"shared"`` all latents (I; W = 0), ``"sample"`` those of one place on the
            first axis, by the mean of their logarithms (II), ``"token"`` the features of a latent (III), ``"feature"``
            nobody (IV). Inside a composite, which hands on rows, a sample is a token.
        distribution: ``"gaussian"``, or ``"von-mises-fisher"`` for codes and latents on the unit sphere (4), meant for
            data of classes; there sigma^2 is 1 / kappa, of which a latent has one.
        initial_variance: sigma^2 at the start; by default the paper's 20 at 64 features, in proportion to L, and 1 on
            the sphere.
        estimator: How training draws. ``GumbelSoftmax(temperature)`` shows the decoder a blend of codes, as the paper
            does, so ``values`` differ from ``decode(codes)`` in training; with ``hard=True`` a code. By default a blend
            whose temperature falls from 1 to 0.2, as the paper's exp(-1e-5 step) does in 160,000 steps.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` in nats per token.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        SQ-VAE: Variational Bayes on Discrete Representation with Self-annealed Stochastic Quantization
        (Takida et al., 2022), https://arxiv.org/abs/2205.07547

    Example:
        >>> quantizer = StochasticQuantizer(dim=8, codebook_size=32, variance="token")
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10]))
        >>> bool(loss.isclose(terms["distance"] + terms["divergence"]))
        True
    """

    citations: tuple[str, ...] = ("sqvae_takida2022",)
    has_posterior: ClassVar[bool] = True
    loss_in_nats: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        variance: VarianceName = "shared",
        distribution: DistributionName = "gaussian",
        initial_variance: float | None = None,
        estimator: AbstractEstimator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        _check_word("variance", variance, get_args(VarianceName))
        _check_word("distribution", distribution, get_args(DistributionName))
        self.is_spherical = distribution == "von-mises-fisher"
        if self.is_spherical and variance == "feature":
            raise ValueError("'variance' must not be 'feature' on the sphere, where kappa is one number. Use 'token'.")
        self.variance = variance
        default = GumbelSoftmax(Geometric(1.0, 0.2))
        self.estimator = checked_estimator(default if estimator is None else estimator, draws=True)
        if self.estimator.temperature_at(0.0) is None:
            raise ValueError(
                f"'estimator' must have a temperature, since training draws codes, got {estimator!r}. "
                "Use GumbelSoftmax(), with hard=True to show the decoder codes."
            )
        self.learned_codes = nn.Parameter(torch.randn(codebook_size, self.codebook_dim))
        features = self.codebook_dim if variance == "feature" else 1
        if initial_variance is None:
            initial_variance = 1.0 if self.is_spherical else VARIANCE_PER_FEATURE * self.codebook_dim
        self.variance_offset = nn.Parameter(torch.full((features,), _unbounded(initial_variance)))  # b
        self.variance_head = None if variance == "shared" else nn.Linear(self.codebook_dim, features, bias=False)  # W
        if self.variance_head is not None:
            nn.init.zeros_(self.variance_head.weight)
        self._tokens_of_a_sample = 1

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        return direction(self.learned_codes) if self.is_spherical else self.learned_codes

    @torch.no_grad()
    def variances(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """sigma^2 of each latent: ``(*, dim)`` -> ``(*, L)`` for ``variance="feature"``, ``(*, 1)`` otherwise.

        Args:
            latents: Shape ``(*, dim)``.
            mask: As in :meth:`forward`: a False place has no part in the mean over its sample.
        """
        rows, _ = self._rows(latents, mask)  # computes them, with autocast off
        return self._parts(rows)[1].exp().reshape(latents.shape[:-1] + self.variance_offset.shape)

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        """The log-density is that of the mixture (1), for the variance ``"shared"``.

        It is None otherwise: a variance that follows from the latent makes no density of latents. It is None on the
        sphere, whose density is not one over features.
        """
        log_joint = -self._energies(rows)
        log_posterior = log_joint.log_softmax(-1)
        probabilities = log_posterior.exp()
        density = None
        if self.variance == "shared" and not self.is_spherical:
            log_volume = self.codebook_dim / 2 * (math.log(2 * math.pi) + self._parts(rows)[1][:, 0])
            density = log_joint.logsumexp(-1) - math.log(self.codebook_size) - log_volume
        return Posterior(probabilities, -(probabilities * log_posterior).sum(-1), density)

    def _check(self, latents: Tensor, mask: Tensor | None, lengths: Tensor | None = None) -> Tensor | None:
        mask = super()._check(latents, mask, lengths)
        if self.variance == "sample":  # every call begins here, and its rows will not tell where a sample ends
            self._tokens_of_a_sample = math.prod(latents.shape[1:-1])
        return mask

    def _inside(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Rows as all methods below take them: z and log sigma^2 side by side, ``(N, L + 1)`` or ``(N, 2 L)``."""
        z = super()._inside(rows, kept)
        log_variance = self._log_variance(z, kept)
        return torch.cat([direction(z) if self.is_spherical else z, log_variance], dim=-1)

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[:, : self.codebook_dim], rows[:, self.codebook_dim :]

    def _log_variance(self, z: Tensor, kept: Tensor) -> Tensor:
        """Log sigma^2, ``(N, 1)`` or ``(N, L)``."""
        logits = self.variance_offset.to(z.dtype).expand(z.shape[0], -1)
        if self.variance_head is not None:
            seen = z.clamp(-LARGEST_HEAD_INPUT, LARGEST_HEAD_INPUT)
            logits = logits + F.linear(seen, self.variance_head.weight.to(z.dtype))
        bounded = LARGEST_LOG_VARIANCE * (logits / LARGEST_LOG_VARIANCE).tanh()
        if self.variance != "sample":
            return bounded
        tokens = max(self._tokens_of_a_sample, 1)
        weights = kept.to(z.dtype).reshape(-1, tokens, 1)
        sums = (bounded.reshape(-1, tokens, 1) * weights).sum(1, keepdim=True)
        return (sums / weights.sum(1, keepdim=True).clamp_min(1)).expand(-1, tokens, -1).reshape(-1, 1)

    def _energies(self, rows: Tensor) -> Tensor:
        """e_c of (2) or (4) in nats, ``(N, K)``."""
        z, log_variance = self._parts(rows)
        codes = self.code_vectors.to(rows.dtype)
        precision = (-log_variance).exp()
        if self.is_spherical:
            return precision * (1 - z @ codes.T)  # (4)
        if self.variance == "feature":
            return weighted_squared_distances(z, codes, precision) / 2
        return squared_distances(z, codes) * precision / 2  # (2)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        energies = self._energies(rows)
        # probabilities below the least normal float32 are as good as 0, but cost a CPU ten times the time
        log_joint = (-energies).clamp_min(-energies.detach().amin(-1, keepdim=True) - 75)
        log_posterior = log_joint.log_softmax(-1)
        codebook = self.code_vectors.to(rows.dtype)
        temperature = self.estimator.temperature_at(self.training_progress) if self.training else None
        if temperature is not None:
            values, codes, _ = relaxed_sample(log_posterior, codebook, temperature, self.estimator.hard)
        else:
            codes = energies.argmin(-1)
            values = self.estimator(self._parts(rows)[0], codebook[codes])
        free_energy = (math.log(self.codebook_size) - log_joint.logsumexp(-1)).clamp_min(0)  # (3)
        with torch.no_grad():
            probabilities = log_posterior.exp()
            divergence = ((probabilities * log_posterior).sum(-1) + math.log(self.codebook_size)).clamp_min(0)
            log_variance = row_mean(self._parts(rows)[1].mean(-1), kept)
            figures = {
                "distance": row_mean((probabilities * energies).sum(-1), kept),
                "divergence": row_mean(divergence, kept),
                **({"kappa": (-log_variance).exp()} if self.is_spherical else {"sigma": (log_variance / 2).exp()}),
            }
        return Quantized(values, codes, row_mean(free_energy, kept), figures)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return torch.cat([self._energies(block).argmin(-1) for block in in_blocks(rows, self.codebook_size)])

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]

    # z is the code that q(c | z) draws, so its density is a probability

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return (-self._energies(rows)).softmax(-1) @ self.code_vectors.to(rows.dtype)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        log_posterior = (-self._energies(rows)).log_softmax(-1)
        return ((log_posterior.exp() * log_posterior).sum(-1) + math.log(self.codebook_size)).clamp_min(0)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = (-self._energies(rows)).log_softmax(-1)
        codes = torch.multinomial(log_posterior.exp(), 1, generator=generator)
        values = self.code_vectors.to(rows.dtype)[codes[:, 0]]
        drawn = log_posterior.gather(-1, codes)[:, 0]
        return PosteriorSample(values, torch.full_like(drawn, -math.log(self.codebook_size)), drawn)


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ValueError(f"'{name}' must be one of {', '.join(map(repr, words))}, got {value!r}. Use {words[0]!r}.")


def _unbounded(variance: float) -> float:
    """Inverse of the bound: the number that it maps to the logarithm of a variance."""
    logarithm = math.log(variance) if math.isfinite(variance) and variance > 0 else math.inf
    if abs(logarithm) >= LARGEST_LOG_VARIANCE:
        raise ValueError(
            f"'initial_variance' must lie between exp(-{LARGEST_LOG_VARIANCE:g}) and exp({LARGEST_LOG_VARIANCE:g}), "
            f"got {variance!r}. Use for example 1.0, or leave it out."
        )
    return LARGEST_LOG_VARIANCE * math.atanh(logarithm / LARGEST_LOG_VARIANCE)
