r"""Structural similarity of images, at one scale and at several.

SSIM of Wang et al. (2004) is the mean over windows and channels of

.. math::
    \text{SSIM} = \frac{(2 \bar x \bar y + C_1) (2 \sigma_{xy} + C_2)}
                       {(\bar x^2 + \bar y^2 + C_1) (\sigma_x^2 + \sigma_y^2 + C_2)},
    \qquad C_1 = 0.01^2, C_2 = 0.03^2

of images x and y in [0, 1], computed in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.metrics.precision import in_float64

GAUSSIAN_SIGMA = 1.5
GAUSSIAN_WINDOW = 11
UNIFORM_WINDOW = 7
RANGE_TOLERANCE = 1e-6
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Power of each scale of MS-SSIM, the finest first."""


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Computes the structural similarity of each image, in [-1, 1].

    Equal to ``skimage.metrics.structural_similarity(..., data_range=1, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)``: Gaussian windows of 11x11 pixels that lie wholly within the image, averaged over
    windows, then over channels. An image with a side under 11 pixels has no such window; there the window is uniform,
    of the largest odd size up to 7 that fits the shorter side, as with ``win_size=..., gaussian_weights=False`` (for
    the 8x8 digits 7x7; for a side of 1 or 2 pixels 1x1, which compares the values alone).

    Args:
        images: Floats in [0, 1], shape ``(B, C, H, W)``.
        targets: Reference of the same shape.

    Returns:
        float64 ``(B,)``.

    Raises:
        ValueError: If the shapes differ, or values are not floats, not finite or outside of [0, 1].

    References:
        Image quality assessment: from error visibility to structural similarity (Wang et al., 2004),
        https://doi.org/10.1109/TIP.2003.819861
    """
    images, targets = checked_images(images, targets)
    weights = ssim_window(min(images.shape[2:]))
    # One channel at a time, so that memory holds only five filtered planes of a large photograph.
    channels = [
        _similarity(image, target, weights) for image, target in zip(images.unbind(1), targets.unbind(1), strict=True)
    ]
    return torch.stack(channels).mean(dim=0)


def ms_ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Computes the multi-scale structural similarity of each image.

    The contrasts and structures of five scales, each half as large as the one before, and the luminance of the last,
    to the powers that Wang et al. found by observers; negative ones count as 0.

    Args:
        images: Floats in [0, 1], shape ``(B, C, H, W)``, of at least 176 x 176 pixels.
        targets: Reference of the same shape.

    Returns:
        float64 ``(B,)``.

    Raises:
        ValueError: If the shapes differ, a side is too short, or values are not floats, not finite or outside of
            [0, 1].

    References:
        Multiscale structural similarity for image quality assessment (Wang et al., 2003),
        https://doi.org/10.1109/ACSSC.2003.1292216
    """
    images, targets = checked_images(images, targets)
    side = min(images.shape[2:])
    if side < (least := GAUSSIAN_WINDOW << len(SCALES) - 1):
        raise ValueError(f"'images' must have sides of at least {least} pixels for five scales, got {side}. Use ssim.")
    weights, found = ssim_window(side), torch.ones(images.shape[:2], dtype=torch.float64, device=images.device)
    for scale, power in enumerate(SCALES):
        last = scale == len(SCALES) - 1
        for channel in range(images.shape[1]):
            value = _similarity(images[:, channel], targets[:, channel], weights, luminance=last)
            found[:, channel] *= value.clamp_min(0) ** power
        if not last:
            images, targets = (F.avg_pool2d(each, 2) for each in (images, targets))
    return found.mean(1)


def ssim_window(side: int) -> list[float]:
    """Computes the weights along one axis of the window with which :func:`ssim` compares images.

    Args:
        side: Pixels of the shorter side of the image.

    Returns:
        An odd number of weights that sum to 1: Gaussian from 11 pixels on, equal below.
    """
    if side < GAUSSIAN_WINDOW:
        size = min(UNIFORM_WINDOW, side - 1 + side % 2)
        return [1 / size] * size
    radius = GAUSSIAN_WINDOW // 2
    weights = [math.exp(-0.5 * (offset / GAUSSIAN_SIGMA) ** 2) for offset in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def checked_images(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in float64, after the checks that all metrics share."""
    if images.ndim != 4 or images.shape != targets.shape or 0 in images.shape[1:]:
        raise ValueError(
            "'images' and 'targets' must have one shape (B, C, H, W) with pixels in it, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}. Add the axis of the batch with [None]."
        )
    for name, values in (("images", images), ("targets", targets)):
        if not values.is_floating_point():
            raise ValueError(f"'{name}' must be floats in [0, 1], got {values.dtype}. Divide 8-bit values by 255.")
        if values.numel() == 0:
            continue
        low, high = (float(bound) for bound in values.aminmax())
        # Written so that NaN fails, too.
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
            raise ValueError(
                f"'{name}' must be finite and in [0, 1], got values from {low:g} to {high:g}. "
                "Scale them, or .clamp(0, 1) what a decoder returns."
            )
    return in_float64(images), in_float64(targets)


def _similarity(images: Tensor, targets: Tensor, weights: list[float], *, luminance: bool = True) -> Tensor:
    """Computes SSIM of planes ``(B, H, W)`` -> ``(B,)``; without its luminance, contrast and structure."""
    stability_1, stability_2 = 0.01**2, 0.03**2
    mean_x, mean_y = _windowed_mean(images, weights), _windowed_mean(targets, weights)
    covariance = _windowed_mean(images * targets, weights) - mean_x * mean_y
    powers = mean_x.square() + mean_y.square()
    variances = _windowed_mean(images.square() + targets.square(), weights) - powers
    found = (2 * covariance + stability_2) / (variances + stability_2)
    if luminance:
        found = found * (2 * mean_x * mean_y + stability_1) / (powers + stability_1)
    return found.mean(dim=(1, 2))


def _windowed_mean(planes: Tensor, weights: list[float]) -> Tensor:
    """Averages each window within the plane: ``(B, H, W)`` -> ``(B, H - n + 1, W - n + 1)``."""
    # Shifted sums, since PyTorch's convolution in float64 unfolds each window on the CPU: n^2 times the memory.
    for axis in (1, 2):
        length = planes.shape[axis] - len(weights) + 1
        mean = planes.narrow(axis, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            mean.add_(planes.narrow(axis, shift, length), alpha=weight)
        planes = mean
    return planes
