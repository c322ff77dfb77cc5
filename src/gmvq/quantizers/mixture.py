r"""Vector quantization by a Gaussian mixture whose means are the codebook.

.. math::
    p(c) &= \pi_c, \qquad p(z \mid c) = \mathcal{N}(\mu_c, \sigma^2 I)                                  \qquad (1, 2) \\
    q(c \mid x) &= \mathrm{softmax}_c(\log \pi_c - d_c / 2 \sigma^2), \quad
                   d_c = \textstyle\sum_l w_l (\hat z_l - \mu_{cl})^2                                    \qquad (4) \\
    q(z \mid x, c) &= \mathcal{N}(\mu_c, s_c^2 I), \quad s_c^2 / \sigma^2 = \nu^2 d_c / 2 \sigma^2 L     \qquad (5)

The encoder gives :math:`\hat z`; the posterior over codes, its entropy, the density of the latents and every term of
the objective follow from the model in closed form. So do the codebook and the variances, by online expectation
maximization with three choices that keep all codes alive, without restarts, and one that keeps all features alive:

- Each latent counts for its most likely code alone (classification EM; Celeux and Govaert, 1992). With soft
  responsibilities the codes contract toward their mean, sigma grows, the posterior softens, and so on.
- The M-step takes latents at the prices :math:`\log q_B(c) / p(c)` that ALBO's KL(q_B || p) puts on codes: the free
  minimum of ALBO over q(c | x) is the posterior times :math:`p / q_B`. So codes leave crowds for where they lack.
- Every code keeps a least share of the responsibility, so that one far from all latents goes to the nearest of them.
- Behind a projection, the widest directions of the latents keep a least rate: see :mod:`gmvq.quantizers.parts.rates`.

Equation (5) is taken in units of sigma, so that scaling latents and codebook together changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.checks import can_look_at
from gmvq.distributed import logsumexp_over_ranks, sum_over_ranks
from gmvq.kernels import MixtureStep, code_sums, nearest_code, random_seed
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator
from gmvq.quantizers.parts.clustering import off_codes
from gmvq.quantizers.parts.codebook import MovingAverageCodebook, snapshot
from gmvq.quantizers.parts.estimators import AbstractEstimator, with_gradient_of
from gmvq.quantizers.parts.gaussian_mixture import Mixture
from gmvq.quantizers.parts.noise import AbstractNoise, as_noise
from gmvq.quantizers.parts.objectives import AbstractObjective, Assignment, as_objective
from gmvq.quantizers.parts.outliers import ORDINARY, counting_weights
from gmvq.quantizers.parts.rates import LeastRates, least_rate
from gmvq.quantizers.parts.rows import row_weights
from gmvq.quantizers.parts.schedules import Schedule, as_schedule, temperature_at
from gmvq.quantizers.parts.variance import MixtureVariance
from gmvq.types import Posterior, PosteriorSample, Quantized

DEFAULT_CODE_DIM = 4
"""In few dimensions the posterior stays soft and all codes live; at 64 it is one-hot from the start and most die."""

LATENT_WEIGHT = 0.25
"""Weight of the latents' squared error against that of the data, as of the VQ-VAE's commitment. It does not need
tuning: the scale of the latents, which is free, makes up for it."""

PROJECTED_SCALE = 0.1
"""Scale of the latents behind the projection, against those before it, at the start. The scale is free but settles
slowly: from 1, the latents' squared error outweighs that of the data for most of a short training."""

LEAST_SHARE = 0.1
"""Responsibility that the M-step leaves no code below, against a fair share of the batch."""

LEAST_PRICED_SHARE = 1e-4
"""Share of its fair part below which a code gets no cheaper."""

MOST_STARVED = 64
"""Number of codes that one M-step lifts to the least share."""

FAINTEST = 60.0
"""Nats by which a responsibility may fall short of the largest of its code, where a code is fed."""

