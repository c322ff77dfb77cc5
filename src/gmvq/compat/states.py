"""Translation of other libraries' state dicts to our names.

::

    their state dict --take(name)--> tensor --put(our tensor, value)--> our state dict

Our names are found by the tensor itself, so that a translation says *which* buffer gets a value and not what a
composition has named it. Tensors that a translation does not set keep the value that the module has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gmvq.quantizers.parts.vector_parts import AffineCodebook
from gmvq.quantizers.vector import VectorQuantizer


class Translation:
    """Takes tensors from another library's state dict and puts them under our names.

    Args:
        module: Our module, which loads the state.
        state: The state dict, changed in place by :meth:`finish`.
        prefix: Prefix of the module's names.
    """

    def __init__(self, module: nn.Module, state: dict[str, Any], prefix: str = "") -> None:
        self._module = module
        self._state = state
        self._prefix = prefix
        self._taken: set[str] = set()
        self._values: dict[int, Tensor] = {}
        self._missing: set[int] = set()

    def has(self, name: str) -> bool:
        """True if the other library's state has a name."""
        return self._prefix + name in self._state

    def take(self, name: str) -> Tensor | None:
        """The other library's tensor of a name, or None."""
        self._taken.add(self._prefix + name)
        return self._state.get(self._prefix + name)

    def put(self, ours: Tensor | None, value: Tensor | None) -> None:
        """Sets one of our parameters or buffers; loading reports it as missing where the value is None."""
        if ours is not None and value is not None:
            self._values[id(ours)] = value
        elif ours is not None:
            self._missing.add(id(ours))

    def finish(self) -> None:
        """Replaces their names by ours in the state dict."""
        ours = self._module.state_dict(keep_vars=True)
        for name in self._taken:
            self._state.pop(name, None)
        for name, tensor in ours.items():
            if id(tensor) in self._missing:
                continue
            self._state[self._prefix + name] = self._values.get(id(tensor), tensor.detach())

    def layer(self, ours: nn.Module, name: str) -> None:
        """Loads a layer that has a weight and may have a bias."""
        for part, parameter in ours.named_parameters():
            self.put(parameter, self.take(f"{name}.{part}"))

    def codebook(self, ours: VectorQuantizer, name: str, head: int = 0, heads: int = 1) -> None:
        """Loads one of the heads of their ``Codebook``: codes, counts, sums, whether it has started, affine moments.

        Raises:
            ValueError: If the state has another number of heads.
        """
        embed = self._head(f"{name}embed", head, heads)
        self.put(ours.learned, embed)
        self.put(ours.moving.codes, embed)
        self.put(ours.moving.counts, self._head(f"{name}cluster_size", head, heads))
        self.put(ours.moving.sums, self._head(f"{name}embed_avg", head, heads))
        for pending in (ours.moving.pending_counts, ours.moving.pending_sums, ours.moving.pending_fresh):
            self.put(pending, torch.zeros_like(pending))
        started = self.flag(f"{name}initted")
        if started is not None and ours.affine is not None:
            started = started & self.has(f"{name}batch_mean")
        self.put(ours.moving.placed, None if started is None else started.expand_as(ours.moving.placed))
        if ours.affine is not None:
            self._affine(ours.affine, name, head, heads)

    def flag(self, name: str) -> Tensor | None:
        """The other library's boolean of a name, a float of shape (1,) in its older versions, or None."""
        value = self.take(name)
        return None if value is None else value.bool().reshape(())

    def _affine(self, ours: AffineCodebook, name: str, head: int, heads: int) -> None:
        for flag in ("codebook_mean_needs_init", "codebook_variance_needs_init"):
            self.take(name + flag)
        theirs = {part: self._head(name + part, head, heads) for part in ("batch_mean", "batch_variance")}
        theirs |= {part: self._head(name + part, head, heads) for part in ("codebook_mean", "codebook_variance")}
        # before its first batch the other library has no moments of latents, and uninitialized memory for the codes'
        if theirs["batch_mean"] is None:
            return
        for part, values in theirs.items():
            mine = part.replace("batch", "latents").replace("codebook", "codes")
            self.put(getattr(ours, mine), None if values is None else values.reshape(-1))

    def _head(self, name: str, head: int, heads: int) -> Tensor | None:
        values = self.take(name)
        if values is None:
            return None
        without_heads = {"embed": 2, "embed_avg": 2, "cluster_size": 1}.get(name.rpartition(".")[2])
        values = values[None] if values.ndim == without_heads else values
        if len(values) != heads:
            raise ValueError(
                f"{self._prefix + name!r} must have {heads} codebooks, got shape {tuple(values.shape)}. Make the "
                "module with the 'heads' and 'separate_codebook_per_head' of the one that was saved."
            )
        return values[head]


def below(
    state: Mapping[str, Tensor],
    prefix: str,
    *,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    meanings: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """The part of a state dict whose names begin with a prefix; the names come without the prefix.

    Other names are refused, since they may change which code is meant.

    Args:
        state: The state dict.
        prefix: Prefix of the names.
        needed: Names that must be there.
        optional: Names that may be there.
        meanings: By the first part of other names: what they mean, and what to do about them.

    Raises:
        ValueError: If a needed name is missing, or there is a name beside the needed and the optional ones.
    """
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if missing := [prefix + name for name in needed if name not in part]:
        raise ValueError(
            f"'state_dict' must have {', '.join(map(repr, missing))}, got {sorted(state)[:8]} among {len(state)} "
            "names. Pass the prefix of the quantizer's names, for example prefix='quantize.'."
        )
    if unknown := sorted(set(part) - {*needed, *optional}):
        parts = dict.fromkeys(name.partition(".")[0] for name in unknown)
        remedies = [meanings[each] for each in parts if each in meanings] or [
            "Another kind of quantizer may have them: leave them out if they do not change which code is meant."
        ]
        raise ValueError(
            f"'state_dict' must have no names below prefix={prefix!r} but {', '.join((*needed, *optional))}, got "
            f"{', '.join(repr(prefix + name) for name in unknown[:8])}. {' '.join(remedies)}"
        )
    return part


@torch.no_grad()
def started_codebook(
    member: VectorQuantizer, codes: Tensor, counts: Tensor | None = None, sums: Tensor | None = None
) -> VectorQuantizer:
    """Starts a quantizer at codes ``(K, L)``, with counts ``(K,)`` and sums ``(K, L)`` if given."""
    member.moving.place(codes, member.moving.counts if counts is None else counts)
    if sums is not None:
        member.moving.sums.copy_(sums)
    if member.learned is not None:
        member.learned.copy_(codes)
    return member
