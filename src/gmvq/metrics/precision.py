"""Conversion to float64, in which metrics are summed, and checks of distributions."""

from __future__ import annotations

from torch import Tensor


def in_float64(values: Tensor) -> Tensor:
    """Converts values to float64, on their device if it has that type (Apple's MPS has not), else on the CPU."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def distributions(name: str, probabilities: Tensor) -> Tensor:
    """Checks that rows nearly sum to 1, and returns them in float64 with a sum of 1."""
    rows = in_float64(probabilities)
    sums = rows.sum(dim=-1, keepdim=True)
    # Half precision is off by up to 1e-2. Written so that NaN fails, too.
    if not ((rows >= 0).all() and ((sums - 1).abs() <= 1e-2).all()):
        raise ValueError(
            f"'{name}' must be at least 0 and sum to 1 over the last axis, got sums from {float(sums.min()):g} "
            f"to {float(sums.max()):g}. Apply .softmax(-1) to logits."
        )
    return rows / sums
