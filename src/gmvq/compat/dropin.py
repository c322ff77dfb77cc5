"""The base class of the drop-in classes: layout, masks, freezing for one call, and loading of foreign states.

::

    x --channels last--> latents --quantizer--> Quantized --channels back--> tuple
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.types import Quantized


class AbstractDropIn(nn.Module, ABC):
    """A quantizer of gmvq with the interface of another library.

    ``load_state_dict`` takes the other library's state dict as well as ours; ``state_dict`` returns ours.

    Attributes:
        quantizer: The quantizer behind the interface, for latents ``(*, dim)``.
    """

    quantizer: AbstractQuantizer

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_translated)

    @property
    def dim(self) -> int:
        """Features of a latent."""
        return self.quantizer.dim

    @property
    @abstractmethod
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded.

        Raises:
            ValueError: If an option is one of the classes alone.
        """
        return self.quantizer

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; before evaluation the last forward's statistics are folded into the codebooks."""
        if self.training and not mode:
            self.update()
        return super().train(mode)

    def update(self) -> None:
        """Updates the codebooks from the last forward's statistics; the next forward in training does so, too."""
        if not self.quantizer.frozen:
            self.quantizer.update()

    def _quantize(self, x: Tensor, channels_first: bool, mask: Tensor | None = None) -> Quantized:
        """Quantizes ``x``; values are returned in its layout, codes with channels last."""
        values, codes, loss, terms = self.quantizer(x.movedim(1, -1) if channels_first else x, mask=mask)
        return Quantized(values.movedim(-1, 1) if channels_first else values, codes, loss, terms)

    @contextmanager
    def _frozen(self, members: list[AbstractQuantizer], frozen: bool | None) -> Iterator[None]:
        """Freezes or unfreezes members for one call; None leaves them as they are."""
        if frozen is None:
            yield
            return
        before = [(member, member.frozen, [p.requires_grad for p in member.parameters()]) for member in members]
        for member in members:
            member.freeze() if frozen else member.unfreeze()
        try:
            yield
        finally:
            for member, was_frozen, required in before:
                if was_frozen:
                    member.update()  # with this call's statistics, which a frozen codebook would drop
                member.freeze() if was_frozen else member.unfreeze()
                for parameter, requires_grad in zip(member.parameters(), required, strict=True):
                    # what has learned in this call still waits for its backward pass
                    parameter.requires_grad_(requires_grad or not frozen)

    @abstractmethod
    def _is_theirs(self, names: list[str]) -> bool:
        """True if these names of a state dict, without the module's prefix, are the other library's."""

    @abstractmethod
    def _translate(self, translation: Translation) -> None:
        """Assigns the other library's tensors to ours."""


def _translated(module: AbstractDropIn, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    names = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
    if module._is_theirs(names):
        translation = Translation(module, state_dict, prefix)
        module._translate(translation)
        translation.finish()


def mean_term(terms: dict[str, Tensor], name: str) -> Tensor:
    """Mean of a term over the members, whose names for it end in ``name``: ``()``."""
    return torch.stack([term for key, term in terms.items() if key.rpartition(".")[2] == name]).mean()
