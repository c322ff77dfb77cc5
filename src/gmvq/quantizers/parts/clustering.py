r"""k-means that counts distinct rows: where codebooks start.

.. math:: \min_{\mu} \sum_n w_n \min_c |z_n - \mu_c|^2

over distinct rows :math:`z_n` that occur :math:`w_n` times: a row that fills half of the data takes one code, and not
half of them. :func:`k_means` starts at rows drawn by their squared distance from the codes before them: greedy
k-means++ (Arthur and Vassilvitskii, 2007). Codebooks start from any distinct rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.kernels import code_sums, nearest_code
from gmvq.quantizers.parts.outliers import is_ordinary

ROWS_PER_CODE, FEWEST_ROWS = 8, 4096
"""Rows for each code that seeds are drawn from, and the least number of them in all."""

MOST_ROUNDS = 512
"""Rounds in which seeds are drawn: of more codes, several in a round."""

MOST_DISTANCES = 1 << 23
"""Distances that are computed for the sake of the best of several draws."""

ROUNDING = 32 * torch.finfo(torch.float32).eps
"""Distance, against the size of rows and codes, below which a row lies at a code: running means round so far."""

NEAR = 0.1
"""Distance, against that of the codes from each other, below which a row lies at a code."""

GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio: its multiples lie evenly in [0, 1), whatever their number."""

SPACED = 16
"""Number of codes that their distance from each other is taken from."""


class Clusters(NamedTuple):
    """What k-means finds.

    Attributes:
        codes: ``(K, L)``, all finite and distinct.
        counts: Number of rows of each code, ``(K,)``.
        own: Codes that have rows of their own: all, unless there are fewer distinct rows than codes, ``(K,)``.
    """

    codes: Tensor
    counts: Tensor
    own: Tensor


def k_means(rows: Tensor, codebook_size: int, iterations: int = 10) -> Tensor:
    """Codes ``(K, L)`` of :func:`clusters`.

    Example:
        >>> k_means(torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [9.0]]), 3).sort(0).values
        tensor([[0.],
                [1.],
                [9.]])
    """
    return clusters(rows, codebook_size, iterations).codes


@torch.no_grad()
def clusters(rows: Tensor, codebook_size: int, iterations: int = 10, *, spread: bool = True) -> Clusters:
    """Codes by Lloyd's algorithm, from distinct rows; a code without rows goes to one that is far.

    Rows far from all others are left out: each would get a code, which would stay there.

    Args:
        rows: Data ``(N, L)``, at least one row. With fewer distinct rows than codes, the first codes are these rows and
            the others copies of them, each shifted a little.
        codebook_size: Number of codes K.
        iterations: Rounds of assignment and averaging.
        spread: Draw the rows by squared distance, for a lower error; False draws any. A codebook starts from those: of
            codes at the rim of the first latents, fewer are of use where the encoder goes on moving.

    References:
        k-means++: The Advantages of Careful Seeding (Arthur and Vassilvitskii, 2007),
        https://doi.org/10.5555/1283383.1283494
    """
    generator = torch.Generator().manual_seed(0)  # on the CPU, so that all ranks and devices draw the same
    rows, weights = distinct_rows(rows)
    ordinary = is_ordinary(rows, rows)
    rows, weights = rows[ordinary], weights[ordinary]
    if len(rows) <= codebook_size:
        return _few(rows, weights, codebook_size, generator)
    if spread:
        seeds = _sampled_seeds(rows, weights, codebook_size, generator)
    else:
        seeds = torch.randperm(len(rows), generator=generator)[:codebook_size].to(rows.device)
    codes, counts = rows[seeds], weights
    for turn in range(2 * iterations + 1):
        assigned = nearest_code(rows, codes)
        counts, sums = code_sums(rows, assigned, weights, codebook_size)
        if turn < iterations:
            codes = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], codes)
        elif bool((counts > 0).all()):
            break
        codes = _refilled(rows, weights, codes, assigned, counts, generator)
    return Clusters(codes, counts, torch.ones_like(counts, dtype=torch.bool))


