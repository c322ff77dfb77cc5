r"""Likelihoods p(x | z) of images given what the decoder returns.

Each is two things: the loss of training, a scalar in nats for each data dimension, and the probability of the 8-bit
image in nats, for figures that compare with any lossless code: the density integrated over each of the 256 values,

.. math:: \log p(x \mid z) = \sum_i \log \big(F((v_i + \tfrac12) / 255) - F((v_i - \tfrac12) / 255)\big), \quad
          v_i = 255\, x_i

with the two outermost values taking what lies beyond.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_STEP = 0.5 / 255

LEAST_VARIANCE = (0.1 / 255) ** 2
"""A Gaussian narrower than a tenth of a step cannot gain on 8-bit data, and its logarithm must stay finite."""


class AbstractLikelihood(nn.Module, ABC):
    """p(x | z), with the decoder's output as its parameters."""

    @abstractmethod
    def forward(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Training loss.

        Args:
            parameters: What the decoder returned, ``(B, C, H, W)``.
            images: Images in [0, 1] of the same shape.

        Returns:
            Scalar in nats for each data dimension, up to a constant.
        """

    @abstractmethod
    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Log-probability of the 8-bit images in nats, ``(B,)``."""

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected images in [0, 1] for parameters of the same shape."""
        return parameters.clamp(0, 1)

    @abstractmethod
    def squared_error_weight(self, squared_error: Tensor) -> Tensor:
        """Derivative of the loss with respect to the mean squared error, about where that is ``squared_error``."""

    def calibrate(self, mean_squared_error: float) -> None:
        """Takes the mean squared error that evaluation's decoding makes on training data; most have no use for it."""


class _Discretized(AbstractLikelihood):
    """A location family around the decoder's output, integrated over each 8-bit value."""

    @abstractmethod
    def _log_tails(self, standardized: Tensor) -> Tensor:
        """Log F of the standardized variable."""

    @abstractmethod
    def _scale(self) -> Tensor:
        """Unit of the standardized variable, ``()``."""

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        images = (images.double() * 255).round() / 255
        difference, scale = images - parameters.double(), self._scale().double()
        # by symmetry the upper tail is the lower tail of the mirrored variable: both ends are computed where F is small
        sign = torch.where(difference > 0, -1.0, 1.0)
        near, far = (sign * difference + HALF_STEP) / scale, (sign * difference - HALF_STEP) / scale
        log_near, log_far = self._log_tails(near), self._log_tails(far)
        # at black everything below counts, at white everything above
        open_far = ((images <= 0) & (sign > 0)) | ((images >= 1) & (sign < 0))
        open_near = ((images <= 0) & (sign < 0)) | ((images >= 1) & (sign > 0))
        log_near = torch.where(open_near, 0.0, log_near)
        inside = log_near + torch.log1p(-(log_far - log_near).clamp_max(-1e-12).exp())
        return torch.where(open_far, log_near, inside).flatten(1).sum(1)


def _follow(running: Tensor, value: Tensor) -> None:
    """Moves a running mean toward a value, at once where it is off by more than a factor of two."""
    ratio = running / value.detach().clamp_min(1e-30)
    running.lerp_(value.detach(), torch.where((ratio > 2) | (ratio < 0.5), 1.0, 0.02))


class GaussianLikelihood(_Discretized):
    r"""A Gaussian whose variance is at its maximum-likelihood value: no weight to tune.

    .. math:: \min_{\sigma^2} -\frac1D \log p(x \mid z) = \tfrac12 \log \mathrm{MSE} + \mathrm{const}

    With it the weights of all other terms in nats follow from the model.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2020), https://arxiv.org/abs/2006.13202

    Attributes:
        variance: Running mean squared error of training, or what :meth:`calibrate` set.
    """

    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, parameters: Tensor, images: Tensor) -> Tensor:  # noqa: D102
        error = F.mse_loss(parameters.float(), images.float())
        if self.training:
            with torch.no_grad():
                _follow(self.variance, error)
        return error.clamp_min(LEAST_VARIANCE).log() / 2

    def squared_error_weight(self, squared_error: Tensor) -> Tensor:  # noqa: D102
        return 0.5 / squared_error.clamp_min(LEAST_VARIANCE)

    def calibrate(self, mean_squared_error: float) -> None:
        """Sets the variance that :meth:`log_prob` uses."""
        self.variance.fill_(max(mean_squared_error, LEAST_VARIANCE))

    def _log_tails(self, standardized: Tensor) -> Tensor:
        return torch.special.log_ndtr(standardized)

    def _scale(self) -> Tensor:
        return self.variance.clamp_min(LEAST_VARIANCE).sqrt()


