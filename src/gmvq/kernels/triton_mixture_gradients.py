"""Kernels of the backward pass of the mixture step, which compute posteriors and noise again.

One computes the terms of each row that gradients need, with a sweep over the codes for the gradient of the aggregate.
The other writes D, the gradient of the energies times the precisions, and y for a block of rows.
"""

# Triton compiles these functions from their source, in its own language: no types, constants in capitals.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import triton
import triton.language as tl

from gmvq.kernels.triton_device import (
    at_most_0,
    dot,
    pairs_of,
    raw_energies,
    rounded,
    rows_of,
    sum_in_lanes,
    sum_in_rows,
)
from gmvq.kernels.triton_noise import gumbel_in_bits, log2

_LN2, _LOG2E = tl.constexpr(math.log(2)), tl.constexpr(math.log2(math.e))


@triton.jit
def row_kernel(
    z, halves, half_squares, m, columns, shared, weights, g, products,
    energy, log_energy, entropy, relaxed, relaxed_energy, peaks, normalizers, relaxed_peaks, relaxed_normalizers,
    g_energy, g_log_energy, g_entropy, g_log_density, g_relaxed_energy, terms,
    first, N, padded_rows, padded_codes, V,
    L: tl.constexpr, PADDED_V: tl.constexpr, SAMPLED: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes the terms of each row that gradients need, ``(13, N')``, as :func:`_gradients` lists them."""
    row = tl.program_id(0) * BN
    rows = tl.cast(first + row, tl.int64) + tl.arange(0, BN)
    # the contents of rows of padding and of rows that are not finite are not read
    good = tl.load(half_squares + rows, mask=rows < N, other=float("inf")) < float("inf")
    peak = tl.load(peaks + rows, mask=good, other=1e30) * _LOG2E
    normal = tl.load(normalizers + rows, mask=good, other=0.0) * _LOG2E
    half, stride = tl.load(halves + rows), tl.cast(padded_rows, tl.int64)
    if FUSED:
        z_tile = rows_of(z, first + row, BN, L)
    expected = tl.zeros((BN, 4 if FUSED else BK // 4), tl.float32)
    for start in tl.range(0, padded_codes, BK):
        column = columns + start + tl.arange(0, BK)
        p, norms, b = tl.load(column), tl.load(column + padded_codes), tl.load(column + 2 * padded_codes)
        if FUSED:
            found = dot(z_tile, tl.trans(rows_of(m, start, BK, L)), PRECISION)
        else:
            found = tl.load(pairs_of(products, row, start, padded_codes, BN, BK))
        e = tl.maximum(raw_energies(found, half, p, norms), 0.0)
        q = tl.exp2(at_most_0(b[None, :] - e - peak[:, None]))
        expected += sum_in_lanes(q * tl.load(shared + start + tl.arange(0, BK))[None, :], BN, BK, FUSED)
    gl, gh = tl.load(g_log_energy + rows, mask=good, other=0.0), tl.load(g_entropy + rows, mask=good, other=0.0)
    r, rest = tl.load(weights + rows, mask=good, other=0.0), tl.load(g_log_density + rows, mask=good, other=0.0)
    rest -= r * tl.sum(expected, 1) * tl.exp2(-normal) + gh * tl.load(entropy + rows, mask=good, other=0.0)
    rest -= gl * tl.load(log_energy + rows, mask=good, other=0.0)
    tl.store(terms + rows, peak)
    tl.store(terms + stride + rows, normal)
    tl.store(terms + 2 * stride + rows, tl.load(g_energy + rows, mask=good, other=0.0))
    tl.store(terms + 3 * stride + rows, tl.load(energy + rows, mask=good, other=0.0))
    tl.store(terms + 4 * stride + rows, gl)
    tl.store(terms + 5 * stride + rows, gh)
    tl.store(terms + 6 * stride + rows, r)
    tl.store(terms + 7 * stride + rows, rest)
    if SAMPLED:
        WIDTH: tl.constexpr = min(PADDED_V, 256)
        mix = tl.zeros((BN, WIDTH), tl.float32)
        for start in tl.static_range(0, PADDED_V, WIDTH):
            features = start + tl.arange(0, WIDTH)
            inside = good[:, None] & (features < V)[None, :]
            part = tl.load(relaxed + rows[:, None] * V + features[None, :], mask=inside, other=0.0)
            mix += part * tl.load(g + rows[:, None] * PADDED_V + features[None, :]).to(tl.float32)
        tl.store(terms + 8 * stride + rows, tl.load(relaxed_peaks + rows, mask=good, other=1e30) * _LOG2E)
        tl.store(terms + 9 * stride + rows, tl.load(relaxed_normalizers + rows, mask=good, other=0.0) * _LOG2E)
        tl.store(terms + 10 * stride + rows, tl.load(g_relaxed_energy + rows, mask=good, other=0.0))
        tl.store(terms + 11 * stride + rows, tl.load(relaxed_energy + rows, mask=good, other=0.0))
        tl.store(terms + 12 * stride + rows, tl.sum(mix, 1))


@triton.jit
def _gradients(
    raw, b, a, t, noise, terms, stride, rate, floor, FLOORED: tl.constexpr, SAMPLED: tl.constexpr
):  # fmt: skip
    """Gradients of energies and log joints of a tile in nats, the relaxation, and the energies in bits.

    ``terms`` points at the terms of the tile's rows, ``stride`` elements apart: peak and normalizer of q; gradient and
    value of the energy; gradients of log-energy and entropy; weight; a constant; peak and normalizer of y; gradient and
    value of the relaxed energy; mean of the gradients t. Energies are centered before they are multiplied: they may be
    large, and their differences small.
    """
    ge, energy = tl.load(terms + 2 * stride)[:, None], tl.load(terms + 3 * stride)[:, None]
    gh, r, rest = tl.load(terms + 5 * stride), tl.load(terms + 6 * stride), tl.load(terms + 7 * stride)
    e = tl.maximum(raw, 0.0)
    j = b[None, :] - e
    d = at_most_0(j - tl.load(terms)[:, None] - tl.load(terms + stride)[:, None])
    q = tl.exp2(d)
    u = ge * (e * _LN2 - energy) + (r[:, None] * a[None, :] + rest[:, None]) - (gh * _LN2)[:, None] * d
    slope = ge
    if FLOORED:
        gl = tl.load(terms + 4 * stride)[:, None]
        nats = tl.maximum(e, floor) * _LN2
        u += gl * (log2(nats) * _LN2)
        slope += tl.where(e > floor, gl / nats, 0.0)
    dj = q * u
    de = q * slope
    y = q
    if SAMPLED:
        high, normal = tl.load(terms + 8 * stride)[:, None], tl.load(terms + 9 * stride)[:, None]
        gy, energy = tl.load(terms + 10 * stride)[:, None], tl.load(terms + 11 * stride)[:, None]
        y = tl.exp2(at_most_0((j + noise) * rate - high - normal))
        dj += y * (gy * (e * _LN2 - energy) + (t - tl.load(terms + 12 * stride)[:, None])) * rate
        de += y * gy
    return tl.where(raw > 0.0, de - dj, 0.0), dj, y, e


@triton.jit
def pair_kernel(
    z, halves, m, v, columns, shared, g, terms, seed, temperature, products, tangents,
    scaled, relaxation, of_rows, of_columns,
    first, count, size, padded_rows, padded_codes, first_row, floor,
    L: tl.constexpr, PADDED_V: tl.constexpr, FLOORED: tl.constexpr, SAMPLED: tl.constexpr, FUSED: tl.constexpr,
    VALUES: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, ROUNDED_BITS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes D and y ``(count, K')`` of the rows from ``first``, and their sums.

    The sums are those of D over each tile of codes ``(K' / BK, count)``, and those of D, dj and de e over each part of
    the rows ``(parts, 3, K')``.
    """
    start, part = tl.program_id(0) * BK, tl.program_id(1)
    codes = start + tl.arange(0, BK)
    p, norms, a = tl.load(columns + codes), tl.load(columns + padded_codes + codes), tl.load(shared + codes)
    b = tl.load(columns + 2 * padded_codes + codes)
    if FUSED:
        m_tile = rows_of(m, start, BK, L)
    rate = 1.0
    if SAMPLED:
        key, rate = tl.load(seed), 1.0 / tl.load(temperature).to(tl.float32)
        if FUSED:
            v_tile = rows_of(v, start, BK, PADDED_V)
    sum_d = tl.zeros((BN // 16, 8, BK), tl.float32)
    sum_j, sum_e = sum_d, sum_d
    stride = tl.cast(padded_rows, tl.int64)
    for row in tl.range(part * size, min(part * size + size, count), BN):
        rows = tl.cast(first + row, tl.int64) + tl.arange(0, BN)
        if FUSED:
            found = dot(rows_of(z, first + row, BN, L), tl.trans(m_tile), PRECISION)
        else:
            found = tl.load(pairs_of(products, row, start, padded_codes, BN, BK))
        if SAMPLED:
            if FUSED:
                t = dot(rows_of(g, first + row, BN, PADDED_V), tl.trans(v_tile), PRECISION)
            else:
                t = tl.load(pairs_of(tangents, row, start, padded_codes, BN, BK))
            noise = gumbel_in_bits(key, first_row + rows, start, BN, BK)
        else:
            t, noise = 0.0, 0.0
        raw = raw_energies(found, tl.load(halves + rows), p, norms)
        de, dj, y, e = _gradients(raw, b, a, t, noise, terms + rows, stride, rate, floor, FLOORED, SAMPLED)
        # rounded before it is summed, since gradients are small differences of products and sums
        d = rounded(de * p[None, :], ROUNDED_BITS)
        tl.store(pairs_of(scaled, row, start, padded_codes, BN, BK), d.to(scaled.dtype.element_ty))
        if VALUES:
            y = rounded(y, ROUNDED_BITS).to(relaxation.dtype.element_ty)
            tl.store(pairs_of(relaxation, row, start, padded_codes, BN, BK), y)
        tl.store(of_rows + tl.program_id(0) * count + row + tl.arange(0, BN), tl.sum(d, 1))
        sum_d += sum_in_rows(d, BN, BK)
        if COLUMNS:
            sum_j += sum_in_rows(dj, BN, BK)
            sum_e += sum_in_rows(de * e, BN, BK)
    place = of_columns + part * 3 * padded_codes + codes
    tl.store(place, tl.sum(tl.sum(sum_d, 0), 0))
    if COLUMNS:
        tl.store(place + padded_codes, tl.sum(tl.sum(sum_j, 0), 0))
        tl.store(place + 2 * padded_codes, tl.sum(tl.sum(sum_e, 0), 0))
