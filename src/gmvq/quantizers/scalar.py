r"""Scalar quantization: each feature takes one of a few values, and the codebook is the grid of all combinations.

With :math:`L_j` levels in feature j, level :math:`l_j \in \{0, \dots, L_j - 1\}` and value :math:`v_j(l_j)`,

.. math:: c = \sum_j l_j \prod_{i<j} L_i, \qquad K = \prod_j L_j, \qquad \mu_c = (v_1(l_1), v_2(l_2), \dots)

so the first feature counts fastest. No code can be far from all latents as in a free codebook, since each level is
shared by the K / L_j codes that contain it; and nothing here takes memory or time in proportion to K.

In :class:`FiniteScalarQuantizer` the values are fixed and latents are squashed into their range; in
:class:`LatentQuantizer` the values learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_codes, non_negative
from gmvq.quantizers.parts.estimators import StraightThrough
from gmvq.quantizers.parts.rows import mean_square
from gmvq.types import Quantized

SLACK = 1e-3
"""Share by which the squashed range exceeds the outermost levels, so that a finite latent can reach them."""

MOST_OF_PAPER = 1000
"""Levels of a feature that the paper's bound reaches, which is narrower by half a level at 1,001."""

Bound = Literal["tanh", "paper", "clamp"]

MOST_CODES = 2**62
"""A code is an int64."""


