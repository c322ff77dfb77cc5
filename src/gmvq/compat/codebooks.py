"""Codebooks behind the drop-in classes: where they are, what they hold, and their several nearest codes.

::

    x (*, dim) --way in--> rows --heads--> rows of each codebook --k best--> codes --way out--> values (*, k, dim)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.projections import inside
from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.vector import VectorQuantizer


class CodebookState(NamedTuple):
    """A codebook under the other library's names.

    Attributes:
        embed: Codes ``(heads, K, L)``.
        cluster_size: Moving counts ``(heads, K)``.
        embed_avg: Moving sums of latents ``(heads, K, L)``.
        initted: True once the codes stand, ``()``.
    """

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    initted: Tensor


def own_members(quantizer: AbstractQuantizer) -> list[VectorQuantizer]:
    """The codebooks inside a projection: one, or one per head."""
    inner = inside(quantizer)
    members = inner.members if isinstance(inner, Product) else [inner]
    return [member for member in members if isinstance(member, VectorQuantizer)]


def codebooks_of(quantizer: AbstractQuantizer) -> list[PeerQuantizer]:
    """The codebooks of a drop-in class: one, or one per head."""
    return [member for member in own_members(quantizer) if isinstance(member, PeerQuantizer)]


def codebook_state(members: list[PeerQuantizer]) -> CodebookState:
    """What codebooks hold, side by side."""
    free = [F.normalize(member.free_codes, dim=-1) if member.cosine else member.free_codes for member in members]
    moving = [member.moving for member in members]
    return CodebookState(
        torch.stack(free),
        torch.stack([each.counts for each in moving]),
        torch.stack([each.sums for each in moving]),
        torch.stack([(each.placed > 0).all() for each in moving]).all(),
    )


def put_bridge(translation: Translation, members: list[VectorQuantizer], name: str) -> None:
    """Loads the network between codebook and codes, whose names begin with ``name`` and ``vq_bridge``."""
    for member in members:
        bridge = member.bridge if isinstance(member, PeerQuantizer) else None
        for part, tensor in ({} if bridge is None else bridge.state_dict(keep_vars=True)).items():
            translation.put(tensor, translation.take(f"{name}vq_bridge.{part}"))


def heads_of(inner: AbstractQuantizer, rows: Tensor) -> list[Tensor]:
    """Rows of each codebook, from rows ``(N, L)`` inside the projection."""
    return [group for _, group in inner._groups(rows)] if isinstance(inner, Product) else [rows]


def rows_of_heads(quantizer: AbstractQuantizer, x: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Rows of each codebook, and which latents count ``(N,)``, from x ``(*, dim)`` and a mask ``(*)``."""
    rows, kept = quantizer._rows(x, mask)
    return heads_of(inside(quantizer), rows), kept


def padded(values: Tensor, x: Tensor, mask: Tensor | None, channels_first: bool, with_zeros: bool) -> Tensor:
    """Values with x in masked places, unless they are to be zeros."""
    if mask is None or with_zeros:
        return values
    return torch.where(mask.unsqueeze(1 if channels_first else -1), values, x)


class TopCodes(NamedTuple):
    """The k best codes of each latent.

    Attributes:
        values: ``(*, k, dim)``.
        codes: Best first, ``(*, k)``, -1 in masked places.
        losses: Weighted commitment of each and all regularizers, ``(*, k)``.
        commitment: Mean squared distance of each, ``(*, k)``.
    """

    values: Tensor
    codes: Tensor
    losses: Tensor
    commitment: Tensor


def top_codes(quantizer: AbstractQuantizer, x: Tensor, number: int, mask: Tensor | None) -> TopCodes:
    """The best codes of each latent, which nothing counts.

    Args:
        quantizer: One codebook, which may be in a projection.
        x: Latents ``(*, dim)``.
        number: k, at most K.
        mask: Booleans ``(*)``.
    """
    member = codebooks_of(quantizer)[0]
    rows, kept = quantizer._rows(x, mask)
    rows = direction(rows) if member.cosine else rows
    if member.learning:
        member.update()
        member._start(rows, kept)
    codebook = member.code_vectors.to(rows.dtype)
    codes = member.best(rows, codebook, min(number, member.codebook_size))
    nearest = F.embedding(codes, codebook)  # (N, k, L)
    repeated = rows[:, None].expand_as(nearest)
    commitment = (repeated - nearest).square().mean(-1) * kept[:, None]
    losses = (member.commitment_weight or float(not member.training)) * commitment
    if member.training:
        for regularizer in member.regularizers:
            losses = losses + regularizer(member.regularized(regularizer, codebook, codes[kept]), rows, kept)
        flat = member.estimator(repeated.reshape(-1, member.dim), nearest.reshape(-1, member.dim))
        nearest = flat.reshape(nearest.shape)
    values = quantizer._outside(nearest.reshape(-1, member.dim)) if inside(quantizer) is not quantizer else nearest
    values = values.reshape(*codes.shape, quantizer.dim) * kept[:, None, None]
    shape = x.shape[:-1]
    codes = codes.masked_fill(~kept[:, None], -1)
    return TopCodes(
        values.to(x.dtype).reshape(*shape, -1, quantizer.dim),
        codes.reshape(*shape, -1),
        losses.reshape(*shape, -1),
        commitment.reshape(*shape, -1),
    )
