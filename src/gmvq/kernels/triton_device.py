"""Functions for Triton kernels: loads, products, rounding and sums of tiles; and the kernel that makes operands."""

# Triton compiles these functions from their source, in its own language: no types, constants in capitals.
# ruff: noqa: ANN001, ANN201, N803
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from gmvq.kernels.triton_noise import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(left, right, PRECISION: tl.constexpr):
    """Multiplies matrices in float32."""
    if _INTERPRETED:
        # NumPy has no bfloat16: the interpreter would multiply the bits
        found = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision=PRECISION)
    else:
        found = tl.dot(left, right, input_precision=PRECISION)
    return found


@triton.jit
def add_dot(left, right, total, PRECISION: tl.constexpr):
    """Multiplies matrices in float32, and adds the product to ``total``."""
    if _INTERPRETED:
        found = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)
    else:
        found = tl.dot(left, right, total, input_precision=PRECISION)
    return found


@triton.jit
def rounded(x, BITS: tl.constexpr):
    """Rounds off the last ``BITS`` bits of float32, ties away from 0; the type remains float32.

    Matrix units would truncate to tf32; and a value that is rounded here is the same in products and in sums.
    """
    if BITS > 0:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + (1 << (BITS - 1))) & -(1 << BITS)).to(tl.float32, bitcast=True)
    return x


@triton.jit
def rows_of(data, start, COUNT: tl.constexpr, FEATURES: tl.constexpr):
    """Loads the rows from ``start``, ``(COUNT, FEATURES)``, without a mask, since all operands are padded."""
    places = tl.arange(0, COUNT)[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
    return tl.load(data + tl.cast(start, tl.int64) * FEATURES + places)


@triton.jit
def pairs_of(data, row, start, codes, BN: tl.constexpr, BK: tl.constexpr):
    """Pointers to a tile ``(BN, BK)`` of a block ``(rows, codes)``."""
    row = tl.cast(row, tl.int64) + tl.arange(0, BN)
    return data + row[:, None] * codes + start + tl.arange(0, BK)[None, :]


@triton.jit
def raw_energies(products, halves, p, norms):
    """Energies p |z - mu|^2 / 2 of a tile, in bits; rounding may make them negative."""
    return halves[:, None] * p[None, :] + norms[None, :] - products * p[None, :]


@triton.jit
def at_most_0(x):
    """The logarithms of probabilities: large energies, computed again, are rounded otherwise than the first time."""
    return tl.where(x > 0.0, 0.0, x)


@triton.jit
def sum_in_lanes(x, BN: tl.constexpr, BK: tl.constexpr, FUSED: tl.constexpr):
    """Sums ``(BN, lanes)`` of the columns of one thread, in the layout of a matrix product or of a load."""
    if FUSED:
        found = tl.sum(tl.reshape(tl.sum(tl.reshape(x, (BN, BK // 8, 8)), 1), (BN, 4, 2)), 2)
    else:
        found = tl.sum(tl.reshape(x, (BN, BK // 4, 4)), 2)
    return found


@triton.jit
def sum_in_rows(x, BN: tl.constexpr, BK: tl.constexpr):
    """Sums ``(BN / 16, 8, BK)`` of the rows of one thread, in the layout of a matrix product."""
    return tl.sum(tl.reshape(x, (BN // 16, 2, 8, BK)), 1)


@triton.jit
def operand_kernel(
    source, out, halves, N, L,
    BITS: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rounds rows ``(N, L)``, pads them with zeros and halves their squared norms."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in tl.static_range(0, PADDED, WIDTH):
        features = first + tl.arange(0, WIDTH)
        inside = (rows < N)[:, None] & (features < L)[None, :]
        x = tl.load(source + rows[:, None] * L + features[None, :], mask=inside, other=0.0)
        x = rounded(x.to(tl.float32), BITS)
        tl.store(out + rows[:, None] * PADDED + features[None, :], x.to(out.dtype.element_ty))
        squares += x * x
    tl.store(halves + rows, tl.sum(squares, 1) / 2)
