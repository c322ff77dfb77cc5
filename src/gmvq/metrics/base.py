"""Base class of all metrics of distortion."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Measure(NamedTuple):
    """Explanation of a metric.

    Attributes:
        key: Name in ``metrics.json`` and ``log.jsonl``.
        name: Displayed name.
        unit: Unit, empty for pure numbers.
        meaning: Sentence that says what is measured.
        good: Sentence that says which values are good; ``{codes}`` stands for the codes that can be in use,
            ``{share}`` for their share of the codebook, and ``{nats}`` for the logarithm of its size.
        form: Format specification of the number.
        scale: Factor that converts the number to ``unit``.
    """

    key: str
    name: str
    unit: str = ""
    meaning: str = ""
    good: str = ""
    form: str = ".4g"
    scale: float = 1.0

    def shown(self, value: float) -> str:
        """Formats the number, without its unit."""
        return format(value * self.scale, self.form) if math.isfinite(value) else str(value)


class Distortion(ABC):
    """Distortion of reconstructed items: means over the items of a data set, streamed.

    Each metric is computed for each item and then averaged over items, so that an item counts the same whatever its
    size.

    Attributes:
        headline: Key of the main metric of a run.
        higher_is_better: Whether a higher value of that metric is better.
        measures: Explanations of the metrics.
        protocol: Protocol of the metrics, in sentences.
        _sums: Sums over the items, of which the metrics are computed and which :meth:`add` adds up.
    """

    headline: ClassVar[str]
    higher_is_better: ClassVar[bool]
    measures: ClassVar[tuple[Measure, ...]]
    protocol: str
    _sums: Tensor

    @abstractmethod
    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds items.

        Args:
            made: Output of a model, ``(B, C, *S)`` or symbols ``(B, T)``.
            real: The originals, as floats in the same units, or symbols.
            lengths: Samples of each sequence that count ``(B,)``; None for all.

        Raises:
            ValueError: If the shapes differ, or values are not finite or out of range.
        """

    def update_in_parts(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adds one item in parts, of which only one at a time needs to be in memory.

        Args:
            parts: Pairs of made and real, as for :meth:`update` of one item, that cover the item; those of a sequence
                in order.

        Raises:
            ValueError: As in :meth:`update`, if there is no part, or if a metric needs the whole item.
        """
        parts = iter(parts)
        first = list(itertools.islice(parts, 2))
        if not first:
            raise ValueError("'parts' must hold at least one pair of made and real, got none. Pass the whole item.")
        if len(first) == 1:
            self.update(*first[0])
        else:
            self._update_large(itertools.chain(first, parts))

    def _update_large(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adds one item of several parts."""
        made, real = (list(each) for each in zip(*parts, strict=True))
        self.update(_joined(made), _joined(real))

    def add(self, other: Distortion) -> None:
        """Adds the items that another accumulator, of the same class and settings, has seen."""
        self._sums += other._sums

    @abstractmethod
    def metrics(self) -> dict[str, float | None]:
        """Returns means over the items seen, by key: empty without items, None for metrics they do not have."""

    @property
    @abstractmethod
    def items(self) -> int:
        """Number of items seen."""

    def of_error(self, error: float) -> dict[str, float]:
        """Converts a mean error of training to the headline if possible, as a squared error to PSNR; else empty."""
        return {}


def _joined(parts: list[Tensor]) -> Tensor:
    """Joins parts along the last axis, and lets go of them: an hour of sound is not held twice."""
    whole = torch.cat(parts, -1)
    parts.clear()
    return whole
