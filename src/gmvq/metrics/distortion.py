r"""Distortion of reconstructed images: MSE, PSNR, SSIM and MS-SSIM.

For one image x of D = C H W dimensions in [0, 1] and its reconstruction y:

.. math::
    \text{MSE} = \tfrac{1}{D} \sum_i (x_i - y_i)^2 \qquad
    \text{PSNR} = 10 \log_{10} (1 / \text{MSE}) \text{ dB}

and the structural similarity of Wang et al. (2004), the mean over windows and channels of

.. math::
    \text{SSIM} = \frac{(2 \bar x \bar y + C_1) (2 \sigma_{xy} + C_2)}
                       {(\bar x^2 + \bar y^2 + C_1) (\sigma_x^2 + \sigma_y^2 + C_2)},
    \qquad C_1 = 0.01^2, C_2 = 0.03^2

**Protocol of a data set** (:class:`ImageDistortion`): each metric is computed for each image and then averaged over
images. So each image counts the same whatever its size, and PSNR is the mean of the images' PSNR, not the PSNR of the
mean MSE (which is lower: the logarithm is concave in the error). The PSNR of an identical image is infinite; in the
mean it counts as 100 dB (``PSNR_CAP``), as does any image above that.

All metrics are computed in float64, whatever the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.base import Distortion, Measure
from gmvq.metrics.precision import in_float64

PSNR_CAP = 100.0
"""Upper limit in dB of an image's PSNR in the mean, so that one identical image leaves the mean finite."""

GAUSSIAN_SIGMA = 1.5
GAUSSIAN_WINDOW = 11
UNIFORM_WINDOW = 7
RANGE_TOLERANCE = 1e-6


SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Power of each scale of MS-SSIM, the finest first."""
SMALLEST_SIDE = 3
"""Least side, in pixels, of an image that has a Laplacian."""


def mse(images: Tensor, targets: Tensor) -> Tensor:
    """Computes the mean squared error of each image.

    Args:
        images: Floats in [0, 1], shape ``(B, C, H, W)``.
        targets: Reference of the same shape.

    Returns:
        float64 ``(B,)``.

    Raises:
        ValueError: If the shapes differ, or values are not floats, not finite or outside of [0, 1].
    """
    images, targets = _checked(images, targets)
    return (images - targets).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio of each image in dB; infinite where an image equals its target.

    Args:
        images: Floats in [0, 1], shape ``(B, C, H, W)``.
        targets: Reference of the same shape.

    Returns:
        float64 ``(B,)``.

    Raises:
        ValueError: If the shapes differ, or values are not floats, not finite or outside of [0, 1].
    """
    return -10 * mse(images, targets).log10()


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
    images, targets = _checked(images, targets)
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
    images, targets = _checked(images, targets)
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


def high_frequency_energy(images: Tensor) -> Tensor:
    """Measures the sharpness of each image: the mean square of its Laplacian, which blur reduces first.

    Args:
        images: Floats in [0, 1], shape ``(B, C, H, W)``, of sides of at least 3 pixels.

    Returns:
        float64 ``(B,)``; the ratio to that of the original is a measure of the detail that is left.

    Raises:
        ValueError: If the images are smaller, or values are not floats, not finite or outside of [0, 1].

    Example:
        >>> stripes = (torch.arange(8) % 2).float().expand(1, 1, 8, 8)
        >>> float(high_frequency_energy(stripes)), float(high_frequency_energy(stripes * 0.5))
        (4.0, 1.0)
    """
    images, _ = _checked(images, images)
    if min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"'images' must have sides of at least {SMALLEST_SIDE} pixels, got {tuple(images.shape)}. Give larger ones."
        )
    middle = images[..., 1:-1, 1:-1]
    across = images[..., 1:-1, :-2] + images[..., 1:-1, 2:] - 2 * middle
    down = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] - 2 * middle
    return (across + down).square().mean((1, 2, 3))


