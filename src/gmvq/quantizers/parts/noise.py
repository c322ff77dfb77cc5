r"""Widths of q(z | x, c) around the code, against p(z | c).

Both are normal with the code for their mean, of variances :math:`s_c^2` and :math:`\sigma^2`. Without noise they shrink
to the code together: their divergence is 0, and the latent is discrete.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.quantizers.parts.checks import non_negative

LEAST_RATIO = 1e-6
"""Least variance of q(z | x, c) against that of p(z | c)."""

LEAST_SCALE = 1e-10
"""Scale below which all ratios are the least one: its square must not vanish."""


@dataclass(frozen=True)
class AbstractNoise(ABC):
    r"""The ratio of variances :math:`s_c^2 / \sigma^2` as a function of the energy :math:`e_c = d_c / 2 \sigma^2`.

    Args:
        scale: nu, of the standard deviation; 0 adds no noise.

    Attributes:
        citations: Keys of its sources in the bibliography.

    Raises:
        ValueError: If ``scale`` is not a finite number of at least 0.
    """

    citations: ClassVar[tuple[str, ...]] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        non_negative("scale", self.scale)

    @property
    def is_none(self) -> bool:
        """True where z is the code itself."""
        return self.scale == 0

    def ratio(self, energies: Tensor, code_dim: int) -> Tensor:
        """Variances of q(z | x, c) over those of p(z | c), off 0: energies in nats ``(*)`` -> ``(*)``."""
        return self._ratio(energies, code_dim).clamp_min(LEAST_RATIO)

    def divergence(self, energies: Tensor, log_energies: Tensor, code_dim: int) -> Tensor:
        r"""KL(q(z | x, c) || p(z | c)) in nats, of energies and their logarithms, or of the expectations of both.

        .. math:: \tfrac L2 (r - 1 - \log r), \qquad r = s_c^2 / \sigma^2
        """
        if self.is_none:
            return torch.zeros_like(energies)
        ratio, log_ratio = self._ratio(energies, code_dim), self._log_ratio(log_energies, code_dim)
        return (code_dim / 2 * (ratio - 1 - log_ratio)).clamp_min(0)

    @abstractmethod
    def least_energy(self, code_dim: int) -> float:
        """The energy in nats that gives the least ratio; 0 where none does."""

    @abstractmethod
    def _ratio(self, energies: Tensor, code_dim: int) -> Tensor: ...

    @abstractmethod
    def _log_ratio(self, log_energies: Tensor, code_dim: int) -> Tensor: ...


@dataclass(frozen=True)
class AdaptiveNoise(AbstractNoise):
    r"""Equation (5): wide where the encoder is far from the code.

    .. math:: s_c^2 / \sigma^2 = \nu^2 d_c / 2 \sigma^2 L

    Args:
        scale: nu; 1 is the paper's.

    Shape:
        energies in nats ``(*)`` -> ratios of variances ``(*)``.

    References:
        Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
        https://arxiv.org/abs/2410.10180

    Example:
        >>> AdaptiveNoise().ratio(torch.tensor([0.0, 2.0, 4.0]), code_dim=4)
        tensor([1.0000e-06, 5.0000e-01, 1.0000e+00])
    """

    citations: ClassVar[tuple[str, ...]] = ("gmvq_yan2024",)

    def least_energy(self, code_dim: int) -> float:  # noqa: D102
        return 0.0 if self.is_none else LEAST_RATIO / self._factor(code_dim)

    def _ratio(self, energies: Tensor, code_dim: int) -> Tensor:
        return self._factor(code_dim) * energies  # (5)

    def _log_ratio(self, log_energies: Tensor, code_dim: int) -> Tensor:
        return math.log(self._factor(code_dim)) + log_energies

    def _factor(self, code_dim: int) -> float:
        return max(self.scale, LEAST_SCALE) ** 2 / code_dim


@dataclass(frozen=True)
class ConstantNoise(AbstractNoise):
    r"""The same width for all latents and codes: what equation (5) is compared with.

    .. math:: s_c^2 / \sigma^2 = \nu^2

    At nu = 1 it is the generative model's own, and the divergence of the latents is 0.

    Args:
        scale: nu.

    Shape:
        energies in nats ``(*)`` -> ratios of variances ``(*)``.

    References:
        In the place of equation (5) of Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior
        (Yan et al., 2024), https://arxiv.org/abs/2410.10180

    Example:
        >>> ConstantNoise(0.5).ratio(torch.tensor([0.0, 2.0]), code_dim=4)
        tensor([0.2500, 0.2500])
    """

    citations: ClassVar[tuple[str, ...]] = ("gmvq_yan2024",)

    def least_energy(self, code_dim: int) -> float:  # noqa: D102
        return 0.0

    def _ratio(self, energies: Tensor, code_dim: int) -> Tensor:
        return torch.full_like(energies, max(self.scale**2, LEAST_RATIO))

    def _log_ratio(self, log_energies: Tensor, code_dim: int) -> Tensor:
        return torch.full_like(log_energies, math.log(max(self.scale**2, LEAST_RATIO)))


def as_noise(noise: float | AbstractNoise) -> AbstractNoise:
    """Takes a number for the scale of equation (5).

    Raises:
        ValueError: If it is neither a noise nor a finite number of at least 0.
    """
    return noise if isinstance(noise, AbstractNoise) else AdaptiveNoise(non_negative("noise", noise))
