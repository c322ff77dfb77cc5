"""Whether tensors are what they seem."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Inside ``torch.func`` or forward-mode differentiation, where a tensor may stand for many, or carry a tangent."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def can_look_at(values: Tensor) -> bool:
    """True if branches may be taken by values: no wait for a GPU, no graph that would hold one branch for good."""
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if values.device.type != "cpu" or in_graph:
        return False
    # fake tensors and those of torch.func stand for values that are not there, or for many at once
    return type(values) in (Tensor, nn.Parameter) and not is_transformed()