@torch.no_grad()
def spread_rows(rows: Tensor, codes: Tensor, number: int) -> Tensor:
    """Rows for codes to come, drawn by squared distance from the codes that stand.

    Args:
        rows: Data ``(N, L)``, off the codes.
        codes: Codes that stand, ``(K, L)``.
        number: How many to draw at most.

    Returns:
        Distinct rows ``(M, L)``, all but those far from all others if they are not more than ``number``.
    """
    rows, weights = distinct_rows(rows)
    ordinary = is_ordinary(rows, torch.cat([rows, codes]))
    rows, weights = rows[ordinary], weights[ordinary]
    if len(rows) <= number:
        return rows
    generator = torch.Generator().manual_seed(0)
    nearest = (rows - codes[nearest_code(rows, codes)]).square().sum(-1)
    return rows[_seeds(rows, weights, number, generator, nearest)]


@torch.no_grad()
def off_codes(rows: Tensor, own: Tensor, codes: Tensor) -> Tensor:
    """True where rows ``(N, L)`` lie so far from their codes ``(N, L)`` that another code is of use: ``(N,)``.

    That is farther than a tenth of the codes' distance from each other. So a symbol that is seen again and again calls
    for no second code where its code, or its latent, has moved a little.

    Args:
        rows: Data.
        own: The code of each row.
        codes: The codebook ``(K, L)``. What is said of it are medians: one far code says nothing of the others.
    """
    sizes = rows.square().sum(-1) + codes.square().sum(-1).median()
    near = (ROUNDING**2 * sizes).clamp_min(NEAR**2 * _squared_spacing(codes))
    return (rows - own).square().sum(-1) > near


