"""Distributions of codes: likelihoods, new codes, completions."""

from gmvq.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from gmvq.priors.base import AbstractPrior, AbstractSequentialPrior, CodeShape, NoLikelihoodError, Reader
from gmvq.priors.catalogue import PRIORS, described, from_description, make_prior
from gmvq.priors.counting import Frequencies, NGram
from gmvq.priors.flow import CodeFlowPrior, FlowConfig, LatentFlowConfig, LatentFlowPrior
from gmvq.priors.masked import MaskedConfig, MaskedPrior, Unmasking
from gmvq.priors.orders import OrderName, places_in_order
from gmvq.priors.sampling import Sampling

__all__ = [
    "PRIORS",
    "AbstractPrior",
    "AbstractSequentialPrior",
    "AutoregressiveConfig",
    "AutoregressivePrior",
    "CodeFlowPrior",
    "CodeShape",
    "FlowConfig",
    "Frequencies",
    "LatentFlowConfig",
    "LatentFlowPrior",
    "MaskedConfig",
    "MaskedPrior",
    "NGram",
    "NoLikelihoodError",
    "OrderName",
    "Reader",
    "Sampling",
    "Unmasking",
    "described",
    "from_description",
    "make_prior",
    "places_in_order",
]
