r"""Coarse to fine: a few codes for the whole map, then more for what they leave, down to one for each place.

A residual quantizer spends as many codes on each level. On a map most of what the first levels say is the same for
neighbors; so here level i looks at the residual on a coarser grid and has one code for each of *its* places:

.. math::
    r_0 = z, \quad v_i = \mathrm{quantize}_i(D_i r_i), \quad r_{i+1} = r_i - U_i v_i, \quad v = \textstyle\sum_i U_i v_i

:math:`D_i` averages over areas, down to the grid of scale i; :math:`U_i` interpolates back to the full grid, which is
that of the last scale, where :math:`D = U = I`.

::

    r_0 = z             --average--> (1, 1) --member--> codes, v_0 --enlarge--> (h, w)
    r_1 = r_0 - U_0 v_0 --average--> (2, 2) --member--> codes, v_1 --enlarge--> (h, w)
    ...                                                                                v = U_0 v_0 + U_1 v_1 + ... + v_n
    r_n                 -----------> (h, w) --member--> codes, v_n

**Masks.** :math:`D_i` averages the places that count, and a coarse place counts if any of its fine places does;
:math:`U_i` interpolates between coarse places that count. So what stands in a masked place changes nothing.

**The gradient counts once.** The residuals are not detached, so the derivative of v is the composition of the members'
own: :math:`I - \prod_i (I - U_i J_i D_i)`, which is the identity if the last member is straight-through, since then
:math:`U J D = I`. The same chain takes from each member's commitment what earlier scales already follow. The composite
gives this part back, so that the commitment of scale i pulls :math:`D_i (z - \mathrm{sg}[\sum_{j<i} U_j v_j])` to
:math:`v_i`, whole and once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.composite import AbstractComposite, commitment_weight_of
from gmvq.quantizers.compositions.places import checked_commitment_weight, is_complete, listed, prefixed, start
from gmvq.quantizers.parts.checks import checked_codes, checked_tensor
from gmvq.quantizers.parts.resampling import (
    Grid,
    Interpolation,
    Scale,
    average,
    checked_scales,
    enlarge,
    grid_of,
    resized,
)
from gmvq.quantizers.parts.rows import LARGEST, as_type, mean_square, rows_dtype
from gmvq.types import PosteriorSample, Quantized


class Hierarchical(AbstractComposite):
    r"""Quantizes maps scale by scale, coarse to fine: the multi-scale residual quantizer of VAR.

    .. math:: v = \sum_i U_i\, \mathrm{quantize}_i\big(D_i (z - \textstyle\sum_{j<i} U_j v_j)\big)

    Codes of all scales stand in one row, coarse first, each grid in reading order: the sequence that a model of
    next-scale prediction generates. VAR also smooths each :math:`U_i v_i` by a learned convolution; this class does
    not, so that the last scale corrects what the others left as it stands.

    HQ-VAE's residual form (RSQ-VAE) is this class, or ``Residual``, made of ``StochasticQuantizer`` members; its
    injected form (SQ-VAE-2) puts such quantizers between the layers of a decoder.

    Args:
        quantizers: One quantizer shared by all scales, as in VAR, or a list with one for each. A shared codebook starts
            from the places of all scales.
        scales: Grid of each scale, coarse to fine, the last one the full grid: the number of places along each axis as
            an integer (a tuple has one for each axis), or their share of the latents' grid as a float in (0, 1]. With
            floats, as ``(0.25, 0.5, 1.0)``, or a last scale ``1.0``, as ``(1, 2, 4, 1.0)``, maps may have any size.
        interpolation: How coarse maps are enlarged: ``"linear"``, or ``"cubic"`` as in VAR; beside a coarse place that
            does not count cubic is linear too.
        commitment_weight: beta of what the composite gives back of the commitments of scales from 2 on. By default the
            weight that each member gives its own, 0 for one that has none or a loss in nats.

    Shape:
        latents ``(B, *spatial, dim)`` with 1 to 3 spatial axes -> values ``(B, *spatial, dim)``, codes
        ``(B, T, *member.code_shape)`` with T the number of places of all grids, loss ``()``: the sum over scales. A
        coarse place of which no fine place counts has code -1.

    Raises:
        ValueError: If members do not fit together, scales do not fit the latents or are not ordered coarse to fine, an
            argument is out of range, or a commitment would add squared errors to nats.

    References:
        Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (Tian et al., 2024),
        https://arxiv.org/abs/2404.02905;
        HQ-VAE: Hierarchical Discrete Representation Learning with Variational Bayes (Takida et al., 2024),
        https://arxiv.org/abs/2401.00365

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> quantizer = Hierarchical(VectorQuantizer(8, 64), scales=(1, 2, 1.0))
        >>> values, codes, loss, terms = quantizer(torch.randn(3, 4, 4, 8))
        >>> codes.shape  # 1 + 4 + 16 places
        torch.Size([3, 21])
        >>> [tuple(part.shape) for part in quantizer.split(codes, (4, 4))]
        [(3, 1, 1), (3, 2, 2), (3, 4, 4)]
        >>> torch.equal(quantizer.decode(codes, (4, 4)), values)
        True
        >>> quantizer.decode(codes[:, :5], (4, 4), scales=2).shape  # coarser
        torch.Size([3, 4, 4, 8])
    """

    citations: tuple[str, ...] = ("var_tian2024", "hqvae_takida2023")
    quantizes_rows: ClassVar[bool] = False

    def __init__(
        self,
        quantizers: AbstractQuantizer | Sequence[AbstractQuantizer],
        scales: Sequence[Scale],
        *,
        interpolation: Interpolation = "linear",
        commitment_weight: float | None = None,
    ) -> None:
        scales = checked_scales(scales)
        if isinstance(quantizers, Sequence) and len(quantizers) not in (0, len(scales)):
            raise ValueError(
                f"'quantizers' must be one, or one for each of the {len(scales)} scales, got {len(quantizers)}. Pass "
                "one quantizer to share its codebook."
            )
        places = listed(quantizers, len(scales), "scales")
        dims = [member.dim for member in places]
        if len(set(dims)) > 1:
            raise ValueError(f"'quantizers' must all have the same 'dim', got {dims}. Wrap others in Projected.")
        if interpolation not in ("linear", "cubic"):
            raise ValueError(f"'interpolation' must be 'linear' or 'cubic', got {interpolation!r}. Use 'linear'.")
        commitment_weight = checked_commitment_weight(commitment_weight, places)
        super().__init__(dims[0], places)
        self.scales = scales
        self.interpolation: Interpolation = interpolation
        self.commitment_weight = commitment_weight

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one place of a grid: those of a member."""
        return self.places[0].code_shape

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened; the largest of all scales."""
        return tuple(max(sizes) for sizes in zip(*(member.codebook_sizes for member in self.places), strict=True))

    def grids(self, size: Sequence[int] | int) -> tuple[Grid, ...]:
        """Grid of each scale for maps of a size.

        Args:
            size: Places of the full grid along each axis; a number for sequences.

        Raises:
            ValueError: If the scales do not fit the size.
        """
        size = (size,) if isinstance(size, int) else tuple(size)
        if not 1 <= len(size) <= 3 or min(size) < 1:
            raise ValueError(f"'size' must have 1 to 3 axes of at least 1 place, got {size}. Pass (16, 16).")
        grids = tuple(grid_of(scale, size) for scale in self.scales)
        if any(part > whole for grid in grids for part, whole in zip(grid, size, strict=True)) or grids[-1] != size:
            raise ValueError(
                f"'scales' must come to the full grid {size}, and none may be finer, got {grids}. Make the last scale "
                "1.0, and give the others as shares of the grid where its size differs."
            )
        return grids

    def split(self, codes: Tensor, size: Sequence[int] | int | None = None) -> tuple[Tensor, ...]:
        """The map of each scale: ``(B, T, *)`` -> ``(B, *grid, *)``, coarse first.

        Args:
            codes: Codes of all scales, or of the first ones alone.
            size: Places of the full grid along each axis; may be left out if the last scale is a tuple of integers.

        Raises:
            ValueError: If the codes are not those of the grids.
        """
        checked_tensor("codes", codes)
        grids = self.grids(self._size(size))
        numbers = [math.prod(grid) for grid in grids]
        ends = [sum(numbers[: end + 1]) for end in range(len(numbers))]
        axes = 2 + len(self.code_shape)
        if codes.ndim != axes or codes.shape[1] not in ends or not self._members_fit(tuple(codes.shape[2:])):
            raise ValueError(
                f"'codes' must have shape (B, T, *{self.code_shape}) with T = {ends[-1]} places of the grids {grids}, "
                f"or those of the first scales, {ends[:-1]}, got {tuple(codes.shape)}. Pass what encode() returned."
            )
        number = ends.index(codes.shape[1]) + 1
        parts = codes.split(numbers[:number], dim=1)
        return tuple(part.unflatten(1, grid) for part, grid in zip(parts, grids, strict=False))

    def forward(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Quantized:
        """Quantizes maps.

        Args:
            latents: Shape ``(B, *spatial, dim)``, any float type.
            mask: Booleans ``(B, *spatial)``; a False place has value 0 and no part in anything.
            lengths: Instead of a mask, the number of places that count in each sequence: integers ``(B,)``.

        Returns:
            Values in the latents' type, codes ``(B, T, *code_shape)``, loss and terms.

        Raises:
            ValueError: If latents are no maps of this quantizer, or mask or lengths do not fit them.
        """
        mask = self._check(latents, mask, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            maps, kept, valid = self._prepared(latents, mask)
            self._begin()
            values, codes, loss, terms = self._forward_maps(maps, kept)
            values = torch.where((valid if mask is None else valid | ~mask)[..., None], values, torch.nan)
        return Quantized(as_type(values, latents.dtype), codes, loss.to(rows_dtype(latents)), terms)

    def _forward_maps(self, maps: Tensor, kept: Tensor) -> Quantized:
        size = tuple(kept.shape[1:])
        grids = self.grids(size)
        if self.learning and len(self.members) == 1:
            self._start(maps, kept, grids)
        residual, total = maps, torch.zeros_like(maps)
        codes, losses, terms, commitment = [], [], {}, maps.new_zeros(())
        weights = self._commitment_weights()
        for scale, (member, grid) in enumerate(zip(self.places, grids, strict=True)):
            coarse, counted = average(residual, kept, grid)
            part = member(coarse, counted)
            if scale:  # the derivative of z - residual, which the member's own commitment lacks
                given = average(total, kept, grid)[0]
                given = coarse.detach() + (given - given.detach())
                error = mean_square(given - part.values.detach(), counted)
                losses.append(weights[scale] * error)
                commitment = commitment + error
            enlarged = enlarge(part.values, counted, size, self.interpolation)
            total, residual = total + enlarged, residual - enlarged
            codes.append(part.codes.flatten(1, len(size)))
            losses.append(part.loss)
            terms |= prefixed(part.terms, scale)
        loss = torch.stack(losses).sum()
        values = torch.where(kept[..., None], total, 0)
        return Quantized(values, torch.cat(codes, 1), loss, {"commitment": commitment.detach(), **terms})

    @torch.no_grad()
    def _start(self, maps: Tensor, kept: Tensor, grids: Sequence[Grid]) -> None:
        """Lets a shared codebook start from all scales; alone the coarsest, which comes first, has few places."""
        if is_complete(self.places[0]):
            return
        rows, counts, residual = [], [], maps
        for grid in grids:
            coarse, counted = average(residual, kept, grid)
            residual = residual - enlarge(coarse, counted, grids[-1], self.interpolation)
            rows.append(coarse.flatten(1, -2))
            counts.append(counted.flatten(1))
        # map by map, as ranks hold them: the start is the same on any number of ranks
        start(self.places[0], torch.cat(rows, 1), torch.cat(counts, 1))

    @torch.no_grad()
    def encode(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Codes of maps: ``(B, *spatial, dim)`` -> int64 ``(B, T, *code_shape)``, -1 where nothing counts.

        Args:
            latents: Shape ``(B, *spatial, dim)``, any float type.
            mask: As in :meth:`forward`.
            lengths: As in :meth:`forward`.
        """
        mask = self._check(latents, mask, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            residual, kept, _ = self._prepared(latents, mask)
            size, codes = tuple(kept.shape[1:]), []
            for member, grid in zip(self.places, self.grids(size), strict=True):
                coarse, counted = average(residual, kept, grid)
                chosen = member.encode(coarse, counted)
                values = member._look_up(chosen, residual.dtype)
                residual = residual - enlarge(values, counted, size, self.interpolation)
                codes.append(chosen.flatten(1, len(size)))
        return torch.cat(codes, 1)

    def decode(self, codes: Tensor, size: Sequence[int] | int | None = None, scales: int | None = None) -> Tensor:
        """Maps of codes: int64 ``(B, T, *code_shape)`` -> ``(B, *spatial, dim)``.

        Args:
            codes: Codes of all scales, or of the first ones alone. A place whose code at the last scale is -1 gives 0.
            size: Places of the full grid along each axis, a number for sequences; may be left out if the last scale is
                a tuple of integers.
            scales: Number of scales to add up, all that there are by default: a coarse approximation.

        Raises:
            ValueError: If codes are not integers, not those of the grids or outside their codebook, or ``scales`` is
                not a number of scales that the codes have.
        """
        return self._cast(self._look_up(codes, size=size, scales=scales))

    def _look_up(
        self,
        codes: Tensor,
        dtype: torch.dtype | None = None,
        size: Sequence[int] | int | None = None,
        scales: int | None = None,
    ) -> Tensor:
        maps = self.split(checked_codes(codes, self.codebook_size), size)
        scales = len(maps) if scales is None else scales
        if isinstance(scales, bool) or not isinstance(scales, int) or not 1 <= scales <= len(maps):
            raise ValueError(f"'scales' must lie in [1, {len(maps)}] for these codes, got {scales!r}. Leave it out.")
        full = self._size(size)
        total = self.training_progress.new_zeros(codes.shape[0], *full, self.dim)
        with torch.autocast(total.device.type, enabled=False):
            for member, part in zip(self.places, maps[:scales], strict=False):
                values = member._look_up(part, total.dtype)
                total = total + enlarge(values, self._counted(part), full, self.interpolation)
            # without codes of the last scale, the finest of the others decide
            counted = self._counted(maps[-1])
            if len(maps) < len(self.places):
                counted = resized(counted[..., None].to(total.dtype), full, "linear")[..., 0] > 0
        return torch.where(counted[..., None], total, 0).to(dtype or total.dtype)

    @torch.no_grad()
    def posterior_mean(self, latents: Tensor) -> Tensor:
        """The codes' own values, of a quantizer without a posterior: ``(B, *spatial, dim)`` -> the same."""
        return as_type(self._look_up(self.encode(latents), size=latents.shape[1:-1]), latents.dtype)

    @torch.no_grad()
    def sample_posterior(self, latents: Tensor, generator: torch.Generator | None = None) -> PosteriorSample:
        """The codes' own values, with log p of all codes in nats, shared evenly between the places of the full grid."""
        values, nats = self.posterior_mean(latents), self.divergence(latents)
        return PosteriorSample(values, -nats, torch.zeros_like(nats))

    @torch.no_grad()
    def divergence(self, latents: Tensor) -> Tensor:
        """Nats of all codes, shared evenly between the places: ``(B, *spatial, dim)`` -> ``(B, *spatial)``."""
        self._check(latents, None)
        size = latents.shape[1:-1]
        nats = sum(
            math.prod(grid) * sum(math.log(number) for number in member.codebook_sizes)
            for member, grid in zip(self.places, self.grids(size), strict=True)
        )
        return latents.new_full(latents.shape[:-1], nats / math.prod(size), dtype=rows_dtype(latents))

    def _check(self, latents: Tensor, mask: Tensor | None, lengths: Tensor | None = None) -> Tensor | None:
        mask = super()._check(latents, mask, lengths)
        if not 3 <= latents.ndim <= 5:
            raise ValueError(
                "'latents' must be maps (B, *spatial, dim) with 1 to 3 spatial axes, got shape "
                f"{tuple(latents.shape)}. Unsqueeze a batch axis, or use Residual for latents without a grid."
            )
        self.grids(latents.shape[1:-1])
        return mask

    def _prepared(self, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Maps with 0 where nothing counts, which places count, and which are finite."""
        valid = latents.detach().isfinite().all(-1)
        kept = valid if mask is None else valid & mask
        maps = as_type(torch.where(kept[..., None], latents, 0), rows_dtype(latents)).clamp(-LARGEST, LARGEST)
        # the type of the parameters, in which codes decode: sums of another one would round otherwise
        return maps.to(self.training_progress.dtype), kept, valid

    def _commitment_weights(self) -> list[float]:
        """The weight of each scale's part of the commitment."""
        if self.commitment_weight is not None:
            return [self.commitment_weight] * len(self.scales)
        return [commitment_weight_of(member) for member in self.places]

    def _size(self, size: Sequence[int] | int | None) -> Grid:
        if size is not None:
            return (size,) if isinstance(size, int) else tuple(size)
        last = self.scales[-1]
        if not isinstance(last, tuple) or any(isinstance(part, float) for part in last):
            raise ValueError(
                f"'size' must be given where the last scale, {last}, does not say the full grid. Pass the spatial "
                "axes of the latents, for example (16, 16)."
            )
        return tuple(int(part) for part in last)

    def _counted(self, codes: Tensor) -> Tensor:
        """Places of a map of codes that count: ``(B, *grid, *code_shape)`` -> ``(B, *grid)``."""
        present = codes >= 0
        return present.flatten(-len(self.code_shape)).any(-1) if self.code_shape else present

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        raise _no_rows()

    def _encode_rows(self, rows: Tensor) -> Tensor:
        raise _no_rows()

    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        raise _no_rows()


def _no_rows() -> TypeError:
    return TypeError("Hierarchical quantizes whole maps and not rows. Call its public verbs.")
