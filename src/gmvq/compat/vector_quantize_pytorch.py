"""Drop-in classes for vector-quantize-pytorch, loading of its state dicts, and conversion of its modules.

::

    from gmvq.compat.vector_quantize_pytorch import VectorQuantize   # the one line that changes
    quantizer = convert(module)                                      # or: our own quantizer with the same weights

The classes have the keyword arguments, defaults, calls and return values of the original. ``load_state_dict`` takes its
state dicts; ``state_dict`` returns ours. In evaluation codes and values are equal up to rounding;
``docs/coming-from-vector-quantize-pytorch.md`` says where training differs, and why. The package need not be installed.

Tested against version 1.32.0.
"""

from gmvq.compat.binary import LFQ
from gmvq.compat.conversion import convert
from gmvq.compat.linear import SimVQ
from gmvq.compat.residual import GroupedResidualVQ, ResidualVQ
from gmvq.compat.scalar import FSQ, ResidualFSQ
from gmvq.compat.vector import VectorQuantize

__all__ = ["FSQ", "LFQ", "GroupedResidualVQ", "ResidualFSQ", "ResidualVQ", "SimVQ", "VectorQuantize", "convert"]
