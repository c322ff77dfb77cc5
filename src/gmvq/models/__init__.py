"""Tokenizers: encoder, bottleneck and decoder as one model."""

from gmvq.models.autoencoder import Autoencoder, AutoencoderConfig, QuantizerName

__all__ = ["Autoencoder", "AutoencoderConfig", "QuantizerName"]