class FixedGaussianLikelihood(_Discretized):
    """A Gaussian of fixed variance; at 1/2, the default, the loss is the mean squared error.

    Args:
        variance: In squared units of [0, 1] images.
    """

    variance: Tensor

    def __init__(self, variance: float = 0.5) -> None:
        super().__init__()
        if not (math.isfinite(variance) and variance > 0):
            raise ValueError(
                f"'variance' must be a finite number above 0, got {variance}. Use 0.5 for the mean squared error."
            )
        self.register_buffer("variance", torch.tensor(float(variance)))
        self.register_buffer("calibrated", self.variance.clone())

    calibrated: Tensor

    def forward(self, parameters: Tensor, images: Tensor) -> Tensor:  # noqa: D102
        return F.mse_loss(parameters.float(), images.float()) / (2 * self.variance)

    def squared_error_weight(self, squared_error: Tensor) -> Tensor:  # noqa: D102
        return 0.5 / self.variance

    def calibrate(self, mean_squared_error: float) -> None:
        """Sets the variance that :meth:`log_prob` uses; the one of training stays."""
        self.calibrated.fill_(max(mean_squared_error, LEAST_VARIANCE))

    def _log_tails(self, standardized: Tensor) -> Tensor:
        return torch.special.log_ndtr(standardized)

    def _scale(self) -> Tensor:
        return self.calibrated.sqrt()


class LaplaceLikelihood(_Discretized):
    """A Laplace distribution with its scale at the maximum-likelihood value: the log of the mean absolute error."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, parameters: Tensor, images: Tensor) -> Tensor:  # noqa: D102
        error = F.l1_loss(parameters.float(), images.float())
        if self.training:
            with torch.no_grad():
                _follow(self.scale, error)
        return error.clamp_min(LEAST_VARIANCE**0.5).log()

    def squared_error_weight(self, squared_error: Tensor) -> Tensor:
        """As if all errors grew together: the absolute error is in proportion to the root of the squared one."""
        return 0.5 / squared_error.clamp_min(LEAST_VARIANCE)

    def _log_tails(self, standardized: Tensor) -> Tensor:
        lower = standardized.clamp_max(0) - math.log(2)
        return torch.where(standardized <= 0, lower, torch.log1p(-(-standardized.clamp_min(0)).exp() / 2))

    def _scale(self) -> Tensor:
        return self.scale.clamp_min(LEAST_VARIANCE**0.5)


class BernoulliLikelihood(AbstractLikelihood):
    """Independent Bernoulli dimensions; the decoder returns logits.

    Exact for black-and-white images. For gray values it is the usual cross entropy, and :meth:`log_prob` normalizes it
    over the 256 values (the continuous Bernoulli of Loaiza-Ganem and Cunningham, 2019, on the grid of 8-bit values).
    """

    def forward(self, parameters: Tensor, images: Tensor) -> Tensor:  # noqa: D102
        return F.binary_cross_entropy_with_logits(parameters.float(), images.float())

    def squared_error_weight(self, squared_error: Tensor) -> Tensor:
        """Of the cross entropy's expansion about probability 1/2, where it is least."""
        return torch.full_like(squared_error, 2.0)

    def mean(self, parameters: Tensor) -> Tensor:  # noqa: D102
        return parameters.sigmoid()

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:  # noqa: D102
        logits = parameters.double()
        images = (images.double() * 255).round() / 255
        # log sum_v exp(v logit / 255), v = 0..255, is a geometric series: (1 - r^256)/(1 - r), r = exp(-|logit| / 255)
        step = logits.abs().clamp_min(1e-9) / 255
        log_normalizer = logits.clamp_min(0) + torch.log(torch.expm1(-256 * step) / torch.expm1(-step))
        return (images * logits - log_normalizer).flatten(1).sum(1)


LikelihoodName = Literal["gaussian", "mean-squared-error", "laplace", "bernoulli"]


def make_likelihood(name: str) -> AbstractLikelihood:
    """The likelihood of a name.

    Raises:
        ValueError: If there is none of that name.
    """
    classes = {
        "gaussian": GaussianLikelihood,
        "mean-squared-error": FixedGaussianLikelihood,
        "laplace": LaplaceLikelihood,
        "bernoulli": BernoulliLikelihood,
    }
    if name not in classes:
        raise ValueError(f"'likelihood' must be one of {', '.join(get_args(LikelihoodName))}, got {name!r}.")
    return classes[name]()
