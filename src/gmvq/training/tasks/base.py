"""What is learned: a model, the batches it sees, and what its metrics are. The trainer knows how to learn it.

::

    Batch --inputs--> tensors --model--> its answer --outcome--> loss, metrics, codes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gmvq.data import AbstractLoader
from gmvq.metrics.base import Measure

Model = TypeVar("Model", bound=nn.Module)
Drawn = TypeVar("Drawn")


class Outcome(NamedTuple):
    """What a forward of a batch gave.

    Attributes:
        loss: What to minimize, ``()``.
        terms: Its parts and other metrics to log, detached, each ``()``.
        codes: Codes whose use is counted, ``(*, levels)``; None where there is nothing to count.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None


class AbstractTask(ABC, Generic[Model, Drawn]):
    """A model and what it learns from.

    Args:
        model: Trained in place.

    Attributes:
        codebook_sizes: Number of codes at each level of a token whose use is counted, None for none.
        has_idle_parameters: True if some parameters have no part in some steps.
        headline: The metric that the model is judged by, None for none but the loss.
        sample: What :meth:`held_out` measures, in words.
    """

    codebook_sizes: tuple[int, ...] | None = None
    has_idle_parameters: bool = False
    headline: Measure | None = None
    sample: str = "a sample of held-out data"

    def __init__(self, model: Model) -> None:
        self.model = model

    @abstractmethod
    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> AbstractLoader[Drawn]:
        """Draws the batches of a rank."""

    @abstractmethod
    def inputs(self, batch: Drawn, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
        """What the model is called with."""

    @abstractmethod
    def outcome(self, answer: Any, batch: Drawn) -> Outcome:  # noqa: ANN401 (what the model returns)
        """What the model's answer to a batch says."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What of the model and the data a step depends on, as JSON has it."""

    def summary(self) -> dict[str, str]:
        """What to say of data and model before the first step, by name: items, what an item is, how it is cut."""
        return {}

    def layers(self) -> tuple[nn.Module, ...]:
        """The parts of the model whose weights decay, if any do."""
        return (self.model,)

    def clipped_apart(self) -> tuple[nn.Module, ...]:
        """The parts of the model whose gradients are clipped each by its own norm."""
        return (self.model,)

    def averaged(self, metrics: dict[str, float | None]) -> dict[str, float | None]:
        """Metrics of training for the log, of their means over the steps since the last line."""
        return metrics

    def held_out(self, batch_size: int) -> Callable[[Model], dict[str, float | None]] | None:
        """Metrics of a model in evaluation mode on held-out data, or None without any."""
        return None

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """How good held-out metrics are, higher is better; None if they do not say."""
        return None

    def advice(self, metrics: Mapping[str, float | None]) -> str | None:
        """A warning about metrics of training that are not as they should be; None if they are."""
        return None

    def begin(self) -> None:
        """Called before the first step of a start, and undone by :meth:`end`."""

    def end(self) -> None:
        """Called when a start is over, however it ended."""

    def before_step(self, progress: float) -> None:
        """Called before each step, with the progress of training in [0, 1]."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""

    def finish(self, averaged: Model, batches: Iterable[Drawn], to_device: Callable[[Tensor], Tensor]) -> None:
        """Completes the averaged model, by a look at a few batches."""

    @abstractmethod
    def save(self, averaged: Model, out: Path) -> None:
        """Writes the averaged model into the run's folder."""


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Within it, random numbers are the same each time; outside they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