def _squared_spacing(codes: Tensor) -> Tensor:
    """Median squared distance of codes from the next one, ``()``: of some of them, as it is taken in each step."""
    if len(codes) < 2:
        return codes.new_zeros(())
    places = torch.arange(0, len(codes), -(-len(codes) // SPACED), device=codes.device)
    distances = _squared_differences(codes[places], codes)
    own = places[:, None] == torch.arange(len(codes), device=codes.device)
    return distances.masked_fill(own, torch.inf).amin(-1).median()


@torch.no_grad()
def groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of rows that are equal but for rounding; nothing waits for the device.

    A product of matrices rounds equal rows in several ways, by their places in the batch.

    Args:
        rows: Data ``(N, L)``.

    Returns:
        The number of each row's group, below N, and True for one row of each group, both ``(N,)``.
    """
    order, new = _grouped(rows)
    numbers = torch.zeros_like(order).index_copy(0, order, new.cumsum(0) - 1)
    return numbers, torch.zeros_like(new).index_copy(0, order, new)


@torch.no_grad()
def may_repeat(rows: Tensor) -> bool:
    """False where :func:`groups` of rows ``(N, L)`` all have one row, at less cost; waits for the device."""
    line, size = _line(rows), rows.square().sum(-1).median()
    ordered, order = (rows * line).sum(-1).sort()
    # a row may lie between two that are equal but for rounding, which is left for another time
    near = (ordered[1:] - ordered[:-1] <= 2 * ROUNDING * line.norm() * size.sqrt()).nonzero()[:, 0]
    one, other = rows[order[near]], rows[order[near + 1]]
    limits = ROUNDING**2 * (torch.maximum(one.square().sum(-1), other.square().sum(-1)) + size)
    return bool(((one - other).square().sum(-1) <= limits).any())


@torch.no_grad()
def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows ``(U, L)`` in the order in which they come, and how often each occurs, ``(U,)`` floats."""
    order, new = _grouped(rows)
    first, by_place = order[new].sort()
    weights = torch.bincount(new.cumsum(0) - 1, minlength=len(first))[by_place]
    return rows[first], weights.to(rows.dtype)


def finest_type(device: torch.device) -> torch.dtype:
    """The floating-point type with the most digits that a device has: Apple's MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _line(rows: Tensor) -> Tensor:
    """A line ``(L,)`` along which no two different rows are likely to lie closer than equal ones."""
    return (torch.arange(1, rows.shape[-1] + 1, device=rows.device) * GOLDEN).frac() + 0.5


def _grouped(rows: Tensor) -> tuple[Tensor, Tensor]:
    """An order ``(N,)`` with equal rows side by side, and where others begin ``(N,)``."""
    if not len(rows):
        return torch.arange(0, device=rows.device), torch.zeros(0, dtype=torch.bool, device=rows.device)
    order = (rows.to(finest_type(rows.device)) * _line(rows)).sum(-1).argsort(stable=True)
    ordered = rows[order]
    sizes = ordered.square().sum(-1)
    differ = (ordered[1:] - ordered[:-1]).square().sum(-1) > ROUNDING**2 * (sizes[1:] + sizes.median())
    return order, torch.cat([differ.new_ones(1), differ])


def _few(rows: Tensor, weights: Tensor, codebook_size: int, generator: torch.Generator) -> Clusters:
    """All of U <= K distinct rows, and copies of them for the other codes."""
    numbers = torch.arange(codebook_size, device=rows.device)
    own = numbers < len(rows)
    shifts = torch.randn(codebook_size, rows.shape[-1], generator=generator, dtype=torch.float32).to(rows)
    codes = rows[numbers % len(rows)]
    codes = torch.where(own[:, None], codes, codes + shifts * shift_of(rows))
    return Clusters(codes, torch.cat([weights, weights.new_zeros(codebook_size - len(rows))]), own)


def shift_of(rows: Tensor) -> Tensor:
    """A hundredth of the rows' spread for each feature, above 0: ``(N, L)`` -> ``(L,)``."""
    return 1e-2 * rows.std(0, correction=0).clamp_min(1e-3 * rows.abs().mean().clamp_min(1e-3))


def _refilled(
    rows: Tensor, weights: Tensor, codes: Tensor, assigned: Tensor, counts: Tensor, generator: torch.Generator
) -> Tensor:
    """Codes ``(K, L)`` with those that no row is assigned to at rows far from theirs."""
    empty = (counts == 0).nonzero()[:, 0]
    if not len(empty):
        return codes
    nearest = (rows - codes[assigned]).square().sum(-1)
    return codes.index_copy(0, empty, rows[_seeds(rows, weights, len(empty), generator, nearest)])


def _sampled_seeds(rows: Tensor, weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Indices ``(number,)`` of rows drawn by squared distance out of a sample."""
    most = max(ROWS_PER_CODE * number, FEWEST_ROWS)
    if len(rows) <= most:
        return _seeds(rows, weights, number, generator)
    sample = torch.randperm(len(rows), generator=generator)[:most].to(rows.device)
    return sample[_seeds(rows[sample], weights[sample], number, generator)]


def _seeds(
    rows: Tensor, weights: Tensor, number: int, generator: torch.Generator, nearest: Tensor | None = None
) -> Tensor:
    """Indices ``(number,)`` of distinct rows, each drawn by its weight times its squared distance from those before.

    Args:
        rows: Distinct rows ``(N, L)``, at least ``number``.
        weights: Of each row ``(N,)``.
        number: How many.
        generator: Of the random numbers.
        nearest: Squared distances from the codes that stand ``(N,)``; without any, the first is drawn by weight alone.
    """
    trials = max(1, min(2 + int(math.log(number)), MOST_DISTANCES // (len(rows) * number)))
    each = -(-number // MOST_ROUNDS)
    left, chosen = weights.clone(), []
    while number:
        size = min(each, number)
        mass = left if nearest is None else left * nearest
        groups = _draws(mass if bool(mass.sum() > 0) else left, (trials, size), generator)
        near = _squared_differences(rows, rows[groups.flatten()]).unflatten(1, groups.shape).amin(-1)
        near = near if nearest is None else near.minimum(nearest[:, None])
        best = int((weights @ near).argmin())
        nearest, group = near[:, best], groups[best].unique()
        left[group] = 0
        chosen.append(group)
        number -= len(group)
    return torch.cat(chosen)


def _squared_differences(rows: Tensor, codes: Tensor) -> Tensor:
    """Squared distances ``(N, K)`` for few codes, exact where a product of matrices would round by the largest."""
    return torch.cdist(rows, codes, compute_mode="donot_use_mm_for_euclid_dist").square()


def _draws(mass: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Indices of rows drawn in proportion to their mass ``(N,)``, with replacement."""
    exact = finest_type(mass.device)
    cumulated = mass.to(exact).cumsum(0)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(mass.device, exact)
    # the last with mass: rounding may lead past it
    last = mass.nonzero()[-1, 0]
    return torch.searchsorted(cumulated, uniform * cumulated[-1], right=True).clamp_max(last)
