r"""vector-quantize-pytorch's ``GroupedResidualLFQ`` and ``GroupedResidualFSQ``: levels for each group of features.

.. math:: v = (v_1(x_1), \dots, v_g(x_g))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gmvq.compat.level_dropout import drawn_seed
from gmvq.compat.residual_layers import ResidualLFQ
from gmvq.compat.scalar import ResidualFSQ
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product


class AbstractResidualGroups(nn.Module):
    """A residual quantizer for each group of features, with the interface of vector-quantize-pytorch.

    Args:
        dim: Features of a latent.
        groups: Number of groups.
        accept_image_fmap: True if features are the second axis.
        make: Makes the quantizer of a group of some features.

    Raises:
        ValueError: If the groups do not divide ``dim``.
    """

    PARTS: ClassVar[str] = "rvqs"
    """Name of the parts in a module of the other library."""

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"'groups' must divide 'dim' = {dim}, got {groups}. Use for example groups=1.")
        self.dim = dim
        self.groups = groups
        self.accept_image_fmap = accept_image_fmap
        self.rvqs = nn.ModuleList([make(dim // groups) for _ in range(groups)])

    @classmethod
    def like(cls, module: Any, groups: Sequence[nn.Module]) -> Self:  # noqa: ANN401
        """Makes a module like one of the other library, of groups that have been converted.

        Args:
            module: The other library's module.
            groups: Our classes of one group.
        """
        inner = cls.__new__(cls)
        rest = iter(groups)
        AbstractResidualGroups.__init__(
            inner, module.dim, module.groups, module.accept_image_fmap, lambda _: next(rest)
        )
        return inner

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.accept_image_fmap

    @property
    def parts(self) -> list[Any]:
        """The quantizer of each group."""
        return [*self.rvqs]

    @property
    def split_dim(self) -> int:
        """Axis of the features."""
        return 1 if self.accept_image_fmap else -1

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a level."""
        return self.parts[0].codebook_size

    @property
    def num_quantizers(self) -> int:
        """Number of levels of a group."""
        return self.parts[0].num_quantizers

    @property
    def codebooks(self) -> Tensor:
        """Code vectors of each level, ``(groups, levels, K, L)``."""
        return torch.stack([group.codebooks for group in self.parts])

    @property
    def quantizer(self) -> AbstractQuantizer:
        """Our quantizer with the same members, for latents ``(*, dim)``."""
        return Product([group.quantizer for group in self.parts])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors: ``(groups, B, *, levels)`` -> ``(groups, levels, B, *, L)``."""
        pairs = zip(self.parts, indices, strict=True)
        return torch.stack([group.get_codes_from_indices(part) for group, part in pairs])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        pairs = zip(self.parts, indices, strict=True)
        return torch.cat([group.get_output_from_indices(part) for group, part in pairs], self.split_dim)

    def _quantize(self, x: Tensor, **call: Any) -> tuple[Any, ...]:  # noqa: ANN401
        if x.shape[self.split_dim] != self.dim:
            raise ValueError(
                f"Axis {self.split_dim} of 'x' must have {self.dim} features, got shape {tuple(x.shape)}. "
                "'accept_image_fmap' says whether features are the second axis or the last."
            )
        parts = [
            group(part, **call) for group, part in zip(self.parts, x.chunk(self.groups, self.split_dim), strict=True)
        ]
        values, indices, *others = zip(*parts, strict=True)
        return (torch.cat(values, self.split_dim), torch.stack(indices), *others)


class GroupedResidualLFQ(AbstractResidualGroups):
    r"""Keeps signs of groups of features, each level after level, with the interface of vector-quantize-pytorch.

    Args:
        dim: Features of a latent.
        groups: Number of groups.
        accept_image_fmap: True if features are the second axis.
        **options: As for :class:`~gmvq.compat.residual_layers.ResidualLFQ`, for each group.

    Shape:
        x ``(B, N, dim)`` -> quantized ``(B, N, dim)``, indices ``(groups, B, N, levels)``, losses ``(groups, levels)``.

    Raises:
        ValueError: If an option is not supported, or the groups do not divide ``dim``.

    Example:
        >>> vq = GroupedResidualLFQ(dim=16, groups=2, codebook_size=256, num_quantizers=3)
        >>> quantized, indices, losses = vq(torch.randn(2, 10, 16))
        >>> indices.shape, losses.shape
        (torch.Size([2, 2, 10, 3]), torch.Size([2, 3]))
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **options: Any) -> None:  # noqa: ANN401
        super().__init__(dim, groups, accept_image_fmap, lambda part: ResidualLFQ(dim=part, **options))

    def forward(self, x: Tensor, mask: Tensor | None = None, return_all_codes: bool = False) -> tuple[Any, ...]:
        """Quantizes x; returns values, indices, losses, and the code vectors of each group if asked for."""
        seed = drawn_seed(x.device) if self.training else None
        call = {"mask": mask, "return_all_codes": return_all_codes, "rand_quantize_dropout_fixed_seed": seed}
        values, indices, losses, *codes = self._quantize(x, **call)
        return (values, indices, torch.stack(losses), *codes)


class GroupedResidualFSQ(AbstractResidualGroups):
    r"""Rounds groups of features to ever finer levels, with the interface of vector-quantize-pytorch.

    Args:
        dim: Features of a latent.
        groups: Number of groups.
        accept_image_fmap: True if features are the second axis; the groups then have ``is_channel_first=True``.
        **options: As for :class:`~gmvq.compat.scalar.ResidualFSQ`, for each group.

    Shape:
        x ``(B, N, dim)`` -> quantized ``(B, N, dim)``, indices ``(groups, B, N, levels)``.

    Raises:
        ValueError: If an option is not supported, or the groups do not divide ``dim``.

    Example:
        >>> vq = GroupedResidualFSQ(dim=6, groups=2, levels=[8, 5, 5], num_quantizers=4)
        >>> quantized, indices = vq(torch.randn(2, 10, 6))
        >>> indices.shape
        torch.Size([2, 2, 10, 4])
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **options: Any) -> None:  # noqa: ANN401
        if accept_image_fmap:  # the original leaves features last in the groups, where images then fail
            options = {"is_channel_first": True, **options}
        super().__init__(dim, groups, accept_image_fmap, lambda part: ResidualFSQ(dim=part, **options))

    def forward(self, x: Tensor, return_all_codes: bool = False) -> tuple[Any, ...]:
        """Quantizes x; returns values, indices, and the code vectors of each group if asked for."""
        seed = drawn_seed(x.device) if self.training else None
        return self._quantize(x, return_all_codes=return_all_codes, rand_quantize_dropout_fixed_seed=seed)
