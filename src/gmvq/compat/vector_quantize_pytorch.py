"""Coming from vector-quantize-pytorch: its classes by name, its state dicts, and its modules made ours.

::

    from gmvq.compat.vector_quantize_pytorch import VectorQuantize   # the one line that changes
    quantizer = convert(module)                                      # or: our own quantizer with the same weights

The classes take the other library's keyword arguments, keep its defaults, are called as its own and return what its
own return. ``load_state_dict`` takes its state dicts; ``state_dict`` gives ours. In evaluation codes and values are the
same to rounding; where training differs, and why, is in ``docs/coming-from-vector-quantize-pytorch.md``. The package
itself is not needed.

Tested against version 1.32.0.
"""

from gmvq.compat.binary import LFQ
from gmvq.compat.conversion import convert
from gmvq.compat.linear import SimVQ
from gmvq.compat.residual import GroupedResidualVQ, ResidualVQ
from gmvq.compat.scalar import FSQ, ResidualFSQ
from gmvq.compat.vector import VectorQuantize

__all__ = ["FSQ", "LFQ", "GroupedResidualVQ", "ResidualFSQ", "ResidualVQ", "SimVQ", "VectorQuantize", "convert"]
