"""Checks of configurations, with errors in one wording: parameter, rule, value, remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def at_least(name: str, value: object, least: int, remedy: str = "") -> int:
    """Checks a count.

    Args:
        name: The parameter's name.
        value: The given value.
        least: Smallest allowed value.
        remedy: A sentence that says what to do instead.

    Raises:
        ValueError: If the value is not an integer of at least ``least``.

    Example:
        >>> at_least("steps", 0, 1)
        Traceback (most recent call last):
        ValueError: 'steps' must be an integer of at least 1, got 0. Use for example 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        remedy = remedy or f"Use for example {max(least, 1)}."
        raise ValueError(f"'{name}' must be an integer of at least {least}, got {value!r}. {remedy}")
    return int(value)


def positive(name: str, value: object, remedy: str = "") -> float:
    """Checks a rate or a scale.

    Raises:
        ValueError: If the value is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value) or value <= 0:
        remedy = remedy or f"Use for example {name}=1.0."
        raise ValueError(f"'{name}' must be a finite number above 0, got {value!r}. {remedy}")
    return float(value)


def non_negative(name: str, value: object, remedy: str = "") -> float:
    """Checks a weight.

    Raises:
        ValueError: If the value is not a finite number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value) or value < 0:
        remedy = remedy or f"Give for example {name}=1.0."
        raise ValueError(f"'{name}' must be a finite number of at least 0, got {value!r}. {remedy}")
    return float(value)


def fraction(name: str, value: object, remedy: str, *, closed: bool = True) -> float:
    """Checks a share.

    Args:
        name: The parameter's name.
        value: The given value.
        remedy: A sentence that says what to do instead.
        closed: True if 0 and 1 are allowed.

    Raises:
        ValueError: If the value is not a number between 0 and 1.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value) else math.nan
    if not (0 <= number <= 1 if closed else 0 < number < 1):
        raise ValueError(f"'{name}' must lie in {'[0, 1]' if closed else '(0, 1)'}, got {value!r}. {remedy}")
    return number


def _is_finite(value: Real) -> bool:
    """Returns whether a number is one that floats can hold; integers of JSON may be larger."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Checks a name against a list.

    Raises:
        ValueError: If it is not on the list.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"'{name}' must be one of {', '.join(choices)}, got {value!r}. Check its spelling.")
    return value


def device(name: str, value: str | None) -> torch.device:
    """Checks that this machine has a device: ``cpu``, ``cuda``, ``cuda:1`` and so on, ``mps``; None for the fastest.

    Raises:
        ValueError: If the name is another one, or this machine does not have the device.

    Example:
        >>> device("device", "gpu")
        Traceback (most recent call last):
        ValueError: 'device' must be 'cpu', 'cuda', 'cuda:1' or 'mps', got 'gpu'. Leave it out for the fastest one.
    """
    if value is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", value):
        raise ValueError(
            f"'{name}' must be 'cpu', 'cuda', 'cuda:1' or 'mps', got {value!r}. Leave it out for the fastest one."
        )
    found = torch.device(value)
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"'{name}' must be a device of this machine, got {value!r} ({why}). Leave it out for the fastest one."
        ) from error
    return found


def is_transformed() -> bool:
    """Returns True within ``torch.func`` or forward-mode differentiation: tensors are batches or carry tangents."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def can_look_at(values: Tensor) -> bool:
    """Returns True if values may decide branches: on the CPU, and outside graphs, which would keep one branch."""
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if values.device.type != "cpu" or in_graph:
        return False
    # fake tensors and those of torch.func stand for values that are not there, or for many at once
    return type(values) in (Tensor, nn.Parameter) and not is_transformed()
