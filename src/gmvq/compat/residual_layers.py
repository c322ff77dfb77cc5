r"""vector-quantize-pytorch's ``ResidualLFQ``, ``ResidualSimVQ``, as chains of our classes of one level.

::

    x --way in--> layer 0 --rest--> layer 1 --rest--> ... --sum--> way out --> quantized, indices, losses

Each level quantizes what the levels before it leave, :math:`r_i = x - \mathrm{sg}[\sum_{j<i} v_j]`, and has its own
loss, as in the original.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gmvq.compat.binary import LFQ
from gmvq.compat.level_dropout import DROPOUT, LevelDropout
from gmvq.compat.linear import SimVQ
from gmvq.compat.options import read
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.projected import Projected
from gmvq.quantizers.compositions.residual import Residual


class AbstractResidualLayers(nn.Module, ABC):
    """Levels of one class between two maps, with the interface of vector-quantize-pytorch.

    Args:
        dim: Features of a latent.
        code_dim: Features of a code.
        layers: A class of one level for each level, with channels last.
        dropout: Which levels take part in a forward in training.
    """

    PARTS: ClassVar[str] = "layers"
    """Name of the parts in a module of the other library."""

    def __init__(self, dim: int, code_dim: int, layers: list[nn.Module], dropout: LevelDropout) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_dim = code_dim
        self.has_projections = code_dim != dim
        self.project_in = nn.Linear(dim, code_dim) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if self.has_projections else nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    @classmethod
    @abstractmethod
    def like(cls, module: Any, layers: Sequence[nn.Module]) -> Self:  # noqa: ANN401
        """Makes a module like one of the other library, of layers that have been converted.

        Args:
            module: The other library's module.
            layers: Our classes of one level.
        """

    @property
    def levels(self) -> list[Any]:
        """Our classes of one level."""
        return [*self.layers]

    @property
    def num_quantizers(self) -> int:
        """Number of levels."""
        return len(self.layers)

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a level."""
        return self.levels[0].codebook_size

    @property
    def codebooks(self) -> Tensor:
        """Code vectors of each level inside the projection, ``(levels, K, L)``."""
        return torch.stack([level.codebook for level in self.levels])

    @property
    def quantizer(self) -> AbstractQuantizer:
        """Our quantizer with the same members, for latents ``(*, dim)``."""
        residual = Residual([level.quantizer for level in self.levels])
        if not self.has_projections:
            return residual
        return Projected(residual, self.dim, project_in=self.project_in, project_out=self.project_out)

    @property
    @abstractmethod
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""

    @abstractmethod
    def _is_first(self, axes: int) -> bool:
        """True if features are the second axis of an x with this number of axes."""

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors of each level: ``(B, *, at most levels)`` -> ``(levels, B, *, L)``; 0 for a missing index."""
        codes = [level.quantizer.decode(one) for level, one in zip(self.levels, indices.unbind(-1), strict=False)]
        return torch.stack(codes + [torch.zeros_like(codes[0])] * (len(self.layers) - len(codes)))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        codes = AbstractResidualLayers.get_codes_from_indices(self, indices)
        total = torch.zeros_like(codes[0])
        for level in codes:  # in the order of the forward
            total = total + level
        values = self.project_out(total)
        return values.movedim(-1, 1) if self._is_first(values.ndim) else values

    def _quantize(
        self, x: Tensor, return_all_codes: bool, seed: int | None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        first = self._is_first(x.ndim)
        latents = x.movedim(1, -1) if first else x
        rows = latents.flatten(1, -2) if latents.ndim > 2 else latents[:, None]
        call = {} if mask is None else {"mask": mask.flatten(1) if mask.ndim > 1 else mask}
        with torch.autocast(x.device.type, enabled=False):  # a look-up without it must find the same values
            dtype = next((parameter.dtype for parameter in self.project_in.parameters()), x.dtype)
            values, indices, losses = self._levels(self.project_in(rows.to(dtype)), seed, call)
            values = self.project_out(values).to(x.dtype).reshape(latents.shape)
        indices = indices.reshape(*latents.shape[:-1], *indices.shape[2:])
        values = values.movedim(-1, 1) if first else values
        return (values, indices, losses, *([self.get_codes_from_indices(indices)] if return_all_codes else []))

    def _levels(self, rest: Tensor, seed: int | None, call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Values of ``(B, N, L)``, their indices ``(B, N, levels)`` and losses ``(levels,)``."""
        left = self.dropout.left(seed, rest.device) if self.training else len(self.layers)
        total, indices, losses = torch.zeros_like(rest), [], []
        for level in self.levels[:left]:
            values, chosen, loss = level(rest, **call)
            rest, total = rest - values.detach(), total + values
            indices.append(chosen)
            losses.append(loss)
        dropped = len(self.layers) - left
        indices += [torch.full_like(indices[0], -1)] * dropped
        losses += [torch.zeros_like(losses[0])] * dropped
        return total, torch.stack(indices, -1), torch.stack(losses, -1)


