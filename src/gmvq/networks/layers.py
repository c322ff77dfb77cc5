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

    It knows nothing of the rest of the image, so that a network trained on crops is the same on whole images; group
    normalization takes its statistics over all places and is not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` to the same shape."""
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


def normalization_layer(name: str, width: int) -> nn.Module:
    """Normalization of ``width`` channels.

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
        return nn.BatchNorm2d(width)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"'normalization' must be layer, group, batch or none, got {name!r}. Use layer.")


class ResidualBlock(nn.Module):
    """Normalization, SiLU, 3x3 and 1x1 convolution beside the identity.

    Args:
        width: Channels.
        normalization: Kind of normalization.
    """

    def __init__(self, width: int, normalization: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            normalization_layer(normalization, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            normalization_layer(normalization, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, width, H, W)`` to the same shape."""
        return features + self.layers(features)
