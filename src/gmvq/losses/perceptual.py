r"""A distance of features, which compares the content of two images and not their pixels alone.

With features :math:`f_l` of some layers of a network that learned to classify, scaled to length 1 over their channels
at each of :math:`N_l` places,

.. math:: \frac1{|\mathcal L|} \sum_{l \in \mathcal L} \frac1{N_l} \sum_{n} |f_{ln}(x) - f_{ln}(y)|^2

The user gives the network: VGG-16 from a file of weights, or a small classifier trained on the same data. Nothing is
downloaded.

References:
    Perceptual Losses for Real-Time Style Transfer and Super-Resolution (Johnson et al., 2016),
    https://arxiv.org/abs/1603.08155;
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
    https://arxiv.org/abs/1801.03924
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of VGG-16's convolutions; 0 halves the sides."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, by which VGG-16's images are normalized."""


class FeatureLoss(nn.Module):
    """Distance of two images in the features of a network, of which a frozen copy is kept.

    Args:
        network: Layers in order.
        layers: Indices of the compared layers; by default all ReLU and SiLU.
        mean: Mean of each channel, subtracted from the images first.
        deviation: Deviation of each channel, by which they are then divided.
        smallest_side: Least length of an image's shorter side, in pixels.

    Shape:
        images and targets in [0, 1], ``(B, C, H, W)`` -> ``()``.

    Raises:
        ValueError: If there is no layer to compare, or an index is out of range.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        network: nn.Sequential,
        layers: Sequence[int] | None = None,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
        smallest_side: int = 1,
    ) -> None:
        super().__init__()
        kinds = (nn.ReLU, nn.SiLU)
        chosen = [i for i, layer in enumerate(network) if isinstance(layer, kinds)] if layers is None else [*layers]
        if not chosen or not all(0 <= place < len(network) for place in chosen):
            raise ValueError(
                f"'layers' must be indices below {len(network)}, at least one, got {chosen}. Choose others."
            )
        self.layers = frozenset(chosen)
        self.smallest_side = smallest_side
        own = copy.deepcopy(nn.Sequential(*list(network)[: max(chosen) + 1]))
        self.network = own.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    def train(self, mode: bool = True) -> FeatureLoss:
        """Sets the mode, but leaves the network in evaluation mode, so that its features do not change."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the distance, with a gradient to the images."""
        with torch.no_grad():
            aim = self.features(targets)
        return self.distance(self.features(images), aim)

    @staticmethod
    def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Computes the distance of features, as :meth:`features` returns them, ``()``."""
        return torch.stack([(x - y).square().sum(1).mean() for x, y in zip(first, second, strict=True)]).mean()

    def features(self, images: Tensor) -> list[Tensor]:
        """Computes features of the compared layers, of length 1 over channels at each place."""
        if min(images.shape[2:]) < self.smallest_side:
            raise ValueError(
                f"'images' must have sides of at least {self.smallest_side} pixels for these features, got "
                f"{tuple(images.shape)}. Use a classifier of the same data."
            )
        channels = max(images.shape[1], len(self.mean))
        if images.shape[1] not in (1, channels):
            raise ValueError(f"'images' must have 1 or {channels} channels for these features, got {images.shape[1]}.")
        values, found = (images.expand(-1, channels, -1, -1) - self.mean) / self.deviation, []
        for place, layer in enumerate(self.network.children()):
            values = layer(values)
            if place in self.layers:
                found.append(F.normalize(values, dim=1, eps=1e-8))
        return found


def vgg16_features(weights: str | Path) -> FeatureLoss:
    """Makes the distance of features before each halving of VGG-16, the layers of LPIPS with equal weights.

    Args:
        weights: A file of torchvision's VGG-16, as ``vgg16-397923af.pth`` or its ``features.*`` as safetensors.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it does not hold weights of VGG-16.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no weights at {path}. Save https://download.pytorch.org/models/vgg16-397923af.pth there."
        )
    parts: list[nn.Module] = []
    channels, ends = 3, []
    for wide in _VGG16:
        if wide:
            parts += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
            channels = wide
        else:
            ends.append(len(parts) - 1)
            parts.append(nn.MaxPool2d(2))
    network = nn.Sequential(*parts)
    try:
        state = _read(path)
        network.load_state_dict({name: state[f"features.{name}"] for name in network.state_dict()})
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{path} holds no weights of VGG-16 ({type(error).__name__}: {error}). Save them anew."
        ) from error
    return FeatureLoss(network, [*ends, len(parts) - 1], _MEAN, _DEVIATION, smallest_side=2 ** len(ends))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
