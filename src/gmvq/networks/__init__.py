"""Networks: images to latents and back."""

from gmvq.networks.convolutional import Decoder, Encoder

__all__ = ["Decoder", "Encoder"]
