"""The networks of the SQ-VAE paper, on which the literature compares quantizers of small images.

Stochastically Quantized Variational Autoencoder (Takida et al., 2022), https://arxiv.org/abs/2205.07547. Huh et al.
(2023), https://arxiv.org/abs/2305.08842, and Yan et al. (2024), https://arxiv.org/abs/2410.10180, use them, too.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from gmvq.networks.layers import Residual
from gmvq.networks.normalization import BatchNorm2d
from gmvq.networks.reach import Reach, decoder_reach, encoder_reach


class SQVAEResidualBlock(Residual):
    """Adds to its input ReLU, 3x3 convolution, ReLU and 1x1 convolution, each convolution with batch normalization.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            BatchNorm2d(width),
        )


class SQVAEEncoder(nn.Module):
    """Maps images to latents: strided convolutions, a convolution at the smallest side, residual blocks.

    Args:
        channels: Channels of the images.
        dim: Features of a latent; a 1x1 convolution follows if they are not the last width.
        widths: Channels after each halving; the downsampling factor is 2 to the number of widths.
        blocks: Residual blocks at the smallest side.

    Shape:
        ``(B, channels, H, W)`` -> ``(B, dim, H / f, W / f)``, H and W multiples of f.
    """

    def __init__(self, channels: int, dim: int, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        last = widths[-1]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((channels, *widths)):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(last, last, 3, padding=1), BatchNorm2d(last), nn.ReLU()]
        layers += [SQVAEResidualBlock(last) for _ in range(blocks)]
        layers += [] if dim == last else [nn.Conv2d(last, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to latents."""
        return self.layers(images)

    def reach(self) -> Reach:
        """Computes the receptive field."""
        return encoder_reach(self.layers, 2)


class SQVAEDecoder(nn.Module):
    """Maps latents to images in (0, 1): the mirrored encoder, with a sigmoid.

    Args:
        channels: Channels of the images.
        dim: Features of a latent; a 1x1 convolution comes first if they are not the last width.
        widths: Channels after each halving of the encoder, in the encoder's order.
        blocks: Residual blocks at the smallest side.

    Shape:
        ``(B, dim, h, w)`` -> ``(B, channels, h f, w f)``.
    """

    def __init__(self, channels: int, dim: int, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        last = widths[-1]
        layers: list[nn.Module] = [] if dim == last else [nn.Conv2d(dim, last, 1)]
        layers += [SQVAEResidualBlock(last) for _ in range(blocks)]
        layers += [nn.ConvTranspose2d(last, last, 3, padding=1), BatchNorm2d(last), nn.ReLU()]
        for wide, narrow in pairwise(widths[::-1]):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), BatchNorm2d(narrow), nn.ReLU()]
        layers += [nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Maps latents to images."""
        return self.layers(values)

    def reach(self) -> Reach:
        """Computes the receptive field."""
        return decoder_reach(self.layers, 2)
