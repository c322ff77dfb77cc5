"""Tokenizers: encoder, bottleneck and decoder as one model."""

from gmvq.models.adversarial import AdversarialAutoencoder, AdversarialConfig
from gmvq.models.autoencoder import Autoencoder
from gmvq.models.configuration import AutoencoderConfig
from gmvq.models.diffusion import DiffusionConfig, DiffusionDecoder

__all__ = [
    "AdversarialAutoencoder",
    "AdversarialConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "DiffusionConfig",
    "DiffusionDecoder",
]
