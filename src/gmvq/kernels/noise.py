r"""Counter-based noise: a pure function of seed, row and column, the same in every block, pass and implementation.

A backward pass draws the noise of its forward pass again, instead of storing it. Philox-4x32 returns four words of 32
bits per counter; 64 neighboring columns share 16 counters, so that the lanes of a vector have neighboring counters:

.. math::
    (x_0, x_1, x_2, x_3) = \mathrm{Philox}_{seed}(16 \lfloor c / 64 \rfloor + c \bmod 16,\ n), \qquad
    x_{nc} = x_{\lfloor (c \bmod 64) / 16 \rfloor}

Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
"""The smallest number of rounds with which Philox-4x32 passes BigCrush (Salmon et al., 2011, table 2)."""

LANES = 16
WORDS = 4

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor], rounds: int = ROUNDS) -> Tensor:
    """Computes Philox-4x32, with words of 32 bits stored in int64.

    Args:
        counter: Four words that broadcast to one shape ``(*)``.
        key: Two words.
        rounds: 10 as published, 7 for speed.

    Returns:
        Random words in [0, 2^32), ``(4, *)``, int64.
    """
    first, second, third, fourth = counter
    low_key, high_key = key
    for _ in range(rounds):
        # products of two words fill all 64 bits: the sign is wrong, the bits are right
        even, odd = first * MULTIPLIERS[0], third * MULTIPLIERS[1]
        first, second, third, fourth = (
            ((odd >> 32) & LOW) ^ second ^ low_key,
            odd & LOW,
            ((even >> 32) & LOW) ^ fourth ^ high_key,
            even & LOW,
        )
        low_key, high_key = (low_key + WEYL[0]) & LOW, (high_key + WEYL[1]) & LOW
    return torch.stack(torch.broadcast_tensors(first, second, third, fourth))


def random_words(seed: Tensor, rows: Tensor, columns: int) -> Tensor:
    """Draws a random word for each element of a matrix.

    Args:
        seed: Seed ``()``, int64, at least 0.
        rows: Indices of the rows ``(N,)``, int64, at least 0.
        columns: Number of columns K.

    Returns:
        Words in [0, 2^32), ``(N, K)``, int64.
    """
    counters = torch.arange(-(-columns // (LANES * WORDS)) * LANES, device=rows.device)
    rows = rows[:, None]
    key = (seed & LOW, (seed >> 32) & LOW)
    words = philox((counters, rows & LOW, (rows >> 32) & LOW, torch.zeros_like(rows)), key)
    # (words, N, groups x lanes) -> (N, groups, words, lanes): columns in order
    return words.unflatten(-1, (-1, LANES)).permute(1, 2, 0, 3).flatten(1)[:, :columns]


def exponential(seed: Tensor, rows: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    r"""Draws E ~ Exponential(1) for each element; :math:`-\log E` is a Gumbel draw.

    .. math:: E = -\log u, \qquad u = 2^{-23} \lfloor x / 2^9 \rfloor + 2^{-24} \in (0, 1)

    Args:
        seed: Seed ``()``, int64, at least 0.
        rows: Indices of the rows ``(N,)``, int64, at least 0.
        columns: Number of columns K.
        dtype: Type of the result; u is exact in float32 and float64.

    Returns:
        Draws above 0, ``(N, K)``.
    """
    # 23 bits and a half step, which excludes 0 and 1
    uniform = (random_words(seed, rows, columns) >> 9).to(dtype) * 2.0**-23 + 2.0**-24
    return -uniform.log()
