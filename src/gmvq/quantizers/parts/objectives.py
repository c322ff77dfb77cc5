r"""Objectives of a Gaussian-mixture quantizer, which it adds to the reconstruction loss, in nats per token.

With energies :math:`e_c = d_c / 2 \sigma^2` and :math:`q_B` the mean of :math:`q(c \mid x)` over the global batch,

.. math::
    \mathrm{ALBO} &: \gamma\, E_{q(c \mid x)}[e_c] + \beta\, \mathrm{KL}(q_B(c) \,\|\, p(c))   \qquad (7) \\
    \mathrm{ELBO} &: E_{q(c \mid x)} \mathrm{KL}(q(z \mid x, c) \,\|\, p(z \mid c))
                     + \mathrm{KL}(q(c \mid x) \,\|\, p(c))   \qquad (8)

ALBO leaves out the mutual information between tokens and codes, so it does not push q(c | x) toward high entropy. It
is not always a bound on log p(x); the true bounds are in :mod:`gmvq.metrics.likelihood`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from gmvq.distributed import mean_over_ranks
from gmvq.quantizers.parts.checks import non_negative
from gmvq.quantizers.parts.divergences import divergence_from
from gmvq.quantizers.parts.noise import AbstractNoise
from gmvq.quantizers.parts.rows import row_mean


class Assignment(NamedTuple):
    """Assignment of N rows to K codes, in sums over the codes.

    Attributes:
        energies: E_q[d_c / 2 sigma^2] in nats, ``(N,)``.
        log_energies: E_q[log(d_c / 2 sigma^2)], asked for with noise only, ``(N,)``.
        entropies: Of q(c | x), in nats ``(N,)``.
        aggregated: Mean of q(c | x) over the rows that count, of this rank, ``(K,)``.
        log_prior: log p(c), ``(K,)``.
        kept: Rows that count, booleans ``(N,)``.
    """

    energies: Tensor
    log_energies: Tensor
    entropies: Tensor
    aggregated: Tensor
    log_prior: Tensor
    kept: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``(N,)`` over the rows that count, of all ranks."""
        return row_mean(values, self.kept)

    def aggregated_divergence(self) -> Tensor:
        """KL(q_B(c) || p(c)) in nats, with q_B summed over all ranks."""
        return divergence_from(self.log_prior, mean_over_ranks(self.aggregated))

    def divergence(self) -> Tensor:
        """Mean of KL(q(c | x) || p(c)) in nats."""
        return (-self.mean(self.entropies) - self.aggregated @ self.log_prior).clamp_min(0)  # but for rounding it is


class AbstractObjective(ABC):
    """A loss of an assignment.

    Attributes:
        citations: Keys of its sources in the bibliography.
    """

    citations: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def terms(self, assignment: Assignment, noise: AbstractNoise, code_dim: int) -> dict[str, Tensor]:
        """Weighted parts of the loss, each ``()`` in nats per token; their sum is the loss.

        Args:
            assignment: The rows' assignment to codes.
            noise: Width of q(z | x, c); without noise z is the code.
            code_dim: Features L of a code.
        """


@dataclass(frozen=True)
class ALBO(AbstractObjective):
    r"""The aggregated categorical posterior's bound, equation (7).

    .. math:: \gamma\, E_{q(c \mid x)}[e_c] + \beta\, \mathrm{KL}(q_B(c) \,\|\, p(c))

    Args:
        distance_weight: gamma, on E[d_c / 2 sigma^2]. 1 follows from the model.
        prior_weight: beta, on KL(q_B || p). 1 follows from the model.

    Shape:
        sums over the codes ``(N,)`` and over the rows ``(K,)`` -> terms ``()``, in nats per token.

    Raises:
        ValueError: If a weight is not a finite number of at least 0.

    References:
        Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
        https://arxiv.org/abs/2410.10180

    Example:
        >>> import torch
        >>> from gmvq import GaussianMixtureQuantizer
        >>> quantizer = GaussianMixtureQuantizer(8, 32, objective=ALBO(prior_weight=0.1))
        >>> sorted(quantizer(torch.randn(100, 8)).terms)
        ['aggregated_divergence', 'distance', 'posterior_entropy', 'sigma']
    """

    citations: ClassVar[tuple[str, ...]] = ("gmvq_yan2024",)
    distance_weight: float = 1.0
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("distance_weight", "prior_weight"):
            non_negative(name, getattr(self, name))

    def terms(self, assignment: Assignment, noise: AbstractNoise, code_dim: int) -> dict[str, Tensor]:  # noqa: D102
        distance = assignment.mean(assignment.energies)
        return {
            "distance": self.distance_weight * distance,
            "aggregated_divergence": self.prior_weight * assignment.aggregated_divergence(),
        }


@dataclass(frozen=True)
class ELBO(AbstractObjective):
    r"""The evidence lower bound of the mixture, equation (8).

    .. math:: E_{q(c \mid x)} \mathrm{KL}(q(z \mid x, c) \,\|\, p(z \mid c)) + \mathrm{KL}(q(c \mid x) \,\|\, p(c))

    Shape:
        sums over the codes ``(N,)`` and over the rows ``(K,)`` -> terms ``()``, in nats per token.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114;
        for the mixture: Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
        https://arxiv.org/abs/2410.10180

    Example:
        >>> import torch
        >>> from gmvq import GaussianMixtureQuantizer
        >>> quantizer = GaussianMixtureQuantizer(8, 32, objective=ELBO())
        >>> sorted(quantizer(torch.randn(100, 8)).terms)
        ['code_divergence', 'posterior_entropy', 'sigma']
    """

    citations: ClassVar[tuple[str, ...]] = ("vae_kingma2013", "gmvq_yan2024")

    def terms(self, assignment: Assignment, noise: AbstractNoise, code_dim: int) -> dict[str, Tensor]:  # noqa: D102
        terms = {"code_divergence": assignment.divergence()}
        if not noise.is_none:
            divergences = noise.divergence(assignment.energies, assignment.log_energies, code_dim)
            terms["latent_divergence"] = assignment.mean(divergences)
        return terms


def as_objective(objective: str | AbstractObjective) -> AbstractObjective:
    """Takes ``"albo"`` and ``"elbo"`` for the objectives with the model's own weights.

    Raises:
        ValueError: For any other word.
    """
    if isinstance(objective, AbstractObjective):
        return objective
    named = {"albo": ALBO, "elbo": ELBO}
    if objective not in named:
        raise ValueError(f"'objective' must be 'albo', 'elbo' or an objective, got {objective!r}. Use 'albo'.")
    return named[objective]()