class ResidualLFQ(AbstractResidualLayers):
    r"""Keeps the signs of what is left, at half the scale level after level.

    .. math:: v = \sum_i v_i, \qquad v_i = 2^{-i}\, \mathrm{sign}\big(x - \textstyle\sum_{j<i} v_j\big)

    Args:
        dim: Features of a latent.
        num_quantizers: Number of levels.
        codebook_size: Number of codes K of a level, a power of 2.
        quantize_dropout: True to leave the last levels out of forwards in training.
        quantize_dropout_cutoff_index: Index of the first level that dropout may leave as the last.
        quantize_dropout_multiple_of: The number of levels left is rounded up to a multiple of this.
        soft_clamp_input_value: Limit of the latents of level 0, halved from level to level.
        **options: Other keyword arguments of :class:`~gmvq.compat.binary.LFQ`, for each level.

    Shape:
        x ``(B, N, dim)``, ``(B, dim)``, or ``(B, dim, *spatial)`` with at least four axes -> quantized as x, indices
        ``(B, N, levels)``, losses ``(levels,)``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (Yu et al., 2023),
        https://arxiv.org/abs/2310.05737

    Example:
        >>> vq = ResidualLFQ(dim=16, codebook_size=256, num_quantizers=3)
        >>> quantized, indices, losses = vq(torch.randn(2, 10, 16))
        >>> quantized.shape, indices.shape, losses.shape
        (torch.Size([2, 10, 16]), torch.Size([2, 10, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if options.get("num_codebooks", 1) != 1 or options.get("has_projections"):
            raise ValueError(
                "'num_codebooks' and 'has_projections' must be 1 and False for levels, got "
                f"{options.get('num_codebooks', 1)} and {options.get('has_projections')}. Use GroupedResidualLFQ for "
                "several codes of each level."
            )
        channel_first = options.pop("channel_first", None)
        bits = codebook_size.bit_length() - 1
        layers: list[nn.Module] = [
            LFQ(
                dim=bits,
                codebook_size=codebook_size,
                codebook_scale=2.0**-level,
                soft_clamp_input_value=soft_clamp_input_value and soft_clamp_input_value * 2.0**-level,
                **options,
            )
            for level in range(num_quantizers)
        ]
        drop = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(dim, bits, layers, LevelDropout(num_quantizers, *drop))
        self.channel_first: bool | None = channel_first

    @classmethod
    def like(cls, module: Any, layers: Sequence[nn.Module]) -> Self:  # noqa: ANN401, D102
        inner = cls(
            dim=module.project_in.in_features if module.has_projections else module.layers[0].dim,
            num_quantizers=len(layers),
            codebook_size=module.layers[0].codebook_size,
            channel_first=module.layers[0].channel_first,
            **read(module, DROPOUT),
        )
        for layer in layers:
            assert isinstance(layer, LFQ)
            layer.options = replace(layer.options, channel_first=None)  # layout is handled once, around all levels
        inner.layers = nn.ModuleList(layers)
        return inner

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.channel_first is True

    def _is_first(self, axes: int) -> bool:
        return axes >= 4 if self.channel_first is None else self.channel_first and axes > 2

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            mask: Booleans ``(B, N)``; a False place has indices -1 and is left out of the loss.
            return_all_codes: True to return the code vectors of each level, too.
            rand_quantize_dropout_fixed_seed: Seed of the number of levels that dropout leaves.

        Returns:
            Quantized, indices, losses (0 in evaluation), and code vectors ``(levels, B, *, L)`` if asked for.
        """
        return self._quantize(x, return_all_codes, rand_quantize_dropout_fixed_seed, mask)


