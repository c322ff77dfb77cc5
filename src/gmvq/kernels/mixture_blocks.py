"""A mixture step in blocks of rows: torch's matrix products, with one sweep over the block between them.

The sweep is in C++ (``mixture.cpp``) for float32 on a CPU with a compiler, and in torch operations otherwise. Both
overwrite the blocks of products, so that two blocks of memory suffice for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from gmvq.kernels import mixture_compiled, mixture_plain
from gmvq.kernels.compiled import library
from gmvq.kernels.mixture_types import CodeSums, Gradients, Needs, Problem, Results, Upstream

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block, rows x codes: 4 MiB in float32, which fits into the caches of today's CPUs."""

LEAST_ROWS = 32
"""Least number of rows of a block: with fewer, a matrix product mostly reads the codebook."""


def forward(problem: Problem, prices: Tensor) -> Results:
    """Computes the results in memory O(N + K) and two blocks."""
    sweeps, results, sums = _sweeps(problem), Results.empty(problem), _sums(problem)
    # with few features, products with codes along the second axis of all factors take as little as a tenth of the time
    values = problem.values.T.contiguous()
    for start, stop, products, relaxed in _blocks(problem):
        block, own = problem.block(start, stop), results.block(start, stop)
        if not sweeps.makes_products(problem):
            torch.mm(block.latents, block.columns, out=products)
        totals = sweeps.forward(block, prices, products, relaxed, own, sums.zero_())
        results.aggregated.add_(sums.sum(0))
        if relaxed is not None:
            torch.div(torch.mm(values, relaxed.T).T, totals[:, None], out=own.relaxed)
    return results


def backward(problem: Problem, results: Results, upstream: Upstream, needs: Needs) -> Gradients:
    """Computes the needed gradients in memory O(N + K) and two blocks, whose contents are computed again."""
    sweeps, latents = _sweeps(problem), torch.zeros_like(problem.latents)
    # (L, K) and (V, K), as in the forward pass
    of_codes, of_values = torch.zeros_like(problem.columns), torch.zeros_like(problem.values.T.contiguous())
    shared = needs.precisions or needs.biases
    sums = CodeSums(_sums(problem), _sums(problem) if shared else None, _sums(problem) if shared else None)
    totals = [None if part is None else torch.zeros_like(part[0]) for part in sums]
    for start, stop, products, relaxed in _blocks(problem):
        block, own, above = problem.block(start, stop), results.block(start, stop), upstream.block(start, stop)
        if not sweeps.makes_products(problem):
            torch.mm(block.latents, block.columns, out=products)
        if relaxed is not None:
            torch.mm(above.relaxed, block.values.T, out=relaxed)
        row_sums = sweeps.backward(block, own, above, products, relaxed, sums)
        for total, part in zip(totals, sums, strict=True):
            if total is not None and part is not None:
                total.add_(part.sum(0))
                part.zero_()
        if needs.latents:
            scaled_rows = row_sums[:, None] * block.latents
            torch.sub(scaled_rows, torch.mm(problem.columns, products.T).T, out=latents[start:stop])
        if needs.codebook:
            of_codes.addmm_(block.latents.T, products, alpha=-1)
        if needs.values and relaxed is not None:
            of_values.addmm_(above.relaxed.T, relaxed)
    scaled, biases, precisions = totals
    assert scaled is not None
    return Gradients(
        latents if needs.latents else None,
        of_codes.addcmul_(scaled, problem.columns).T.contiguous() if needs.codebook else None,
        of_values.T.contiguous() if needs.values else None,
        precisions / problem.precisions if precisions is not None and needs.precisions else None,
        biases if needs.biases else None,
    )


def _sweeps(problem: Problem) -> ModuleType:
    latents = problem.latents
    compiled = latents.device.type == "cpu" and latents.dtype == torch.float32 and library() is not None
    return mixture_compiled if compiled else mixture_plain


def _blocks(problem: Problem) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """For each block: first row, last row + 1, memory for products ``(n, K)``, and for a relaxed sample if drawn."""
    rows, codes = len(problem.latents), len(problem.codebook)
    size = min(rows, max(LEAST_ROWS, BLOCK_ELEMENTS // codes))
    products = problem.latents.new_empty(size, codes)
    relaxed = torch.empty_like(products) if problem.draws else None
    for start in range(0, rows, max(1, size)):
        stop = min(start + size, rows)
        yield start, stop, products[: stop - start], None if relaxed is None else relaxed[: stop - start]


def _sums(problem: Problem) -> Tensor:
    """Memory for sums over rows, ``(threads, K)``: one row per thread."""
    threads = torch.get_num_threads() if problem.latents.device.type == "cpu" else 1
    return problem.latents.new_zeros(threads, len(problem.codebook))
