"""Metrics: distortion and realism of images, use of the codebook, and bounds of the likelihood.

Functions measure one batch; classes stream over a data set, sum in float64, and sum over ranks in ``merged()``.
"""

from gmvq.metrics.codes import CodebookStatistics, CompositeStatistics, countable, counted
from gmvq.metrics.distortion import ImageDistortion, high_frequency_energy, mse, psnr
from gmvq.metrics.inception import load_inception
from gmvq.metrics.information import MixtureInformation
from gmvq.metrics.likelihood import (
    aggregated_bound,
    bits_per_dimension,
    categorical_divergence,
    evidence_lower_bound,
    importance_weighted_bound,
)
from gmvq.metrics.perceptual import load_lpips
from gmvq.metrics.realism import Realism, measure_realism
from gmvq.metrics.similarity import ms_ssim, ssim

__all__ = [
    "CodebookStatistics",
    "CompositeStatistics",
    "ImageDistortion",
    "MixtureInformation",
    "Realism",
    "aggregated_bound",
    "bits_per_dimension",
    "categorical_divergence",
    "countable",
    "counted",
    "evidence_lower_bound",
    "high_frequency_energy",
    "importance_weighted_bound",
    "load_inception",
    "load_lpips",
    "measure_realism",
    "ms_ssim",
    "mse",
    "psnr",
    "ssim",
]