class ResidualSimVQ(AbstractResidualLayers):
    r"""Quantizes latents level after level to learned maps of fixed codes.

    .. math:: v = \sum_i v_i, \qquad v_i = \mathrm{transform}_i(a_{i c_i})

    Args:
        dim: Features of a latent.
        num_quantizers: Number of levels.
        codebook_size: Number of codes K of a level.
        heads: 1; there are no others in the original.
        quantize_dropout: True to leave the last levels out of forwards in training.
        quantize_dropout_cutoff_index: Index of the first level that dropout may leave as the last.
        quantize_dropout_multiple_of: The number of levels left is rounded up to a multiple of this.
        channel_first: True if features are the second axis.
        rotation_trick: True for the gradient of the rotation trick.
        **options: Other keyword arguments of :class:`~gmvq.compat.linear.SimVQ`, for each level.

    Shape:
        x ``(B, *, dim)``, or with ``channel_first`` ``(B, dim, *)`` -> quantized as x, indices ``(B, *, levels)``,
        losses ``(levels,)``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Addressing Representation Collapse in Vector Quantized Models with One Linear Layer (Zhu et al., 2024),
        https://arxiv.org/abs/2411.02038

    Example:
        >>> vq = ResidualSimVQ(dim=16, num_quantizers=3, codebook_size=32, channel_first=True)
        >>> quantized, indices, losses = vq(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape, losses.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if heads != 1:
            raise ValueError(f"'heads' must be 1 for levels, got {heads}. Use gmvq.Product for several codes.")
        layers: list[nn.Module] = [
            SimVQ(dim=dim, codebook_size=codebook_size, rotation_trick=rotation_trick, **options)
            for _ in range(num_quantizers)
        ]
        drop = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(dim, dim, layers, LevelDropout(num_quantizers, *drop))
        self.channel_first = channel_first

    @classmethod
    def like(cls, module: Any, layers: Sequence[nn.Module]) -> Self:  # noqa: ANN401, D102
        inner = cls(
            dim=module.layers[0].codebook.shape[-1],
            num_quantizers=len(layers),
            codebook_size=module.codebook_size,
            channel_first=module.channel_first,
            **read(module, DROPOUT),
        )
        for layer in layers:
            assert isinstance(layer, SimVQ)
            layer.options = replace(layer.options, channel_first=False)  # layout is handled once, around all levels
        inner.layers = nn.ModuleList(layers)
        return inner

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.channel_first

    def _is_first(self, axes: int) -> bool:
        return self.channel_first and axes > 2

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors of each level in the layout of x: ``(B, *, at most levels)`` -> ``(levels, *x.shape)``."""
        codes = super().get_codes_from_indices(indices)
        return codes.movedim(-1, 2) if self._is_first(codes.ndim - 1) else codes

    def forward(
        self, x: Tensor, return_all_codes: bool = False, rand_quantize_dropout_fixed_seed: int | None = None
    ) -> tuple[Tensor, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            return_all_codes: True to return the code vectors of each level, too.
            rand_quantize_dropout_fixed_seed: Seed of the number of levels that dropout leaves.

        Returns:
            Quantized, indices, losses, which are not 0 in evaluation, and code vectors if asked for.
        """
        return self._quantize(x, return_all_codes, rand_quantize_dropout_fixed_seed)
