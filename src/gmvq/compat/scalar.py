r"""vector-quantize-pytorch's ``FSQ`` and ``ResidualFSQ``, by our :class:`~gmvq.FiniteScalarQuantizer`.

::

    x --channels last--> latents --way in--> codebooks --rotation--> grid --rotation--> way out --> quantized, indices

Level i of the residual quantizer has the grid of level 0, smaller by the i-th power of the number L of levels:

.. math:: v = \sum_i s_i\, \mathrm{grid}\Big(\frac{x - \sum_{j<i} v_j}{s_i}\Big), \qquad s_i = L^{-i}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.options import Rule, check, defaults, has_bias, read
from gmvq.compat.peer_residual import SeededResidual
from gmvq.compat.projections import (
    FixedRotation,
    Scale,
    SoftClamp,
    inside,
    projected,
    put_projection,
    put_rotation,
)
from gmvq.compat.residual_options import level_dropout
from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.projected import Projected
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.scalar import SLACK, FiniteScalarQuantizer, Grid

RULES = (
    Rule("scale", (None,), "It has no effect in the original either. Leave it out.", training_only=False),
    Rule("allowed_dtypes", ((torch.float32, torch.float64),), "Leave it out: quantization is in float32 or float64."),
    Rule("force_quantization_f32", (True,), "Leave it out: quantization is in float32 or float64."),
)

RESIDUAL_RULES = (
    Rule("num_codebooks", (1,), "Use gmvq.Product of gmvq.Residual.", training_only=False),
    Rule("keep_num_codebooks_dim", (None, False), "Leave it out.", training_only=False),
    Rule("return_indices", (True,), "Leave it out.", training_only=False),
    Rule("preserve_symmetry", (True,), "Levels are symmetric, there and here. Leave it out.", training_only=False),
)


@dataclass(frozen=True)
class ScalarOptions:
    """Keyword arguments of ``FSQ``, in its order and with its defaults.

    Raises:
        ValueError: If an option is not supported.
    """

    levels: Sequence[int]
    dim: int | None = None
    num_codebooks: int = 1
    keep_num_codebooks_dim: bool | None = None
    scale: float | None = None
    allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    channel_first: bool = False
    projection_has_bias: bool = True
    return_indices: bool = True
    force_quantization_f32: bool = True
    preserve_symmetry: bool = False
    noise_dropout: float = 0.0
    bound_hard_clamp: bool = False
    orthogonal_rotation: bool = False

    def __post_init__(self) -> None:
        check(self, RULES)
        if self.num_codebooks > 1 and self.keep_num_codebooks_dim is False:
            raise ValueError("'keep_num_codebooks_dim' must be True for several codebooks, got False. Leave it out.")

    @property
    def keeps_axis(self) -> bool:
        """True if indices have an axis for codebooks."""
        return self.num_codebooks > 1 if self.keep_num_codebooks_dim is None else self.keep_num_codebooks_dim

    def grid(self) -> FiniteScalarQuantizer:
        """One codebook."""
        return FiniteScalarQuantizer(
            list(self.levels),
            symmetric=self.preserve_symmetry,
            noise_dropout=self.noise_dropout,
            bound="clamp" if self.bound_hard_clamp else "tanh",
        )

    def quantizer(self) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``."""
        rotation = FixedRotation(len(self.levels)) if self.orthogonal_rotation else None
        grids = [self.grid() if rotation is None else rotation.around(self.grid()) for _ in range(self.num_codebooks)]
        inner = Product(grids) if self.keeps_axis else grids[0]
        return projected(inner, inner.dim if self.dim is None else self.dim, bias=self.projection_has_bias)


