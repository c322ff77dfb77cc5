"""Data: where images come from, and how they become batches.

::

    load(path) | photographs() | digits() --> Data(train, held_out) --Loader--> Batch
"""

from gmvq.data.bundled import digits, photographs
from gmvq.data.decoding import ImageError, read_image
from gmvq.data.images import ArrayImages, Data, FileImages, Images, MixedImages, Skipped, evenly_spaced
from gmvq.data.loading import AbstractLoader, CodeLoader, Loader, batches_by_size, held_out_batches
from gmvq.data.sources import fingerprint, load

__all__ = [
    "AbstractLoader",
    "ArrayImages",
    "CodeLoader",
    "Data",
    "FileImages",
    "ImageError",
    "Images",
    "Loader",
    "MixedImages",
    "Skipped",
    "batches_by_size",
    "digits",
    "evenly_spaced",
    "fingerprint",
    "held_out_batches",
    "load",
    "photographs",
    "read_image",
]
