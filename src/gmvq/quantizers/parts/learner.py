"""Modules that learn beside their gradient: by schedules, until frozen, with a state that keeps its precision."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from gmvq.quantizers.parts.codebook import in_backward
from gmvq.quantizers.parts.rows import as_type

HALVES = (torch.float16, torch.bfloat16)


class Learner(nn.Module):
    """A module with statistics and schedules of its own.

    Its state stays in float32 under ``.half()`` and ``.bfloat16()``: a moving count in bfloat16 stops at 256.

    Attributes:
        frozen: True after :meth:`freeze`.
        decoded_dtype: Type of decoded codes after ``.half()`` or ``.bfloat16()``; None for that of the state.
    """

    frozen: bool = False
    decoded_dtype: torch.dtype | None = None
    _given: dict[str, str]

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401  those of other bases
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _recorded(cls.__init__)

    def __init__(self) -> None:
        super().__init__()
        # kept with the weights: the schedules of a loaded model go on where they were
        self.register_buffer("training_progress", torch.zeros(()))

    training_progress: Tensor
    """Progress of training in [0, 1], ``()``: the argument of schedules."""

    @property
    def progress(self) -> float:
        """Progress of training, in [0, 1]."""
        return float(self.training_progress)

    def set_progress(self, progress: float) -> None:
        """Sets the progress of training, which schedules go by.

        Raises:
            ValueError: If ``progress`` is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"'progress' must lie in [0, 1], got {progress}. Pass step / steps.")
        for learner in self._learners():
            learner.training_progress.fill_(progress)

    def freeze(self) -> Self:
        """Stops all learning of this module: no gradient to its parameters, no statistics."""
        if not self.frozen:
            self._learned = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
            self._was_frozen = [learner.frozen for learner in self._learners()]
            for learner in self._learners():
                learner.frozen = True
            self.requires_grad_(False)
        return self

    def unfreeze(self) -> Self:
        """Undoes :meth:`freeze`: what was frozen before stays so."""
        if self.frozen:
            for learner, frozen in zip(self._learners(), self._was_frozen, strict=True):
                learner.frozen = frozen
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(self._learned.get(name, True))
        return self

    def __repr__(self) -> str:
        alone = len(self._learners()) == 1
        return f"{type(self).__name__}({self.extra_repr()})" if alone else super().__repr__()

    def _learners(self) -> list[Learner]:
        return [module for module in self.modules() if isinstance(module, Learner)]

    @property
    def learning(self) -> bool:
        """True in a forward whose statistics count: in training, not frozen, not repeated by checkpointing."""
        return self.training and not self.frozen and not in_backward()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keeping_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            halved = moved.dtype in HALVES and tensor.dtype != moved.dtype
            return tensor.to(moved.device) if halved else moved

        # learners inside see floats kept, so that only the outermost rounds what it decodes
        state = self.training_progress
        dtype = fn(state.new_empty(0, dtype=self.decoded_dtype or state.dtype)).dtype
        self.decoded_dtype = dtype if dtype in HALVES else None
        return super()._apply(keeping_precision, recurse)

    def _cast(self, values: Tensor) -> Tensor:
        return values if self.decoded_dtype is None else as_type(values, self.decoded_dtype)


def _recorded(initialize: Callable[..., None]) -> Callable[..., None]:
    """A constructor that keeps which arguments are not its defaults, for ``repr``."""
    signature = inspect.signature(initialize)

    @functools.wraps(initialize)
    def recorded(self: Learner, *positional: Any, **named: Any) -> None:  # noqa: ANN401
        if "_given" not in vars(self):  # else it is the constructor of a base
            with contextlib.suppress(TypeError):  # which the constructor itself explains
                given = signature.bind(self, *positional, **named).arguments
                shown = {name: repr(value) for name, value in given.items() if not _has_module(value)}
                defaults = {name: repr(signature.parameters[name].default) for name in shown}
                vars(self)["_given"] = {name: text for name, text in shown.items() if text != defaults[name]}
        initialize(self, *positional, **named)

    return recorded


def _has_module(value: object) -> bool:
    return isinstance(value, nn.Module) or (isinstance(value, list | tuple) and any(map(_has_module, value)))
