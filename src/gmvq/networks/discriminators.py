"""Networks that tell real images from reconstructed ones, patch by patch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gmvq.networks.layers import ChannelNorm

DiscriminatorNorm = Literal["spectral", "layer", "none"]

DETAIL = 8.0
"""What the detail of an image is multiplied by, to be about as large as the image."""
SLOPE = 0.2
"""Of the leaky rectifiers below 0."""


class PatchDiscriminator(nn.Module):
    """A logit for each patch: strided convolutions, each twice as wide as the one before.

    It is shown an image and, beside it, the image's detail: what is left where the mean of 3x3 pixels is taken away,
    enlarged. Reconstructions of a tokenizer have the right colors and shapes and lack detail, and in the image alone
    that is a small part of what varies: a discriminator guesses for a long time.

    There is no batch normalization: what is said of an image depends on no other.

    Args:
        channels: Channels of the images.
        width: Channels after the first convolution.
        layers: Strided convolutions; a patch is about 2 to their number times four pixels wide.
        norm: ``spectral`` holds each convolution's Lipschitz constant to 1 (Miyato et al., 2018), ``layer`` normalizes
            the channels of each place, ``none`` does nothing.

    Shape:
        ``(B, channels, H, W)`` with sides of at least 2 to the number of layers -> ``(B, 1, h, w)``.

    Raises:
        ValueError: If a number is not at least 1, there is no such norm, or images are too small.

    References:
        Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017),
        https://arxiv.org/abs/1611.07004;
        Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018),
        https://arxiv.org/abs/1802.05957; of high frequencies in a discriminator's input:
        SWAGAN: A Style-based Wavelet-driven Generative Model (Gal et al., 2021), https://arxiv.org/abs/2102.06108

    Example:
        >>> import torch
        >>> PatchDiscriminator(channels=3, width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3, norm: DiscriminatorNorm = "spectral") -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("layers", layers)):
            if type(value) is not int or value < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. Use for example 3.")
        if norm not in get_args(DiscriminatorNorm):
            raise ValueError(f"'norm' must be one of {', '.join(get_args(DiscriminatorNorm))}, got {norm!r}.")
        self.halvings = layers
        parts: list[nn.Module] = []
        widths = [2 * channels, *(width * 2 ** min(level, 3) for level in range(layers))]
        for level, (narrow, wide) in enumerate(pairwise(widths)):
            parts += [_conv(narrow, wide, 4, 2, norm)]
            parts += [ChannelNorm(wide)] if norm == "layer" and level else []
            parts += [nn.LeakyReLU(SLOPE)]
        parts += [_conv(widths[-1], widths[-1], 3, 1, norm), nn.LeakyReLU(SLOPE), _conv(widths[-1], 1, 3, 1, norm)]
        self.layers = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of being real, ``(B, 1, h, w)``, of images in [0, 1]."""
        if min(images.shape[-2:]) < 2**self.halvings:
            raise ValueError(
                f"'images' must have sides of at least {2**self.halvings} pixels for a discriminator of "
                f"{self.halvings} layers, got {tuple(images.shape)}. Use fewer layers."
            )
        detail = images - F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        return self.layers(torch.cat([2 * images - 1, 2 * DETAIL * detail], 1))


def _conv(narrow: int, wide: int, side: int, stride: int, norm: DiscriminatorNorm) -> nn.Module:
    layer = nn.Conv2d(narrow, wide, side, stride=stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    return spectral_norm(layer) if norm == "spectral" else layer
