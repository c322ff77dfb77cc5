r"""vector-quantize-pytorch's ``HierarchicalVQ``: coarse to fine, each grid enlarged and smoothed.

.. math::
    v_i = \mathrm{quantize}_i(D_i r_i), \qquad \hat v_i = (1 - \rho)\, U v_i + \rho\, \mathrm{conv}_i(U v_i), \qquad
    r_{i+1} = r_i - \hat v_i, \qquad v = \textstyle\sum_i \hat v_i

:math:`D_i` averages over areas, U interpolates. The codebooks are those of our ``VectorQuantize``; the convolutions,
which :class:`gmvq.Hierarchical` does not have, are here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.level_dropout import drawn_seed
from gmvq.compat.vector import VectorQuantize
from gmvq.quantizers.parts.rows import mask_of_lengths

SMALLEST_RATIO = 1e-8

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLING = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class HierarchicalOptions:
    """Keyword arguments of ``HierarchicalVQ``, with its defaults.

    Raises:
        ValueError: If two options contradict each other, or one is out of range.
    """

    dim: int
    codebook_size: int | tuple[int, ...]
    scales: Sequence[int | Sequence[int]]
    shared_codebook: bool = True
    channel_first: bool = True
    sync_codebook: bool | None = None
    decay: float = 0.99
    commitment_weight: float = 1.0
    rotation_trick: bool = False
    kmeans_init: bool = True
    kmeans_iters: int = 10
    threshold_ema_dead_code: float = 2
    stochastic_sample_codes: bool = False
    sample_codebook_temp: float = 0.1
    orthogonal_reg_weight: float = 0.0
    orthogonal_reg_max_codes: int | None = 128
    orthogonal_reg_active_codes_only: bool = False
    quant_resi: float = 0.5
    share_quant_resi: int = 1
    nested_dropout: float = 0.0
    nested_dropout_min_levels: int = 1
    accept_image_fmap: bool = False
    accept_3d_fmap: bool = False

    def __post_init__(self) -> None:
        if self.accept_image_fmap and self.accept_3d_fmap:
            raise ValueError("'accept_image_fmap' and 'accept_3d_fmap' must not both be True, got both. Leave one out.")
        if not 0 <= self.nested_dropout <= 1:
            raise ValueError(f"'nested_dropout' must lie in [0, 1], got {self.nested_dropout}. Use 0 for none.")
        if self.nested_dropout_min_levels < 1:
            raise ValueError(
                f"'nested_dropout_min_levels' must be at least 1, got {self.nested_dropout_min_levels}. Leave it out."
            )
        shapes = self.shapes
        if not shapes or any(len(shape) != self.axes or min(shape) < 1 for shape in shapes):
            raise ValueError(
                f"'scales' must have an integer of at least 1, or {self.axes} of them, for each level, got "
                f"{self.scales}. Use for example (1, 2, 4)."
            )
        pairs = itertools.pairwise(shapes)
        if any(one > other for coarse, fine in pairs for one, other in zip(coarse, fine, strict=True)):
            raise ValueError(f"'scales' must go from coarse to fine, got {self.scales}. Sort them.")
        sizes = self.sizes
        if len(sizes) != len(shapes) or (self.shared_codebook and len(set(sizes)) > 1):
            raise ValueError(
                f"'codebook_size' must be an integer, or one for each of {len(shapes)} levels with "
                f"shared_codebook=False, got {self.codebook_size}. Give an integer."
            )

    @property
    def axes(self) -> int:
        """Number of spatial axes of x."""
        return 2 if self.accept_image_fmap else 3 if self.accept_3d_fmap else 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Grid of each level."""
        return tuple((scale,) * self.axes if isinstance(scale, int) else tuple(scale) for scale in self.scales)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        if isinstance(self.codebook_size, int):
            return (self.codebook_size,) * len(self.scales)
        return tuple(self.codebook_size)

    def vector(self, codebook_size: int) -> VectorQuantize:
        """The quantizer of a level."""
        names = ("decay", "commitment_weight", "rotation_trick", "kmeans_init", "kmeans_iters", "sync_codebook")
        handed: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.stochastic_sample_codes:
            handed |= {"stochastic_sample_codes": True, "sample_codebook_temp": self.sample_codebook_temp}
        if self.orthogonal_reg_weight:
            names = ("orthogonal_reg_weight", "orthogonal_reg_max_codes", "orthogonal_reg_active_codes_only")
            handed |= {name: getattr(self, name) for name in names}
        dead = self.threshold_ema_dead_code
        return VectorQuantize(dim=self.dim, codebook_size=codebook_size, threshold_ema_dead_code=dead, **handed)

    def smoothing(self) -> list[Smoothing]:
        """The convolutions, one or several."""
        number = self.share_quant_resi if 0 < self.share_quant_resi < len(self.scales) else len(self.scales)
        return [Smoothing(self.dim, self.axes, self.quant_resi) for _ in range(number)]


