r"""How the gradient passes a choice that has none.

A quantizer maps a latent :math:`z` to a code :math:`\mu_c`: a step function, whose derivative is 0 almost everywhere.
Each estimator returns the code's value *exactly* and decides only what the backward pass sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gmvq.quantizers.schedules import Schedule, as_schedule


class AbstractEstimator(ABC):
    """Replaces the derivative of ``values`` with respect to ``latents``."""

    @abstractmethod
    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:
        """Gives ``values`` with a gradient to ``latents``.

        Args:
            latents: Rows ``(N, L)`` of the encoder.
            values: Their codes ``(N, L)``.

        Returns:
            Rows ``(N, L)``, equal to ``values``.
        """


def _with_gradient_of(values: Tensor, surrogate: Tensor) -> Tensor:
    # adding an exact zero keeps values equal to the codebook's, bit for bit; latents + (values - latents) would not
    return values.detach() + (surrogate - surrogate.detach())


@dataclass(frozen=True)
class StraightThrough(AbstractEstimator):
    r"""The identity: :math:`\partial \mu_c / \partial z = I`.

    Over one cell of the codebook the step function rises by as much as the identity does, so the identity is its
    derivative averaged over the cell. For a mixture it is also the limit of the posterior mean's Jacobian
    :math:`\mathrm{Cov}_q(\mu) / \sigma^2` when the codes lie dense against sigma.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013), https://arxiv.org/abs/1308.3432
    """

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        return _with_gradient_of(values, latents)


@dataclass(frozen=True)
class Rotation(AbstractEstimator):
    r"""The rotation and rescaling that carry the latent onto its code, held constant in the backward pass.

    .. math:: \mu_c = \lambda R z, \quad \lambda = |\mu_c| / |z|, \quad R = I - 2 r r^T + 2 \hat\mu \hat z^T,
              \quad r = (\hat z + \hat\mu) / |\hat z + \hat\mu|

    References:
        Restructuring Vector Quantization with the Rotation Trick (Fifty et al., 2024), https://arxiv.org/abs/2410.06424
    """

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        z_hat = F.normalize(latents.detach(), dim=-1)
        mu_hat = F.normalize(values.detach(), dim=-1)
        r = F.normalize(z_hat + mu_hat, dim=-1)
        scale = values.detach().norm(dim=-1, keepdim=True) / latents.detach().norm(dim=-1, keepdim=True).clamp_min(
            1e-12
        )
        reflected = latents - 2 * (latents * r).sum(-1, keepdim=True) * r
        rotated = reflected + 2 * (latents * z_hat).sum(-1, keepdim=True) * mu_hat
        return _with_gradient_of(values, scale.clamp_max(1e6) * rotated)


@dataclass(frozen=True)
class NoGradient(AbstractEstimator):
    """No gradient at all: the encoder learns from the quantizer's own loss only."""

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:  # noqa: D102
        return values.detach()


@dataclass(frozen=True)
class GumbelSoftmax:
    r"""A relaxed sample of the codes, the path of the GM-VQ paper: equation (6).

    .. math:: y = \mathrm{softmax}_c\big((\log q(c \mid x) + g_c) / \tau\big), \quad g_c \sim \mathrm{Gumbel}(0, 1),
              \quad z = \sum_c y_c \mu_c

    In training the decoder then sees a blend of codes and not a code: ``values`` differ from ``decode(codes)``.

    Args:
        temperature: tau, a number above 0 or a schedule.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2016), https://arxiv.org/abs/1611.01144
    """

    temperature: float | Schedule = 1.0

    def __post_init__(self) -> None:
        as_schedule(self.temperature, "temperature")

    def weights(self, log_posterior: Tensor, progress: float | Tensor) -> Tensor:
        """Draws y, shape ``(N, K)``, rows sum to 1, for log q(c | x) of the same shape."""
        tau = as_schedule(self.temperature, "temperature")(progress)
        noise = -log_posterior.new_empty(log_posterior.shape).exponential_().clamp_min(1e-30).log()
        return F.softmax((log_posterior + noise) / tau, dim=-1)  # (6)
