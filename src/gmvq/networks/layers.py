"""Layers that several networks are made of."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

WAVES = 128
"""Sines and cosines by which a time is told."""

Normalization = Literal["layer", "group", "batch", "none"]


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each place.

    It knows nothing of the rest of the item, so that a network trained on windows is the same on whole items; group
    normalization takes its statistics over all places and is not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, C, *S)`` to the same shape."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def even_times(batch: int, device: torch.device) -> Tensor:
    """Random times in [0, 1) for the images of a batch ``(B,)``, evenly apart: less variance than one for each."""
    return (torch.rand((), device=device) + torch.arange(batch, device=device) / max(1, batch)) % 1


def waves(times: Tensor) -> Tensor:
    """Sines and cosines of times in [0, 1], fast and slow ones: ``(B,)`` -> ``(B, WAVES)``."""
    number = WAVES // 2
    speeds = torch.exp(-math.log(1000.0) * torch.arange(number, device=times.device) / number) * 1000.0
    angles = times[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def convolution(axes: int, channels: int, width: int, kernel: int, stride: int = 1) -> nn.Module:
    """A layer that maps ``(B, channels, *S)`` to ``(B, width, *S)``, S divided by the stride.

    Args:
        axes: Axes of S, 0 to 3; without any it is linear, whatever the kernel.
        channels: Channels that go in.
        width: Channels that come out.
        kernel: Odd, or twice the stride.
        stride: 1 or 2.
    """
    if axes == 0:
        return nn.Linear(channels, width)
    return _CONVOLUTIONS[axes](channels, width, kernel, stride=stride, padding=(kernel - 1) // 2)


def doubling(axes: int, channels: int, width: int) -> nn.Module:
    """A transposed convolution that doubles each of 1 to 3 axes: ``(B, channels, *S)`` -> ``(B, width, *2S)``."""
    return _TRANSPOSED[axes](channels, width, 4, stride=2, padding=1)


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def normalization_layer(name: str, width: int, axes: int = 2) -> nn.Module:
    """Normalization of ``width`` channels over items with so many axes beside them.

    Raises:
        ValueError: If there is none of that name.
    """
    if name == "layer":
        return ChannelNorm(width)
    if name == "group":
        # two channels or more for each group: alone at a single token, a channel would be normalized to 0
        groups = next(groups for groups in (8, 4, 2, 1) if width % groups == 0 and (width >= 2 * groups or groups == 1))
        return nn.GroupNorm(groups, width)
    if name == "batch":
        return _BATCH_NORMS[axes](width)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"'normalization' must be layer, group, batch or none, got {name!r}. Use layer.")


class ResidualBlock(nn.Module):
    """Normalization, SiLU, a convolution of 3 samples and one of 1 beside the identity.

    Args:
        width: Channels.
        normalization: Kind of normalization.
        axes: Axes beside the channels.
    """

    def __init__(self, width: int, normalization: str, axes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            normalization_layer(normalization, width, axes),
            nn.SiLU(),
            convolution(axes, width, width, 3),
            normalization_layer(normalization, width, axes),
            nn.SiLU(),
            convolution(axes, width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, width, *S)`` to the same shape."""
        return features + self.layers(features)


def within(lengths: Tensor, length: int) -> Tensor:
    """True at the first ``lengths`` of so many places: ``(B,)`` -> ``(B, length)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def through(layer: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths through a layer, each as if it were alone.

    What lies beyond a sequence is set to 0 before a convolution looks at it, as the padding is that a sequence alone
    gets there.

    Args:
        layer: Convolutions, residual blocks and layers that work on each place by itself, or a sequence of them.
        features: ``(B, C, T)``.
        lengths: Places of each sequence that count ``(B,)``, multiples of what strided convolutions divide by.

    Returns:
        What comes out ``(B, C', T')``, and how many of its places count.
    """
    if isinstance(layer, nn.Sequential):
        for each in layer:
            features, lengths = through(each, features, lengths)
        return features, lengths
    if isinstance(layer, ResidualBlock):
        return features + through(layer.layers, features, lengths)[0], lengths
    if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.kernel_size[0] > 1:
        features = features * within(lengths, features.shape[-1])[:, None]
        stride = layer.stride[0]
        lengths = lengths * stride if isinstance(layer, nn.ConvTranspose1d) else lengths // stride
    return layer(features), lengths
