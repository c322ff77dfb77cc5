r"""Nearest code and sums by code in Triton, in memory O(N + K L).

A tile of rows stays in the memory of the matrix units while the codes stream past. Selecting the best of K scores of
each row costs the other units more than half of the time of the product if every comparison moves the winner's index,
too. So codes compete in groups of four neighbors: the loop keeps the best group of each lane, with one maximum per
score and one comparison per group, and the winner of the group is found at the end, from four scores of each row in
float32. Codes are loaded so that the four are in one thread, and lanes keep their order, so that ties still go to the
lowest index.

Sums are deterministic: rows are sorted by code, then one program sums each part of a code's rows, and parts are added
in a fixed order. Atomic sums need no sort, but would give other bits in each run, and other codes with moving averages.
"""

# Triton compiles these functions from their source, in its own language: no types, constants in capitals.
# ruff: noqa: ANN001, ANN202, N803, N806
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmvq.kernels.triton_device import add_dot, dot
from gmvq.kernels.triton_tiles import (
    CODES,
    MAX_FEATURES,
    Tile,
    launch,
    matrix_units,
    operand,
    padded,
    padded_features,
    tuned,
)

_GROUP = tl.constexpr(4)

_TILES = (Tile(128, 128, 8, 2), Tile(256, 64, 8, 3), Tile(128, 64, 8, 1), Tile(128, 256, 8, 2), Tile(128, 64, 4, 3))
_EXACT_TILES = (Tile(64, 64, 4, 2), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2))
_EXACT_FEATURES = 32
"""Features at a time in exact float32: without matrix units, a thread holds its operands in registers."""
_PROGRAMS = 4096

ROWS_OF_A_PART = 1024
"""Least mean number of rows that one program sums if a codebook is too small to keep a GPU busy."""


@triton.jit
def _add_part(places, inside, features, tile, part, scores, PRECISION: tl.constexpr):
    """Adds the products of some features."""
    z = tl.load(places + part, mask=inside & (part < features), other=0.0).to(tile.dtype.element_ty)
    return add_dot(z, tl.trans(tl.load(tile + part)), scores, PRECISION)


