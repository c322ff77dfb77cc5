"""Data: sets of items, and loaders that make batches of them.

::

    Items --Loader--> Batch          codes --CodeLoader--> CodeBatch
"""

from gmvq.data.items import ArrayItems, FileItems, Items, ListItems, Skipped, central, evenly_spaced
from gmvq.data.loading import AbstractLoader, CodeLoader, Loader, batches_by_size, held_out_batches, stacked

__all__ = [
    "AbstractLoader",
    "ArrayItems",
    "CodeLoader",
    "FileItems",
    "Items",
    "ListItems",
    "Loader",
    "Skipped",
    "batches_by_size",
    "central",
    "evenly_spaced",
    "held_out_batches",
    "stacked",
]
