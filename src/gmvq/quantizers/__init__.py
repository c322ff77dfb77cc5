"""Bottlenecks between encoder and decoder: Gaussian-mixture, vector and continuous."""

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.estimators import AbstractEstimator, DiVeQ, GumbelSoftmax, NoGradient, Rotation, StraightThrough
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.quantizers.mixture import GaussianMixtureQuantizer
from gmvq.quantizers.objectives import ALBO, ELBO
from gmvq.quantizers.parts import Affine, Diversity, InPlaceStep, Orthogonal
from gmvq.quantizers.schedules import Constant, Cosine, Geometric, Linear, Schedule
from gmvq.quantizers.vector import VectorQuantizer

__all__ = [
    "ALBO",
    "ELBO",
    "AbstractBottleneck",
    "AbstractEstimator",
    "AbstractQuantizer",
    "Affine",
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
    "NoPosteriorError",
    "Orthogonal",
    "Rotation",
    "Schedule",
    "StraightThrough",
    "VectorQuantizer",
]
