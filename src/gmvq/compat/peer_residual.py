r"""A residual quantizer that trains as vector-quantize-pytorch's does.

::

    rows --level 1--> rest --level 2--> ... --sum--> values
                 |            |
               loss 1       loss 2

Each level has a loss of its own, whose gradient reaches the latents as if the codes before were constants. With a share
:math:`f > 0` of the codes' gradient in the rest,

.. math:: r_{i+1} = r_i - \big(f v_i + (1 - f)\, \mathrm{sg}[v_i]\big),

this is so for :math:`1 - f` of it, for losses and values alike. At :math:`f = 0`, the default, the other library adds
up the gradients of all levels, n times that of one; here the sum passes its gradient once, as at :math:`f = 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.level_dropout import LevelDropout
from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.peer_ways import Directional, RowCodes
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.parts.checks import checked_codes
from gmvq.types import Quantized


class ImplicitCodes(nn.Module):
    r"""The network f of an implicit codebook, with the other library's layers.

    .. math:: h_0 = W [\hat x, \mu] + b, \qquad h_i = h_{i-1} + V_i\, \mathrm{silu}(U_i h_{i-1} + a_i) + b_i

    Args:
        dim: Features L of a code.
        dim_hidden: Features inside a block, L by default.
        depth: Number of blocks.

    Shape:
        base codes and partial sums ``(*, L)``, broadcast to each other -> codes ``(*, L)``.

    References:
        Residual Quantization with Implicit Neural Codebooks (Huijben et al., 2024), https://arxiv.org/abs/2401.14732
    """

    def __init__(self, dim: int, dim_hidden: int | None = None, depth: int = 4) -> None:
        super().__init__()
        hidden = dim if dim_hidden is None else dim_hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(depth)
        )

    def forward(self, codes: Tensor, sums: Tensor) -> Tensor:
        """Codes of base codes ``(*, L)`` for partial sums ``(*, L)``."""
        of_sums, of_codes = self.proj_in.weight.chunk(2, -1)
        h = F.linear(sums, of_sums) + F.linear(codes, of_codes, self.proj_in.bias)
        for layer in self.layers:
            h = h + layer(h)
        return h


@dataclass(frozen=True)
class _CodesOfSums(RowCodes):
    network: ImplicitCodes
    sums: Tensor

    def crossed(self, codebook: Tensor, rows: slice) -> Tensor:
        return self.network(codebook, self.sums[rows, None])

    def chosen(self, codes: Tensor) -> Tensor:
        return self.network(codes, self.sums)


@dataclass(frozen=True)
class LevelWays:
    """Ways of the other library's residual quantizer that ours does not have.

    Attributes:
        gradient_share: f, in [0, 1].
        deviation: Of the noise of a gradient along the error of the sum; None leaves that to the levels.
    """

    gradient_share: float = 0.0
    deviation: float | None = None


class SeededResidual(Residual):
    """A residual quantizer whose number of levels in a training forward follows from a seed.

    Args:
        quantizers: The level of each place, or one for all.
        num_quantizers: Number of levels of one.
        dropout: Which levels take part in a forward in training.
        commitment_weight: As of our own.
        beam_size: Of the search in evaluation.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, levels)``, loss ``()``.

    Attributes:
        seed: Seed of the next forward, None to draw one.
    """

    def __init__(
        self,
        quantizers: AbstractQuantizer | Sequence[AbstractQuantizer],
        num_quantizers: int | None = None,
        *,
        dropout: LevelDropout,
        commitment_weight: float | None = None,
        beam_size: int = 1,
    ) -> None:
        super().__init__(quantizers, num_quantizers, commitment_weight=commitment_weight, beam_size=beam_size)
        self.dropout = dropout
        self.seed: int | None = None

    def _number_of_levels(self, rows: Tensor) -> int:
        return self.dropout.left(self.seed, rows.device) if self.training else self.num_quantizers


class PeerResidual(SeededResidual):
    r"""Quantizes what is left, level after level, with a loss for each level.

    .. math:: v = \sum_i v_i, \qquad v_i = \mathrm{quantize}_i\big(x - \textstyle\sum_{j<i} v_j\big)

    Args:
        quantizers: The level of each place, or one for all.
        num_quantizers: Number of levels of one.
        dropout: Which levels take part in a forward in training.
        ways: What our own quantizer does not have.
        networks: Networks of the levels from 2 on, whose codes then depend on the sum so far.
        beam_size: Of the search in evaluation.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, levels)``, loss ``()``; each level has a term
        ``{level}.loss`` with its gradient.
    """

    def __init__(
        self,
        quantizers: PeerQuantizer | Sequence[PeerQuantizer],
        num_quantizers: int | None = None,
        *,
        dropout: LevelDropout,
        ways: LevelWays,
        networks: Sequence[ImplicitCodes] = (),
        beam_size: int = 1,
    ) -> None:
        super().__init__(quantizers, num_quantizers, dropout=dropout, beam_size=beam_size)
        self.ways = ways
        self.networks = nn.ModuleList(networks)

    def _row_codes(self, level: int, sums: Tensor) -> _CodesOfSums | None:
        network = self.networks[level - 1] if level and len(self.networks) else None
        return _CodesOfSums(network, sums) if isinstance(network, ImplicitCodes) else None

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        if self.beam_size > 1 and not self.training:
            return self._forward_of_search(rows, kept)
        number, share = self._number_of_levels(rows), self.ways.gradient_share
        left, compared, total = rows, rows, torch.zeros_like(rows)
        codes, losses, terms = [], [], {}
        for level, member in enumerate(self.places):
            if level >= number or not isinstance(member, PeerQuantizer):
                codes.append(torch.full_like(codes[0], -1))
                terms[f"{level}.loss"] = rows.new_zeros(())
                continue
            out = member.step(left, kept, compared, self._row_codes(level, total))
            total = total + out.values if level else out.values
            if share > 0:
                left = compared = left - (share * out.values + (1 - share) * out.values.detach())
            else:
                left, compared = left - out.values, compared - out.values.detach()
            codes.append(out.codes)
            losses.append(out.loss)
            terms |= {f"{level}.{name}": term for name, term in out.terms.items()}
        if self.ways.deviation is not None and self.training:
            total = Directional(self.ways.deviation)(rows, total)
        return Quantized(total, torch.stack(codes, 1), torch.stack(losses).sum(), terms)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        if not len(self.networks):
            return super()._encode_rows(rows)
        total, codes = torch.zeros_like(rows), []
        for level, member in enumerate(self.places):
            if isinstance(member, PeerQuantizer):
                chosen, values = member.nearest(rows - total, self._row_codes(level, total))
                total = total + values
                codes.append(chosen)
        return torch.stack(codes, 1)

    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.level_values(codes).sum(0) if len(self.networks) else super()._decode_rows(codes, dtype)

    def level_values(self, codes: Tensor) -> Tensor:
        """Values of each level: codes ``(N, at most levels)`` -> ``(levels, N, L)``, 0 for -1 and missing levels."""
        total = self.training_progress.new_zeros(len(codes), self.dim)
        levels = []
        for level, (member, chosen) in enumerate(zip(self.places, codes.unbind(-1), strict=False)):
            chosen = checked_codes(chosen, member.codebook_size)
            base = member.code_vectors[chosen.clamp_min(0)]
            row_codes = self._row_codes(level, total)
            values = base if row_codes is None else row_codes.chosen(base)
            levels.append(torch.where(chosen[:, None] >= 0, values, 0))
            total = total + levels[-1]
        return torch.stack(levels + [torch.zeros_like(total)] * (self.num_quantizers - len(levels)))