class Smoothing(nn.Module):
    r"""Mixes a map with its convolution, :math:`(1 - \rho) x + \rho\, \mathrm{conv}(x)`.

    Args:
        dim: Features.
        axes: Number of spatial axes.
        ratio: :math:`\rho`, of which the sign does not count; 0 leaves maps as they are.
    """

    def __init__(self, dim: int, axes: int, ratio: float) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[axes](dim, dim, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``(B, dim, *spatial)`` -> the same."""
        return maps if self.ratio <= SMALLEST_RATIO else maps.lerp(self.conv(maps), self.ratio)


class HierarchicalVQ(nn.Module):
    r"""Quantizes maps coarse to fine, with the interface of vector-quantize-pytorch.

    Args:
        **options: Keyword arguments of the other library's class, with its defaults: ``dim``, ``codebook_size``,
            ``scales``, ...; see :class:`HierarchicalOptions`.

    Shape:
        x ``(B, dim, N)``, with ``accept_image_fmap`` ``(B, dim, H, W)``, with ``accept_3d_fmap`` ``(B, dim, D, H, W)``,
        or with ``channel_first=False`` features last -> quantized as x, a tuple with the indices ``(B, *grid)`` of each
        level, loss ``()``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (Tian et al., 2024),
        https://arxiv.org/abs/2404.02905

    Example:
        >>> vq = HierarchicalVQ(dim=8, codebook_size=32, scales=(1, 2, 4), accept_image_fmap=True)
        >>> quantized, indices, loss = vq(torch.randn(2, 8, 4, 4))
        >>> quantized.shape, [tuple(level.shape) for level in indices]
        (torch.Size([2, 8, 4, 4]), [(2, 1, 1), (2, 2, 2), (2, 4, 4)])
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = HierarchicalOptions(**options)
        sizes = self.options.sizes
        shared = self.options.shared_codebook
        self.vq = self.options.vector(sizes[0]) if shared else None
        self.vqs = None if shared else nn.ModuleList([self.options.vector(size) for size in sizes])
        # the state has the names of the original
        smoothing = self.options.smoothing()
        self.phi_shared = smoothing[0] if self.options.share_quant_resi == 1 else None
        self.phi_levels = None if self.phi_shared is not None else nn.ModuleList(smoothing)

    @property
    def dim(self) -> int:
        """Features of a latent."""
        return self.options.dim

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channel_first

    @property
    def scales(self) -> tuple[int | Sequence[int], ...]:
        """Scales as they were given."""
        return tuple(self.options.scales)

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.options.scales)

    @property
    def level_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Grid of each level."""
        return self.options.shapes

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.options.sizes

    def update(self) -> None:
        """Updates the codebooks from the last forward's statistics; the next forward in training does so, too."""
        for level in range(self.num_levels):
            self.get_vq(level).update()

    def get_vq(self, level_index: int) -> VectorQuantize:
        """The quantizer of a level."""
        found = self.vq if self.vqs is None else self.vqs[level_index]
        assert isinstance(found, VectorQuantize)
        return found

    def choose_phi(self, level_index: int) -> Smoothing:
        """The convolution of a level: of several, those at the same relative place."""
        phi = self.phi_shared
        if self.phi_levels is not None:
            place = level_index / max(self.num_levels - 1, 1)
            phi = self.phi_levels[round(place * (len(self.phi_levels) - 1))]
        assert isinstance(phi, Smoothing)
        return phi

    def forward(
        self,
        x: Tensor,
        indices: None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        sample_codebook_temp: float | None = None,
        return_cutoff: bool = False,
    ) -> tuple[Any, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            indices: None, there as here.
            mask: Booleans ``(B, *spatial)``; a False place has value 0, and a coarse place without a True one index -1.
            lens: Instead of a mask, the number of places that count in each sequence.
            sample_codebook_temp: As in ``VectorQuantize``.
            return_cutoff: True to return the last level that dropout has left, too, None where it has left all.

        Returns:
            Quantized, indices of each level, the mean loss of the levels (0 in evaluation), and the cutoff if asked
            for.

        Raises:
            ValueError: If x, mask or lens do not fit, or indices are given.
        """
        maps, mask = self._checked(x, indices, mask, lens)
        call = {} if sample_codebook_temp is None else {"sample_codebook_temp": sample_codebook_temp}
        with torch.autocast(x.device.type, enabled=False):  # a look-up without it must find the same values
            sums, chosen, losses = self._levels(maps.to(self.choose_phi(0).conv.weight.dtype), mask, call)
        cutoff = self._cutoff(x.device)
        kept = self.num_levels if cutoff is None else cutoff + 1
        values = sums[kept - 1].to(x.dtype)
        values = values if mask is None else torch.where(mask[:, None], values, 0)
        values = values if self.options.channel_first else values.movedim(1, -1)
        loss = torch.stack(losses[:kept]).mean()
        return (values, tuple(chosen), loss, *([cutoff] if return_cutoff else []))

    def _levels(
        self, maps: Tensor, mask: Tensor | None, call: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Sums over the first levels, indices and losses."""
        residual, total = maps, torch.zeros_like(maps)
        sums, chosen, losses = [], [], []
        for level, shape in enumerate(self.level_shapes):
            coarse, counted = self._pooled(residual, shape, mask)
            flat = None if counted is None else counted.flatten(1)
            values, codes, loss = self.get_vq(level)(coarse.flatten(2).movedim(1, -1), mask=flat, **call)
            enlarged = self._enlarged(values.movedim(-1, 1).unflatten(-1, shape), maps.shape[2:], level)
            residual, total = residual - enlarged, total + enlarged
            sums.append(total)
            chosen.append(codes.unflatten(-1, shape))
            losses.append(loss)
        return sums, chosen, losses

    def get_output_from_indices(
        self, indices: Sequence[Tensor], full_shape: int | Sequence[int] | None = None
    ) -> Tensor:
        """Values of indices of all levels, in the layout of x.

        Args:
            indices: Indices ``(B, *grid)`` of each level; -1 gives 0.
            full_shape: Spatial shape of the values, that of the last level by default.

        Raises:
            ValueError: If there are not indices for each level, or a shape does not fit.
        """
        axes = self.options.axes
        if len(indices) != self.num_levels or any(level.ndim != axes + 1 for level in indices):
            raise ValueError(
                f"'indices' must have {self.num_levels} levels with a batch axis and {axes} more each, got shapes "
                f"{[tuple(level.shape) for level in indices]}. Pass the indices that forward returned."
            )
        size = self.level_shapes[-1] if full_shape is None else full_shape
        size = (size,) * axes if isinstance(size, int) else tuple(size)
        total: Tensor | None = None
        for level, codes in enumerate(indices):
            values = self.get_vq(level).get_output_from_indices(codes.flatten(1))
            enlarged = self._enlarged(values.movedim(-1, 1).unflatten(-1, codes.shape[1:]), size, level)
            total = enlarged if total is None else total + enlarged
        assert total is not None
        return total if self.options.channel_first else total.movedim(1, -1)

    def _checked(
        self, x: Tensor, indices: None, mask: Tensor | None, lens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Maps ``(B, dim, *spatial)`` and their mask."""
        if indices is not None:
            raise ValueError("'indices' must be None, got a value. Use get_output_from_indices.")
        maps = x if self.options.channel_first else x.movedim(-1, 1)
        if maps.ndim != self.options.axes + 2 or maps.shape[1] != self.dim:
            raise ValueError(
                f"'x' must have {self.options.axes} spatial axes and {self.dim} features "
                f"{'second' if self.options.channel_first else 'last'}, got shape {tuple(x.shape)}. Images need "
                "accept_image_fmap=True, volumes accept_3d_fmap=True."
            )
        if lens is not None:
            if mask is not None or self.options.axes > 1:
                raise ValueError("'lens' must be None beside a mask and for images, got a value. Use a mask alone.")
            mask = mask_of_lengths(lens, maps.movedim(1, -1).shape)
        if mask is not None and mask.shape != maps.shape[:1] + maps.shape[2:]:
            raise ValueError(
                f"'mask' must have the batch and spatial axes of x, {tuple(maps.shape[:1] + maps.shape[2:])}, got "
                f"{tuple(mask.shape)}. Give one boolean for each place."
            )
        return maps, mask

    def _pooled(self, maps: Tensor, shape: tuple[int, ...], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Means over areas of the places that count, and which areas have any."""
        pool = POOLING[self.options.axes]
        if mask is None:
            return pool(maps, shape), None
        weights = mask[:, None].to(maps.dtype)
        shares = pool(weights, shape)
        return pool(maps * weights, shape) / shares.clamp_min(1e-6), shares[:, 0] > 0

    def _enlarged(self, values: Tensor, size: Sequence[int], level: int) -> Tensor:
        if tuple(values.shape[2:]) != tuple(size):
            values = F.interpolate(values, size=list(size), mode=MODES[self.options.axes], align_corners=False)
        return self.choose_phi(level)(values)

    def _cutoff(self, device: torch.device) -> int | None:
        """The last level that nested dropout leaves, None where it leaves all."""
        least = self.options.nested_dropout_min_levels
        if not self.training or self.options.nested_dropout <= 0 or least >= self.num_levels:
            return None
        draws = random.Random(drawn_seed(device))
        if draws.random() >= self.options.nested_dropout:
            return None
        return draws.randrange(least - 1, self.num_levels - 1)
