"""Networks that map items to latents and back."""

from gmvq.networks.classifier import Classifier, ClassifierConfig
from gmvq.networks.convolutional import Decoder, Encoder
from gmvq.networks.reach import Reach, WholeItemError
from gmvq.networks.sqvae import SQVAEDecoder, SQVAEEncoder

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "Decoder",
    "Encoder",
    "Reach",
    "SQVAEDecoder",
    "SQVAEEncoder",
    "WholeItemError",
]
