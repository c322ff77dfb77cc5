r"""Kernels of the mixture step: a sweep over the codes per tile of rows, and one over the rows per tile of codes.

The first is attention with the codebook for keys: softmaxes with a running maximum, and the relaxed sample for output.
Each lane of columns, one per thread of a row, has its own maxima and sums, because those of whole rows would have to be
passed between threads in each tile. The second computes the posterior again from the normalizers, to sum it over rows.

Exponentials and logarithms are to base 2, as the GPU computes them: energies are in bits, results in nats.

Source: the sweep with a running maximum is FlashAttention's (Dao et al., 2022), https://arxiv.org/abs/2205.14135
"""

# Triton compiles these functions from their source, in its own language: no types, constants in capitals.
# ruff: noqa: ANN001, ANN201, ANN202, N803
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import triton
import triton.language as tl

from gmvq.kernels.triton_device import (
    add_dot,
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
def _better(left, left_code, right, right_code):
    first = (left > right) | ((left == right) & (left_code < right_code))
    return tl.where(first, left, right), tl.where(first, left_code, right_code)


@triton.jit
def _best(x, top, code, start, BN: tl.constexpr, BK: tl.constexpr, FUSED: tl.constexpr):
    """Updates the maximum of each lane and its code; of ties, the lowest code."""
    if FUSED:
        highest, place = tl.max(tl.reshape(x, (BN, BK // 8, 8)), 1, return_indices=True)
        found = start + place * 8 + tl.arange(0, 8)[None, :]
        # in the layout of a matrix product a thread has two neighboring columns
        highest, found = tl.reduce((tl.reshape(highest, (BN, 4, 2)), tl.reshape(found, (BN, 4, 2))), 2, _better)
    else:
        highest, place = tl.max(tl.reshape(x, (BN, BK // 4, 4)), 2, return_indices=True)
        found = start + place + 4 * tl.arange(0, BK // 4)[None, :]
    better = highest > top
    return tl.where(better, highest, top), tl.where(better, found, code)


@triton.jit
def _winner(top, code, last):
    """The code of the best lane; of ties the lowest, and never padding."""
    return tl.min(tl.where(top == tl.max(top, 1)[:, None], tl.minimum(code, last), last), 1).to(tl.int64)


@triton.jit
def _spread(x, BN: tl.constexpr, BK: tl.constexpr, FUSED: tl.constexpr):
    """Repeats lanes ``(BN, lanes)`` over their columns ``(BN, BK)``."""
    if FUSED:
        found = tl.broadcast_to(x[:, None, :, None], (BN, BK // 8, 4, 2))
    else:
        found = tl.broadcast_to(x[:, :, None], (BN, BK // 4, 4))
    return tl.reshape(found, (BN, BK))


@triton.jit
def _save(peak, normal, peaks, normalizers, posterior, stride, finite, inside):
    """Writes a peak and its normalizer: in nats for the backward pass, and in bits, rounded alike, for the sums."""
    nats = peak * _LN2
    read = nats * _LOG2E
    # the rounding error of the peak, for which the normalizer has the digits
    normal += peak - read
    tl.store(peaks, tl.where(finite, nats, float("nan")), mask=inside)
    tl.store(normalizers, tl.where(finite, normal * _LN2, float("nan")), mask=inside)
    # these values leave padding and rows that are not finite out of all sums
    tl.store(posterior, tl.where(finite & inside, read, 1e30))
    tl.store(posterior + stride, tl.where(finite & inside, normal, 0.0))


@triton.jit
def forward_kernel(
    z, halves, half_squares, m, v, columns, prices, seed, temperature, products,
    codes, priced, drawn, energy, log_energy, entropy, log_density, relaxed, relaxed_energy,
    peaks, normalizers, relaxed_peaks, relaxed_normalizers, posterior,
    first, N, padded_rows, K, padded_codes, V, first_row, floor,
    L: tl.constexpr, PADDED_V: tl.constexpr, FLOORED: tl.constexpr, SAMPLED: tl.constexpr, FUSED: tl.constexpr,
    PRECISION: tl.constexpr, ROUNDED_BITS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes all results of a tile of rows except ``aggregated``, and normalizers for the posterior ``(4, N')``."""
    row = tl.program_id(0) * BN
    rows = tl.cast(first + row, tl.int64) + tl.arange(0, BN)
    half = tl.load(halves + rows)
    if FUSED:
        z_tile = rows_of(z, first + row, BN, L)
    zero = tl.zeros((BN, 4 if FUSED else BK // 4), tl.float32)
    top, code, price_top, price_code = zero - 1e38, zero.to(tl.int32), zero - 1e38, zero.to(tl.int32)
    total, sum_e, sum_l, sum_d = zero, zero, zero, zero
    if SAMPLED:
        draw_top, draw_code = zero - 1e38, zero.to(tl.int32)
        mass, mass_e, high = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32), tl.full((BN,), -1e38, tl.float32)
        key, rate = tl.load(seed), 1.0 / tl.load(temperature).to(tl.float32)
        if FUSED:
            mix = tl.zeros((BN, PADDED_V), tl.float32)
    for start in tl.range(0, padded_codes, BK):
        column = columns + start + tl.arange(0, BK)
        p, norms, b = tl.load(column), tl.load(column + padded_codes), tl.load(column + 2 * padded_codes)
        if FUSED:
            found = dot(z_tile, tl.trans(rows_of(m, start, BK, L)), PRECISION)
        else:
            found = tl.load(pairs_of(products, row, start, padded_codes, BN, BK))
        e = tl.maximum(raw_energies(found, half, p, norms), 0.0)
        j = b[None, :] - e
        price = tl.load(prices + start + tl.arange(0, BK))
        price_top, price_code = _best(j - price[None, :], price_top, price_code, start, BN, BK, FUSED)
        new, code = _best(j, top, code, start, BN, BK, FUSED)
        # sums so far are relative to the running maximum, which may have changed
        fade = tl.exp2(top - new)
        d = j - _spread(new, BN, BK, FUSED)
        w = tl.exp2(d)
        sum_d = fade * (sum_d + (top - new) * total) + sum_in_lanes(w * d, BN, BK, FUSED)
        sum_e = fade * sum_e + sum_in_lanes(w * e, BN, BK, FUSED)
        total = fade * total + sum_in_lanes(w, BN, BK, FUSED)
        if FLOORED:
            sum_l = fade * sum_l + sum_in_lanes(w * log2(tl.maximum(e, floor) * _LN2), BN, BK, FUSED)
        top = new
        if SAMPLED:
            h = j + gumbel_in_bits(key, first_row + rows, start, BN, BK)
            draw_top, draw_code = _best(h, draw_top, draw_code, start, BN, BK, FUSED)
            peak = tl.maximum(high, tl.max(h, 1))
            fade_row = tl.exp2((high - peak) * rate)
            y = tl.exp2(h * rate - (peak * rate)[:, None])
            if FUSED:
                weight = rounded(y, ROUNDED_BITS).to(v.dtype.element_ty)
                mix = add_dot(weight, rows_of(v, start, BK, PADDED_V), mix * fade_row[:, None], PRECISION)
            mass = fade_row * mass + tl.sum(y, 1)
            mass_e = fade_row * mass_e + tl.sum(y * e, 1)
            high = peak
    inside = rows < N
    # false for NaN, too
    finite = tl.load(half_squares + rows, mask=inside, other=0.0) < float("inf")
    best = tl.max(top, 1)
    fade = tl.exp2(top - best[:, None])
    whole = tl.sum(total * fade, 1)
    surprise = tl.sum(fade * (sum_d + (top - best[:, None]) * total), 1) / whole
    tl.store(codes + rows, tl.where(finite, _winner(top, code, K - 1), 0), mask=inside)
    tl.store(priced + rows, tl.where(finite, _winner(price_top, price_code, K - 1), 0), mask=inside)
    tl.store(energy + rows, tl.where(finite, tl.sum(sum_e * fade, 1) / whole * _LN2, float("nan")), mask=inside)
    logarithms = tl.zeros((BN,), tl.float32)
    if FLOORED:
        logarithms = tl.sum(sum_l * fade, 1) / whole * _LN2
    tl.store(log_energy + rows, tl.where(finite, logarithms, float("nan")), mask=inside)
    normal = tl.log2(whole)
    tl.store(entropy + rows, tl.where(finite, (normal - surprise) * _LN2, float("nan")), mask=inside)
    tl.store(log_density + rows, tl.where(finite, (best + normal) * _LN2, float("nan")), mask=inside)
    _save(best, normal, peaks + rows, normalizers + rows, posterior + rows, padded_rows, finite, inside)
    if SAMPLED:
        tl.store(drawn + rows, tl.where(finite, _winner(draw_top, draw_code, K - 1), 0), mask=inside)
        tl.store(relaxed_energy + rows, tl.where(finite, mass_e / mass * _LN2, float("nan")), mask=inside)
        places = posterior + 2 * tl.cast(padded_rows, tl.int64) + rows
        normalizer = relaxed_normalizers + rows
        _save(high * rate, tl.log2(mass), relaxed_peaks + rows, normalizer, places, padded_rows, finite, inside)
        if FUSED:
            features = tl.arange(0, PADDED_V)
            mix = tl.where(finite[:, None], mix / mass[:, None], float("nan"))
            place = relaxed + rows[:, None] * V + features[None, :]
            tl.store(place, mix, mask=inside[:, None] & (features < V)[None, :])


@triton.jit
def posterior_kernel(
    z, halves, m, columns, posterior, weights, seed, temperature, products, relaxation, sums,
    first, count, size, padded_rows, padded_codes, first_row,
    L: tl.constexpr, SAMPLED: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes weighted sums of q over each part of the rows ``(parts, K')``; y ``(count, K')`` if products are given."""
    start, part = tl.program_id(0) * BK, tl.program_id(1)
    column = columns + start + tl.arange(0, BK)
    p, norms, b = tl.load(column), tl.load(column + padded_codes), tl.load(column + 2 * padded_codes)
    if FUSED:
        m_tile = rows_of(m, start, BK, L)
    if SAMPLED and not FUSED:
        key, rate = tl.load(seed), 1.0 / tl.load(temperature).to(tl.float32)
    total = tl.zeros((BN // 16, 8, BK), tl.float32)
    stride = tl.cast(padded_rows, tl.int64)
    for row in tl.range(part * size, min(part * size + size, count), BN):
        rows = tl.cast(first + row, tl.int64) + tl.arange(0, BN)
        if FUSED:
            found = dot(rows_of(z, first + row, BN, L), tl.trans(m_tile), PRECISION)
        else:
            found = tl.load(pairs_of(products, row, start, padded_codes, BN, BK))
        j = b[None, :] - tl.maximum(raw_energies(found, tl.load(halves + rows), p, norms), 0.0)
        place = posterior + rows
        weight = tl.load(weights + rows) * tl.exp2(-tl.load(place + stride))
        total += sum_in_rows(tl.exp2(j - tl.load(place)[:, None]) * weight[:, None], BN, BK)
        if SAMPLED and not FUSED:
            h = (j + gumbel_in_bits(key, first_row + rows, start, BN, BK)) * rate
            y = tl.exp2(h - tl.load(place + 2 * stride)[:, None] - tl.load(place + 3 * stride)[:, None])
            tl.store(pairs_of(relaxation, row, start, padded_codes, BN, BK), y)
    tl.store(sums + part * padded_codes + start + tl.arange(0, BK), tl.sum(tl.sum(total, 0), 0))
