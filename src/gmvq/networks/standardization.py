"""Standardization of real-valued items."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Standardization(nn.Module):
    r"""Standardizes each channel by the mean and standard deviation of the training items, and inverts that.

    .. math:: z_c = (x_c - m_c) / s_c

    Args:
        channels: Channels C.

    Attributes:
        location: m, ``(C,)``.
        scale: s, ``(C,)``; 1 for a constant channel.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, items: Tensor) -> Tensor:
        """Standardizes items ``(B, C, *S)``."""
        return (items - self._shaped(self.location, items)) / self._shaped(self.scale, items)

    def undo(self, items: Tensor) -> Tensor:
        """Converts standardized items ``(B, C, *S)`` to the data's units."""
        return items * self._shaped(self.scale, items) + self._shaped(self.location, items)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Computes mean and standard deviation of each channel.

        Args:
            batches: Items ``(B, C, *S)``.
        """
        count, mean, squares = 0, torch.zeros(len(self.location), dtype=torch.float64), 0.0
        for items in batches:
            rows = items.double().cpu().movedim(1, 0).flatten(1)  # Chan's formula: stable for means far from 0
            number, part = rows.shape[1], rows.mean(1)
            total = count + number
            squares = (
                squares + rows.sub(part[:, None]).square().sum(1) + (part - mean).square() * count * number / total
            )
            mean = mean + (part - mean) * number / total
            count = total
        if count:
            deviation = (torch.as_tensor(squares) / count).sqrt()
            self.location.copy_(mean)
            # a deviation within rounding error means a constant channel
            constant = deviation <= 1e-6 * mean.abs().clamp_min(1e-30)
            self.scale.copy_(torch.where(constant, 1.0, deviation))

    @staticmethod
    def _shaped(values: Tensor, items: Tensor) -> Tensor:
        return values.to(items.dtype if items.is_floating_point() else values.dtype).reshape(
            -1, *[1] * (items.ndim - 2)
        )
