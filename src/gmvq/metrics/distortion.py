r"""Distortion of reconstructed images: MSE, PSNR, SSIM and MS-SSIM.

For one image x of D = C H W dimensions in [0, 1] and its reconstruction y:

.. math::
    \text{MSE} = \tfrac{1}{D} \sum_i (x_i - y_i)^2 \qquad
    \text{PSNR} = 10 \log_{10} (1 / \text{MSE}) \text{ dB}

and the structural similarities of :mod:`gmvq.metrics.similarity`.

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
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.base import Distortion, Measure
from gmvq.metrics.precision import in_float64
from gmvq.metrics.similarity import checked_images, ssim

PSNR_CAP = 100.0
"""Upper limit in dB of an image's PSNR in the mean, so that one identical image leaves the mean finite."""

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
    images, targets = checked_images(images, targets)
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
    images, _ = checked_images(images, images)
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
            images, targets = checked_images(made, real)
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
