"""Timing of several calls in interleaved rounds, so that other load of the machine affects all of them equally."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from gmvq.experiments.speed.contestants import PRODUCT_BLOCKS, product
from gmvq.experiments.speed.shapes import Shape

SETTLING_SECONDS = 0.005
"""Pause between two calls: idle threads of another library's pool spin for a while before they sleep."""

PROBED_ROWS = 2048
FINALISTS = 3
LARGEST_BLOCK = 1 << 27
"""Largest number of elements in a block of the bare product: half a GiB."""


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the wall time of one call, without garbage collection."""
    time.sleep(SETTLING_SECONDS)
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    finally:
        if enabled:
            gc.enable()


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round.

    Each round begins with another call, so that no call always follows the same one.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(calls[name]))
    return times


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median over rounds of our time divided by theirs."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def best_blocks(shape: Shape) -> list[tuple[int, int]]:
    """Returns the fastest block sizes of the bare product on the first latents, for the measurement on all of them."""
    blocks = {(min(rows, shape.rows), min(columns, shape.codes)) for rows, columns in PRODUCT_BLOCKS}
    blocks = {block for block in blocks if math.prod(block) <= LARGEST_BLOCK}
    probe = shape._replace(rows=min(shape.rows, PROBED_ROWS))
    seconds = {}
    for block in sorted(blocks):
        call = product(probe, *block)
        seconds[block] = min(seconds_of(call) for _ in range(4))
    return sorted(blocks, key=seconds.__getitem__)[:FINALISTS]
