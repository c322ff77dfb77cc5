"""The mixture step on a GPU: which kernels are launched on which blocks of rows, in which precision and tiles.

In tf32 and bfloat16, the kernels multiply by the matrix units themselves. For exact float32, which matrix units lack,
and for more than 256 features, which do not fit, torch's product is the fastest: then the products of a block of rows
are written first, and the kernels read them.

The products of the backward pass are torch's in any precision, from D and y of a block. (Accumulating them in the
kernels, as attention does, would leave no registers for the noise, and two sweeps would have to draw it.)

Sums use no atomic additions, so that the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.kernels.mixture_types import Gradients, Needs, Problem, Results, Upstream
from gmvq.kernels.triton_mixture_gradients import pair_kernel, row_kernel
from gmvq.kernels.triton_mixture_kernels import forward_kernel, posterior_kernel
from gmvq.kernels.triton_mixture_parts import LN2, LOG2E, Operands, noise_of, product, row_parts
from gmvq.kernels.triton_tiles import ROWS, Tile, operand, padded, tuned

_FORWARD_TILES = (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 1), Tile(128, 128, 8, 2))
_POSTERIOR_TILES = (Tile(128, 128, 8, 2), Tile(64, 128, 4, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 1))
_ROW_TILES = (Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 1))
_PAIR_TILES = (Tile(64, 64, 4, 1), Tile(128, 64, 8, 1), Tile(64, 64, 4, 2))
_GIVEN_TILES = (Tile(32, 64, 4, 2), Tile(64, 64, 4, 2))

_CODES_OF_A_TILE = 64
"""The number of codes of all tiles of pairs, since each tile has its own sums."""

_TERMS = 13


def forward(problem: Problem, prices: Tensor) -> Results:
    """Computes the results in memory O(N + K), and two blocks if products are written first.

    Args:
        problem: The problem in float32, on a GPU, or on any device in the interpreter.
        prices: Cost of each code in ``priced``, in nats ``(K,)``.
    """
    results, operands = Results.empty(problem), Operands.of(problem)
    finite, fused = problem.half_squares.isfinite()[:, None], operands.fused
    prices, weights = padded(prices, operands.codes) * LOG2E, padded(problem.weights, operands.rows)
    posterior = operands.columns.new_empty(4, operands.rows)
    sums = operands.columns.new_zeros(operands.codes)
    for block in operands.blocks(0 if fused else 4):
        products = posterior if fused else product(operands.latents.data[block], operands.codebook.data.T)
        _sweep_codes(problem, operands, prices, products, block, results, posterior)
        of_parts, relaxation = _sweep_rows(problem, operands, weights, products, block, posterior)
        sums += of_parts.sum(0)
        if relaxation is not None:
            own = results.relaxed[block]
            mixed = product(relaxation, operands.values)[: len(own), : own.shape[1]]
            own.copy_(torch.where(finite[block], mixed, torch.nan))
    return results._replace(aggregated=sums[: len(problem.codebook)].clone())


class _Above(NamedTuple):
    """Padded upstream gradients, and the terms of the rows.

    Attributes:
        shared: Gradient of the aggregate ``(K',)``.
        relaxed: Gradient of the relaxed sample ``(N', V')``, rounded for products.
        terms: Output of :func:`row_kernel` ``(13, N')``.
    """

    shared: Tensor
    relaxed: Tensor
    terms: Tensor


def backward(problem: Problem, results: Results, upstream: Upstream, needs: Needs) -> Gradients:
    """Computes the needed gradients in memory O(N + K) and two blocks, or four if products are written first.

    Args:
        problem: The problem of the forward pass.
        results: Results of the forward pass.
        upstream: Gradients of the results; ``relaxed`` must be 0 in rows that are not finite.
        needs: Gradients to compute.
    """
    operands = Operands.of(problem)
    latents, codebook, values = operands.latents.data, operands.codebook.data, operands.values
    with_values = needs.values and problem.draws
    new = operands.columns.new_zeros
    above = _Above(
        padded(upstream.aggregated, operands.codes),
        operand(upstream.relaxed, ROWS, operands.units).data if problem.draws else values,
        new(_TERMS, operands.rows),
    )
    of_latents = new(latents.shape) if needs.latents else None
    of_codebook, of_values, of_columns = new(codebook.shape), new(values.shape), new(3, operands.codes)
    for block in operands.blocks(latents.element_size() if operands.fused else 4):
        products = above.shared if operands.fused else product(latents[block], codebook.T)
        _sum_up_rows(problem, operands, results, upstream, above, products, block)
        scaled, relaxation, of_rows, columns = _pairs(problem, operands, above, products, block, needs)
        if of_latents is not None:
            of_latents[block] = latents[block] * of_rows[:, None] - product(scaled, codebook)
        if needs.codebook:
            of_codebook -= product(scaled.T, latents[block])
        if with_values:
            of_values += product(relaxation.T, above.relaxed[block])
        of_columns += columns
    of_codebook += of_columns[0, :, None] * codebook
    count, features = problem.codebook.shape
    finite = problem.half_squares.isfinite()[:, None]
    return Gradients(
        None if of_latents is None else torch.where(finite, of_latents[: len(finite), :features] * LN2, torch.nan),
        of_codebook[:count, :features] * LN2 if needs.codebook else None,
        of_values[:count, : problem.values.shape[1]].clone() if needs.values else None,
        of_columns[2, :count] * LN2 / problem.precisions if needs.precisions else None,
        of_columns[1, :count].clone() if needs.biases else None,
    )


def _constants(problem: Problem, operands: Operands) -> dict[str, Any]:
    return {
        "L": operands.latents.data.shape[1],
        "SAMPLED": problem.draws,
        "FUSED": operands.fused,
        "PRECISION": operands.units.precision,
    }


def _sweep_codes(
    problem: Problem,
    operands: Operands,
    prices: Tensor,
    products: Tensor,
    block: slice,
    results: Results,
    posterior: Tensor,
) -> None:
    """Writes the results and the normalizers of a block's rows."""
    fused, count = operands.fused, block.stop - block.start
    tuned(
        forward_kernel,
        _FORWARD_TILES if fused else _GIVEN_TILES,
        ("L", "PADDED_V", "FLOORED", "SAMPLED"),
        lambda tile: operands.bytes_of(tile.rows + tile.stages * tile.codes, tile.stages * tile.codes) if fused else 0,
        posterior.device,
    )(
        lambda tile: (count // tile["BN"],),
        *operands.latents,
        problem.half_squares,
        operands.codebook.data,
        operands.values,
        operands.columns,
        prices,
        *noise_of(problem, posterior),
        products,
        *(part for name, part in results._asdict().items() if name != "aggregated"),
        posterior,
        block.start,
        len(problem.latents),
        operands.rows,
        len(problem.codebook),
        operands.codes,
        problem.values.shape[1],
        problem.first_row,
        problem.floor * LOG2E,
        **_constants(problem, operands),
        PADDED_V=operands.values.shape[1],
        FLOORED=problem.floor > 0,
        ROUNDED_BITS=operands.units.rounded_bits,
    )


def _sweep_rows(
    problem: Problem, operands: Operands, weights: Tensor, products: Tensor, block: slice, posterior: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Sums of a block's posteriors ``(parts, K')`` and, if products are written first and y is drawn, y ``(n, K')``."""
    fused, count = operands.fused, block.stop - block.start
    parts, size = row_parts(count, operands.codes, posterior.device)
    relaxation = operands.values.new_empty(products.shape) if problem.draws and not fused else None
    sums = posterior.new_empty(parts, operands.codes)
    tuned(
        posterior_kernel,
        _POSTERIOR_TILES if fused else _GIVEN_TILES,
        ("L", "SAMPLED"),
        lambda tile: operands.bytes_of(tile.codes + tile.stages * tile.rows, 0) if fused else 0,
        posterior.device,
    )(
        lambda tile: (operands.codes // tile["BK"], parts),
        *operands.latents,
        operands.codebook.data,
        operands.columns,
        posterior,
        weights,
        *noise_of(problem, posterior),
        products,
        products if relaxation is None else relaxation,
        sums,
        block.start,
        count,
        size,
        operands.rows,
        operands.codes,
        problem.first_row,
        **_constants(problem, operands),
    )
    return sums, relaxation


def _sum_up_rows(
    problem: Problem,
    operands: Operands,
    results: Results,
    upstream: Upstream,
    above: _Above,
    products: Tensor,
    block: slice,
) -> None:
    """Writes the terms of a block's rows."""
    fused, count = operands.fused, block.stop - block.start
    tuned(
        row_kernel,
        _ROW_TILES if fused else _GIVEN_TILES,
        ("L", "PADDED_V", "SAMPLED"),
        lambda tile: operands.bytes_of(tile.rows + tile.stages * tile.codes, 0) if fused else 0,
        products.device,
    )(
        lambda tile: (count // tile["BN"],),
        *operands.latents,
        problem.half_squares,
        operands.codebook.data,
        operands.columns,
        above.shared,
        problem.weights,
        above.relaxed,
        products,
        *(results.energy, results.log_energy, results.entropy, results.relaxed, results.relaxed_energy),
        *(results.peak, results.normalizer, results.relaxed_peak, results.relaxed_normalizer),
        *(upstream.energy, upstream.log_energy, upstream.entropy, upstream.log_density, upstream.relaxed_energy),
        above.terms,
        block.start,
        len(problem.latents),
        operands.rows,
        operands.codes,
        problem.values.shape[1],
        **_constants(problem, operands),
        PADDED_V=operands.values.shape[1],
    )


def _pairs(
    problem: Problem, operands: Operands, above: _Above, products: Tensor, block: slice, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D and y of a block of n rows ``(n, K')``, sums of D over codes ``(n)``, of D, dj, de e over rows ``(3, K')``."""
    fused, count, codes = operands.fused, block.stop - block.start, operands.codes
    with_values = needs.values and problem.draws
    tangents = products if fused or not problem.draws else product(above.relaxed[block], operands.values.T)
    parts, size = row_parts(count, codes, products.device)
    scaled = operands.values.new_empty(count, codes)
    relaxation = torch.empty_like(scaled) if with_values else scaled
    of_rows = above.terms.new_empty(codes // _CODES_OF_A_TILE, count)
    of_columns = above.terms.new_zeros(parts, 3, codes)
    tuned(
        pair_kernel,
        _PAIR_TILES if fused else _GIVEN_TILES,
        ("L", "PADDED_V", "FLOORED", "SAMPLED", "VALUES", "COLUMNS"),
        lambda tile: operands.bytes_of(*[tile.codes + tile.stages * tile.rows] * 2) if fused else 0,
        products.device,
    )(
        lambda tile: (codes // tile["BK"], parts),
        *operands.latents,
        operands.codebook.data,
        operands.values,
        operands.columns,
        above.shared,
        above.relaxed,
        above.terms,
        *noise_of(problem, above.shared),
        products,
        tangents,
        scaled,
        relaxation,
        of_rows,
        of_columns,
        block.start,
        count,
        size,
        operands.rows,
        codes,
        problem.first_row,
        problem.floor * LOG2E,
        **_constants(problem, operands),
        PADDED_V=operands.values.shape[1],
        FLOORED=problem.floor > 0,
        VALUES=with_values,
        COLUMNS=needs.precisions or needs.biases,
        ROUNDED_BITS=operands.units.rounded_bits,
    )
    return scaled, relaxation, of_rows.sum(0), of_columns.sum(0)
