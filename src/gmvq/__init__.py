"""Discrete tokens from data, with a codebook that does not collapse."""

from importlib import metadata

from gmvq.hub import load, save
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.quantizers import (
    ALBO,
    ELBO,
    Constant,
    Cosine,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Geometric,
    GumbelSoftmax,
    Linear,
    NoGradient,
    Rotation,
    StraightThrough,
    VectorQuantizer,
)

__version__ = metadata.version("gmvq")

__all__ = [
    "ALBO",
    "ELBO",
    "Autoencoder",
    "AutoencoderConfig",
    "Constant",
    "Cosine",
    "GaussianBottleneck",
    "GaussianMixtureQuantizer",
    "Geometric",
    "GumbelSoftmax",
    "Linear",
    "NoGradient",
    "Rotation",
    "StraightThrough",
    "VectorQuantizer",
    "load",
    "save",
]
