"""Losses that training minimizes beside that of the bottleneck."""

from gmvq.losses.perceptual import FeatureLoss, vgg16_features
from gmvq.losses.reconstruction import (
    AbstractLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    FixedGaussianLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    default_likelihood,
    make_likelihood,
)
from gmvq.losses.spectral import SpectralLoss

__all__ = [
    "AbstractLikelihood",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "FeatureLoss",
    "FixedGaussianLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "SpectralLoss",
    "default_likelihood",
    "make_likelihood",
    "vgg16_features",
]