MOST_DEVIATIONS = 10.0
"""Distance from its code, in sigma for each feature, up to which a latent counts fully in sigma."""

LEARNABLE = ("codebook", "feature_weights", "mixture_weights")


class GaussianMixtureQuantizer(AbstractQuantizer):
    r"""Assigns each latent to a component of a Gaussian mixture whose means are the codebook.

    Args:
        dim: Features of a latent.
        codebook_size: Number of components K.
        codebook_dim: Features L of a code; by default at most 4, with a learned projection around the codebook.
        objective: ``"albo"`` (7), ``"elbo"`` (8), or an objective with other weights, as ``ALBO(prior_weight=0.1)``.
        variance: sigma^2: a number keeps it fixed; ``"shared"``, ``"code"`` and ``"feature"`` follow its
            maximum-likelihood value, one for all, for each code or for each feature.
        estimator: How the gradient passes the choice of a code: ``StraightThrough()`` shows the decoder the most
            likely code in training as in evaluation; ``GumbelSoftmax(temperature)`` is the relaxed sample (6).
        sharpening: Number or schedule that multiplies sigma in q(c | x): below 1 the posterior is sharper.
        noise: nu in (5), the scale of the noise added to z in training; 0 adds none. Or another form of it, as
            ``ConstantNoise(1.0)``.
        decay: Share of the past in the running averages of the M-step, in [0, 1). By default it follows the number of
            latents: averages remember 80 for each code, but at most 20 steps or a twentieth of the steps so far.
        learned: Any of ``"codebook"`` (by gradient instead of the M-step), ``"feature_weights"`` (w in (4), by
            gradient), ``"mixture_weights"`` (pi in (1), by the M-step; uniform otherwise).

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``: the objective in units of a squared
        error of the latents, to add to a mean squared error; terms ``()`` in nats per token.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
        https://arxiv.org/abs/2410.10180;
        running sums: On-line Expectation-Maximization Algorithm for Latent Data Models (Cappé and Moulines, 2009),
        https://arxiv.org/abs/0712.4273;
        hard M-step: A Classification EM Algorithm for Clustering and Two Stochastic Versions (Celeux and Govaert,
        1992), https://doi.org/10.1016/0167-9473(92)90042-E

    Example:
        >>> quantizer = GaussianMixtureQuantizer(dim=64, codebook_size=128)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 16, 64))
        >>> values.shape, codes.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 16]))
        >>> quantizer.posterior(torch.randn(5, 64)).responsibilities.shape
        torch.Size([5, 128])
    """

    citations: tuple[str, ...] = ("gmvq_yan2024", "emonline_cappe2009", "cem_celeux1992")
    has_posterior: ClassVar[bool] = True
    commitment_weight: ClassVar[float] = LATENT_WEIGHT
    projected_scale: ClassVar[float] = PROJECTED_SCALE

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        objective: Literal["albo", "elbo"] | AbstractObjective = "albo",
        variance: float | Literal["shared", "code", "feature"] = "shared",
        estimator: AbstractEstimator | None = None,
        sharpening: float | Schedule = 1.0,
        noise: float | AbstractNoise = 0.0,
        decay: float | None = None,
        learned: Collection[str] = (),
    ) -> None:
        super().__init__(dim, codebook_size, min(dim, DEFAULT_CODE_DIM) if codebook_dim is None else codebook_dim)
        if isinstance(learned, str) or not set(learned) <= set(LEARNABLE):
            raise ValueError(f"'learned' must be a collection of words out of {LEARNABLE}, got {learned!r}. Use ().")
        self.objective = as_objective(objective)
        self.estimator = checked_estimator(estimator, draws=True)
        self.sharpening = as_schedule(sharpening, "sharpening")
        self.noise = as_noise(noise)
        self.learned = frozenset(learned)
        self.moving = MovingAverageCodebook(codebook_size, self.codebook_dim, decay)
        self.variance = MixtureVariance(variance, codebook_size, self.codebook_dim)
        number, bits = least_rate(codebook_size, self.codebook_dim)
        self.rates = LeastRates(self.codebook_dim, number, bits) if number and self.projection is not None else None
        self.learned_codes = nn.Parameter(self.moving.codes.clone()) if "codebook" in self.learned else None
        self.feature_logits = (
            nn.Parameter(torch.zeros(self.codebook_dim)) if "feature_weights" in self.learned else None
        )

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        if self.learned_codes is None:
            return snapshot(self.moving.codes, self.training)
        return snapshot(self.learned_codes, self.training and not self.moving.is_complete)

    @property
    def feature_weights(self) -> Tensor:
        """Weights w in (4), ``(L,)``, at least 0 and 1 on average."""
        if self.feature_logits is None:
            return self.moving.codes.new_ones(self.codebook_dim)
        return self.codebook_dim * F.softmax(self.feature_logits, dim=0)

    @property
    def log_prior(self) -> Tensor:
        """Log p(c) in nats, ``(K,)``."""
        if "mixture_weights" not in self.learned:
            return self.moving.codes.new_full((self.codebook_size,), -math.log(self.codebook_size))
        # one latent in a thousand batches for each code: a prior of exactly 0 could never be left again
        counts = self.moving.counts + 1e-3
        return snapshot((counts / counts.sum()).log(), self.training)

    @torch.no_grad()
    def update(self) -> None:
        """Folds the collected statistics into codebook and variances, unless they are frozen: the M-step."""
        if self.frozen:
            return
        self.variance.update(self.moving.new_share())
        variance = self.variance.value(self.moving.codes).mean()
        self.moving.update(variance.sqrt())
        if self.rates is not None and self.projection is not None:
            stretch = self.rates.update(variance)
            self.projection.stretch(stretch)
            self.moving.stretch(stretch)
            if self.learned_codes is not None:
                self.learned_codes.copy_(self.learned_codes @ stretch)

    @torch.no_grad()
    def expected_distance(self, latents: Tensor) -> Tensor:
        """E_q[d_c / 2 sigma^2] in nats per token: ``(*, dim)`` -> ``(*)``."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self._mixture(rows.dtype).components.step(rows).energy.reshape(latents.shape[:-1])

    @torch.no_grad()
    def sample(self, *shape: int, generator: torch.Generator | None = None) -> Quantized:
        """Draws c from p(c) and z from p(z | c): values ``(*shape, dim)`` and codes ``(*shape)``.

        Without noise p(z | c) stands for its limit, the code itself.
        """
        mixture = self._mixture(self.training_progress.dtype)
        values, codes = mixture.sample(math.prod(shape), self.noise, generator)
        return Quantized(
            self._cast(self._outside(values)).reshape(*shape, self.dim), codes.reshape(shape), values.new_zeros(()), {}
        )

    def _mixture(self, dtype: torch.dtype) -> Mixture:
        """The mixture as it stands, in the type of the rows."""
        codes = self.code_vectors
        variance = snapshot(self.variance.value(codes.detach()), self.training)
        sharpening = temperature_at(self.sharpening, self.training_progress)
        # the root of each: that of their quotient has a gradient in units of sigma^4, which overflows
        scales = self.feature_weights.sqrt() * variance.reciprocal().sqrt() / sharpening
        return Mixture.of(*(part.to(dtype) for part in (codes, scales, self.feature_weights, self.log_prior)))

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        if self.learning:
            self._start(rows.detach(), kept)
        mixture = self._mixture(rows.dtype)
        step = self._step(mixture, self._pulled(rows), kept)
        if self.learning:
            self._collect(mixture, step, rows.detach(), kept)
        values, codes = self._values(mixture, step, rows)
        assignment = Assignment(step.energy, step.log_energy, step.entropy, step.aggregated, mixture.log_prior, kept)
        terms = self.objective.terms(assignment, self.noise, self.codebook_dim)
        loss = LATENT_WEIGHT * mixture.squared_error_of_a_nat() * torch.stack(list(terms.values())).sum()
        figures = {name: value.detach() for name, value in terms.items()}
        figures["posterior_entropy"] = assignment.mean(step.entropy.detach())
        figures["sigma"] = mixture.deviation()
        return Quantized(values, codes, loss, figures)

    def _pulled(self, rows: Tensor) -> Tensor:
        """Rows with the gradient that the objective's terms have in training."""
        # of a relaxed sample, the kernel's gradient is the decoder's, too
        if self.rates is None or not self.training or self._temperature() is not None:
            return rows
        return self.rates.pulled(rows)

    def _temperature(self) -> float | Tensor | None:
        """Temperature of the relaxed sample (6), None where codes are not drawn."""
        return self.estimator.temperature_at(self.training_progress) if self.training else None

    def _step(self, mixture: Mixture, rows: Tensor, kept: Tensor) -> MixtureStep:
        temperature = self._temperature()
        return mixture.components.step(
            rows,
            values=mixture.codes,
            prices=self._log_prices(mixture.log_prior),
            weights=row_weights(kept, rows.dtype),
            temperature=None if temperature is None else rows.new_ones(()) * temperature,
            seed=None if temperature is None else random_seed(rows.device),
            floor=self.noise.least_energy(self.codebook_dim),
        )

    def _values(self, mixture: Mixture, step: MixtureStep, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(N, L)`` and codes ``(N,)``: (6), and (5) where there is noise."""
        if not self.training:
            codes = mixture.most_likely(rows)
            return self.estimator(rows, mixture.codes[codes]), codes
        if self._temperature() is not None:
            values, codes, energies = step.relaxed, step.codes, step.relaxed_energy  # (6)
            if self.estimator.hard:
                codes = step.drawn
                values = with_gradient_of(mixture.codes[codes], values)
        else:
            codes = step.codes
            values = self.estimator(rows, mixture.codes[codes])
            energies = mixture.components.energies_of(rows, codes)
        if self.noise.is_none:
            return values, codes
        ratios = self.noise.ratio(energies, self.codebook_dim)
        return values + ratios.sqrt()[:, None] / mixture.scales.mean(0) * torch.randn_like(values), codes  # (5)

    @torch.no_grad()
    def _start(self, rows: Tensor, kept: Tensor) -> None:
        if self.moving.is_complete:
            return
        if self.moving.has_started:
            chosen, codes = self.moving.found(rows, kept, self.code_vectors)
            self.moving.replace(chosen, codes, self.moving.counts.mean())
            if self.learned_codes is not None:
                self.learned_codes.copy_(torch.where(chosen[:, None], codes, self.learned_codes))
            return
        if not self.moving.start(rows, kept, even=True):
            return
        if self.learned_codes is not None:
            self.learned_codes.copy_(self.moving.codes)
        mixture = self._mixture(rows.dtype)
        weights = counting_weights(rows, kept, mixture.codes)
        self.variance.start(*self._squared_residuals(mixture, rows, nearest_code(rows, mixture.codes), weights))

    @torch.no_grad()
    def _collect(self, mixture: Mixture, step: MixtureStep, rows: Tensor, kept: Tensor) -> None:
        """Gives the M-step the rows by their priced codes, and starved codes their share."""
        weights = counting_weights(rows, kept, mixture.codes)
        counts, sums = code_sums(rows, step.priced, weights, self.codebook_size)
        starved, shares, fresh = self._feed_starved(mixture, step, rows, weights, counts)
        counts = counts.index_copy(0, starved, shares.sum(0))
        self.moving.collect(counts, sums.index_copy(0, starved, shares.T @ rows), fresh)
        if self.rates is not None:
            self.rates.collect(rows, weights)
        # in units of sigma, so that one latent widens it little, and it follows an encoder that moves within few steps
        ratios = 2 * mixture.components.energies_of(rows, step.codes) / self.codebook_dim
        weights = weights * (MOST_DEVIATIONS**2 / ratios.clamp_min(MOST_DEVIATIONS**2))
        self.variance.collect(*self._squared_residuals(mixture, rows, step.codes, weights))

    def _log_prices(self, log_prior: Tensor) -> Tensor:
        """log(q_B(c) / p(c)) in nats, ``(K,)``, with q_B by the running counts.

        It is what code c costs each latent through KL(q_B || p): the minimum of ALBO over free q(c | x) multiplies the
        posterior by p / q_B. The M-step takes latents by these prices, so that codes leave crowds for where they lack.
        """
        counts = self.moving.counts
        log_share = (counts / counts.sum().clamp_min(1e-20)).clamp_min(LEAST_PRICED_SHARE / len(counts)).log()
        return log_share.to(log_prior.dtype) - log_prior

    def _feed_starved(
        self, mixture: Mixture, step: MixtureStep, rows: Tensor, weights: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Gives each code at least a small share of the responsibility, the least used ones first.

        Under the constraint :math:`q_B(c) \ge \epsilon / K` a code that falls short gets its posterior
        responsibilities, scaled until the constraint holds. They are normalized over rows as logarithms, so that a
        code to which all rows are 0 in float32 still goes to those nearest to it. A code whose running count has fallen
        short, too, forgets its past: its M-step is that of this batch alone. Far rows feed none: they would keep a code
        where it is. Rows that lie at their code feed no other: where all do, a code stays where it is, at the place of
        a symbol that this batch does not have.

        Returns:
            Codes ``(M,)``, the responsibilities ``(N, M)`` that they get, and which codes forget their past ``(K,)``.
        """
        totals, kept = sum_over_ranks(counts), weights > ORDINARY
        share = LEAST_SHARE * sum_over_ranks(kept.sum().to(totals.dtype)) / len(totals)
        number = min(MOST_STARVED, len(totals))
        if can_look_at(totals):  # elsewhere a fixed number: no wait for the GPU
            number = min(number, int((totals < share).sum()))
        total, starved = totals.topk(number, largest=False)
        logarithms = mixture.components.part(starved).log_joint(rows) - step.log_density[:, None]
        feeding = kept & off_codes(rows, mixture.codes[step.codes], mixture.codes)
        logarithms = logarithms.masked_fill(~feeding[:, None], -torch.inf)
        # what is fainter against the nearest row is as good as 0, but denormal numbers cost a CPU ten times the time
        logarithms = logarithms.clamp_min(logarithms.amax(0) - FAINTEST) if len(rows) else logarithms
        all_ranks = logsumexp_over_ranks(logarithms.logsumexp(0))
        hungry = (total < share) & (all_ranks > -torch.inf)
        relative = logarithms - torch.where(hungry, all_ranks, 0)
        fed = relative.clamp_min(-FAINTEST).exp() * share * feeding[:, None]
        own = (step.priced[:, None] == starved) * weights[:, None]
        fresh = torch.zeros_like(totals, dtype=torch.bool)
        fresh[starved] = hungry & (self.moving.counts[starved] < share)
        return starved, torch.where(hungry, fed, own), fresh

    def _squared_residuals(
        self, mixture: Mixture, rows: Tensor, codes: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight of the rows of each code ``(K,)`` and sums of their squared distances for each feature ``(K, L)``."""
        squares = (rows - mixture.codes[codes]).square() * mixture.feature_weights
        return code_sums(squares, codes, weights, self.codebook_size)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._mixture(rows.dtype).most_likely(rows)

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        return self._mixture(rows.dtype).posterior(rows)

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._mixture(rows.dtype).posterior_mean(rows)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return self._mixture(rows.dtype).divergence(rows, self.noise)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        return self._mixture(rows.dtype).sample_posterior(rows, self.noise, generator)