class Grid(nn.Module):
    """Numbers the points of a grid, the first feature fastest.

    Args:
        levels: Number of levels of each feature.
    """

    sizes: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        sizes = torch.tensor(levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("strides", torch.cat([sizes.new_ones(1), sizes[:-1]]).cumprod(0), persistent=False)

    def codes(self, levels: Tensor) -> Tensor:
        """Numbers of the points with these levels, ``(N, L)`` -> ``(N,)``; integers throughout."""
        return (levels * self.strides).sum(-1)

    def levels(self, codes: Tensor) -> Tensor:
        """Levels of the points with these numbers, ``(N,)`` -> ``(N, L)``."""
        return codes[:, None] // self.strides % self.sizes


class AbstractGridQuantizer(AbstractQuantizer):
    """A codebook of all combinations of a few values of each feature.

    Args:
        levels: Number of values of each feature.
        dim: Features of a latent, ``len(levels)`` if None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, levels: Sequence[int], dim: int | None) -> None:
        sizes = _checked_levels(levels)
        super().__init__(_checked_dim(dim, sizes), math.prod(sizes), len(sizes))
        self.levels = sizes
        self.grid = Grid(sizes)


class FiniteScalarQuantizer(AbstractGridQuantizer):
    r"""Squashes each feature into a fixed range and rounds it to one of a few levels.

    .. math::
        y_j = h_j \tanh(z_j + s_j) - o_j, \quad h_j = (1 + \epsilon) \frac{L_j - 1}{2}, \quad
        o_j = \tfrac12 [L_j \text{ even}], \quad s_j = \mathrm{artanh}(o_j / h_j), \quad
        \hat z_j = \frac{\mathrm{round}(y_j)}{\lfloor L_j / 2 \rfloor}

    An even number of levels has no level in the middle of its range; the shift by half a level puts one at 0, and
    :math:`s_j` takes the latent 0 to it. The ``symmetric`` form keeps the range symmetric and lets 0 fall between two
    levels:

    .. math:: \hat z_j = \frac{2}{L_j - 1} \left\lfloor (L_j - 1) \frac{\tanh z_j + 1}{2} + \frac12 \right\rfloor - 1

    These are the bounds of vector-quantize-pytorch. The paper and its notebook, ``bound="paper"``, take instead

    .. math:: h_j = (1 - \epsilon) \frac{L_j - 1}{2}, \quad s_j = \tan(o_j / h_j)

    with the same :math:`\epsilon = 0.001`. For latents from a standard Gaussian 0.2 to 0.3 % of the levels differ by
    one, and so 1.0 % of the codes of ``[8, 5, 5, 5]`` and 1.8 % of those of ``[8, 8, 8, 5, 5, 5]``.

    The gradient passes the rounding as if it were the identity. There is no loss and, but for a projection, no
    parameter.

    A decoded code is not a fixed point: tanh draws it to the middle, so ``encode(decode(c))`` is another code for the
    outer levels of features with 4 or with more than 5 levels (symmetric: more than 5); :attr:`round_trips` says. What
    holds for all levels is ``encode(preimage(c)) == c``, and with ``bound="clamp"`` the round trip too. All is computed
    in float32 at least; but bfloat16 latents by themselves cannot tell more than about 600 levels of a feature apart.

    Args:
        levels: Number of levels L_j of each feature: at least 3, or 2 in the symmetric form.
        dim: Features of a latent, ``len(levels)`` by default; more puts a learned projection around the grid.
        symmetric: Take the symmetric form.
        noise_dropout: Probability in [0, 1] with which, in training, the value of a feature is not rounded but gets
            uniform noise as wide as one level. The codes are those of the rounded values all the same.
        bound: ``"tanh"``; ``"paper"`` for the paper's tanh, of at most 1,000 levels, as its range leaves out the
            outermost of more; or ``"clamp"`` to cut latents off at -1 and 1, if they have been squashed before.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)`` in [-1, 1], codes ``(*)``, loss ``()``, always 0.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), https://arxiv.org/abs/2309.15505;
        symmetric form and noise: Scaling Transformers for Low-Bitrate High-Quality Speech Coding (Parker et al., 2024),
        https://arxiv.org/abs/2411.19842

    Example:
        >>> quantizer = FiniteScalarQuantizer([8, 5, 5])
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 3))
        >>> values.shape, codes.shape, quantizer.codebook_size
        (torch.Size([2, 10, 3]), torch.Size([2, 10]), 200)
    """

    citations: tuple[str, ...] = ("fsq_mentzer2023", "fsq_parker2024")

    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        *,
        dim: int | None = None,
        symmetric: bool = False,
        noise_dropout: float = 0.0,
        bound: Bound = "tanh",
    ) -> None:
        sizes = _checked_levels(levels)
        if not symmetric and 2 in sizes:
            raise ValueError(
                f"'levels' must be at least 3, got {levels!r}. Set symmetric=True for features of one bit."
            )
        if not 0 <= noise_dropout <= 1:
            raise ValueError(f"'noise_dropout' must lie in [0, 1], got {noise_dropout}. Use 0.5, or 0.0 for no noise.")
        _check_bound(bound, sizes, symmetric)
        super().__init__(levels, dim)
        if not (symmetric or noise_dropout):
            self.citations = ("fsq_mentzer2023",)
        self.symmetric = symmetric
        self.noise_dropout = noise_dropout
        self.bound = bound
        # in float32, as published models computed them: in float64 some latents would round to another level
        half_range = (self.grid.sizes - 1) * (1 - SLACK if bound == "paper" else 1 + SLACK) / 2
        offset = torch.where(self.grid.sizes % 2 == 0, 0.5, 0.0) * (not symmetric)
        shift = offset / half_range
        self.register_buffer("half_range", half_range, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        shift = {"tanh": torch.atanh, "paper": torch.tan, "clamp": torch.clone}[bound](shift)
        self.register_buffer("shift", shift, persistent=False)

    @property
    def round_trips(self) -> bool:
        """True if ``encode(decode(c)) == c`` for every code c."""
        levels = torch.arange(max(self.levels), device=self.grid.sizes.device)[:, None].minimum(self.grid.sizes - 1)
        return torch.equal(self._levels(self._squashed(self._values(levels))), levels)

    def preimage(self, codes: Tensor) -> Tensor:
        """A latent for each code, ``(*)`` -> ``(*, dim)``: the middle of its cell, so that it encodes to the code.

        Raises:
            ValueError: If codes are not integers or lie outside [0, K).
        """
        codes = checked_codes(codes, self.codebook_size)
        if (codes < 0).any():
            raise ValueError(f"'codes' must lie in [0, {self.codebook_size}), got -1. Leave out those that are masked.")
        levels = self.grid.levels(codes.reshape(-1))
        if self.symmetric:
            squashed = self._values(levels)
        else:
            squashed = (levels - self.grid.sizes // 2 + self.offset) / self.half_range
        edge = 1 - 0.5 / (self.grid.sizes - 1)  # the outermost cells reach to infinity: a point inside them
        if self.bound == "paper":  # whose outermost cells are narrower: the middle of what is left of them
            edge = 0.5 + (self.grid.sizes - 2) / self.half_range / 4
        squashed = squashed.maximum(-edge).minimum(edge)
        rows = (squashed if self.bound == "clamp" else torch.atanh(squashed)) - self.shift
        return self._outside(rows).reshape(*codes.shape, self.dim)

    def _squashed(self, rows: Tensor) -> Tensor:
        shifted = rows + self.shift.to(rows.dtype)
        return shifted.clamp(-1, 1) if self.bound == "clamp" else shifted.tanh()

    def _levels(self, squashed: Tensor) -> Tensor:
        """Level of each squashed feature, int64 ``(N, L)``."""
        if self.symmetric:
            levels = ((self.grid.sizes - 1) * (squashed + 1) / 2 + 0.5).floor()
        else:
            levels = self._places(squashed).round() + self.grid.sizes // 2
        # beyond 1000 levels the slack is wider than half a level
        return levels.long().clamp_min(0).minimum(self.grid.sizes - 1)

    def _places(self, squashed: Tensor) -> Tensor:
        """The y of the equation: levels are integers here, and level L // 2 is at 0, ``(N, L)``."""
        return squashed * self.half_range.to(squashed.dtype) - self.offset.to(squashed.dtype)

    def _bounded(self, squashed: Tensor) -> Tensor:
        """Values before rounding, ``(N, L)``."""
        return squashed if self.symmetric else self._places(squashed) / (self.grid.sizes // 2)

    def _values(self, levels: Tensor) -> Tensor:
        """Values ``(N, L)`` of levels ``(N, L)`` in the type of the state, which is that of decoded codes."""
        sizes = self.grid.sizes
        numerators = 2 * levels - (sizes - 1) if self.symmetric else levels - sizes // 2
        return numerators.to(self.training_progress.dtype) / (sizes - 1 if self.symmetric else sizes // 2)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        squashed = self._squashed(rows)
        levels = self._levels(squashed.detach())
        bounded = self._bounded(squashed)
        values = StraightThrough()(bounded, self._values(levels).to(rows.dtype))
        if self.training and self.noise_dropout > 0:
            widths = 2 / (self.grid.sizes - 1) if self.symmetric else 1 / (self.grid.sizes // 2)
            noise = (torch.rand_like(rows) - 0.5) * widths.to(rows.dtype)
            values = torch.where(torch.rand_like(rows) < self.noise_dropout, bounded + noise, values)
        return Quantized(values, self.grid.codes(levels), rows.new_zeros(()), {})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self.grid.codes(self._levels(self._squashed(rows)))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self._values(self.grid.levels(codes))


class LatentQuantizer(AbstractGridQuantizer):
    r"""Takes each feature to the nearest of its own learned values.

    .. math::
        l_j = \arg\min_l |z_j - v_{jl}|, \qquad
        \mathcal{L} = \beta\, |z - \mathrm{sg}[\hat z]|^2 + \gamma\, |\mathrm{sg}[z] - \hat z|^2, \qquad
        \hat z_j = v_{j l_j}

    A few values for each feature, used all over the data, press single factors of variation into single features:
    latents that are meant to be read, not only decoded.

    Args:
        levels: Number of values L_j of each feature, at least 2.
        dim: Features of a latent, ``len(levels)`` by default; more puts a learned projection around the grid.
        commitment_weight: beta, which draws latents to their values.
        quantization_weight: gamma, which draws values to their latents; 0 keeps the values where they start, evenly
            spread from -1/2 up with one at 0.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Disentanglement via Latent Quantization (Hsu et al., 2023), https://arxiv.org/abs/2305.18378

    Example:
        >>> quantizer = LatentQuantizer([5, 5, 8])
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 3))
        >>> values.shape, codes.shape, quantizer.codebook_size
        (torch.Size([2, 10, 3]), torch.Size([2, 10]), 200)
    """

    citations: tuple[str, ...] = ("latentquant_hsu2023",)

    values: Tensor
    """Values of the first feature, then of the second, and so on, ``(sum of levels,)``."""
    starts: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        *,
        dim: int | None = None,
        commitment_weight: float = 0.1,
        quantization_weight: float = 0.1,
    ) -> None:
        super().__init__(levels, dim)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.quantization_weight = non_negative("quantization_weight", quantization_weight)
        # an odd number of values ends at 1/2, an even one a step before: both have a 0
        values = torch.cat([torch.arange(size) / (size // 2 * 2) - 0.5 for size in self.levels])
        if quantization_weight > 0:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)
        self.register_buffer("starts", self.grid.sizes.cumsum(0) - self.grid.sizes, persistent=False)

    def _levels(self, rows: Tensor) -> Tensor:
        """Number of the nearest value in each feature, ``(N, L)``."""
        places = torch.arange(max(self.levels), device=rows.device).expand(len(self.levels), -1)
        indices = self.starts[:, None] + places.minimum(self.grid.sizes[:, None] - 1)
        tables = self.values.detach().to(rows.dtype)[indices]
        tables = tables.masked_fill(places >= self.grid.sizes[:, None], torch.inf)
        # between two neighbors the nearer one changes in the middle: no distances to all values
        ordered, order = torch.sort(tables, dim=-1, stable=True)
        middles = ordered[:, :-1] / 2 + ordered[:, 1:] / 2
        return order.gather(-1, torch.searchsorted(middles, rows.detach().T.contiguous())).T

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        levels = self._levels(rows)
        nearest = self.values.to(rows.dtype)[self.starts + levels]
        commitment = mean_square(rows - nearest.detach(), kept)
        loss = self.commitment_weight * commitment
        if self.quantization_weight > 0:
            loss = loss + self.quantization_weight * mean_square(rows.detach() - nearest, kept)
        values = StraightThrough()(rows, nearest)
        return Quantized(values, self.grid.codes(levels), loss, {"commitment": commitment.detach()})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self.grid.codes(self._levels(rows))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.values[self.starts + self.grid.levels(codes)]


def _checked_levels(levels: Sequence[int]) -> tuple[int, ...]:
    valid = isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) > 0
    if not valid or any(isinstance(size, bool) or not isinstance(size, int) or size < 2 for size in levels):
        raise ValueError(f"'levels' must be integers of at least 2, got {levels!r}. Give for example [8, 5, 5, 5].")
    if math.prod(levels) > MOST_CODES:
        raise ValueError(f"'levels' must make at most 2**62 codes, got {levels!r}. Split the features with Product.")
    return tuple(levels)


def _check_bound(bound: str, levels: tuple[int, ...], symmetric: bool) -> None:
    if bound not in get_args(Bound):
        raise ValueError(f"'bound' must be one of {', '.join(get_args(Bound))}, got {bound!r}. Use 'tanh'.")
    if bound == "paper" and symmetric:
        raise ValueError("'bound' must be 'tanh' or 'clamp' in the symmetric form, got 'paper'. Use 'tanh'.")
    if bound == "paper" and max(levels) > MOST_OF_PAPER:
        raise ValueError(
            f"'levels' must be at most {MOST_OF_PAPER} with bound='paper', got {max(levels)}. Use bound='tanh'."
        )


def _checked_dim(dim: int | None, levels: tuple[int, ...]) -> int:
    if dim is not None and isinstance(dim, int) and 0 < dim < len(levels):
        raise ValueError(
            f"'dim' must be at least the number of 'levels', {len(levels)}, got {dim}. "
            "Widen the latents with a linear layer before the quantizer, or give fewer levels."
        )
    return len(levels) if dim is None else dim
