"""Images: reading, distortion metrics, display and writing."""

from gmvq.modalities.image.bundled import digits, photographs
from gmvq.modalities.image.decoding import IMAGE_SUFFIXES, ImageError, read_image
from gmvq.modalities.image.modality import Image

__all__ = ["IMAGE_SUFFIXES", "Image", "ImageError", "digits", "photographs", "read_image"]
