"""Networks: images to latents and back."""

from gmvq.networks.convolutional import Decoder, Encoder
from gmvq.networks.sqvae import SQVAEDecoder, SQVAEEncoder

__all__ = ["Decoder", "Encoder", "SQVAEDecoder", "SQVAEEncoder"]
