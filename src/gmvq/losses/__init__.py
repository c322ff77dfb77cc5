"""What training minimizes beside the bottleneck's own loss."""

from gmvq.losses.perceptual import FeatureLoss, vgg16_features
from gmvq.losses.reconstruction import (
    AbstractLikelihood,
    BernoulliLikelihood,
    FixedGaussianLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    make_likelihood,
)

__all__ = [
    "AbstractLikelihood",
    "BernoulliLikelihood",
    "FeatureLoss",
    "FixedGaussianLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "make_likelihood",
    "vgg16_features",
]
