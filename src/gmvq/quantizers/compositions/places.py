"""Checks of the quantizers at the places of a composite, and their start.

::

    the user's argument --listed--> a member for each place --start, show--> members whose codebooks stand
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer
from gmvq.quantizers.compositions.wrapper import kind
from gmvq.quantizers.parts.checks import positive_integer
from gmvq.quantizers.parts.codebook import MovingAverageCodebook


def prefixed(terms: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    """Terms of the member at a place, under names of their own: ``{place}.{name}``."""
    return {f"{place}.{name}": term for name, term in terms.items()}


def listed(
    quantizers: AbstractQuantizer | Sequence[AbstractQuantizer], number: int | None, name: str
) -> list[AbstractQuantizer]:
    """Lists the member at each place: a list as it is, or one quantizer at ``number`` places.

    Args:
        quantizers: The user's argument.
        number: Number of places that one quantizer serves.
        name: Name of that number's argument.

    Raises:
        ValueError: If there is no quantizer, something else is in the list, a quantizer is in it twice, or the number
            does not fit.
    """
    is_list = isinstance(quantizers, Sequence | nn.ModuleList) and not isinstance(quantizers, str)
    if isinstance(quantizers, AbstractQuantizer):
        if number is None:
            raise ValueError(
                f"'{name}' must say how many places one shared quantizer serves, got None. Set {name}=4, or pass a "
                "list of quantizers, one for each place."
            )
        return [quantizers] * positive_integer(name, number)
    places = list(quantizers) if is_list else []
    if not places or not all(isinstance(member, AbstractQuantizer) for member in places):
        got = f"a list of {', '.join(map(kind, places)) or 'nothing'}" if is_list else kind(quantizers)
        raise ValueError(
            f"'quantizers' must be a quantizer or a list of at least one, got {got}. Pass for example "
            "[VectorQuantizer(64, 512), VectorQuantizer(64, 512)]."
        )
    if number is not None and (isinstance(number, bool) or number != len(places)):
        raise ValueError(
            f"'{name}' must be the length of the list, {len(places)}, got {number}. Leave it out, or pass one "
            "quantizer to share its codebook."
        )
    seen: set[int] = set()
    for place, member in enumerate(places):
        inside = {id(module) for module in member.modules() if isinstance(module, AbstractBottleneck)}
        if inside & seen:
            raise ValueError(
                f"'quantizers' must be separate instances, got the one at place {place} twice. Pass one quantizer with "
                f"{name}={len(places)} to share a codebook, or make another instance."
            )
        seen |= inside
    return places


def checked_commitment_weight(weight: float | None, members: Sequence[AbstractQuantizer]) -> float | None:
    """Checks the weight of a composite's own commitment.

    Raises:
        ValueError: If it is negative or not finite, or would add squared errors to nats.
    """
    if weight is None:
        return None
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"'commitment_weight' must be at least 0, got {weight}. Use for example 0.25.")
    if weight > 0 and any(member.loss_in_nats for member in members):
        raise ValueError(
            f"'commitment_weight' must be 0 for members whose loss is in nats, got {weight}: it weighs a squared "
            "error. Leave it out."
        )
    return weight


def is_complete(member: AbstractQuantizer) -> bool:
    """Returns whether no code of a member waits for a row to start from."""
    return all(module.is_complete for module in member.modules() if isinstance(module, MovingAverageCodebook))


@torch.no_grad()
def show(member: AbstractQuantizer, rows: Tensor, kept: Tensor) -> None:
    """Lets a member start from rows ``(*, dim)`` and collect their statistics, with its random numbers set apart.

    A repeated forward does not call this, so the random numbers drawn here must not shift later ones.
    """
    devices = [rows.device] if rows.is_cuda else []
    with nullcontext() if torch.compiler.is_compiling() else torch.random.fork_rng(devices):
        member(rows, kept)


@torch.no_grad()
def start(member: AbstractQuantizer, rows: Tensor, kept: Tensor) -> None:
    """Lets a member start from rows ``(*, dim)`` without counting them in its statistics."""
    pending = [buffer for name, buffer in member.named_buffers() if name.rpartition(".")[-1].startswith("pending_")]
    before = [buffer.clone() for buffer in pending]
    show(member, rows, kept)
    for buffer, value in zip(pending, before, strict=True):
        buffer.copy_(value)