class ImageDistortion(Distortion):
    """Means of MSE, PSNR and SSIM over the images of a data set, streamed.

    The metrics are those of the images that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call. The protocol is that of the module's docstring.

    Args:
        structure: Whether to measure SSIM, too; it costs more than the other two.
        perceptual: Function that computes LPIPS of each image ``(B,)``, or returns None where it is undefined; see
            :func:`gmvq.metrics.load_lpips`.

    Example:
        >>> distortion = ImageDistortion()
        >>> distortion.update(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1))
        >>> distortion.images, round(distortion.mse, 6), round(distortion.psnr, 4)
        (2, 0.01, 20.0)
    """

    headline: ClassVar[str] = "psnr"
    higher_is_better: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "psnr",
            "PSNR",
            "dB",
            "Peak signal-to-noise ratio, the squared error on a logarithmic scale.",
            "Higher is better; 3 dB more is half the error. Above 30 dB most images look like the original.",
            ".2f",
        ),
        Measure(
            "ssim",
            "SSIM",
            "",
            "Structural similarity of local windows: brightness, contrast and pattern.",
            "1 is identical; blur lowers it.",
            ".4f",
        ),
        Measure("mse", "MSE", "", "Mean squared error of pixels in [0, 1].", "Lower is better.", ".3g"),
        Measure("lpips", "LPIPS", "", "Distance of features of a trained network.", "Lower is better.", ".4f"),
    )

    def __init__(
        self, *, structure: bool = True, perceptual: Callable[[Tensor, Tensor], Tensor | None] | None = None
    ) -> None:
        self.structure, self.perceptual = structure, perceptual
        self._sums = torch.zeros(4, dtype=torch.float64)  # images, MSE, PSNR, SSIM
        self._lpips: float | None = None if perceptual is None else 0.0

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Protocol of the metrics, in sentences."""
        sentence = (
            "MSE, PSNR and SSIM are means over images of each image's value, of float reconstructions in [0, 1] from "
            f"hard codes; an image's PSNR counts as at most {PSNR_CAP:g} dB."
        )
        lpips = " LPIPS is that of AlexNet, version 0.1: the mean over images, from hard codes."
        return sentence if self._lpips is None else sentence + lpips

    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds images.

        Args:
            made: Floats in [0, 1], shape ``(B, C, H, W)``.
            real: Reference of the same shape.
            lengths: None, since images have no lengths.

        Raises:
            ValueError: If the shapes differ, or values are not floats, not finite or outside of [0, 1].
        """
        self._add(errors := mse(made, real), ssim(made, real) if self.structure else torch.zeros_like(errors))
        if self.perceptual is not None and self._lpips is not None:
            distances = self.perceptual(made, real)
            self._lpips = None if distances is None else self._lpips + float(in_float64(distances).sum())

    def _update_large(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        if self.structure:
            raise ValueError("'structure' must be False for an image in parts, got True. Pass the whole image.")
        squares, number = torch.zeros((), dtype=torch.float64), 0
        for made, real in parts:
            images, targets = _checked(made, real)
            squares += (images - targets).square().sum().cpu()
            number += images.numel()
        self._add(errors := (squares / number)[None], torch.zeros_like(errors))

    def _add(self, errors: Tensor, similarities: Tensor) -> None:
        """Adds images with their squared errors and similarities, each ``(B,)``."""
        decibels = (-10 * errors.log10()).clamp(max=PSNR_CAP)
        self._sums += torch.stack([torch.ones_like(errors), errors, decibels, similarities]).sum(dim=1).cpu()

    def add(self, other: Distortion) -> None:
        """Adds the images that another accumulator has seen."""
        assert isinstance(other, ImageDistortion)
        super().add(other)
        self._lpips = None if self._lpips is None or other._lpips is None else self._lpips + other._lpips

    def metrics(self) -> dict[str, float | None]:
        """Returns means over the images seen: ``psnr`` (dB), ``mse``, and with ``structure`` ``ssim`` and ``lpips``."""
        if not self.images:
            return {}
        metrics: dict[str, float | None] = {"psnr": self.psnr, "mse": self.mse}
        if self.structure:
            lpips = None if self._lpips is None else self._lpips / self.images
            metrics = {"psnr": self.psnr, "ssim": self.ssim, "mse": self.mse, "lpips": lpips}
        return metrics

    @property
    def items(self) -> int:
        """Number of images seen."""
        return self.images

    def of_error(self, error: float) -> dict[str, float]:
        """Converts a mean squared error above 0 to PSNR in dB."""
        return {"psnr": -10 * math.log10(error)} if error > 0 else {}

    def merged(self) -> ImageDistortion:
        """Sums over all ranks into a new accumulator; without a process group it is a copy.

        This is a collective: when a process group exists at the call, every rank must call it.
        """
        merged = ImageDistortion(structure=self.structure)
        merged._lpips = self._lpips
        merged._sums = sum_over_ranks(self._sums).clone()
        return merged

    @property
    def images(self) -> int:
        """Number of images seen."""
        return int(self._sums[0])

    @property
    def mse(self) -> float:
        """Mean over images of their mean squared error.

        Raises:
            ValueError: If no image was seen.
        """
        return self._mean(1)

    @property
    def psnr(self) -> float:
        """Mean over images of their PSNR in decibels, each at most 100 dB.

        Raises:
            ValueError: If no image was seen.
        """
        return self._mean(2)

    @property
    def ssim(self) -> float:
        """Mean over images of their SSIM.

        Raises:
            ValueError: If no image was seen, or SSIM is not measured.
        """
        if not self.structure:
            raise ValueError("'structure' must be True for SSIM, got False. Construct ImageDistortion(structure=True).")
        return self._mean(3)

    def _mean(self, index: int) -> float:
        if self.images == 0:
            raise ValueError("A mean needs at least 1 image, got 0. Call update(images, targets) first.")
        return float(self._sums[index] / self._sums[0])


def _checked(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
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
