"""Compression: a tokenizer and an entropy model make the files of items.

::

    Codec(tokenizer, model): item --compress--> bytes --decompress--> item
"""

from gmvq.codec.codec import CODEC, Codec, Compressed, DamagedSegmentError, config_of, vectors_of
from gmvq.codec.container import Container, Header, read
from gmvq.codec.measuring import measured

__all__ = [
    "CODEC",
    "Codec",
    "Compressed",
    "Container",
    "DamagedSegmentError",
    "Header",
    "config_of",
    "measured",
    "read",
    "vectors_of",
]
