r"""Residual quantization: each level quantizes what the levels before it have left.

.. math:: r_1 = x, \qquad v_i = \mathrm{quantize}_i(r_i), \qquad r_{i+1} = r_i - v_i, \qquad v = \textstyle\sum_i v_i

n levels of K codes have :math:`K^n` sums in the memory and time of n K codes, and the first levels alone are a coarser
code of the same latent.

**The gradient counts once.** The residuals are not detached, so the derivative of the sum is the composition of the
members' own estimators: with :math:`J_i = \partial v_i / \partial r_i`,

.. math:: \frac{\partial v}{\partial x} = I - (I - J_n) \cdots (I - J_2)(I - J_1),

which for straight-through members (:math:`J_i = I`) is the identity at any depth. Detached residuals would give
:math:`\sum_i J_i`, n times the gradient.

**The commitment.** By the same law nothing of the losses of levels :math:`i \ge 2` comes through a straight-through
level to the encoder. So the composite adds the commitment to all partial sums but the first, which its member has:

.. math:: \sum_{i \ge 2} \beta_i \big| x - \mathrm{sg}\big[\textstyle\sum_{j \le i} v_j\big] \big|^2

with the members' own weights, 0 for those that have no commitment.

Of members with another estimator a share :math:`(I - J_{i-1}) \cdots (I - J_1)` of their own comes through beside it,
all of it with ``NoGradient``, where ``commitment_weight=0`` counts it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from gmvq.distributed import broadcast, sum_over_ranks
from gmvq.kernels import in_blocks, squared_distances
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.composite import AbstractComposite, commitment_weight_of
from gmvq.quantizers.compositions.places import checked_commitment_weight, listed, prefixed
from gmvq.quantizers.parts.checks import positive_integer
from gmvq.quantizers.parts.codebook import snapshot
from gmvq.quantizers.parts.estimators import StraightThrough
from gmvq.quantizers.parts.rows import mean_square
from gmvq.types import Quantized

BLOCK_ELEMENTS = 1 << 22
"""Number of distances that beam search holds at a time."""


class Residual(AbstractComposite):
    r"""Quantizes the latent, then what is left, level after level.

    .. math:: v = \sum_i v_i, \qquad v_i = \mathrm{quantize}_i\big(x - \textstyle\sum_{j<i} v_j\big)

    Args:
        quantizers: A list has a member for each level, whose codebook sizes may differ. One quantizer is shared between
            ``num_quantizers`` levels: its codebook starts from the rows of level 1 and counts the rows of all.
        num_quantizers: Number of levels n of one shared quantizer.
        quantizer_dropout: Probability of a training forward in which only the first levels take part, True for 1.
            Their number is drawn for each forward, the same on all ranks. The others have code -1, add 0 and have no
            part in any loss or statistic. The first batch drops no level, so that all codebooks start from data.
        dropout_cutoff: Least number of levels that dropout leaves.
        dropout_multiple_of: The number of levels left is rounded up to a multiple of this.
        beam_size: Number of partial sums that ``encode`` and the forward in evaluation keep at each level, by their
            squared error; 1 takes each member's own choice. The result is never worse than that.
        commitment_weight: beta, for levels from 2 on; level 1 has its member's. By default that of each level's member,
            0 for one that has none or a loss in nats. A member with a projection counts the error of the features that
            it keeps, as in its own loss.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, levels, *member.code_shape)``, loss ``()``: the sum of
        the members' losses and of the commitment. ``decode`` also takes codes of the first levels alone. In evaluation
        with beam search no member has chosen: one with a commitment counts by it alone, as its weight times the squared
        error that the found code leaves, and any other by its loss for what the found codes before have left.

    Raises:
        ValueError: If members do not fit together, an argument is out of range, beam search has a member without a code
            vector for each of its codes, or a commitment would add squared errors to nats.

    References:
        SoundStream: An End-to-End Neural Audio Codec (Zeghidour et al., 2021), https://arxiv.org/abs/2107.03312;
        shared codebook and commitment: Autoregressive Image Generation using Residual Quantization (Lee et al., 2022),
        https://arxiv.org/abs/2203.01941

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> quantizer = Residual([VectorQuantizer(8, 64), VectorQuantizer(8, 32), VectorQuantizer(8, 16)])
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> codes.shape
        torch.Size([2, 10, 3])
        >>> quantizer.decode(codes[..., :2]).shape  # coarser
        torch.Size([2, 10, 8])
        >>> Residual(VectorQuantizer(8, 64), num_quantizers=4).codebook_sizes
        (64, 64, 64, 64)
    """

    citations: tuple[str, ...] = ("soundstream_zeghidour2021", "rqvae_lee2022")

    def __init__(
        self,
        quantizers: AbstractQuantizer | Sequence[AbstractQuantizer],
        num_quantizers: int | None = None,
        *,
        quantizer_dropout: float = False,
        dropout_cutoff: int = 1,
        dropout_multiple_of: int = 1,
        beam_size: int = 1,
        commitment_weight: float | None = None,
    ) -> None:
        places = listed(quantizers, num_quantizers, "num_quantizers")
        dims = [member.dim for member in places]
        if len(set(dims)) > 1:
            raise ValueError(f"'quantizers' must all have one 'dim', got {dims}. Wrap those that differ in Projected.")
        if not 0 <= quantizer_dropout <= 1:
            raise ValueError(f"'quantizer_dropout' must lie in [0, 1], got {quantizer_dropout}. Use True for always.")
        if positive_integer("dropout_cutoff", dropout_cutoff) > len(places):
            raise ValueError(
                f"'dropout_cutoff' must be at most the number of levels, {len(places)}, got {dropout_cutoff}. Use 1."
            )
        if positive_integer("beam_size", beam_size) > 1 and any(member.code_shape for member in places):
            raise ValueError(
                f"'beam_size' above 1 needs members with a vector for each code, got {type(places[0]).__name__} with "
                f"codes of shape {places[0].code_shape}. Set beam_size=1."
            )
        dropout_multiple_of = positive_integer("dropout_multiple_of", dropout_multiple_of)
        commitment_weight = checked_commitment_weight(commitment_weight, places)
        super().__init__(dims[0], places)
        self.quantizer_dropout = float(quantizer_dropout)
        self.dropout_cutoff = dropout_cutoff
        self.dropout_multiple_of = dropout_multiple_of
        self.beam_size = beam_size
        self.commitment_weight = commitment_weight
        drops = self.quantizer_dropout > 0
        self.register_buffer("all_levels_started", torch.zeros(()) if drops else None)
        self.register_buffer("pending_start", torch.zeros(()) if drops else None)

    all_levels_started: Tensor | None
    """Above 0 once a forward of the past had rows for all levels: before it nothing is dropped."""
    pending_start: Tensor | None

    @property
    def num_quantizers(self) -> int:
        """Number of levels."""
        return len(self.places)

    def freeze_levels(self, *levels: int) -> Self:
        """Stops all learning of some levels, counted from 0; ``members[i].unfreeze()`` lets one learn again.

        Raises:
            ValueError: If there is no such level, or the levels share one codebook.
        """
        if len(self.members) < self.num_quantizers:
            raise ValueError("Levels that share a codebook cannot be frozen one by one. Use .freeze() for all.")
        for level in levels:
            if not 0 <= level < self.num_quantizers:
                raise ValueError(f"'levels' must lie in [0, {self.num_quantizers}), got {level}. Count from 0.")
            self.places[level].freeze()
        return self

    def update(self) -> None:
        """Folds the statistics of past forwards into each member's codebook, once; frozen members stay."""
        if self.all_levels_started is not None and self.pending_start is not None:
            self.all_levels_started.clamp_min_(self.pending_start)
        super().update()

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        if self.beam_size > 1 and not self.training:
            return self._forward_of_search(rows, kept)
        number = self._number_of_levels(rows)
        values, loss, commitment = rows, rows.new_zeros(()), rows.new_zeros(())
        weights = self._commitment_weights()
        residual, codes, terms = rows, [], {}
        for level, member in enumerate(self.places):
            active = level < number
            out = member(residual, kept & active)
            residual = residual - out.values
            values = values + out.values if level else out.values
            loss = loss + _counted(out.loss, active)
            if level:
                error = _counted(_error(member, rows - values.detach(), kept), active)
                loss, commitment = loss + weights[level] * error, commitment + error
            codes.append(out.codes)
            terms |= prefixed(out.terms, level)
        if self.num_quantizers > 1:
            terms["commitment"] = commitment.detach()
        if self.learning and self.pending_start is not None:
            self.pending_start.masked_fill_(sum_over_ranks(kept.sum()) > 0, 1)
        return Quantized(values, torch.stack(codes, 1), loss, terms)

    def _number_of_levels(self, rows: Tensor) -> Tensor | int:
        """Number of levels that take part: a tensor ``()`` where it is drawn, so that nothing waits for it."""
        levels, least, multiple = self.num_quantizers, self.dropout_cutoff, self.dropout_multiple_of
        # not self.learning: a forward that checkpointing repeats must drop the same levels
        if self.all_levels_started is None or not self.training or self.frozen:
            return levels
        chance, share = broadcast(torch.rand(2, device=rows.device)).unbind()
        number = least + (share * (levels - least + 1)).long()
        number = ((number + multiple - 1).div(multiple, rounding_mode="floor") * multiple).clamp_max(levels)
        started = snapshot(self.all_levels_started, self.training) > 0
        return torch.where((chance < self.quantizer_dropout) & started, number, levels)

    def _forward_of_search(self, rows: Tensor, kept: Tensor) -> Quantized:
        """Forward with the codes of beam search, which no member has chosen."""
        codes = self._encode_rows(rows.detach())
        sums = self._partial_sums(codes, rows.dtype)
        loss, commitment, weights = rows.new_zeros(()), rows.new_zeros(()), self._commitment_weights()
        residual = rows
        for level, (member, total) in enumerate(zip(self.places, sums, strict=True)):
            left = rows - total.detach()
            error, own = _error(member, left, kept), commitment_weight_of(member)
            # a member with a posterior weighs more than the code that was found
            plain = own > 0 and not member.has_posterior
            loss = loss + (own * (error.detach() if level else error) if plain else member(residual, kept).loss)
            if level:
                loss, commitment = loss + weights[level] * error, commitment + error
            residual = left.detach()  # as behind a straight-through level
        values = StraightThrough()(rows, sums[-1])
        return Quantized(values, codes, loss, {"commitment": commitment.detach()})

    def _commitment_weights(self) -> list[float]:
        """The weight of each level's part of the commitment."""
        if self.commitment_weight is not None:
            return [self.commitment_weight] * self.num_quantizers
        return [commitment_weight_of(member) for member in self.places]

    def _encode_rows(self, rows: Tensor) -> Tensor:
        residual, codes = rows, []
        for member in self.places:
            codes.append(member.encode(residual))
            residual = residual - member._look_up(codes[-1], rows.dtype)
        greedy = torch.stack(codes, 1)
        if self.beam_size == 1:
            return greedy
        found = self._search(rows)
        # the best partial sums need not begin the best sum: where they do not, each member's own choice stands
        better = self._squared_error(rows, found) < self._squared_error(rows, greedy)
        return torch.where(better[:, None], found, greedy)

    @torch.no_grad()
    def _search(self, rows: Tensor) -> Tensor:
        """Codes ``(N, levels)`` of least squared error among the ``beam_size`` best partial sums of each level."""
        codebooks = [_codebook(member, rows.dtype) for member in self.places]
        parts = in_blocks(rows, self.beam_size * self.codebook_size, BLOCK_ELEMENTS)
        return torch.cat([_beam_search(part, codebooks, self.beam_size) for part in parts])

    def _squared_error(self, rows: Tensor, codes: Tensor) -> Tensor:
        return (rows - self._partial_sums(codes, rows.dtype)[-1]).square().sum(-1)

    def _partial_sums(self, codes: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Sums over the first levels, in the order in which a forward takes them: values equal decoded codes."""
        sums: list[Tensor] = []
        for member, code in zip(self.places, codes.unbind(1), strict=False):
            values = member._look_up(code, dtype)
            sums.append(sums[-1] + values if sums else values)
        return sums

    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self._partial_sums(codes, dtype)[-1]

    def _fits(self, shape: tuple[int, ...]) -> bool:
        # the first levels alone are a code, too
        return 1 <= shape[0] <= self.num_quantizers and self._members_fit(shape[1:])


def _codebook(member: AbstractQuantizer, dtype: torch.dtype) -> Tensor:
    """A member's codes ``(K, dim)`` as a forward on rows of a type takes them off."""
    codebook = member.codebook
    if codebook.dtype == dtype:
        return codebook
    return member._look_up(torch.arange(len(codebook), device=codebook.device), dtype)


def _error(member: AbstractQuantizer, left: Tensor, kept: Tensor) -> Tensor:
    """Squared error that a level leaves, in the units of its own loss: of the features that its projection keeps."""
    return mean_square(left if member.projection is None else member.projection.difference_in(left), kept)


def _counted(loss: Tensor, active: Tensor | bool) -> Tensor:
    """A level's loss, 0 where dropout has left it out."""
    return loss if isinstance(active, bool) else torch.where(active, loss, 0)


def _beam_search(rows: Tensor, codebooks: list[Tensor], beam_size: int) -> Tensor:
    """Codes of the best sums, keeping a number of partial sums at each level.

    Args:
        rows: Latents ``(N, L)``.
        codebooks: Code vectors ``(K, L)`` of each level.
        beam_size: Number of partial sums kept, B.

    Returns:
        Codes ``(N, levels)``.
    """
    residuals = rows[:, None]  # (N, B, L), from a single beam
    codes: list[Tensor] = []
    for level, codebook in enumerate(codebooks):
        beams, size = residuals.shape[1], codebook.shape[0]
        distances = squared_distances(residuals.flatten(0, 1), codebook).unflatten(0, (-1, beams)).flatten(1)
        kept = 1 if level == len(codebooks) - 1 else min(beam_size, beams * size)
        chosen = distances.topk(kept, largest=False).indices
        parents, code = chosen // size, chosen % size
        residuals = residuals.gather(1, parents[..., None].expand(-1, -1, rows.shape[1])) - codebook[code]
        codes = [*(earlier.gather(1, parents) for earlier in codes), code]
    return torch.cat(codes, 1)
