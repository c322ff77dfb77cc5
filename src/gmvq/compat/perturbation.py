r"""vector-quantize-pytorch's ``FSP``: features on [0, 1], noise in training, the middle of an interval in evaluation.

.. math:: p = F(z), \qquad l = \lfloor L p \rfloor, \qquad \hat p = \frac{l + 1/2}{L}, \qquad
          v = \sqrt{12}\, \big(\hat p - \tfrac12\big) \;\text{ or }\; F^{-1}(\hat p)

In training a share of the features is not quantized but gets noise as wide as an interval,
:math:`p + u`, :math:`u \sim \mathrm{Uniform}(\pm \frac{1}{2 L})`, unless it would leave [0, 1]. Moments of the latents
are drawn to those for which F makes p uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmvq.quantizers.scalar import Grid

Map = Callable[[Tensor], Tensor]

SPREAD = 12**-0.5
"""Standard deviation of the uniform distribution on [0, 1]."""


def _laplace(z: Tensor) -> Tensor:
    tail = (-z.abs()).exp() / 2
    return torch.where(z < 0, tail, 1 - tail)


def _inverse_laplace(p: Tensor) -> Tensor:
    centered = p - 0.5
    return -centered.sign() * torch.log1p(-2 * centered.abs())


ACTIVATIONS: dict[str, tuple[Map, Map]] = {
    "tanh": (lambda z: (z.tanh() + 1) / 2, lambda p: (2 * p - 1).atanh()),
    "sigmoid": (torch.sigmoid, torch.logit),
    "normal": (lambda z: (1 + (z / math.sqrt(2)).erf()) / 2, lambda p: (2 * p - 1).erfinv() * math.sqrt(2)),
    "laplace": (_laplace, _inverse_laplace),
    "cauchy": (lambda z: z.atan() / math.pi + 0.5, lambda p: (math.pi * (p - 0.5)).tan()),
}
"""By name: a cumulative distribution function F of the real line, and its inverse."""


def build_cdf_act(act_name: str) -> tuple[Map, Map]:
    """Returns a cumulative distribution function of the real line and its inverse.

    Raises:
        ValueError: If the name is not known.
    """
    if act_name not in ACTIVATIONS:
        raise ValueError(f"'act_name' must be one of {', '.join(ACTIVATIONS)}, got {act_name!r}. Use 'tanh'.")
    return ACTIVATIONS[act_name]


class Moments(NamedTuple):
    """Moments of latents over a batch, ``(L,)`` each.

    Attributes:
        mean: Mean.
        variance: Variance, unbiased.
        skewness: Mean third power of the standardized latents.
        kurtosis: Mean fourth power of the standardized latents, less 3.
    """

    mean: Tensor
    variance: Tensor
    skewness: Tensor
    kurtosis: Tensor


@dataclass(frozen=True)
class MomentPenalty:
    """Squared distances of moments from those that are wanted, weighted and added.

    Attributes:
        variance: The variance that is wanted; the other moments shall be 0.
        weights: Weight of each moment.
    """

    variance: float = 1.0
    weights: tuple[float, float, float, float] = (0.1, 0.07, 0.0, 0.0)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Moments]:
        """Penalty ``()`` and moments of latents ``(N, L)``."""
        variance, mean = torch.var_mean(rows, dim=0, correction=min(1, len(rows) - 1))
        standardized = (rows - mean) / variance.sqrt().clamp_min(1e-8)
        found = Moments(mean, variance, standardized.pow(3).mean(0), standardized.pow(4).mean(0) - 3)
        penalty = rows.new_zeros(())
        for moment, wanted, weight in zip(found, (0.0, self.variance, 0.0, 0.0), self.weights, strict=True):
            if weight:
                penalty = penalty + weight * (moment - wanted).square().mean()
        return penalty, found


PENALTIES = {
    "none": MomentPenalty(weights=(0.0, 0.0, 0.0, 0.0)),
    "var": MomentPenalty(),
    "kurt": MomentPenalty(weights=(0.1, 0.07, 0.06, 0.05)),
    # the variances of the distributions
    "var_tanh": MomentPenalty(0.8225),
    "var_sigmoid": MomentPenalty(3.29),
    "var_laplace": MomentPenalty(2.0),
}
"""By name: which moments latents are drawn to."""


class FSP(nn.Module):
    r"""Quantizes each feature to the middle of an interval of equal probability, with noise in its place in training.

    Args:
        levels: Number of intervals L_j of each feature.
        dim: Features of a latent, ``len(levels)`` by default; another number has linear maps around the grid.
        channel_first: True if features are the second axis.
        projection_has_bias: Whether the linear maps have a bias.
        act_name: The distribution function: ``"tanh"``, ``"sigmoid"``, ``"normal"``, ``"laplace"`` or ``"cauchy"``.
        quantize_rate: Share of features in [0, 1] that are quantized in training; the others get noise.
        need_inv_act: True to map values back by the inverse function, False to scale them to variance 1.
        vector_norm: Moments that latents are drawn to: ``"none"``, ``"var"``, ``"kurt"``, ``"var_tanh"``,
            ``"var_sigmoid"`` or ``"var_laplace"``.

    Shape:
        z ``(*, dim)``, or with ``channel_first`` ``(B, dim, *)`` -> quantized as z, indices ``(*)`` (int32 where they
        fit), loss ``()``, and a dict with ``level_indices`` ``(*, L)``, ``norm_info`` (moments ``(L,)``) and
        ``p_accept_prob`` ``()``, the share of the noise, if any, that stays in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    References:
        Finite Scalar Perturbation (2026), https://arxiv.org/abs/2602.17133

    Example:
        >>> quantized, indices, loss, info = FSP(levels=[8, 5, 5], dim=16)(torch.randn(2, 10, 16))
        >>> quantized.shape, indices.shape, info["level_indices"].shape
        (torch.Size([2, 10, 16]), torch.Size([2, 10]), torch.Size([2, 10, 3]))
    """

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        channel_first: bool = False,
        projection_has_bias: bool = True,
        act_name: str = "tanh",
        quantize_rate: float = 0.0,
        need_inv_act: bool = False,
        vector_norm: str = "var_tanh",
    ) -> None:
        super().__init__()
        if not 0 <= quantize_rate <= 1:
            raise ValueError(f"'quantize_rate' must lie in [0, 1], got {quantize_rate}. Use 0 for noise alone.")
        if vector_norm not in PENALTIES:
            raise ValueError(f"'vector_norm' must be one of {', '.join(PENALTIES)}, got {vector_norm!r}. Use 'none'.")
        self.codebook_dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.dim = self.codebook_dim if dim is None else dim
        self.channel_first = channel_first
        self.act_name = act_name
        self.quantize_rate = quantize_rate
        self.need_inv_act = need_inv_act
        self.vector_norm = PENALTIES[vector_norm]
        self.has_projections = self.dim != self.codebook_dim
        wide = (self.dim, self.codebook_dim)
        linear = self.has_projections
        self.project_in = nn.Linear(*wide, bias=projection_has_bias) if linear else nn.Identity()
        self.project_out = nn.Linear(*wide[::-1], bias=projection_has_bias) if linear else nn.Identity()
        self.activation, self.inverse = build_cdf_act(act_name)
        self.grid = Grid(levels)

    def extra_repr(self) -> str:
        """The arguments."""
        names = ("dim", "codebook_size", "act_name", "quantize_rate", "need_inv_act")
        return f"levels={self.grid.sizes.tolist()}, " + ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def level_indices_to_indices(self, level_indices: Tensor) -> Tensor:
        """Number of each point, ``(*, L)`` -> ``(*)``: int32 where all fit, else int64."""
        fits = self.codebook_size <= torch.iinfo(torch.int32).max
        return self.grid.codes(level_indices.long()).to(torch.int32 if fits else torch.int64)

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Interval of each feature, ``(*)`` -> int64 ``(*, L)``."""
        return self.grid.levels(indices.reshape(-1).long()).reshape(*indices.shape, self.codebook_dim)

    def indices_to_act_value(self, indices: Tensor) -> Tensor:
        """Middles of the intervals in [0, 1], ``(*)`` -> ``(*, L)``."""
        levels = self.indices_to_level_indices(indices).to(torch.promote_types(self._dtype, torch.float32))
        return (levels + 0.5) / self.grid.sizes

    def indices_to_codes(self, indices: Tensor, eps: float = 1e-6) -> Tensor:
        """Values that forward returns in evaluation for these indices, in the layout of z.

        Args:
            indices: Indices.
            eps: Margin that the inverse function keeps from 0 and 1.
        """
        codes = self.project_out(self._values(self.indices_to_act_value(indices), eps).to(self._dtype))
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, z: Tensor, eps: float | None = None) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Quantizes z.

        Args:
            z: Latents.
            eps: Margin that features keep from the end of the last interval, the smallest step of z's type by default.

        Returns:
            Values, indices, the penalty of the moments, and a dict of further figures.

        Raises:
            ValueError: If the axis of features does not have ``dim`` of them.
        """
        eps = eps or torch.finfo(z.dtype).eps
        latents = z.movedim(1, -1) if self.channel_first else z
        if latents.shape[-1] != self.dim:
            raise ValueError(
                f"Axis {1 if self.channel_first else -1} of 'z' must have {self.dim} features, got shape "
                f"{tuple(z.shape)}. 'channel_first' says whether features are the second axis or the last."
            )
        with torch.autocast(z.device.type, enabled=False):  # a look-up without it must find the same values
            values, levels, penalty, info = self._rows(latents.reshape(-1, self.dim).to(self._dtype), eps)
        values = values.to(z.dtype).reshape(latents.shape)
        levels = levels.reshape(*latents.shape[:-1], self.codebook_dim)
        info["level_indices"] = levels
        values = values.movedim(-1, 1) if self.channel_first else values
        return values, self.level_indices_to_indices(levels), penalty, info

    def _rows(self, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Values, intervals, penalty and figures of latents ``(N, dim)``."""
        inside = self.project_in(rows)
        rows = inside.float() if inside.dtype in (torch.float16, torch.bfloat16) else inside
        penalty, moments = self.vector_norm(rows)
        p = self.activation(rows)
        levels = (p.detach().clamp_max(1 - eps) * self.grid.sizes).floor()
        middles = p + ((levels + 0.5) / self.grid.sizes - p).detach()
        info: dict[str, Any] = {"norm_info": moments._asdict()}
        if self.training and self.quantize_rate < 1:
            middles, info["p_accept_prob"] = self._perturbed(p, middles)
        values = self._values(middles, eps)
        if self.need_inv_act:
            values = rows + (values - rows).detach()
        return self.project_out(values.to(inside.dtype)), levels, penalty, info

    @property
    def _dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def _values(self, p: Tensor, eps: float) -> Tensor:
        return self.inverse(p.clamp(eps, 1 - eps)) if self.need_inv_act else (p - 0.5) / SPREAD

    def _perturbed(self, p: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
        """Middles, or noise in their place for a share of the features; and the share of noise that was kept."""
        proposal = p + (2 * torch.rand_like(p) - 1) / (2 * self.grid.sizes)
        accepted = (proposal > 0) & (proposal < 1)
        noisy = torch.rand_like(p) > self.quantize_rate
        values = torch.where(noisy, torch.where(accepted, proposal, p), middles)
        return values, accepted.to(p.dtype).mean()