class FSQ(AbstractDropIn):
    r"""Rounds each feature to one of a few levels, with the interface of vector-quantize-pytorch.

    .. math:: \hat z_j = \mathrm{round}(h_j \tanh(z_j + s_j) - o_j) / \lfloor L_j / 2 \rfloor

    Args:
        *arguments: Arguments of the other library's class in its order: ``levels``, ``dim``, ``num_codebooks``, ...;
            see :class:`ScalarOptions`.
        **options: The same by keyword, with its defaults.

    Shape:
        x ``(B, N, dim)``, or ``(B, dim, *spatial)`` with ``channel_first`` or at least four axes -> quantized as x,
        indices ``(B, N)``, or with several codebooks ``(B, N, num_codebooks)``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), https://arxiv.org/abs/2309.15505

    Example:
        >>> quantized, indices = FSQ(levels=[8, 5, 5], dim=16)(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = ScalarOptions(*arguments, **options)
        self.quantizer = self.options.quantizer()

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channel_first

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a codebook."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks."""
        return self.options.num_codebooks

    @property
    def codebook_dim(self) -> int:
        """Features of a code of one codebook."""
        return len(self.options.levels)

    @property
    def effective_codebook_dim(self) -> int:
        """Features of the codes of all codebooks."""
        return self.num_codebooks * self.codebook_dim

    @property
    def implicit_codebook(self) -> Tensor:
        """Values of all codes of a codebook, ``(K, L)``."""
        return self.options.grid().codebook.to(self.quantizer.training_progress)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; 0 for -1."""
        values = self.quantizer.decode(indices)
        are_spatial = indices.ndim >= 3 + self.options.keeps_axis
        return values.movedim(-1, 1) if are_spatial or self.options.channel_first else values

    def bound(self, z: Tensor, eps: float = SLACK, hard_clamp: bool = False) -> Tensor:
        """Rounds features to the values of a codebook that is not symmetric, ``(*, L)`` -> ``(*, L)``.

        Args:
            z: Latents inside the projection.
            eps: The default; others are not supported.
            hard_clamp: True cuts latents off at -1 and 1, in place of tanh.

        Raises:
            ValueError: If ``eps`` is not the default.
        """
        if eps != SLACK:
            raise ValueError(f"'eps' must be {SLACK} here, got {eps}. Leave it out.")
        grid = FiniteScalarQuantizer(list(self.options.levels), bound="clamp" if hard_clamp else "tanh")
        return grid.to(z.device).eval()(z).values

    def quantize(self, z: Tensor) -> Tensor:
        """Rounds features to the values of a codebook, without noise, ``(*, L)`` -> ``(*, L)``."""
        return self.options.grid().to(z.device).eval()(z).values

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Indices of values of a codebook, ``(*, L)`` -> int64 ``(*)``."""
        sizes = torch.tensor(list(self.options.levels), device=codes.device)
        places = (codes + 1) * (sizes - 1) / 2 if self.options.preserve_symmetry else codes * (sizes // 2) + sizes // 2
        return self._numbers.codes(places.round().long().reshape(-1, len(sizes))).reshape(codes.shape[:-1])

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Level of each feature, ``(*)`` -> ``(*, L)``."""
        return self._numbers.levels(indices.reshape(-1)).reshape(*indices.shape, len(self.options.levels))

    @property
    def _numbers(self) -> Grid:
        return next(module for module in self.quantizer.modules() if isinstance(module, Grid))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantizes z; returns values in its layout, and indices or None with ``return_indices=False``."""
        out = self._quantize(z, (self.options.channel_first and z.ndim > 2) or z.ndim >= 4)
        return out.values, out.codes if self.options.return_indices else None

    def _is_theirs(self, names: list[str]) -> bool:
        return not any(name.startswith("quantizer.") for name in names)  # the original may have an empty state

    def _translate(self, translation: Translation) -> None:
        put_projection(translation, self.quantizer)
        put_rotation(translation, self.quantizer)


@dataclass(frozen=True)
class ResidualScalarOptions:
    """Keyword arguments of ``ResidualFSQ``, with its defaults; ``scalar`` holds those for each level.

    Raises:
        ValueError: If an option is not supported, or two contradict each other.
    """

    levels: Sequence[int]
    num_quantizers: int
    dim: int | None = None
    is_channel_first: bool = False
    quantize_dropout: bool = False
    quantize_dropout_cutoff_index: int = 0
    quantize_dropout_multiple_of: int = 1
    soft_clamp_input_value: float | Sequence[float] | Tensor | None = None
    bound_hard_clamp: bool = True
    scalar: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        options = ScalarOptions(self.levels, **{"preserve_symmetry": True, **(self.scalar or {})})
        check(options, RESIDUAL_RULES)
        if self.bound_hard_clamp and self.soft_clamp_input_value is not None:
            raise ValueError(
                "'soft_clamp_input_value' follows from the levels where 'bound_hard_clamp' is True, got a value. "
                "Leave it out, or set bound_hard_clamp=False."
            )

    def quantizer(self, own: bool = False) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``; ``own`` makes it of our quantizers, for conversion."""
        sizes = torch.tensor(self.levels)
        clamp = self.soft_clamp_input_value
        if self.bound_hard_clamp:  # the values that a clamp would cut off
            clamp = 1 + 1 / (sizes - 1)
        members = [self._level(sizes.float() ** -level) for level in range(self.num_quantizers)]
        drop = level_dropout(self, self.num_quantizers)
        options: dict[str, Any] = {"dropout": drop}
        if own:
            options = {"quantizer_dropout": drop.applies, "dropout_cutoff": drop.cutoff + 1}
            options["dropout_multiple_of"] = drop.multiple_of
        residual = (Residual if own else SeededResidual)(members, commitment_weight=0.0, **options)
        dim = len(self.levels) if self.dim is None else self.dim
        return projected(residual, dim, then=None if clamp is None else SoftClamp(torch.as_tensor(clamp)))

    def _level(self, scale: Tensor) -> Projected:
        options = {"preserve_symmetry": True, "bound_hard_clamp": self.bound_hard_clamp, **(self.scalar or {})}
        inner = ScalarOptions(self.levels, **options).quantizer()
        return Projected(inner, inner.dim, project_in=Scale(scale, True), project_out=Scale(scale, False))


class ResidualFSQ(AbstractDropIn):
    r"""Rounds features to ever finer levels, with the interface of vector-quantize-pytorch.

    .. math:: v = \sum_i v_i, \qquad v_i = s_i\, \mathrm{grid}\big((x - \textstyle\sum_{j<i} v_j) / s_i\big)

    Args:
        **options: Keyword arguments of the other library's class, with its defaults: ``levels``, ``num_quantizers``,
            ``dim``, ...; see :class:`ResidualScalarOptions`, and :class:`ScalarOptions` for those of each level.

    Shape:
        x ``(B, N, dim)`` -> quantized ``(B, N, dim)``, indices ``(B, N, levels)``; with ``is_channel_first`` x and
        quantized ``(B, dim, *spatial)``, indices ``(B, levels, *spatial)``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), https://arxiv.org/abs/2309.15505

    Example:
        >>> quantized, indices = ResidualFSQ(levels=[8, 5, 5], num_quantizers=4)(torch.randn(2, 10, 3))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 10, 3]), torch.Size([2, 10, 4]))
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        own = {each.name for each in fields(ResidualScalarOptions)} - {"scalar"}
        scalar = {name: value for name, value in options.items() if name not in own}
        self.options = ResidualScalarOptions(
            **{name: value for name, value in options.items() if name in own}, scalar=scalar
        )
        self.quantizer = self.options.quantizer()

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded."""
        return self.options.quantizer(own=True)

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.is_channel_first

    @property
    def num_quantizers(self) -> int:
        """Number of levels."""
        return self.options.num_quantizers

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a level."""
        return self.quantizer.codebook_size

    @property
    def codebooks(self) -> Tensor:
        """Values of all codes of each level before its scale, ``(levels, K, L)``."""
        codebook = ScalarOptions(self.options.levels, preserve_symmetry=True).grid().codebook
        return codebook.to(self.quantizer.training_progress).expand(self.num_quantizers, -1, -1)

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Values of each level inside the projection: indices as forward returns them -> ``(levels, B, *, L)``.

        An index of -1, or a missing last level, gives 0.
        """
        members = self._levels
        levels = self._levels_last(indices).unbind(-1)
        codes = [member.decode(level) for member, level in zip(members, levels, strict=False)]
        codes += [torch.zeros_like(codes[0])] * (len(members) - len(codes))
        return self.quantizer._cast(torch.stack(codes))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        values = self.quantizer.decode(self._levels_last(indices))
        return values.movedim(-1, 1) if self.options.is_channel_first else values

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes x; returns values, indices, and the values of each level ``(levels, B, *, L)`` if asked for."""
        inner = inside(self.quantizer)
        if isinstance(inner, SeededResidual):
            inner.seed = rand_quantize_dropout_fixed_seed
        out = self._quantize(x, self.options.is_channel_first and x.ndim > 2)
        indices = out.codes.movedim(-1, 1) if self.options.is_channel_first else out.codes
        return (out.values, indices, *([self.get_codes_from_indices(indices)] if return_all_codes else []))

    @property
    def _levels(self) -> list[AbstractQuantizer]:
        inner = inside(self.quantizer)
        return [*inner.places] if isinstance(inner, Residual) else []

    def _levels_last(self, indices: Tensor) -> Tensor:
        return indices.movedim(1, -1) if self.options.is_channel_first else indices

    def _is_theirs(self, names: list[str]) -> bool:
        return not any(name.startswith("quantizer.") for name in names)  # the original may have an empty state

    def _translate(self, translation: Translation) -> None:
        put_projection(translation, self.quantizer)
        for place, level in enumerate(self._levels):
            put_rotation(translation, inside(level), f"layers.{place}.")


def scalar_options(module: Any, training: bool) -> ScalarOptions:  # noqa: ANN401
    """Options of an ``FSQ`` of the other library."""
    found = read(module, [each.name for each in fields(ScalarOptions)])
    found |= {"levels": module._levels.tolist(), "scale": None, "projection_has_bias": has_bias(module)}
    if not training:
        found |= defaults(RULES)
    return ScalarOptions(**found)


def residual_scalar_options(module: Any, training: bool) -> ResidualScalarOptions:  # noqa: ANN401
    """Options of a ``ResidualFSQ`` of the other library."""
    first = module.layers[0]
    own = {each.name for each in fields(ResidualScalarOptions)}
    level = scalar_options(first, training)
    scalar = {each.name: getattr(level, each.name) for each in fields(level) if each.name not in own}
    found = read(
        module, ["num_quantizers", "is_channel_first", *(name for name in own if name.startswith("quantize_"))]
    )
    return ResidualScalarOptions(
        **found,
        levels=first._levels.tolist(),
        dim=getattr(module.project_in, "in_features", None),
        soft_clamp_input_value=None if first.bound_hard_clamp else module.soft_clamp_input_value,
        bound_hard_clamp=first.bound_hard_clamp,
        scalar=scalar,
    )
