r"""LPIPS, a perceptual distance of a reconstruction from its image, if its weights are installed.

From the features :math:`f_l` of each layer of a network trained to classify, scaled to length 1 over their channels at
each of :math:`H_l W_l` places, with weights :math:`w_l` fitted to people's judgments of pairs of images:

.. math::
    \text{LPIPS}(x, y) = \sum_l \frac{1}{H_l W_l} \sum_{h, w, c} w_{l c} \big(f_{l h w c}(x) - f_{l h w c}(y)\big)^2

It is 0 for equal images; lower is better. The package ``lpips`` or ``torchmetrics`` provides :math:`w_l`, and
torchvision the classifier, whose weights must have been downloaded before. Nothing here downloads.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from gmvq.metrics.similarity import RANGE_TOLERANCE

LOGGER = logging.getLogger("gmvq")

Network = Literal["alex", "vgg", "squeeze"]
Distance = Callable[[Tensor, Tensor], Tensor]


class _Backbone(NamedTuple):
    """A classifier of torchvision: the name of its weights, and the least side in pixels that its pooling allows."""

    weights: str
    smallest_side: int


_BACKBONES: dict[str, _Backbone] = {
    "alex": _Backbone("AlexNet_Weights.IMAGENET1K_V1", 31),
    "vgg": _Backbone("VGG16_Weights.IMAGENET1K_V1", 16),
    "squeeze": _Backbone("SqueezeNet1_1_Weights.IMAGENET1K_V1", 17),
}


def _of_lpips(network: str) -> nn.Module:
    return importlib.import_module("lpips").LPIPS(net=network, verbose=False)


def _of_torchmetrics(network: str) -> nn.Module:
    # the metric returns only a mean over images; its network returns one distance for each
    return importlib.import_module("torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity(network).net


_PACKAGES: dict[str, Callable[[str], nn.Module]] = {"lpips": _of_lpips, "torchmetrics": _of_torchmetrics}


def load_lpips(network: Network = "alex") -> Distance | None:
    """Loads LPIPS, version 0.1, if all that it needs is on this machine.

    If something is missing, or does not load, the log says once (level info) what it is and how to get it. Nothing is
    downloaded, and the global random state does not change.

    Args:
        network: Network of the features: AlexNet, as in most papers, VGG-16 or SqueezeNet.

    Returns:
        A function of images and targets, both floats in [0, 1] ``(B, C, H, W)`` with one channel or three and no side
        below 31 pixels (VGG: 16, SqueezeNet: 17). It returns the distance of each pair, float32 ``(B,)`` without a
        gradient, on the device of the images, and raises ``ValueError`` for other inputs. None if LPIPS is not
        installed.

    Raises:
        ValueError: If the network is unknown.

    References:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        https://arxiv.org/abs/1801.03924

    Example:
        >>> distance = load_lpips()
        >>> if distance is not None:
        ...     assert distance(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)).tolist() == [0.0, 0.0]
    """
    if network not in _BACKBONES:
        raise ValueError(f"'network' must be one of {', '.join(get_args(Network))}, got {network!r}. Use 'alex'.")
    package = next(filter(_is_installed, _PACKAGES), None)
    if package is None:
        _say("neither lpips nor torchmetrics is installed. Use pip install lpips torchvision")
        return None
    try:
        url = importlib.import_module("torchvision.models").get_weight(_BACKBONES[network].weights).url
        weights = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(url).path).name)
        if not weights.is_file():  # the package would download them
            _say(f"the weights of its network are not here. Save {url} as {weights}")
            return None
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the package calls torchvision, which the caller cannot change
            module = _PACKAGES[package](network)
    except Exception as error:  # a broken package costs this metric, and no other
        _say(f"{package} does not load ({type(error).__name__}: {error}). Install it again, or remove it")
        return None
    return functools.partial(_distance, module.eval().requires_grad_(False), network)


def can_compare(shape: torch.Size, network: Network = "alex") -> bool:
    """Returns whether LPIPS is defined for images ``(*, C, H, W)``: gray or color, and large enough for the network."""
    return shape[-3] in (1, 3) and min(shape[-2:]) >= _BACKBONES[network].smallest_side


@torch.no_grad()
def _distance(module: nn.Module, network: Network, images: Tensor, targets: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape != targets.shape or not can_compare(images.shape, network):
        raise ValueError(
            "'images' and 'targets' must have one shape (B, C, H, W) with 1 or 3 channels and sides of at least "
            f"{_BACKBONES[network].smallest_side} pixels, got {tuple(images.shape)} and {tuple(targets.shape)}. "
            "LPIPS of smaller images is not defined; enlarge both, and say so."
        )
    for name, values in (("images", images), ("targets", targets)):
        inside = (values >= -RANGE_TOLERANCE) & (values <= 1 + RANGE_TOLERANCE)  # NaN fails, too
        if not (values.is_floating_point() and bool(inside.all())):
            raise ValueError(f"'{name}' must be finite floats in [0, 1], got other values. Divide 8-bit values by 255.")
    module.to(images.device)
    with torch.autocast(images.device.type, enabled=False):
        # its networks take three channels in [-1, 1]
        first, second = ((2 * values.float() - 1).expand(-1, 3, -1, -1) for values in (images, targets))
        return module(first, second).reshape(-1)


def _is_installed(package: str) -> bool:
    return package in sys.modules or util.find_spec(package) is not None


@functools.cache
def _say(reason: str) -> None:
    """Logs a reason once in a process."""
    LOGGER.info("LPIPS is not measured: %s.", reason)
