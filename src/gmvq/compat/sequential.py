"""vector-quantize-pytorch's ``Sequential``: a chain of modules of which one is a quantizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gmvq.compat.binary import LFQ
from gmvq.compat.hierarchical import HierarchicalVQ
from gmvq.compat.latent import LatentQuantize
from gmvq.compat.linear import SimVQ
from gmvq.compat.perturbation import FSP
from gmvq.compat.random_projection import RandomProjectionQuantizer
from gmvq.compat.residual import GroupedResidualVQ, ResidualVQ
from gmvq.compat.residual_groups import GroupedResidualFSQ, GroupedResidualLFQ
from gmvq.compat.residual_layers import ResidualLFQ, ResidualSimVQ
from gmvq.compat.scalar import FSQ, ResidualFSQ
from gmvq.compat.vector import VectorQuantize

QUANTIZERS: tuple[type[nn.Module], ...] = (
    *(VectorQuantize, ResidualVQ, GroupedResidualVQ, RandomProjectionQuantizer, FSQ, LFQ, SimVQ, ResidualSimVQ),
    *(ResidualLFQ, GroupedResidualLFQ, ResidualFSQ, GroupedResidualFSQ, FSP, LatentQuantize, HierarchicalVQ),
)
"""Classes of which one must be in the chain."""


class Sequential(nn.Module):
    """Calls modules one after another, one of them a quantizer, whose indices and losses come with the last output.

    Args:
        *fns: Modules, one of them a quantizer of this package.

    Raises:
        ValueError: If not exactly one of the modules is a quantizer.

    Example:
        >>> import torch
        >>> model = Sequential(nn.Linear(4, 3), FSQ(levels=[8, 5, 5]), nn.Linear(3, 4))
        >>> decoded, indices = model(torch.randn(2, 10, 4))
        >>> decoded.shape, indices.shape
        (torch.Size([2, 10, 4]), torch.Size([2, 10]))
    """

    def __init__(self, *fns: nn.Module) -> None:
        super().__init__()
        found = [type(each).__name__ for each in fns if isinstance(each, QUANTIZERS)]
        if len(found) != 1:
            raise ValueError(
                f"'fns' must have exactly one quantizer of gmvq.compat.vector_quantize_pytorch, got {found}. Use "
                "torch.nn.Sequential before and after it, and call them one after another."
            )
        self.fns = nn.ModuleList(fns)

    def forward(self, x: Tensor, **call: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """Output of the last module, and what the quantizer returns beside its values.

        Args:
            x: Input of the first module.
            **call: Arguments of the quantizer's forward.
        """
        others: list[Any] = []
        for module in self.fns:
            if isinstance(module, QUANTIZERS):
                x, *others = module(x, **call)
            else:
                x = module(x)
        return (x, *others)