@triton.jit
def _nearest_kernel(
    latents, codes, offsets, found, N, features, padded_codes, last,
    L: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    LANES: tl.constexpr = BK // _GROUP
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside, places = (rows < N)[:, None], latents + rows[:, None] * features
    width = tl.arange(0, WIDTH)[None, :]
    z = tl.load(places + width, mask=inside & (width < features), other=0.0).to(codes.dtype.element_ty)
    # column i of lane l is code 4 l + i: a maximum over i stays in one thread, and lanes are in the order of codes
    columns = tl.arange(0, BK) % LANES * _GROUP + tl.arange(0, BK) // LANES
    best = tl.full((BN, LANES), -float("inf"), tl.float32)
    group = tl.zeros((BN, LANES), tl.int32)
    for start in tl.range(0, padded_codes, BK):
        tile = codes + tl.cast(start, tl.int64) * L + columns[:, None] * L
        scores = dot(z, tl.trans(tl.load(tile + width)), PRECISION)
        if EXACT:
            for first in tl.range(WIDTH, L, WIDTH):
                scores = _add_part(places, inside, features, tile, first + width, scores, PRECISION)
        else:
            for first in tl.static_range(WIDTH, L, WIDTH):
                scores = _add_part(places, inside, features, tile, first + width, scores, PRECISION)
        scores += tl.load(offsets + start + columns)[None, :]
        top = tl.max(tl.reshape(scores, (BN, _GROUP, LANES)), 1)
        better = top > best
        best, group = tl.where(better, top, best), tl.where(better, start // _GROUP, group)
    highest = tl.max(best, 1)[:, None]
    group = tl.min(tl.where(best == highest, group + tl.arange(0, LANES)[None, :], 2147483647), 1)
    _choose(places, inside, codes, offsets, found + rows, group, features, last, L, WIDTH, BN)


@triton.jit
def _choose(
    places, inside, codes, offsets, found, group, features, last,
    L: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Selects the best code of each row's group; code 0 for a row that is not finite."""
    PART: tl.constexpr = 64 if WIDTH > 64 else WIDTH
    best, code = tl.full((BN,), -float("inf"), tl.float32), tl.zeros((BN,), tl.int32)
    extent = tl.zeros((BN,), tl.float32)
    for member in tl.range(0, _GROUP):
        candidate = group * _GROUP + member
        score = tl.load(offsets + candidate)
        for first in tl.range(0, L, PART):
            part = first + tl.arange(0, PART)[None, :]
            z = tl.load(places + part, mask=inside & (part < features), other=0.0).to(tl.float32)
            extent = tl.maximum(extent, tl.max(tl.where(z - z == 0.0, 0.0, 1.0), 1))
            m = tl.load(codes + candidate[:, None].to(tl.int64) * L + part)
            score += tl.sum(z.to(m.dtype).to(tl.float32) * m.to(tl.float32), 1)
        better = score > best
        best, code = tl.where(better, score, best), tl.where(better, candidate, code)
    code = tl.where(extent > 0.0, 0, tl.minimum(code, last))
    tl.store(found, code.to(tl.int64), mask=tl.reshape(inside, (BN,)))


def nearest_code(latents: Tensor, codes: Tensor, offsets: Tensor) -> Tensor:
    """Code of the highest score z . m + offset; of ties the lowest, and code 0 for a row that is not finite.

    Args:
        latents: Rows ``(N, L)``, float32, bfloat16 or float16. Products of float32 follow
            ``torch.get_float32_matmul_precision()``: exact for "highest", tf32 for "high", bfloat16 for "medium".
        codes: Codes ``(K, L)``, of the same type.
        offsets: Offset of the scores of each code ``(K,)``.

    Returns:
        Indices ``(N,)``, int64.
    """
    units = matrix_units(latents.dtype)
    (rows, features), found = latents.shape, latents.new_empty(len(latents), dtype=torch.int64)
    if rows == 0:
        return found
    table = operand(codes, CODES, units).data
    width = min(table.shape[1], _EXACT_FEATURES if units.exact else MAX_FEATURES)
    tuned(
        _nearest_kernel,
        _EXACT_TILES if units.exact else _TILES,
        ("L",),
        lambda tile: (tile.rows + tile.stages * tile.codes) * width * table.element_size(),
        latents.device,
    )(
        lambda tile: (triton.cdiv(rows, tile["BN"]),),
        latents.contiguous(),
        table,
        padded(offsets, len(table), float("-inf")),
        found,
        rows,
        features,
        len(table),
        len(codes) - 1,
        L=table.shape[1],
        WIDTH=width,
        EXACT=units.exact,
        PRECISION=units.precision,
    )
    return found


@triton.jit
def _sums_kernel(
    latents, weights, order, bounds, counts, sums, features, codebook_size,
    SINGLE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    code, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, stop = tl.load(bounds + code), tl.load(bounds + code + 1)
    size = tl.cdiv(stop - first, parts)
    stop = tl.minimum(stop, first + size * (part + 1))
    first += size * part
    feature = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    kind: tl.constexpr = tl.float32 if SINGLE else tl.float64
    total, count = tl.zeros((ROWS, WIDTH), kind), tl.zeros((ROWS,), kind)
    for start in range(first, stop, ROWS):
        place = start + tl.arange(0, ROWS)
        row = tl.load(order + place, mask=place < stop, other=0)
        weight = tl.load(weights + row, mask=place < stop, other=0.0).to(kind)
        inside = (weight > 0.0)[:, None] & (feature < features)[None, :]
        x = tl.load(latents + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
        total += x.to(kind) * weight[:, None]
        count += weight
    place = part.to(tl.int64) * codebook_size + code
    tl.store(sums + place * features + feature, tl.sum(total, 0), mask=feature < features)
    if tl.program_id(2) == 0:
        tl.store(counts + place, tl.sum(count, 0))


def code_sums(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Computes :func:`gmvq.kernels.code_sums`, with the same bits in each run; sums 16-bit latents in float32.

    Args:
        latents: Rows ``(N, L)``.
        codes: Code of each row ``(N,)``, below K; -1 is allowed in rows of weight 0.
        weights: Weight of each row ``(N,)``, at least 0, or booleans.
        codebook_size: Number of codes K.
    """
    exact = torch.promote_types(latents.dtype, torch.float32)
    sorted_codes, order = codes.to(torch.int32).sort(stable=True)
    bounds = torch.searchsorted(sorted_codes, torch.arange(codebook_size + 1, device=codes.device, dtype=torch.int32))
    # in a small codebook, codes have many rows, which are split over programs; without waiting for their number
    parts = max(1, min(_PROGRAMS // codebook_size, len(latents) // ROWS_OF_A_PART, 32))
    features = latents.shape[1]
    width = min(padded_features(features), MAX_FEATURES)
    counts = latents.new_empty(parts, codebook_size, dtype=exact)
    sums = latents.new_empty(parts, codebook_size, features, dtype=exact)
    grid = (codebook_size, parts, triton.cdiv(features, width))
    inputs = (latents.contiguous(), weights.to(exact).contiguous(), order, bounds)
    constants = (exact == torch.float32, 16, width)
    launch(_sums_kernel, grid, latents.device)(*inputs, counts, sums, features, codebook_size, *constants)
    return counts.sum(0).to(latents.dtype), sums.sum(0).to(latents.dtype)
