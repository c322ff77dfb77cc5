"""Discrete tokens from data, with a codebook that does not collapse."""

from importlib import metadata

from gmvq.hub import load, save
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.quantizers import (
    ALBO,
    ELBO,
    Affine,
    Constant,
    Cosine,
    DiVeQ,
    Diversity,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Geometric,
    GumbelSoftmax,
    InPlaceStep,
    Linear,
    NoGradient,
    Orthogonal,
    Rotation,
    StraightThrough,
    VectorQuantizer,
)

__version__ = metadata.version("gmvq")

__all__ = [
    "ALBO",
    "ELBO",
    "Affine",
    "Autoencoder",
    "AutoencoderConfig",
    "Constant",
    "Cosine",
    "DiVeQ",
    "Diversity",
    "GaussianBottleneck",
    "GaussianMixtureQuantizer",
    "Geometric",
    "GumbelSoftmax",
    "InPlaceStep",
    "Linear",
    "NoGradient",
    "Orthogonal",
    "Rotation",
    "StraightThrough",
    "VectorQuantizer",
    "load",
    "save",
]
