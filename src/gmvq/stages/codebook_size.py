"""The number of codes by evidence: what held-out items cost in bits, codes and the rest together.

More codes cost more bits for each token, and leave fewer bits for what the decoder does not know. Their sum, the
negative ELBO of held-out items, is the length of a file that keeps the items exactly (Hinton and van Camp, Keeping
Neural Networks Simple by Minimizing the Description Length of the Weights, 1993), and has one minimum in practice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gmvq.training import Training

SIZES = (4, 16, 64, 256, 1024, 4096, 16384)
"""Sizes to choose from. All are even powers of two: any quantizer, and two levels of equal sizes, can have them."""
FIRST = 256
SHARE, LEAST = 4, 200
"""A trial has one in SHARE of the run's steps, at least LEAST, and no more than the run. Shorter ones choose too few
codes: what a decoder has not learned yet, no code can tell it."""


def tried(bits_of: Callable[[int], float]) -> dict[int, float]:
    """Goes from the first size up, or else down, as long as the bits fall.

    Args:
        bits_of: Function from the number of codes to the bits per dimension of a trial with them.

    Returns:
        Bits by the number of codes, of all trials, in their order.

    Example:
        >>> tried(lambda size: abs(size - 50))
        {256: 206, 1024: 974, 64: 14, 16: 34}
    """
    found = {FIRST: bits_of(FIRST)}
    start = SIZES.index(FIRST)
    for direction in (SIZES[start + 1 :], SIZES[:start][::-1]):
        best = found[FIRST]
        for size in direction:
            found[size] = bits_of(size)
            if not found[size] < best:
                break
            best = found[size]
        if best < found[FIRST]:
            break
    return found


def of_a_trial(training: Training) -> Training:
    """Shortens training to that of a trial."""
    steps = min(training.steps, max(LEAST, training.steps // SHARE))
    warm_up = training.warmup_steps * steps // training.steps
    own = {"evaluate_every": 0, "checkpoint_every": 0, "keep_best": False, "tensorboard": False, "compile": False}
    return replace(training, steps=steps, warmup_steps=warm_up, **own)
