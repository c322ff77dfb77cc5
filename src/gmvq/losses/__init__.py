"""What training minimizes beside the bottleneck's own loss."""

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
    "FixedGaussianLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "make_likelihood",
]
