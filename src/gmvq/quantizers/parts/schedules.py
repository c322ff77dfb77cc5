"""Numbers that change in the course of training, as functions of its progress in [0, 1].

A progress that is a tensor ``()`` gives a tensor, so that a compiled step need not be compiled again for each number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-6
"""Nothing can be divided by 0, the hard limit where a schedule may end: a softmax at this temperature is as hard."""


class Schedule(Protocol):
    """A number for each progress of training."""

    def __call__(self, progress: float | Tensor) -> float | Tensor:
        """Gives the value at a progress in [0, 1]."""
        ...


@dataclass(frozen=True)
class Constant:
    """Always the same value.

    Example:
        >>> Constant(0.5)(0.3)
        0.5
    """

    value: float

    def __call__(self, progress: float | Tensor) -> float | Tensor:  # noqa: D102
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``.

    Example:
        >>> Linear(1.0, 0.0)(0.25)
        0.75
    """

    start: float
    end: float

    def __call__(self, progress: float | Tensor) -> float | Tensor:  # noqa: D102
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Geometric:
    """Equal ratios in equal times, from ``start`` to ``end``, both above 0: the schedule of annealing.

    Example:
        >>> Geometric(1.0, 0.01)(0.5)
        0.1
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise ValueError(
                f"'start' and 'end' must be above 0, got {self.start} and {self.end}. Use for example 1.0 and 0.01."
            )

    def __call__(self, progress: float | Tensor) -> float | Tensor:  # noqa: D102
        return self.start * (self.end / self.start) ** progress


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` to ``end``, flat at both ends.

    Example:
        >>> Cosine(1.0, 0.0)(0.5)
        0.5
    """

    start: float
    end: float

    def __call__(self, progress: float | Tensor) -> float | Tensor:  # noqa: D102
        angle = math.pi * progress
        cosine = torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle)
        return self.end + (self.start - self.end) * (1 + cosine) / 2


def temperature_at(schedule: Schedule, progress: float | Tensor) -> float | Tensor:
    """Value of a schedule that something is divided by, at least :data:`LEAST_TEMPERATURE`."""
    value = schedule(progress)
    return value.clamp_min(LEAST_TEMPERATURE) if isinstance(value, Tensor) else max(value, LEAST_TEMPERATURE)


def as_schedule(value: float | Schedule, name: str) -> Schedule:
    """Takes a number for a constant schedule.

    Raises:
        ValueError: If the value is neither a schedule nor a finite number above 0.
    """
    if callable(value):
        return value
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"'{name}' must be a finite number above 0 or a schedule, got {value!r}. Use for example 1.0.")
    return Constant(float(value))
