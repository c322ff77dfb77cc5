"""Convolutional encoder and decoder: each level halves or doubles the side, residual blocks work at the smallest."""

from __future__ import annotations

from torch import Tensor, nn

from gmvq.networks.layers import ResidualBlock, normalization_layer


class Encoder(nn.Module):
    """Images to latents.

    Args:
        channels: Channels of the images.
        dim: Features of a latent.
        widths: Channels after each halving; the downsampling factor is 2 to the number of widths.
        blocks: Residual blocks at the smallest side.
        normalization: ``"layer"``, ``"group"``, ``"batch"`` or ``"none"``.

    Shape:
        ``(B, channels, H, W)`` -> ``(B, dim, H / f, W / f)``, H and W multiples of f.
    """

    def __init__(self, channels: int, dim: int, widths: tuple[int, ...], blocks: int, normalization: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = channels
        for level, width in enumerate(widths):
            layers += [nn.SiLU()] if level else []
            layers.append(nn.Conv2d(previous, width, 4, stride=2, padding=1))
            previous = width
        layers += [ResidualBlock(previous, normalization) for _ in range(blocks)]
        layers += [normalization_layer(normalization, previous), nn.SiLU(), nn.Conv2d(previous, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to latents."""
        return self.layers(images)


class Decoder(nn.Module):
    """Latents to images: the encoder's mirror.

    Args:
        channels: Channels of the images.
        dim: Features of a latent.
        widths: Channels after each halving of the encoder, in the encoder's order.
        blocks: Residual blocks at the smallest side.
        normalization: ``"layer"``, ``"group"``, ``"batch"`` or ``"none"``.

    Shape:
        ``(B, dim, h, w)`` -> ``(B, channels, h f, w f)``.
    """

    def __init__(self, channels: int, dim: int, widths: tuple[int, ...], blocks: int, normalization: str) -> None:
        super().__init__()
        first = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, first, 3, padding=1)]
        layers += [ResidualBlock(first, normalization) for _ in range(blocks)]
        layers.append(normalization_layer(normalization, first))
        for narrow, wide in zip(widths[::-1], (*widths[-2::-1], channels), strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(narrow, wide, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Maps latents to images."""
        return self.layers(values)
