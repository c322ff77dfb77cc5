r"""Estimators of the gradient of a choice, which has none.

A quantizer maps a latent :math:`z` to a code :math:`\mu_c`: a step function, whose derivative is 0 almost everywhere.
Each estimator returns the code's value *exactly* and decides only what the backward pass sees. One with a temperature
has codes drawn in training, out of a quantizer's log-probabilities, in place of the quantizer's own choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.quantizers.parts.directions import SHORTEST
from gmvq.quantizers.parts.schedules import Schedule, as_schedule, temperature_at


class AbstractEstimator(ABC):
    """Replaces the derivative of ``values`` with respect to ``latents``.

    Attributes:
        citations: Keys of its sources in the bibliography.
        trains_codebook: True if the task's gradient alone is meant to train the codes, without a codebook loss.
        hard: True if the decoder sees a code in training, False if it sees a blend of codes.
    """

    citations: ClassVar[tuple[str, ...]] = ()
    trains_codebook: ClassVar[bool] = False
    hard: bool = True

    def temperature_at(self, progress: float | Tensor) -> float | Tensor | None:
        """Temperature of the relaxed sample that training draws; None where the code is the quantizer's choice.

        Args:
            progress: How far training has come, in [0, 1].
        """
        return None

    @abstractmethod
    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:
        """Gives ``values`` with a gradient to ``latents``.

        Args:
            latents: Rows ``(N, L)`` of the encoder.
            values: Their codes ``(N, L)``.

        Returns:
            Rows ``(N, L)``, equal to ``values``.
        """


def with_gradient_of(values: Tensor, surrogate: Tensor) -> Tensor:
    """The values, bit for bit, with the gradient of the surrogate; both ``(N, L)``."""
    # adding an exact zero keeps values equal to the codebook's, bit for bit; latents + (values - latents) would not
    return values.detach() + (surrogate - surrogate.detach())


@dataclass(frozen=True)
class StraightThrough(AbstractEstimator):
    r"""The identity: :math:`\partial \mu_c / \partial z = I`.

    Over one cell of the codebook the step function rises by as much as the identity does, so the identity is its
    derivative averaged over the cell. For a mixture it is also the limit of the posterior mean's Jacobian
    :math:`\mathrm{Cov}_q(\mu) / \sigma^2` when the codes lie dense against sigma.

    Args:
        synchronization: nu, the share of the gradient that the chosen code gets beside the latent, for a codebook that
            learns by gradient: the code then moves with the task at once, not a step behind its latents.

    Shape:
        latents ``(N, L)``, values ``(N, L)`` -> ``(N, L)``.

    Raises:
        ValueError: If ``synchronization`` is not a finite number of at least 0.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013),
        https://arxiv.org/abs/1308.3432;
        synchronization: Straightening Out the Straight-Through Estimator (Huh et al., 2023),
        https://arxiv.org/abs/2305.08842

    Example:
        >>> latents = torch.tensor([[0.2, 0.9]], requires_grad=True)
        >>> StraightThrough()(latents, torch.tensor([[0.0, 1.0]])).sum().backward()
        >>> latents.grad
        tensor([[1., 1.]])
    """

    citations: ClassVar[tuple[str, ...]] = ("ste_bengio2013",)
    synchronization: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.synchronization < float("inf"):
            raise ValueError(
                f"'synchronization' must be a finite number of at least 0, got {self.synchronization}. Use 0.0."
            )

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        return with_gradient_of(values, latents + self.synchronization * values if self.synchronization else latents)


@dataclass(frozen=True)
class Rotation(AbstractEstimator):
    r"""The rotation and rescaling that carry the latent onto its code, held constant in the backward pass.

    .. math:: \mu_c = \lambda R z, \quad \lambda = |\mu_c| / |z|, \quad R = I - 2 r r^T + 2 \hat\mu \hat z^T,
              \quad r = (\hat z + \hat\mu) / |\hat z + \hat\mu|

    A latent shorter than 1e-4 has no direction to turn from, and is passed straight through; lambda is at most 1e4.

    Shape:
        latents ``(N, L)``, values ``(N, L)`` -> ``(N, L)``.

    References:
        Restructuring Vector Quantization with the Rotation Trick (Fifty et al., 2024), https://arxiv.org/abs/2410.06424

    Example:
        >>> latents = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> Rotation()(latents, torch.tensor([[0.0, 1.0]]))[:, 1].backward(torch.ones(1))
        >>> latents.grad.round(decimals=6)  # a quarter turn, and half the length
        tensor([[0.5000, 0.0000]])
    """

    citations: ClassVar[tuple[str, ...]] = ("rotation_fifty2024",)

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        z_hat = F.normalize(latents.detach(), dim=-1)
        mu_hat = F.normalize(values.detach(), dim=-1)
        r = F.normalize(z_hat + mu_hat, dim=-1)
        length = latents.detach().norm(dim=-1, keepdim=True)
        scale = values.detach().norm(dim=-1, keepdim=True) / length.clamp_min(SHORTEST)
        reflected = latents - 2 * (latents * r).sum(-1, keepdim=True) * r
        rotated = reflected + 2 * (latents * z_hat).sum(-1, keepdim=True) * mu_hat
        turned = scale.clamp_max(1 / SHORTEST) * rotated
        return with_gradient_of(values, torch.where(length < SHORTEST, latents, turned))


@dataclass(frozen=True)
class DiVeQ(AbstractEstimator):
    r"""The latent moved by its distance from the code, in a random direction about that of the code.

    .. math:: \mu_c \approx z + |z - \mu_c|\, \mathrm{sg}\left[\frac{v}{|v|}\right], \quad
              v = \mu_c - z + s\, |\mu_c - z|\, \epsilon

    The distance carries a gradient to the latent and to a codebook that learns by gradient, which then has no loss of
    its own. The values are the codes themselves, not the moved latents, so that they stay what :meth:`decode` gives.

    Args:
        deviation: s, how far the direction strays, as a share of the distance.

    Shape:
        latents ``(N, L)``, values ``(N, L)`` -> ``(N, L)``.

    Raises:
        ValueError: If ``deviation`` is not a finite number of at least 0.

    References:
        DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick (Vali et al., 2025),
        https://arxiv.org/abs/2509.26469

    Example:
        >>> codes = torch.tensor([[0.0, 1.0]], requires_grad=True)
        >>> DiVeQ(deviation=0.0)(torch.tensor([[0.0, 0.5]]), codes).sum().backward()
        >>> codes.grad
        tensor([[0., 1.]])
    """

    citations: ClassVar[tuple[str, ...]] = ("diveq_vali2025",)
    trains_codebook: ClassVar[bool] = True
    deviation: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.deviation < float("inf"):
            raise ValueError(f"'deviation' must be a finite number of at least 0, got {self.deviation}. Use 0.03.")

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        difference = values - latents
        # the root of the smallest square: its derivative at 0 is infinite
        distance = difference.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
        with torch.no_grad():
            strayed = difference + self.deviation * distance * torch.randn_like(difference)
            direction = F.normalize(strayed, dim=-1)
        return with_gradient_of(values, latents + distance * direction)


@dataclass(frozen=True)
class NoGradient(AbstractEstimator):
    """No gradient at all: the encoder learns from the quantizer's own loss only.

    Shape:
        latents ``(N, L)``, values ``(N, L)`` -> ``(N, L)``.

    References:
        The step function's own derivative; Estimating or Propagating Gradients Through Stochastic Neurons
        (Bengio et al., 2013), https://arxiv.org/abs/1308.3432, discusses what to put in its place.

    Example:
        >>> NoGradient()(torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2)).requires_grad
        False
    """

    citations: ClassVar[tuple[str, ...]] = ("ste_bengio2013",)

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        return values.detach()


@dataclass(frozen=True)
class GumbelSoftmax(AbstractEstimator):
    r"""A relaxed sample of the codes, the path of the GM-VQ paper: equation (6).

    .. math:: y = \mathrm{softmax}_c\big((\log q(c \mid x) + g_c) / \tau\big), \quad g_c \sim \mathrm{Gumbel}(0, 1),
              \quad z = \sum_c y_c \mu_c

    In training the decoder then sees a blend of codes and not a code: ``values`` differ from ``decode(codes)``. With
    ``hard`` it sees the code of the largest y, with the gradient of the blend (Gumbel straight-through). A code that is
    not drawn, as in evaluation, is passed straight through.

    Args:
        temperature: tau, a number above 0 or a schedule.
        hard: Show the decoder a code.

    Shape:
        latents ``(N, L)``, values ``(N, L)`` -> ``(N, L)``.

    Raises:
        ValueError: If ``temperature`` is neither a schedule nor a finite number above 0.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2016), https://arxiv.org/abs/1611.01144

    Example:
        >>> from gmvq.quantizers.parts.schedules import Linear
        >>> GumbelSoftmax(Linear(1.0, 0.5)).temperature_at(0.5)
        0.75
    """

    citations: ClassVar[tuple[str, ...]] = ("gumbel_jang2016",)
    temperature: float | Schedule = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        as_schedule(self.temperature, "temperature")

    def temperature_at(self, progress: float | Tensor) -> float | Tensor:
        """Tau at a progress of training in [0, 1]."""
        return temperature_at(as_schedule(self.temperature, "temperature"), progress)

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        return with_gradient_of(values, latents)


class RelaxedSample(NamedTuple):
    """Codes drawn from q(c | x), relaxed.

    Attributes:
        values: What the decoder sees, ``(N, L)``.
        codes: The most likely code, or of a hard sample the drawn one, ``(N,)``.
        weights: y of equation (6), ``(N, K)``.
    """

    values: Tensor
    codes: Tensor
    weights: Tensor


def relaxed_sample(
    log_posterior: Tensor, codebook: Tensor, temperature: float | Tensor, hard: bool = False
) -> RelaxedSample:
    """Draws from log q(c | x) as :class:`GumbelSoftmax` says.

    Args:
        log_posterior: log q(c | x), ``(N, K)``.
        codebook: Codes ``(K, L)``.
        temperature: tau.
        hard: Give the drawn code instead of the blend of codes.
    """
    noise = -log_posterior.new_empty(log_posterior.shape).exponential_().clamp_min(1e-30).log()
    y = F.softmax((log_posterior + noise) / temperature, dim=-1)  # (6)
    values = y @ codebook
    if not hard:
        return RelaxedSample(values, log_posterior.argmax(-1), y)
    codes = y.argmax(-1)
    return RelaxedSample(with_gradient_of(codebook[codes], values), codes, y)
