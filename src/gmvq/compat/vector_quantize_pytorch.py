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
from gmvq.compat.evolution import EvoLFQ
from gmvq.compat.hierarchical import HierarchicalVQ
from gmvq.compat.latent import LatentQuantize
from gmvq.compat.linear import SimVQ
from gmvq.compat.mapper import BinaryMapper
from gmvq.compat.perturbation import FSP, build_cdf_act
from gmvq.compat.random_projection import RandomProjectionQuantizer
from gmvq.compat.residual import GroupedResidualVQ, ResidualVQ
from gmvq.compat.residual_groups import GroupedResidualFSQ, GroupedResidualLFQ
from gmvq.compat.residual_layers import ResidualLFQ, ResidualSimVQ
from gmvq.compat.scalar import FSQ, ResidualFSQ
from gmvq.compat.sequential import Sequential
from gmvq.compat.vector import VectorQuantize

__all__ = [
    "FSP",
    "FSQ",
    "LFQ",
    "BinaryMapper",
    "EvoLFQ",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "HierarchicalVQ",
    "LatentQuantize",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "Sequential",
    "SimVQ",
    "VectorQuantize",
    "build_cdf_act",
    "convert",
]
