"""The arithmetic of all quantizers: N latents against K codes.

:mod:`gmvq.kernels.reference` defines the right results, in plain PyTorch.
"""

from gmvq.kernels.codes import code_sums
from gmvq.kernels.mixture import mixture_step, random_seed
from gmvq.kernels.mixture_types import MixtureStep
from gmvq.kernels.nearest import nearest_code
from gmvq.kernels.reference import (
    in_blocks,
    squared_distances,
    weighted_squared_distances,
)

__all__ = [
    "MixtureStep",
    "code_sums",
    "in_blocks",
    "mixture_step",
    "nearest_code",
    "random_seed",
    "squared_distances",
    "weighted_squared_distances",
]
