"""A training task: a model, its batches, and its metrics. The trainer optimizes it.

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
    """Result of a forward pass.

    Attributes:
        loss: Loss to minimize, ``()``.
        terms: Terms of the loss and other metrics to log, detached, each ``()``.
        codes: Codes whose usage is counted, ``(*, levels)``; None if there are none.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None


class AbstractTask(ABC, Generic[Model, Drawn]):
    """A model and its training data.

    Args:
        model: Model, trained in place.

    Attributes:
        codebook_sizes: Number of codes at each level of a token whose usage is counted, or None.
        has_idle_parameters: True if some parameters are unused in some steps.
        headline: The metric that the model is judged by, None if only the loss is.
        sample: Description of the data that :meth:`held_out` evaluates.
    """

    codebook_sizes: tuple[int, ...] | None = None
    has_idle_parameters: bool = False
    headline: Measure | None = None
    sample: str = "a sample of held-out data"

    def __init__(self, model: Model) -> None:
        self.model = model

    @abstractmethod
    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> AbstractLoader[Drawn]:
        """Creates the loader of a rank's batches."""

    @abstractmethod
    def inputs(self, batch: Drawn, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
        """Returns the arguments of the model's forward pass."""

    @abstractmethod
    def outcome(self, answer: Any, batch: Drawn) -> Outcome:  # noqa: ANN401 (what the model returns)
        """Returns loss, terms and codes of the model's answer to a batch."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Describes model and data as far as steps depend on them, as JSON types."""

    def summary(self) -> dict[str, str]:
        """Describes data and model for the output before the first step, by name: items, their size, their windows."""
        return {}

    def layers(self) -> tuple[nn.Module, ...]:
        """Returns the parts of the model whose weights decay."""
        return (self.model,)

    def clipped_apart(self) -> tuple[nn.Module, ...]:
        """Returns the parts of the model whose gradients are clipped separately, each by its own norm."""
        return (self.model,)

    def averaged(self, metrics: dict[str, float | None]) -> dict[str, float | None]:
        """Computes the metrics to log from the means over the steps since the last line."""
        return metrics

    def held_out(self, batch_size: int) -> Callable[[Model], dict[str, float | None]] | None:
        """Returns a function that evaluates a model on held-out data, or None if there are none."""
        return None

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """Returns a score of held-out metrics, higher is better; None if they do not define one."""
        return None

    def advice(self, metrics: Mapping[str, float | None]) -> str | None:
        """Returns a warning if training metrics are abnormal, or None."""
        return None

    def begin(self) -> None:
        """Prepares the model; called before the first step of a start, undone by :meth:`end`."""

    def end(self) -> None:
        """Undoes :meth:`begin`; called at the end of a start, also after an error."""

    def before_step(self, progress: float) -> None:
        """Updates schedules; called before each step with the progress of training in [0, 1]."""

    def after_step(self) -> None:
        """Updates the model; called after the optimizer's step."""

    def finish(self, averaged: Model, batches: Iterable[Drawn], to_device: Callable[[Tensor], Tensor]) -> None:
        """Completes the averaged model with a few batches."""

    @abstractmethod
    def save(self, averaged: Model, out: Path) -> None:
        """Writes the averaged model into the run's folder."""


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Context manager with fixed random numbers; the generators' states are restored after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
