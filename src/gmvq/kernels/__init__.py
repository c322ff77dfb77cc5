"""The arithmetic that every quantizer pays: N latents against K codes.

:mod:`gmvq.kernels.reference` is the definition of right in plain PyTorch.
"""

from gmvq.kernels.reference import (
    code_sums,
    in_blocks,
    nearest_code,
    squared_distances,
    weighted_squared_distances,
)

__all__ = ["code_sums", "in_blocks", "nearest_code", "squared_distances", "weighted_squared_distances"]
