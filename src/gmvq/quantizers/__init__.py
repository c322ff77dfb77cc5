"""Bottlenecks between encoder and decoder: every quantizer, their compositions, and the continuous one."""

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gmvq.quantizers.catalogue import QUANTIZERS, Preset, make_bottleneck
from gmvq.quantizers.compositions.channel_first import ChannelFirst
from gmvq.quantizers.compositions.composite import AbstractComposite
from gmvq.quantizers.compositions.hierarchical import Hierarchical
from gmvq.quantizers.compositions.implicit import ImplicitResidual
from gmvq.quantizers.compositions.joined import Joined
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.projected import Projected
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.compositions.wrapper import AbstractWrapper
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.quantizers.gaussian_quantizer import GaussianQuantizer
from gmvq.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from gmvq.quantizers.mixture import GaussianMixtureQuantizer
from gmvq.quantizers.parts.estimators import (
    AbstractEstimator,
    DiVeQ,
    GumbelSoftmax,
    NoGradient,
    Rotation,
    StraightThrough,
)
from gmvq.quantizers.parts.noise import AdaptiveNoise, ConstantNoise
from gmvq.quantizers.parts.objectives import ALBO, ELBO
from gmvq.quantizers.parts.schedules import Constant, Cosine, Geometric, Linear, Schedule
from gmvq.quantizers.parts.vector_parts import Affine, Diversity, InPlaceStep, Orthogonal
from gmvq.quantizers.random_projection import RandomProjectionQuantizer
from gmvq.quantizers.scalar import FiniteScalarQuantizer, LatentQuantizer
from gmvq.quantizers.simvq import SimVQ
from gmvq.quantizers.stochastic import StochasticQuantizer
from gmvq.quantizers.transport import OptimalTransportQuantizer
from gmvq.quantizers.vector import VectorQuantizer

__all__ = [
    "ALBO",
    "ELBO",
    "QUANTIZERS",
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
    "Preset",
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
    "make_bottleneck",
]
