"""Bottlenecks between encoder and decoder: every quantizer, their compositions, and the continuous one."""

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gmvq.quantizers.composite import AbstractComposite, Product
from gmvq.quantizers.estimators import AbstractEstimator, DiVeQ, GumbelSoftmax, NoGradient, Rotation, StraightThrough
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.quantizers.gaussian_quantizer import GaussianQuantizer
from gmvq.quantizers.hierarchical import Hierarchical
from gmvq.quantizers.implicit import ImplicitResidual
from gmvq.quantizers.index import IndexBackpropagationQuantizer
from gmvq.quantizers.joined import Joined
from gmvq.quantizers.layouts import ChannelFirst
from gmvq.quantizers.linear import SimVQ
from gmvq.quantizers.mixture import GaussianMixtureQuantizer
from gmvq.quantizers.noise import AdaptiveNoise, ConstantNoise
from gmvq.quantizers.objectives import ALBO, ELBO
from gmvq.quantizers.parts import Affine, Diversity, InPlaceStep, Orthogonal
from gmvq.quantizers.projected import Projected
from gmvq.quantizers.random_projection import RandomProjectionQuantizer
from gmvq.quantizers.residual import Residual
from gmvq.quantizers.scalar import FiniteScalarQuantizer, LatentQuantizer
from gmvq.quantizers.schedules import Constant, Cosine, Geometric, Linear, Schedule
from gmvq.quantizers.stochastic import StochasticQuantizer
from gmvq.quantizers.transport import OptimalTransportQuantizer
from gmvq.quantizers.vector import VectorQuantizer
from gmvq.quantizers.wrapper import AbstractWrapper

__all__ = [
    "ALBO",
    "ELBO",
    "AbstractBottleneck",
    "AbstractComposite",
    "AbstractEstimator",
    "AbstractQuantizer",
    "AbstractWrapper",
    "AdaptiveNoise",
    "Affine",
    "BinarySphericalQuantizer",
    "ChannelFirst",
    "Constant",
    "ConstantNoise",
    "Cosine",
    "DiVeQ",
    "Diversity",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "GaussianMixtureQuantizer",
    "GaussianQuantizer",
    "Geometric",
    "GumbelSoftmax",
    "Hierarchical",
    "ImplicitResidual",
    "InPlaceStep",
    "IndexBackpropagationQuantizer",
    "Joined",
    "LatentQuantizer",
    "Linear",
    "LookupFreeQuantizer",
    "NoGradient",
    "NoPosteriorError",
    "OptimalTransportQuantizer",
    "Orthogonal",
    "Product",
    "Projected",
    "RandomProjectionQuantizer",
    "Residual",
    "Rotation",
    "Schedule",
    "SimVQ",
    "StochasticQuantizer",
    "StraightThrough",
    "VectorQuantizer",
]
