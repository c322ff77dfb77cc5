"""Figures are summed in float64, and distributions are checked before they count."""

from __future__ import annotations

from torch import Tensor


def in_float64(values: Tensor) -> Tensor:
    """The values in float64, on their device if it has that type (Apple's MPS has not) and on the CPU otherwise."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def distributions(name: str, probabilities: Tensor) -> Tensor:
    """Rows in float64 that sum to 1 exactly, after a check that they nearly do."""
    rows = in_float64(probabilities)
    sums = rows.sum(dim=-1, keepdim=True)
    # Half precision is off by up to 1e-2. Written so that NaN fails, too.
    if not ((rows >= 0).all() and ((sums - 1).abs() <= 1e-2).all()):
        raise ValueError(
            f"'{name}' must be at least 0 and sum to 1 over the last axis, got sums from {float(sums.min()):g} "
            f"to {float(sums.max()):g}. Apply .softmax(-1) to logits."
        )
    return rows / sums
