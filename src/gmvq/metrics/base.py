"""What all measures of distortion share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor


class Measure(NamedTuple):
    """A metric explained.

    Attributes:
        key: Its name in ``metrics.json`` and ``log.jsonl``.
        name: Its name for a reader.
        unit: Its unit, empty for pure numbers.
        meaning: What it says.
        good: How a good one looks; ``{codes}`` stands for the codes that can be in use, ``{share}`` for their share of
            the codebook, and ``{nats}`` for the logarithm of its size.
        form: Format specification of the number.
        scale: What the number is multiplied with to be in ``unit``.
    """

    key: str
    name: str
    unit: str = ""
    meaning: str = ""
    good: str = ""
    form: str = ".4g"
    scale: float = 1.0

    def shown(self, value: float) -> str:
        """The number as a reader sees it, without its unit."""
        return format(value * self.scale, self.form) if math.isfinite(value) else str(value)


class Distortion(ABC):
    """How far made items are from real ones: means over the items of a data set, streamed.

    Each metric is computed for each item and then averaged over items, so that an item counts the same whatever its
    size.

    Attributes:
        headline: Key of the metric that a run is judged by.
        higher_is_better: Whether a higher headline is a better one.
        measures: Its metrics, explained.
        protocol: How the metrics are computed, as a sentence.
    """

    headline: ClassVar[str]
    higher_is_better: ClassVar[bool]
    measures: ClassVar[tuple[Measure, ...]]
    protocol: str

    @abstractmethod
    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds items.

        Args:
            made: What a model made, as it returns it, ``(B, C, *S)`` or symbols ``(B, T)``.
            real: What it was made of, as floats in the same units, or symbols.
            lengths: Samples of each sequence that count ``(B,)``; None for all.

        Raises:
            ValueError: If the shapes differ, or values are not finite or out of range.
        """

    @abstractmethod
    def metrics(self) -> dict[str, float | None]:
        """Means over the items seen, by key; empty if none was, None for what cannot be measured of them."""

    @property
    @abstractmethod
    def items(self) -> int:
        """Number of items seen."""

    def of_error(self, error: float) -> dict[str, float]:
        """The headline that a mean error of training stands for, if it says one: PSNR of a squared error."""
        return {}
