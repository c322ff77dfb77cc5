"""Layers that several networks share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gmvq.distributed import rank, sum_over_ranks, world_size
from gmvq.networks.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d, ChannelNorm, GroupNorm

WAVES = 128
"""Number of sines and cosines in the embedding of a time."""

Normalization = Literal["layer", "group", "batch", "none"]


def even_times(batch: int, device: torch.device, *, over_ranks: bool = False) -> Tensor:
    """Draws evenly spaced times in [0, 1), ``(B,)``, with one random offset: less variance than independent times.

    Args:
        batch: Number of times B.
        device: Their device.
        over_ranks: Space the times of all ranks together, as those of one process would be; all ranks must call this.
    """
    offset, places = torch.rand((), device=device), torch.arange(batch, device=device)
    if over_ranks and world_size() > 1:  # a sum of offsets is as random as one, and the same on all ranks
        offset, places, batch = sum_over_ranks(offset), places * world_size() + rank(), batch * world_size()
    return (offset + places / max(1, batch)) % 1


def waves(times: Tensor) -> Tensor:
    """Embeds times in [0, 1] as sines and cosines of several frequencies: ``(B,)`` -> ``(B, WAVES)``."""
    number = WAVES // 2
    speeds = torch.exp(-math.log(1000.0) * torch.arange(number, device=times.device) / number) * 1000.0
    angles = times[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def convolution(axes: int, channels: int, width: int, kernel: int, stride: int = 1) -> nn.Module:
    """Makes a layer that maps ``(B, channels, *S)`` to ``(B, width, *S)``, S divided by the stride.

    Args:
        axes: Number of axes of S, 0 to 3; for 0 the layer is linear, whatever the kernel.
        channels: Input channels.
        width: Output channels.
        kernel: Kernel size, odd or twice the stride.
        stride: 1 or 2.
    """
    if axes == 0:
        return nn.Linear(channels, width)
    return _CONVOLUTIONS[axes](channels, width, kernel, stride=stride, padding=(kernel - 1) // 2)


def doubling(axes: int, channels: int, width: int) -> nn.Module:
    """Makes a transposed convolution that doubles each of 1 to 3 axes: ``(B, channels, *S)`` -> ``(B, width, *2S)``."""
    return _TRANSPOSED[axes](channels, width, 4, stride=2, padding=1)


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {0: BatchNorm1d, 1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}


def normalization_layer(name: str, width: int, axes: int = 2) -> nn.Module:
    """Makes a normalization of ``width`` channels, for items with ``axes`` axes beside them.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "layer":
        return ChannelNorm(width)
    if name == "group":
        # at least two channels in each group: at a single token one channel alone would be normalized to 0
        groups = next(groups for groups in (8, 4, 2, 1) if width % groups == 0 and (width >= 2 * groups or groups == 1))
        return GroupNorm(groups, width)
    if name == "batch":
        return _BATCH_NORMS[axes](width)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"'normalization' must be layer, group, batch or none, got {name!r}. Use layer.")


class Residual(nn.Module):
    """Adds to its input the output of layers that keep its shape.

    Args:
        layers: The layers.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, C, *S)`` to the same shape."""
        return features + self.layers(features)


class ResidualBlock(Residual):
    """Adds to its input two convolutions, of kernel sizes 3 and 1, each after normalization and SiLU.

    Args:
        width: Channels.
        normalization: Kind of normalization.
        axes: Axes beside the channels.
    """

    def __init__(self, width: int, normalization: str, axes: int = 2) -> None:
        super().__init__(
            normalization_layer(normalization, width, axes),
            nn.SiLU(),
            convolution(axes, width, width, 3),
            normalization_layer(normalization, width, axes),
            nn.SiLU(),
            convolution(axes, width, width, 1),
        )


def within(lengths: Tensor, length: int) -> Tensor:
    """Returns a mask, True at the first ``lengths`` of ``length`` places: ``(B,)`` -> ``(B, length)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def through(layer: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Applies a layer to padded sequences of different lengths, to each as if it were alone.

    Values beyond the end of a sequence are set to 0 before each convolution, as its own padding would be.

    Args:
        layer: Convolutions, residual blocks and layers that work on each place by itself, or a sequence of them.
        features: ``(B, C, T)``.
        lengths: Places of each sequence that count ``(B,)``, multiples of the total stride.

    Returns:
        Output ``(B, C', T')``, and the number of its places that count ``(B,)``.
    """
    if isinstance(layer, nn.Sequential):
        for each in layer:
            features, lengths = through(each, features, lengths)
        return features, lengths
    if isinstance(layer, Residual):
        return features + through(layer.layers, features, lengths)[0], lengths
    if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.kernel_size[0] > 1:
        features = features * within(lengths, features.shape[-1])[:, None]
        stride = layer.stride[0]
        lengths = lengths * stride if isinstance(layer, nn.ConvTranspose1d) else lengths // stride
    if isinstance(layer, BatchNorm1d | GroupNorm):
        return layer(features, within(lengths, features.shape[-1])), lengths
    return layer(features), lengths
