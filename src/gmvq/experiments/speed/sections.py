"""Sections of the benchmark: each measures shapes and yields rows of a table.

A row is a JSON object::

    {"shape": [N, L, K], "seconds": {name: [one per round]}, "median": {name: ...}, "ratio": {name: ours / theirs},
     "left_out": {name: reason}, ...}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmvq.experiments.speed import memory
from gmvq.experiments.speed.clock import best_blocks, interleaved, ratio
from gmvq.experiments.speed.contestants import (
    ITERATIONS,
    KMEANS,
    MIXTURE_STEP,
    NEAREST,
    OURS,
    PRODUCT,
    TASKS,
    VECTOR_STEP,
    product,
)
from gmvq.experiments.speed.shapes import Shape, clustered, drawn
from gmvq.kernels import nearest_code

MEMORY, GROWTH = "memory", "growth"
LEAST_ROWS_OF_A_CODE = 4
GROWTH_ROUNDS = 3
"""Largest number of rounds of the growth section, whose steps take up to a minute."""

TIE = 32 * float(np.finfo(np.float32).eps)
"""Largest rounding difference in float32 of two squared distances, relative to the squares they are computed from: the
expanded form sums L products, in blocks of any order."""


class Plan(NamedTuple):
    """Settings of a section.

    Attributes:
        shapes: Sizes to measure.
        against: Names of contestants; gmvq is always included.
        rounds: Interleaved rounds.
    """

    shapes: Sequence[Shape]
    against: Collection[str]
    rounds: int


Row = dict[str, Any]
Say = Callable[[str], None]


def timed(task: str, shape: Shape, plan: Plan) -> tuple[Row, dict[str, Any]]:
    """Measures one row of times.

    Returns:
        The row, and the first result of each contestant.
    """
    calls: dict[str, Callable[[], Any]] = {}
    results, left_out = {}, {}
    for name, make in TASKS[task].items():
        if name != OURS and name not in plan.against:
            continue
        if (needed := memory.too_large(task, name, shape)) is not None:
            left_out[name] = f"does not fit: about {needed / 1e9:.0f} GB"
            continue
        try:
            call = make(shape)
            results[name] = call()  # also the warm-up
        except ImportError as error:
            left_out[name] = f"not installed: {error}"
        except Exception as error:  # an error of another library must not stop the others
            left_out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            calls[name] = call
    if PRODUCT in plan.against and task == NEAREST:
        for block in best_blocks(shape):
            calls[f"{PRODUCT} {block[0]} {block[1]}"] = product(shape, *block)
    return {**_row(shape, interleaved(calls, plan.rounds)), "left_out": left_out}, results


def _row(shape: Shape, seconds: dict[str, list[float]]) -> Row:
    """Computes medians and ratios; for the bare product those of its best block size."""
    row: Row = {"shape": list(shape)}
    products = {name: values for name, values in seconds.items() if name.startswith(PRODUCT)}
    if products:
        best = min(products, key=lambda name: statistics.median(products[name]))
        row["product_block"] = [int(size) for size in best.split()[1:]]
        seconds = {name: values for name, values in seconds.items() if name not in products} | {PRODUCT: products[best]}
    row |= {"seconds": seconds, "median": {name: statistics.median(values) for name, values in seconds.items()}}
    row["ratio"] = {name: ratio(seconds[OURS], values) for name, values in seconds.items()} if OURS in seconds else {}
    return row


def nearest(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures the search for the nearest code of each latent, and the agreement of codes."""
    for shape in plan.shapes:
        say(f"nearest code, {shape}")
        row, results = timed(NEAREST, shape, plan)
        codes = {name: torch.as_tensor(found).reshape(-1) for name, found in results.items()}
        yield {**row, "agreement": agreement(codes, *drawn(shape))}


def agreement(codes: Mapping[str, Tensor], latents: Tensor, codebook: Tensor) -> dict[str, Any]:
    """Compares the codes of other contestants with ours.

    Returns:
        By name: ``equal``, the fraction of equal codes; ``largest_gap``, the largest difference of squared distances of
        two different codes, relative to the squares they are computed from; ``ties``, True if all of that is rounding.
    """
    found = {}
    for name in codes.keys() - {OURS} if OURS in codes else ():
        other = (codes[name] != codes[OURS]).nonzero()[:, 0]
        rows = latents[other].double()
        mine, theirs = (codebook[codes[key][other]].double() for key in (OURS, name))
        gaps = ((rows - mine).square().sum(-1) - (rows - theirs).square().sum(-1)).abs()
        sizes = rows.square().sum(-1) + torch.maximum(mine.square().sum(-1), theirs.square().sum(-1))
        gap = float((gaps / sizes).max()) if len(other) else 0.0
        found[name] = {"equal": 1 - len(other) / max(1, len(latents)), "largest_gap": gap, "ties": gap <= TIE}
    return found


def vector_step(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures a training step of the VQ-VAE's quantizer."""
    for shape in plan.shapes:
        say(f"VectorQuantizer step, {shape}")
        yield timed(VECTOR_STEP, shape, plan)[0]


def mixture_step(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures a training step of GM-VQ."""
    for shape in plan.shapes:
        say(f"GM-VQ step, {shape}")
        yield timed(MIXTURE_STEP, shape, plan)[0]


def kmeans(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures Lloyd's algorithm; a shape with few latents per code gets more of them."""
    for shape in plan.shapes:
        shape = shape._replace(rows=max(shape.rows, LEAST_ROWS_OF_A_CODE * shape.codes))
        say(f"k-means, {shape}")
        row, results = timed(KMEANS, shape, plan)
        rows = clustered(shape)
        inertia = {name: float((rows - codes[nearest_code(rows, codes)]).double().square().sum(-1).mean())
                   for name, codes in results.items()}  # fmt: skip
        yield {**row, "iterations": ITERATIONS, "inertia": inertia}


def peaks(task: str, shape: Shape, plan: Plan) -> dict[str, Any]:
    """Measures the peak memory of each contestant."""
    names = [name for name in TASKS[task] if name == OURS or name in plan.against]
    return {name: memory.measure(task, name, shape, torch.get_num_threads()) for name in names}


def peak_memory(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures the peak memory of each step, each in a process of its own."""
    for shape in plan.shapes:
        for task in (NEAREST, VECTOR_STEP, MIXTURE_STEP):
            say(f"memory of {task}, {shape}")
            yield {"shape": list(shape), "task": task, "memory": peaks(task, shape, plan)}


def growth(plan: Plan, say: Say) -> Iterator[Row]:
    """Measures time and memory for growing codebooks."""
    plan = plan._replace(rounds=min(plan.rounds, GROWTH_ROUNDS))
    for shape in plan.shapes:
        for task in (NEAREST, MIXTURE_STEP):
            say(f"growth of {task}, {shape}")
            row, _ = timed(task, shape, plan)
            yield {**row, "task": task, "memory": peaks(task, shape, plan)}


SECTIONS: dict[str, Callable[[Plan, Say], Iterator[Row]]] = {
    NEAREST: nearest,
    VECTOR_STEP: vector_step,
    MIXTURE_STEP: mixture_step,
    KMEANS: kmeans,
    MEMORY: peak_memory,
    GROWTH: growth,
}
