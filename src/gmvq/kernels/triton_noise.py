r"""The noise of :mod:`gmvq.kernels.noise` in Triton: the same words bit for bit, computed where they are used.

The four words of a counter belong to columns 16 apart. These are in one thread in the layout of a matrix product, so
that each counter is hashed once, by the thread that needs all four of its words.
"""

# Triton compiles these functions from their source, in its own language: no types, constants in capitals.
# ruff: noqa: ANN001, ANN201, ANN202, N803
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = not isinstance(tl.sigmoid, triton.JITFunction)
"""True if TRITON_INTERPRET was set when this module was imported: kernels run in NumPy, on any device."""

_FAST_LOGARITHM = tl.constexpr(not INTERPRETED and torch.version.hip is None)


@triton.jit
def _multiply(word, factor: tl.constexpr):
    # one 64-bit product has both halves
    product = word.to(tl.uint64) * factor
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def random_words(seed, rows, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Words ``(ROWS, COLUMNS)`` of the rows, int64, and the columns from ``start``, both multiples of 64."""
    low_key, high_key = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    groups = tl.arange(0, COLUMNS // 64)[None, :, None, None]
    counters = start // 4 + groups * 16 + tl.arange(0, 16)[None, None, None, :]
    rows = tl.reshape(rows, (ROWS, 1, 1, 1))
    first, second, third = counters.to(tl.uint32), rows.to(tl.uint32), (rows >> 32).to(tl.uint32)
    fourth = third * 0
    # rows and columns are broadcast as late as possible, so that the first two rounds cost next to nothing
    for _ in tl.static_range(7):
        even_high, even_low = _multiply(first, 0xD2511F53)
        odd_high, odd_low = _multiply(third, 0xCD9E8D57)
        first, second, third, fourth = odd_high ^ second ^ low_key, odd_low, even_high ^ fourth ^ high_key, even_low
        low_key += 0x9E3779B9
        high_key += 0xBB67AE85
    word = tl.arange(0, 4)[None, None, :, None]
    words = tl.where(word < 2, tl.where(word == 0, first, second), tl.where(word == 2, third, fourth))
    return tl.reshape(words, (ROWS, COLUMNS))


@triton.jit
def log2(x):
    """Logarithm to base 2 of a positive normal float32, with an absolute error of 2^-22 near 0."""
    if _FAST_LOGARITHM:
        found = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        found = tl.log2(x)
    return found


@triton.jit
def gumbel_in_bits(seed, rows, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Gumbel draws ``(ROWS, COLUMNS)`` divided by the logarithm of 2: -log2(-log(u)), from :func:`random_words`."""
    words = random_words(seed, rows, start, ROWS, COLUMNS)
    # 23 bits after the point of a number in [1, 2), minus 1 and plus half a step, which is exact
    uniform = ((words >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375
    rest = 1.0 - uniform
    # large draws have u near 1, where the fast logarithm loses all digits: -log2(1 - x) from its series
    series = 0.36067376022224085 + rest * 0.28853900817779266
    series = rest * (1.4426950408889634 + rest * (0.7213475204444817 + rest * (0.48089834696298783 + rest * series)))
    return 0.5287663729448977 - log2(tl.where(rest < 0.0625, series, -log2(uniform)))


@triton.jit
def _words_kernel(seed, out, first_row, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    rows = first_row + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    words = random_words(tl.load(seed), rows, tl.program_id(1) * 64, ROWS, 64)
    places = (rows - first_row)[:, None] * COLUMNS + tl.program_id(1) * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + places, words.to(tl.int64))


def words(seed: Tensor, rows: int, columns: int, first_row: int = 0) -> Tensor:
    """Computes :func:`gmvq.kernels.noise.random_words` of ``rows`` rows from ``first_row``, for comparison.

    Args:
        seed: Seed ``()``, int64, at least 0.
        rows: Number of rows, a multiple of 16.
        columns: Number of columns, a multiple of 64.
        first_row: Index of the first row.
    """
    out = seed.new_empty(rows, columns)
    _words_kernel[(rows // 16, columns // 64)](seed, out, first_row, columns, 16)
    return out
