"""Discriminators, which distinguish real images from reconstructions at each place, by pixels or by features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gmvq.networks.normalization import ChannelNorm

DiscriminatorNorm = Literal["spectral", "layer", "none"]

CONTRAST = 0.02
"""Least contrast of images in [0, 1], added as a square: nearly even areas are not amplified to texture."""
NEIGHBORHOOD = 7
"""Side of the square of pixels over which contrast is measured."""
SLOPE = 0.2
"""Slope of the leaky ReLUs below 0."""


class PatchDiscriminator(nn.Module):
    """Maps images to a logit for each patch, by strided convolutions, each twice as wide as the one before.

    The input is an image and, as further channels, its detail: the image minus its mean over 3x3 pixels, divided by the
    local contrast. Reconstructions of a tokenizer have the right colors and shapes but lack detail, a small part of an
    image's variance: without these channels a discriminator long does no better than chance. Without the division it
    would judge by contrast, and the decoder would learn to exaggerate edges.

    There is no batch normalization: the logits of an image depend on no other image.

    Args:
        channels: Channels of the images.
        width: Channels after the first convolution.
        layers: Number n of strided convolutions; a patch is about 4 * 2^n pixels wide.
        norm: ``spectral`` holds each convolution's Lipschitz constant to 1 (Miyato et al., 2018), ``layer`` normalizes
            the channels of each place, ``none`` does nothing.

    Shape:
        ``(B, channels, H, W)`` with sides of at least 2 to the number of layers -> ``(B, 1, h, w)``.

    Raises:
        ValueError: If a number is not at least 1, the norm is unknown, or images are too small.

    References:
        Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017),
        https://arxiv.org/abs/1611.07004;
        Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018),
        https://arxiv.org/abs/1802.05957; high frequencies in a discriminator's input:
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
        _check_norm(norm)
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
        """Computes the logits of being real, ``(B, 1, h, w)``, of images in [0, 1]."""
        if min(images.shape[-2:]) < 2**self.halvings:
            raise ValueError(
                f"'images' must have sides of at least {2**self.halvings} pixels for a discriminator of "
                f"{self.halvings} layers, got {tuple(images.shape)}. Use fewer layers."
            )
        return self.layers(torch.cat([2 * images - 1, detail(images)], 1))


class FeatureDiscriminator(nn.Module):
    """Maps the features of several layers of a fixed network to a logit for each place, by a small head for each layer.

    Features of a trained classifier describe the content and the texture of an image, so the heads have little left to
    learn.

    Args:
        channels: Channels of the features of each layer.
        width: Channels of the heads.
        norm: See :class:`PatchDiscriminator`.

    Shape:
        features of each layer ``(B, channels, h, w)``, of length 1 at each place -> ``(B, layers, H, W)``, H and W the
        largest h and w: logits of coarser layers are enlarged to it, so that all layers weigh the same.

    Raises:
        ValueError: If there is no layer, a number is not at least 1, or the norm is unknown.

    References:
        Projected GANs Converge Faster (Sauer et al., 2021), https://arxiv.org/abs/2111.01007

    Example:
        >>> features = [torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]
        >>> FeatureDiscriminator((16, 32), width=8)(features).shape
        torch.Size([2, 2, 8, 8])
    """

    def __init__(self, channels: Sequence[int], width: int = 64, norm: DiscriminatorNorm = "spectral") -> None:
        super().__init__()
        if not channels:
            raise ValueError("'channels' must be those of at least one layer, got none. Use for example (64, 64).")
        for name, value in (*(("channels", value) for value in channels), ("width", width)):
            if type(value) is not int or value < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. Use for example 64.")
        _check_norm(norm)
        self.heads = nn.ModuleList()
        for many in channels:
            parts: list[nn.Module] = []
            for narrow in (many, width):
                parts += [_conv(narrow, width, 3, 1, norm)]
                parts += [ChannelNorm(width)] if norm == "layer" else []
                parts += [nn.LeakyReLU(SLOPE)]
            self.heads.append(nn.Sequential(*parts, _conv(width, 1, 1, 1, norm)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Computes the logits of being real, ``(B, layers, H, W)``."""
        pairs = zip(self.heads, features, strict=True)
        logits = [head(layer * layer.shape[1] ** 0.5) for head, layer in pairs]  # features of about 1 in each channel
        finest = tuple(max(each.shape[axis] for each in logits) for axis in (2, 3))
        return torch.cat([F.interpolate(each, finest) for each in logits], 1)


def detail(images: Tensor) -> Tensor:
    """Returns images in [0, 1] minus their mean over 3x3 pixels, divided by the local contrast: float32."""
    images = images.float()  # 16 bits would lose most of the difference
    found = images - _mean_around(images, 3)
    contrast = (_mean_around(found.square().mean(1, keepdim=True), NEIGHBORHOOD) + CONTRAST**2).sqrt()
    return found / contrast


def _mean_around(values: Tensor, side: int) -> Tensor:
    """Returns the mean over the square around each place, cut at the borders."""
    return F.avg_pool2d(values, side, stride=1, padding=side // 2, count_include_pad=False)


def _conv(narrow: int, wide: int, side: int, stride: int, norm: DiscriminatorNorm) -> nn.Module:
    layer = nn.Conv2d(narrow, wide, side, stride=stride, padding=1 if side > 1 else 0)
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    return spectral_norm(layer) if norm == "spectral" else layer


def _check_norm(norm: str) -> None:
    if norm not in get_args(DiscriminatorNorm):
        raise ValueError(f"'norm' must be one of {', '.join(get_args(DiscriminatorNorm))}, got {norm!r}.")
