"""What the tests of image files share."""

from gmvq.modalities import Data
from gmvq.modalities import Image as ImageModality


def load(source, *, held_out_fraction=0.1, memory_bytes=1 << 30, **settings) -> Data:
    """Images at a path, by the settings of their modality."""
    return ImageModality(**settings).load(source, held_out_fraction=held_out_fraction, memory_bytes=memory_bytes)
