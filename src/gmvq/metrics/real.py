r"""Distortion of series and vectors, in the data's own units.

For an item x of C channels with n places each, and its reconstruction y:

.. math::
    \text{MSE} = \tfrac{1}{C n} \sum_{c, i} (x_{c i} - y_{c i})^2 \qquad
    \text{MAE} = \tfrac{1}{C n} \sum_{c, i} |x_{c i} - y_{c i}| \qquad
    \cos = \frac{\langle x, y \rangle}{\lVert x \rVert \lVert y \rVert}

each averaged over items, and over all places of all items of the data set together

.. math::
    R^2 = \frac{1}{|V|} \sum_{c \in V} \Bigl(1 - \frac{\sum_i (x_{c i} - y_{c i})^2}
                                                         {\sum_i (x_{c i} - \bar x_c)^2}\Bigr)

the share of variance explained, the mean over the channels V that vary. So channels of large units weigh more in MSE,
MAE and cosine, and all weigh the same in :math:`R^2`.

All metrics are computed in float64, whatever the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.base import Distortion, Measure
from gmvq.metrics.precision import in_float64

_ROUNDING = 1e-9
"""Deviation, relative to the mean, below which a channel counts as constant."""


class RealDistortion(Distortion):
    """MSE, MAE and share of variance explained over the items of a data set, streamed.

    The metrics are those of the items that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call. The protocol is that of the module's docstring.

    Args:
        cosine: Whether to measure the cosine between made and real, too.

    Example:
        >>> distortion = RealDistortion()
        >>> distortion.update(torch.tensor([[[1.0, 2.0, 3.0, 5.0]]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        >>> distortion.metrics()
        {'mse': 0.25, 'mae': 0.25, 'r2': 0.8}
    """

    headline: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("mse", "MSE", "", "Mean squared error in the data's units.", "Lower is better."),
        Measure("mae", "MAE", "", "Mean absolute error in the data's units.", "Lower is better."),
        Measure(
            "r2",
            "Variance explained",
            "%",
            "Share of the variance of each channel that is kept, R2.",
            "100 % is all of it; 0 is what the mean of a channel would do.",
            ".2f",
            100.0,
        ),
        Measure("cosine", "Cosine", "", "Cosine between made and real.", "1 is the same direction.", ".4f"),
    )
    protocol: str = (
        "MSE and MAE are means over items of each item's error in the data's units; R2 is the share of variance "
        "explained over all places of all items, averaged over the channels that vary."
    )

    def __init__(self, *, cosine: bool = False) -> None:
        self.cosine = cosine
        self._sums = torch.zeros(4, dtype=torch.float64)  # items, MSE, MAE, cosine
        self._places: Tensor | None = None  # of each channel: count, mean, squared deviations, squared errors

    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds items.

        Args:
            made: Floats ``(B, C, *S)``.
            real: Reference of the same shape.
            lengths: Samples of each sequence ``(B, C, T)`` that count ``(B,)``; None for all.

        Raises:
            ValueError: If the shapes differ, values that count are not finite, or channels are not those of the items
                before.
        """
        if made.ndim < 2 or made.shape != real.shape or 0 in made.shape[1:]:
            raise ValueError(
                "'made' and 'real' must have one shape (B, C, *S) with values in it, "
                f"got {tuple(made.shape)} and {tuple(real.shape)}. Add the axis of the batch with [None]."
            )
        if self._places is not None and self._places.shape[1] != made.shape[1]:
            raise ValueError(
                f"'made' must have {self._places.shape[1]} channels as the items before, got {made.shape[1]}. "
                "Take a new accumulator for other data."
            )
        if len(made) == 0:
            return
        y, x = (in_float64(values.detach()).cpu().reshape(*made.shape[:2], -1) for values in (made, real))
        counts = _mask(x, lengths)
        y, x = (torch.where(counts, values, 0.0) for values in (y, x))
        for name, values in (("made", y), ("real", x)):
            if not values.isfinite().all():
                raise ValueError(f"'{name}' must be finite, got NaN or infinity. Check the model and the data.")
        self._sums += _of_items(y, x, counts).sum(1)
        self._add_places(_of_channels(y, x, counts))

    def _add_places(self, added: Tensor) -> None:
        if self._places is not None:
            added = _joined(torch.stack([self._places, added], dim=1), lambda values: values.sum(0))
        self._places = added

    def add(self, other: Distortion) -> None:
        """Adds the items that another accumulator has seen."""
        assert isinstance(other, RealDistortion)
        super().add(other)
        if other._places is not None:
            self._add_places(other._places)

    def metrics(self) -> dict[str, float | None]:
        """Returns ``mse``, ``mae``, with ``cosine`` also ``cosine``, and ``r2``, which is None if no channel varies."""
        if self._places is None:
            return {}
        items, squared, absolute, cosine = self._sums.tolist()
        means: dict[str, float | None] = {"mse": squared / items, "mae": absolute / items}
        if self.cosine:
            means["cosine"] = cosine / items
        count, mean, deviations, errors = self._places
        varies = deviations > count * (_ROUNDING * mean).square()
        explained = 1 - errors[varies] / deviations[varies]
        return {**means, "r2": float(explained.mean()) if len(explained) else None}

    @property
    def items(self) -> int:
        """Number of items seen."""
        return int(self._sums[0])

    def merged(self) -> RealDistortion:
        """Sums over all ranks into a new accumulator; without a process group it is a copy.

        This is a collective: when a process group exists at the call, every rank must call it, after at least one item.
        """
        merged = RealDistortion(cosine=self.cosine)
        merged._sums = sum_over_ranks(self._sums).clone()
        if self._places is not None:
            merged._places = _joined(self._places, sum_over_ranks)
        return merged


def _mask(items: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns a mask of the places that count, ``(B, C, T)``."""
    if lengths is None:
        return torch.ones_like(items, dtype=torch.bool)
    ends, longest = lengths.cpu(), items.shape[-1]
    if ends.shape != items.shape[:1] or not ((ends >= 1) & (ends <= longest)).all():
        each = f"one for each of {len(items)} items, from 1 to {longest}"
        raise ValueError(f"'lengths' must be {each}, got {ends.tolist()}. Leave them out where all values count.")
    return (torch.arange(longest) < ends[:, None])[:, None].expand(items.shape)


def _of_items(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Computes 1, MSE, MAE and cosine of each item, ``(4, B)``."""
    y, x, values = y.flatten(1), x.flatten(1), counts.sum((1, 2))
    error = y - x
    norms = (y.square().sum(1) * x.square().sum(1)).sqrt()  # one root, so that equal vectors have a cosine of 1 exactly
    # two zeros are equal; a zero against anything else has no direction in common with it
    cosine = torch.where(norms > 0, (y * x).sum(1) / norms, (y == x).all(1).double())
    return torch.stack([torch.ones_like(norms), error.square().sum(1) / values, error.abs().sum(1) / values, cosine])


def _of_channels(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Computes count, mean, squared deviations and squared errors of each channel, ``(4, C)``."""
    count = counts.sum((0, 2)).double()
    mean = x.sum((0, 2)) / count
    deviations = torch.where(counts, x - mean[:, None], 0.0).square().sum((0, 2))
    return torch.stack([count, mean, deviations, (y - x).square().sum((0, 2))])


def _joined(parts: Tensor, add: Callable[[Tensor], Tensor]) -> Tensor:
    """Merges sets of places by Chan's formula, ``(4, *, C)`` -> ``(4, C)``; ``add`` sums over the sets."""
    count, mean, deviations, errors = parts
    total = add(count)
    common = add(count * mean) / total
    return torch.stack([total, common, add(deviations + count * (mean - common).square()), add(errors)])
