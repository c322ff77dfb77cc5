"""Features for FID and KID, if the Inception network of torch-fidelity and its weights are installed.

The package ``torch-fidelity`` provides the network, with the resizing of TensorFlow 1 by which published values were
measured. Its weights must have been downloaded before. Nothing here downloads.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

from gmvq.metrics.similarity import RANGE_TOLERANCE

LOGGER = logging.getLogger("gmvq")

PACKAGE = "torch_fidelity.feature_extractor_inceptionv3"
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
LAYER = "2048"
"""Layer of the features before the classifier."""

Features = Callable[[Tensor], Tensor]


def load_inception(weights: str | Path | None = None) -> Features | None:
    """Loads the features for FID, if package and weights are on this machine.

    If the package or the default file is missing, the log says once (level info) how to get it.

    Args:
        weights: File of the weights; by default the one in torch's folder of downloads.

    Returns:
        A function that maps images, floats in [0, 1] ``(B, C, H, W)`` with one channel or three, to features, float32
        ``(B, 2048)``, on their device. It rounds the images to 8 bits first. None if package or weights are missing.

    Raises:
        FileNotFoundError: If a given file does not exist.
        ValueError: If it holds no weights of the network, or a file is given and the package is not installed.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
        https://arxiv.org/abs/1706.08500

    Example:
        >>> features = load_inception()
        >>> if features is not None:
        ...     assert features(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL).name) if weights is None else Path(weights)
    if not path.is_file():
        if weights is not None:
            raise FileNotFoundError(f"There are no weights at {path}. Save {URL} there.")
        _say(f"its weights are not here. Save {URL} as {path}")
        return None
    name = PACKAGE.partition(".")[0]
    if name not in sys.modules and util.find_spec(name) is None:
        remedy = "Use pip install torch-fidelity"
        if weights is not None:
            raise ValueError(f"'weights' need the package torch-fidelity, which is not installed. {remedy}.")
        _say(f"torch-fidelity is not installed. {remedy}")
        return None
    made = importlib.import_module(PACKAGE).FeatureExtractorInceptionV3
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the package would unpickle anything in the file
        network = made("gmvq-inception", [LAYER], feature_extractor_weights_path=str(path))
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{path} holds no weights of torch-fidelity's Inception network ({type(error).__name__}: {error}). Save "
            f"{URL} there."
        ) from error
    return functools.partial(_features, network.eval().requires_grad_(False))


@torch.no_grad()
def _features(network: nn.Module, images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError(
            f"'images' must be floats (B, C, H, W) with 1 or 3 channels, got {images.dtype} {tuple(images.shape)}. "
            "Convert them."
        )
    if not bool(((images >= -RANGE_TOLERANCE) & (images <= 1 + RANGE_TOLERANCE)).all()):  # NaN fails, too
        raise ValueError("'images' must be finite and in [0, 1], got other values. Divide 8-bit values by 255.")
    network.to(images.device)
    eight_bit = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    (features,) = network(eight_bit)
    return features.float()


@functools.cache
def _say(reason: str) -> None:
    """Logs a reason once in a process."""
    LOGGER.info("FID and KID are not measured: %s.", reason)
