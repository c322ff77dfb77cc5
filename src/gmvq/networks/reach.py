"""Receptive fields of networks, computed from their layers.

::

    samples  . . . | s s s s | . . .        a token of the encoder depends on its own samples and on some beside them;
    tokens     . . |    t    | . .          samples of the decoder depend on their own token and on some beside it

With them a part of an item, cut with that margin of real context, passes a network to what the whole gives there. At
the borders of an item the part ends as the item does, so that layers pad both alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from gmvq.networks.layers import Residual
from gmvq.networks.normalization import ChannelNorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LOCAL = (nn.SiLU, nn.ReLU, nn.Sigmoid, nn.Identity, nn.Linear, ChannelNorm)
"""Layers that process each place by itself."""


class WholeItemError(ValueError):
    """Error of a network with a layer that depends on all places of an item, so that no part can pass alone."""


class Reach(NamedTuple):
    """Receptive field of an encoder or decoder, along each axis.

    Attributes:
        stride: Samples of a token.
        margin: Tokens on either side of its own that a token, or the samples of a token, depend on.
    """

    stride: tuple[int, ...]
    margin: tuple[int, ...]


def encoder_reach(layers: nn.Module, axes: int) -> Reach:
    """Computes the receptive field of layers that map samples to tokens.

    Args:
        layers: Convolutions, residual blocks and layers that process each place by itself.
        axes: Number of axes.

    Raises:
        WholeItemError: If a layer depends on all places.
    """
    strides, margins = [], []
    for axis in range(axes):
        first, last = _needed(layers, 0, 0, axis)
        stride = _stride(layers, axis)
        strides.append(stride)
        margins.append(max(-(first // stride), last // stride))
    return Reach(tuple(strides), tuple(margins))


def decoder_reach(layers: nn.Module, axes: int) -> Reach:
    """Computes the receptive field of layers that map tokens to samples.

    Args:
        layers: Convolutions, residual blocks and layers that process each place by itself.
        axes: Number of axes.

    Raises:
        WholeItemError: If a layer depends on all places.
    """
    strides, margins = [], []
    for axis in range(axes):
        stride = _stride(layers, axis)
        first, last = _needed(layers, 0, stride - 1, axis)
        strides.append(stride)
        margins.append(max(-first, last))
    return Reach(tuple(strides), tuple(margins))


def _stride(layers: nn.Module, axis: int) -> int:
    every = [each for each in layers.modules() if isinstance(each, _CONVOLUTIONS + _TRANSPOSED)]
    return math.prod(each.stride[axis] for each in every)


def _needed(layer: nn.Module, first: int, last: int, axis: int) -> tuple[int, int]:
    """Returns the first and the last input place that the output places ``first`` to ``last`` depend on."""
    if isinstance(layer, nn.Sequential):
        for each in reversed(layer):
            first, last = _needed(each, first, last, axis)
        return first, last
    if isinstance(layer, Residual):
        inner = _needed(layer.layers, first, last, axis)
        return min(first, inner[0]), max(last, inner[1])
    if isinstance(layer, _CONVOLUTIONS + _TRANSPOSED):
        padding = layer.padding[axis]
        assert isinstance(padding, int)
        stride, width = layer.stride[axis], layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        if isinstance(layer, _CONVOLUTIONS):  # output o sees input o stride - padding + (0 to width)
            return first * stride - padding, last * stride - padding + width
        return -((width - padding - first) // stride), (last + padding) // stride  # output i stride - padding + (...)
    if isinstance(layer, _LOCAL) or (isinstance(layer, _BATCH_NORMS) and not layer.training):
        return first, last
    mode = " in training mode" if isinstance(layer, _BATCH_NORMS) else ""
    raise WholeItemError(f"{type(layer).__name__}{mode} depends on all places of an item")
