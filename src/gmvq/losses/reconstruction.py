r"""Likelihoods of items given the decoder's output, by kind of value.

Each gives a training loss in nats for each data dimension and an exact log-probability of stored items. Values in a
range are stored with some bits, where a density would be unbounded: its mass is taken over each step. With F the
distribution function and half a step :math:`h`,

.. math:: \log p(x \mid z) = \sum_i \log \big(F(x_i + h) - F(x_i - h)\big)

where the two outermost values also take the mass beyond them. Images have 255 steps in [0, 1], sound 65,535 in [-1, 1];
real numbers have a density, symbols a probability.

Sequences may be shorter than their batch: a mask says which places count, and means are over those.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.checks import one_of, positive
from gmvq.distributed import mean_over_ranks, places_per_rank
from gmvq.types import Values


class Steps(NamedTuple):
    """Steps in which values are stored.

    Attributes:
        low: Least value, in steps.
        high: Largest value, in steps.
        in_one: Number of steps from 0 to 1.
    """

    low: int
    high: int
    in_one: int


STEPS: dict[str, Steps | None] = {
    "unit": Steps(0, 255, 255),
    "signed": Steps(-(1 << 15), (1 << 15) - 1, 1 << 15),
    "real": None,
}
"""Steps by kind of value; None for real numbers."""


class AbstractLikelihood(nn.Module, ABC):
    """p(x | z), with the decoder's output as its parameters.

    Args:
        values: Kind of value of the items: ``unit``, ``signed``, ``real`` or ``symbols``.

    Attributes:
        error_name: Name of the metric that :meth:`error` computes.
    """

    error_name: ClassVar[str] = "mse"

    def __init__(self, values: Values = "unit") -> None:
        super().__init__()
        self.steps = STEPS.get(values)
        count = 1.0 if self.steps is None else self.steps.in_one
        # a Gaussian narrower than a tenth of a step gains nothing on stored data, and its logarithm must stay finite
        self.least_variance = (0.1 / count) ** 2 if self.steps is not None else 1e-8
        self.range = None if self.steps is None else (self.steps.low / count, 1.0)

    @abstractmethod
    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the training loss.

        Args:
            parameters: Output of the decoder, ``(B, C, *S)``.
            items: Items of the same shape; symbols ``(B, T)``.
            mask: Booleans ``(B, T)``, False beyond the end of a sequence; None where all places count.

        Returns:
            Scalar in nats for each data dimension, up to a constant.
        """

    @abstractmethod
    def log_prob(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the log-probability of the stored items, or the log-density of real numbers, in nats, ``(B,)``."""

    def mean(self, parameters: Tensor) -> Tensor:
        """Computes the expected items for parameters; of symbols, the most likely ones."""
        return parameters if self.range is None else parameters.clamp(*self.range)

    def error(self, made: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the mean squared error of the output of :meth:`mean`, ``()``."""
        return (
            masked_mean((made.float() - items.float()).square(), mask)
            if mask is not None
            else F.mse_loss(made.float(), items.float())
        )

    @abstractmethod
    def squared_error_weight(self, error: Tensor) -> Tensor:
        """Computes the derivative of the loss with respect to the mean squared error, at about the given ``error``."""

    def calibrate(self, mean_squared_error: float) -> None:
        """Sets the scale to the mean squared error of evaluation on training data; most likelihoods ignore it."""


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Averages ``(B, C, T)`` or ``(B, T)`` over the places that count ``(B, T)``, alike on all ranks: ``()``."""
    if mask is None:
        return values.mean()
    wide = mask if values.ndim == mask.ndim else mask[:, None]
    channels = 1 if values.ndim == mask.ndim else values.shape[1]
    # ranks may have different numbers of places: the mean over ranks of these is the mean over all
    return torch.where(wide, values, 0).sum() / (places_per_rank(mask.sum().to(values.dtype)) * channels)


def _masked_sum(values: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over all but the first axis, of places that count: ``(B,)``."""
    if mask is not None:
        values = torch.where(mask if values.ndim == mask.ndim else mask[:, None], values, 0)
    return values.flatten(1).sum(1)


class _Location(AbstractLikelihood):
    """A location family around the decoder's output, integrated over each step where values are stored in steps."""

    @abstractmethod
    def _log_tails(self, standardized: Tensor) -> Tensor:
        """Log F of the standardized variable."""

    @abstractmethod
    def _log_density(self, standardized: Tensor) -> Tensor:
        """Log-density of the standardized variable."""

    @abstractmethod
    def _scale(self) -> Tensor:
        """Unit of the standardized variable, ``()``."""

    def log_prob(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        scale = self._scale().double()
        if self.steps is None:
            standardized = (items.double() - parameters.double()) / scale
            return _masked_sum(self._log_density(standardized) - scale.log(), mask)
        low, high, count = self.steps
        places = (items.double() * count).round().clamp(low, high)
        items, half = places / count, 0.5 / count
        difference = items - parameters.double()
        # by symmetry the upper tail is the lower tail of the mirrored variable: both ends are computed where F is small
        sign = torch.where(difference > 0, -1.0, 1.0)
        near, far = (sign * difference + half) / scale, (sign * difference - half) / scale
        log_near, log_far = self._log_tails(near), self._log_tails(far)
        # at the least value everything below counts, at the largest everything above
        open_far = ((places <= low) & (sign > 0)) | ((places >= high) & (sign < 0))
        open_near = ((places <= low) & (sign < 0)) | ((places >= high) & (sign > 0))
        log_near = torch.where(open_near, 0.0, log_near)
        inside = log_near + torch.log1p(-(log_far - log_near).clamp_max(-1e-12).exp())
        return _masked_sum(torch.where(open_far, log_near, inside), mask)


def _follow(running: Tensor, value: Tensor) -> None:
    """Moves a running mean toward a value, at once where it is off by more than a factor of two."""
    value = value.detach().to(running.dtype)
    ratio = running / value.clamp_min(1e-30)
    running.lerp_(value, torch.where((ratio > 2) | (ratio < 0.5), 1.0, 0.02).to(running.dtype))


class GaussianLikelihood(_Location):
    r"""A Gaussian whose variance is at its maximum-likelihood value, which leaves no weight to tune.

    .. math:: \min_{\sigma^2} -\frac1D \log p(x \mid z) = \tfrac12 \log \mathrm{MSE} + \mathrm{const}

    With it the weights of all other terms in nats follow from the model.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2020), https://arxiv.org/abs/2006.13202

    Attributes:
        variance: Running mean squared error of training, or the value set by :meth:`calibrate`.
    """

    variance: Tensor

    def __init__(self, values: Values = "unit") -> None:
        super().__init__(values)
        self.register_buffer("variance", torch.ones(()))

    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        error = self.error(parameters, items, mask)
        if self.training:
            error = mean_over_ranks(error)  # its logarithm is not the mean of the ranks' logarithms
            with torch.no_grad():
                _follow(self.variance, error)
        return error.clamp_min(self.least_variance).log() / 2

    def squared_error_weight(self, error: Tensor) -> Tensor:  # noqa: D102
        return 0.5 / error.clamp_min(self.least_variance)

    def calibrate(self, mean_squared_error: float) -> None:
        """Sets the variance that :meth:`log_prob` uses."""
        self.variance.fill_(max(mean_squared_error, self.least_variance))

    def _log_tails(self, standardized: Tensor) -> Tensor:
        return torch.special.log_ndtr(standardized)

    def _log_density(self, standardized: Tensor) -> Tensor:
        return -(standardized.square() + math.log(2 * math.pi)) / 2

    def _scale(self) -> Tensor:
        return self.variance.clamp_min(self.least_variance).sqrt()


class FixedGaussianLikelihood(GaussianLikelihood):
    """A Gaussian of fixed variance; at 1/2, the default, the loss is the mean squared error.

    Args:
        values: Kind of value of the items.
        fixed: The variance, in squared units of the items.
    """

    def __init__(self, values: Values = "unit", fixed: float = 0.5) -> None:
        super().__init__(values)
        self.fixed = positive("fixed", fixed, "Use 0.5 for the mean squared error.")
        self.variance.fill_(self.fixed)

    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return self.error(parameters, items, mask) / (2 * self.fixed)

    def squared_error_weight(self, error: Tensor) -> Tensor:  # noqa: D102
        return torch.full_like(error, 0.5 / self.fixed)


class LaplaceLikelihood(_Location):
    """A Laplace distribution whose scale is at its maximum-likelihood value: the log of the mean absolute error."""

    scale: Tensor

    def __init__(self, values: Values = "unit") -> None:
        super().__init__(values)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        error = masked_mean((parameters.float() - items.float()).abs(), mask)
        if self.training:
            error = mean_over_ranks(error)
            with torch.no_grad():
                _follow(self.scale, error)
        return error.clamp_min(self.least_variance**0.5).log()

    def squared_error_weight(self, error: Tensor) -> Tensor:
        """Assumes that all errors grow together: the absolute error is proportional to the root of the squared one."""
        return 0.5 / error.clamp_min(self.least_variance)

    def _log_tails(self, standardized: Tensor) -> Tensor:
        lower = standardized.clamp_max(0) - math.log(2)
        return torch.where(standardized <= 0, lower, torch.log1p(-(-standardized.clamp_min(0)).exp() / 2))

    def _log_density(self, standardized: Tensor) -> Tensor:
        return -standardized.abs() - math.log(2)

    def _scale(self) -> Tensor:
        return self.scale.clamp_min(self.least_variance**0.5)


class BernoulliLikelihood(AbstractLikelihood):
    """Independent Bernoulli dimensions of values in [0, 1]; the decoder returns logits.

    Exact for black-and-white images. For gray values it is the usual cross entropy, and :meth:`log_prob` normalizes it
    over the 256 values (the continuous Bernoulli of Loaiza-Ganem and Cunningham, 2019, on the grid of 8-bit values).
    """

    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        losses = F.binary_cross_entropy_with_logits(parameters.float(), items.float(), reduction="none")
        return masked_mean(losses, mask)

    def squared_error_weight(self, error: Tensor) -> Tensor:
        """Returns that of the cross entropy's expansion about probability 1/2, where it is least."""
        return torch.full_like(error, 2.0)

    def mean(self, parameters: Tensor) -> Tensor:  # noqa: D102
        return parameters.sigmoid()

    def log_prob(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        logits = parameters.double()
        items = (items.double() * 255).round() / 255
        # log sum_v exp(v logit / 255), v = 0..255, is a geometric series: (1 - r^256)/(1 - r), r = exp(-|logit| / 255)
        step = logits.abs().clamp_min(1e-9) / 255
        log_normalizer = logits.clamp_min(0) + torch.log(torch.expm1(-256 * step) / torch.expm1(-step))
        return _masked_sum(items * logits - log_normalizer, mask)


class CategoricalLikelihood(AbstractLikelihood):
    """A probability for each symbol of the vocabulary; the decoder returns logits ``(B, V, T)``."""

    error_name: ClassVar[str] = "symbol_error"

    def forward(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return masked_mean(F.cross_entropy(parameters.float(), items, reduction="none"), mask)

    def mean(self, parameters: Tensor) -> Tensor:  # noqa: D102
        return parameters.argmax(1)

    def error(self, made: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the share of wrong symbols, ``()``."""
        return masked_mean((made != items).float(), mask)

    def squared_error_weight(self, error: Tensor) -> Tensor:
        """Returns 1: a nat for a unit of squared error of the latents, whose scale is free."""
        return torch.ones_like(error)

    def log_prob(self, parameters: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return -_masked_sum(F.cross_entropy(parameters.double(), items, reduction="none"), mask)


LIKELIHOODS: dict[str, tuple[type[AbstractLikelihood], tuple[str, ...]]] = {
    "gaussian": (GaussianLikelihood, ("unit", "signed", "real")),
    "mean-squared-error": (FixedGaussianLikelihood, ("unit", "signed", "real")),
    "laplace": (LaplaceLikelihood, ("unit", "signed", "real")),
    "bernoulli": (BernoulliLikelihood, ("unit",)),
    "categorical": (CategoricalLikelihood, ("symbols",)),
}
"""All likelihoods by name, with the kinds of value that they fit."""


def default_likelihood(values: Values) -> str:
    """Returns the name of the default likelihood for a kind of value."""
    return next(name for name, (_, kinds) in LIKELIHOODS.items() if values in kinds)


def make_likelihood(name: str, values: Values = "unit") -> AbstractLikelihood:
    """Makes a likelihood by its name.

    Raises:
        ValueError: If the name is unknown, or the likelihood does not fit the values.
    """
    likelihood, kinds = LIKELIHOODS[one_of("likelihood", name, LIKELIHOODS)]
    if values not in kinds:
        raise ValueError(
            f"'likelihood' of {values} values must be one of "
            f"{', '.join(other for other, (_, of) in LIKELIHOODS.items() if values in of)}, got {name!r}. Leave it out."
        )
    return likelihood(values)
