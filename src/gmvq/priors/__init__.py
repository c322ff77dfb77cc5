"""What is known of codes before the image: likelihoods, new codes, completions."""

from gmvq.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from gmvq.priors.base import AbstractPrior, AbstractSequentialPrior, CodeShape, Reader
from gmvq.priors.counting import Frequencies, NGram
from gmvq.priors.masked import MaskedConfig, MaskedPrior, Unmasking
from gmvq.priors.orders import OrderName, places_in_order
from gmvq.priors.sampling import Sampling

__all__ = [
    "AbstractPrior",
    "AbstractSequentialPrior",
    "AutoregressiveConfig",
    "AutoregressivePrior",
    "CodeShape",
    "Frequencies",
    "MaskedConfig",
    "MaskedPrior",
    "NGram",
    "OrderName",
    "Reader",
    "Sampling",
    "Unmasking",
    "places_in_order",
]
