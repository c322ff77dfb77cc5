"""A U-Net that denoises an image, given its reconstruction, the values of its codes and the time of the flow.

It halves the sides down to the grid of the latents and adds the values of the codes there. All layers are convolutions
and normalization is over the channels of each place, so it works on images of any size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from gmvq.networks.layers import WAVES, waves
from gmvq.networks.normalization import ChannelNorm


class TimedBlock(nn.Module):
    """A residual block whose normalized features are scaled and shifted by an embedding of the time.

    Args:
        width: Channels.
        embedding_dim: Features of the embedding.
    """

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.before, self.after = ChannelNorm(width), ChannelNorm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding_dim, 2 * width)
        self.activation = nn.SiLU()
        for layer in (self.last, self.modulation):  # the block starts as the identity
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Maps ``(B, width, H, W)`` and ``(B, embedding_dim)`` to ``(B, width, H, W)``."""
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        inner = self.first(self.activation(self.before(features)))
        return features + self.last(self.activation(self.after(inner) * (1 + scale) + shift))


class Denoiser(nn.Module):
    """Predicts the velocity of a noisy image, given its reconstruction and the values of its codes.

    Args:
        channels: Channels C of the images.
        dim: Features of a value.
        halvings: Number of halvings of the sides, down to the latents' grid.
        width: Channels of the first level; the others have twice as many.
        blocks: Blocks of each level, on the way down and on the way up.

    Shape:
        noisy and known ``(B, C, h f, w f)``, values ``(B, dim, h, w)`` with f 2 to the number of halvings, times
        ``(B,)`` in [0, 1] -> ``(B, C, h f, w f)``.
    """

    def __init__(self, channels: int, dim: int, halvings: int, width: int, blocks: int) -> None:
        super().__init__()
        widths = [width if level == 0 else 2 * width for level in range(halvings + 1)]
        inner = 4 * width
        self.time_embedding = nn.Sequential(nn.Linear(WAVES, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU())
        self.enter = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.values = nn.Conv2d(dim, widths[-1], 1)
        self.down = nn.ModuleList(nn.ModuleList(TimedBlock(wide, inner) for _ in range(blocks)) for wide in widths)
        self.halvings = nn.ModuleList(
            nn.Conv2d(above, below, 4, stride=2, padding=1) for above, below in pairwise(widths)
        )
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(below, above, 4, stride=2, padding=1) for above, below in pairwise(widths)
        )
        self.join = nn.ModuleList(nn.Conv2d(2 * wide, wide, 1) for wide in widths[:-1])
        self.up = nn.ModuleList(nn.ModuleList(TimedBlock(wide, inner) for _ in range(blocks)) for wide in widths[:-1])
        self.leave = nn.Sequential(ChannelNorm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, noisy: Tensor, known: Tensor, values: Tensor, times: Tensor) -> Tensor:
        """Predicts the velocities of noisy images at the given times."""
        embedding = self.time_embedding(waves(times))
        features = self.enter(torch.cat([noisy, known], dim=1))
        passed = []
        for level, blocks in enumerate(self.down):
            if level == len(self.halvings):
                features = features + self.values(values)
            features = _through(blocks, features, embedding)
            if level < len(self.halvings):
                passed.append(features)
                features = self.halvings[level](features)
        for level in reversed(range(len(self.up))):
            features = self.join[level](torch.cat([self.doublings[level](features), passed[level]], dim=1))
            features = _through(self.up[level], features, embedding)
        return self.leave(features)


def _through(blocks: nn.Module, features: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks.children():
        features = block(features, embedding)
    return features
