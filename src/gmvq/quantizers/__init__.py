"""Bottlenecks between encoder and decoder: Gaussian-mixture, vector and continuous."""

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.estimators import AbstractEstimator, GumbelSoftmax, NoGradient, Rotation, StraightThrough
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.quantizers.mixture import GaussianMixtureQuantizer
from gmvq.quantizers.objectives import ALBO, ELBO
from gmvq.quantizers.schedules import Constant, Cosine, Geometric, Linear, Schedule
from gmvq.quantizers.vector import VectorQuantizer

__all__ = [
    "ALBO",
    "ELBO",
    "AbstractBottleneck",
    "AbstractEstimator",
    "AbstractQuantizer",
    "Constant",
    "Cosine",
    "GaussianBottleneck",
    "GaussianMixtureQuantizer",
    "Geometric",
    "GumbelSoftmax",
    "Linear",
    "NoGradient",
    "NoPosteriorError",
    "Rotation",
    "Schedule",
    "StraightThrough",
    "VectorQuantizer",
]
