"""Names and types of what flows through gmvq.

::

    Batch --networks--> latents --quantizers--> Quantized --networks--> Reconstruction

The shape vocabulary of all docstrings: ``B`` items in a batch, ``C`` channels, ``S`` any number of axes beside them
(``H, W`` of an image, ``T`` of a sequence), ``*grid`` the axes of an item's tokens, ``K`` codes, ``L`` features of a
code, ``N`` rows of latents, ``D`` dimensions of an item, and ``*`` any number of leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gmvq.checks import at_least, can_look_at, one_of, positive

Values = Literal["unit", "signed", "real", "symbols"]

_RANGES = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "real": (-math.inf, math.inf)}
_INTEGERS = {"unit": (torch.uint8, 255), "signed": (torch.int16, 1 << 15)}
"""Type of stored items, and its value for 1."""
_OVERSHOOT = 1e-3
"""Share of the range by which rounding and resampling may leave it."""


@dataclass(frozen=True)
class Signal:
    """Description of the tensors of items: axes, channels, values.

    Args:
        modality: Name of the modality, as ``image``.
        axes: Axes of an item beside its channels: 2 for images, 1 for sequences, 0 for vectors.
        channels: Channels C; of symbols, the size of the vocabulary.
        values: ``unit`` for values in [0, 1], ``signed`` for [-1, 1], ``real`` for any finite number, ``symbols`` for
            integers below ``channels``.
        rate: Samples per second, Hz; None where there is no clock.

    Shape:
        Batches of items ``(B, C, *S)``; of symbols ``(B, T)``, without an axis of channels.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> Signal("image", 2, 3, "unit").grid((30, 32), 4)
        (8, 8)
    """

    modality: str
    axes: int
    channels: int
    values: Values
    rate: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.modality, str):
            raise ValueError(f"'modality' must be the name of one, got {self.modality!r}. Use for example 'image'.")
        at_least("axes", self.axes, 0)
        at_least("channels", self.channels, 1)
        one_of("values", self.values, get_args(Values))
        if self.axes > 3:
            raise ValueError(f"'axes' must be at most 3, got {self.axes}. Flatten the others.")
        if self.values == "symbols" and self.axes != 1:
            raise ValueError(f"'axes' of symbols must be 1, got {self.axes}. Flatten the others.")
        if self.rate is not None:
            positive("rate", self.rate)

    @property
    def item_axes(self) -> int:
        """Axes of the tensor of one item; symbols have no axis of channels."""
        return self.axes if self.values == "symbols" else self.axes + 1

    @property
    def shape(self) -> str:
        """Shape of a batch, in words."""
        spatial = {0: (), 1: ("T",), 2: ("H", "W"), 3: ("Z", "H", "W")}[self.axes]
        channels = () if self.values == "symbols" else (str(self.channels),)
        return f"({', '.join(('B', *channels, *spatial))})"

    def size(self, items: Tensor) -> tuple[int, ...]:
        """Lengths of the axes beside the channels, of a batch or of one item."""
        return tuple(items.shape[items.ndim - self.axes :])

    def dimensions(self, size: tuple[int, ...]) -> int:
        """Computes the data dimensions D of an item of a size."""
        return math.prod(size) * (1 if self.values == "symbols" else self.channels)

    def grid(self, size: tuple[int, ...], stride: int) -> tuple[int, ...]:
        """Computes the number of tokens along each axis of an item.

        Args:
            size: Lengths of the axes beside the channels.
            stride: Samples of a token along each axis.
        """
        return tuple(-(-length // stride) for length in size)

    def checked(self, items: Tensor) -> Tensor:
        """Checks items and converts them to the input of models: floats in their range, or int64 symbols.

        This is the only place that scales stored items. Values are read on the CPU only, and outside graphs.

        Args:
            items: Floats, or the stored type: uint8 for ``unit``, int16 for ``signed``, integers for ``symbols``.

        Raises:
            ValueError: If shape or type do not fit, or values are not finite or out of range.
        """
        self.check_shape(items)
        if self.values == "symbols":
            return self._checked_symbols(items)
        stored, scale = _INTEGERS.get(self.values, (None, 1))
        if items.dtype == stored:
            return items.float() / scale
        if not items.is_floating_point():
            also = "" if stored is None else f" or {str(stored).removeprefix('torch.')}"
            raise ValueError(f"'items' must be floats{also}, got {items.dtype}. Convert with .float().")
        if can_look_at(items) and items.numel():
            self._check_range(items.detach())
        return items

    def check_shape(self, items: Tensor) -> None:
        """Checks the shape of a batch alone.

        Raises:
            ValueError: If it does not fit.
        """
        if items.ndim != self.item_axes + 1 or 0 in items.shape[1:] or not self._has_channels(items):
            raise ValueError(
                f"'items' must have shape {self.shape}, got {tuple(items.shape)}. Add an axis with items[None], or "
                "convert the channels."
            )

    def stored(self, items: Tensor) -> Tensor:
        """Converts items that a model returned to the type in which items are stored: undoes :meth:`checked`.

        Args:
            items: Floats, rounded to the nearest of the stored integers where there are such, or symbols; items that
                are stored integers are returned unchanged.
        """
        return as_stored(items, self.values)

    def _has_channels(self, items: Tensor) -> bool:
        return self.values == "symbols" or items.shape[1] == self.channels

    def _checked_symbols(self, items: Tensor) -> Tensor:
        if items.is_floating_point() or items.is_complex() or items.dtype == torch.bool:
            raise ValueError(f"'items' must be integers, got {items.dtype}. Pass the symbols of a vocabulary.")
        if can_look_at(items) and items.numel():
            low, high = (int(bound) for bound in items.aminmax())
            if low < 0 or high >= self.channels:
                raise ValueError(
                    f"'items' must lie in [0, {self.channels}), the vocabulary, got {low} to {high}. Encode text by "
                    "the model's own vocabulary."
                )
        return items.long()

    def _check_range(self, items: Tensor) -> None:
        low, high = (float(bound) for bound in items.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("'items' must be finite, got NaN or infinity. Clean them with torch.nan_to_num(items).")
        least, most = _RANGES[self.values]
        slack = _OVERSHOOT * (most - least) if math.isfinite(most) else 0.0
        if low < least - slack or high > most + slack:
            raise ValueError(
                f"'items' must lie in [{least:g}, {most:g}], got {low:g} to {high:g}. {self._probably_meant(low, high)}"
            )

    def _probably_meant(self, low: float, high: float) -> str:
        if self.values == "unit" and low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT:
            return "They look scaled to [-1, 1]: undo it with (items + 1) / 2."
        if self.values == "unit" and low >= 0 and high <= 255:
            return "They look like 8-bit values: divide by 255, or pass uint8."
        if self.values == "signed" and low >= -(1 << 15) and high < 1 << 15:
            return "They look like 16-bit samples: divide by 32768, or pass int16."
        return "Scale them to that range, or clamp what overshoots."


def as_stored(items: Tensor, values: Values) -> Tensor:
    """Rounds items of a kind of value to the integers in which they are stored, if any; see :meth:`Signal.stored`.

    Example:
        >>> as_stored(torch.tensor([0.0, 0.501, 2.0]), "unit").tolist()
        [0, 128, 255]
    """
    stored, scale = _INTEGERS.get(values, (None, 1))
    if stored is None or items.dtype == stored:
        return items
    limits = torch.iinfo(stored)
    return (items.detach().float() * scale).round().clamp(limits.min, limits.max).to(stored)


class Batch(NamedTuple):
    """Input of a model.

    Attributes:
        items: As stored or as floats, ``(B, C, *S)``, or symbols ``(B, T)``.
        lengths: Valid samples of each sequence, int64 ``(B,)``; None for all.
        labels: Class of each item, int64 ``(B,)``, or None for data without labels.
    """

    items: Tensor
    lengths: Tensor | None = None
    labels: Tensor | None = None


class CodeBatch(NamedTuple):
    """Input of a prior.

    Attributes:
        codes: Codes of items, int64 ``(B, *grid[, levels])``.
        labels: Class of each item, int64 ``(B,)``, or None for data without labels.
    """

    codes: Tensor
    labels: Tensor | None = None


class Quantized(NamedTuple):
    """Output of every bottleneck, in training and in evaluation.

    Attributes:
        values: Input of the decoder, shape ``(*, dim)``.
        codes: Index of the chosen code, int64 ``(*, *code_shape)``; -1 where masked. The means, for a continuous
            bottleneck.
        loss: Loss to add to that of the reconstruction, shape ``()``: a squared error of the latents, or nats per token
            for a continuous bottleneck.
        terms: Parts of the loss and metrics to log, detached, each of shape ``()``.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Reconstruction(NamedTuple):
    """Output of an autoencoder.

    Attributes:
        items: Reconstructed items, ``(B, C, *S)``; of symbols the most likely ones, ``(B, T)``.
        codes: Codes of the tokens, ``(B, *grid[, levels])``.
        loss: Objective to minimize, in nats per data dimension, shape ``()``.
        terms: Parts of the objective and metrics to log, detached, each of shape ``()``.
    """

    items: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Posterior(NamedTuple):
    """Posterior of a mixture over its codes, for each latent.

    Attributes:
        responsibilities: q(c | x), sums to 1 over the last axis, shape ``(*, *code_shape, K)``.
        entropy: Entropy of q(c | x) in nats, of all codes of a token together, shape ``(*)``.
        log_density: Logarithm of the mixture's density at the latent in nats, shape ``(*)``; None for models without a
            density of latents.
    """

    responsibilities: Tensor
    entropy: Tensor
    log_density: Tensor | None


class PosteriorSample(NamedTuple):
    """A draw z from q(z | x), with the log-probabilities of its importance weight.

    Attributes:
        values: The draw, shape ``(*, dim)``.
        log_prior: log p(z) in nats per token, shape ``(*)``.
        log_posterior: log q(z | x) in nats per token, shape ``(*)``.
    """

    values: Tensor
    log_prior: Tensor
    log_posterior: Tensor
