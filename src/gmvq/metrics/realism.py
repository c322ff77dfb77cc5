r"""Realism of drawn images: distances between their features and those of real images.

A network maps each image to a vector of F features. The metrics compare the features of drawn images with those of real
ones; they have a meaning only together with the network and the numbers of images that they were measured with.

.. math::
    \text{Fréchet} &= |m_1 - m_2|^2 + \operatorname{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big) \\
    \text{kernel} &= \mathbb{E}\, k(x, x') + \mathbb{E}\, k(y, y') - 2\, \mathbb{E}\, k(x, y), \qquad
                     k(x, y) = (x^T y / F + 1)^3

With the features of an Inception network they are called FID and KID; with other networks they must not be. The
estimate of the kernel distance has no bias, that of the Fréchet distance falls with the number of images.

**Precision** is the share of drawn images that lie within reach of a real one, **recall** that of real ones within
reach of a drawn one; the reach of an image is its distance to its k-th nearest neighbor in its own set.

All sums are in float64, over all ranks.

References:
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
    https://arxiv.org/abs/1706.08500;
    Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401;
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
    https://arxiv.org/abs/1904.06991
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.distributed import gather_rows
from gmvq.metrics.precision import in_float64

NEIGHBORS = 3
"""k of precision and recall."""

BLOCK_ROWS = 4096
"""Rows whose distances to all others are held at a time."""


class Realism(NamedTuple):
    """Metrics of drawn images against real ones.

    Attributes:
        frechet: Fréchet distance of normal distributions with their means and covariances, at least 0.
        kernel: Squared maximum mean discrepancy with a cubic kernel, around 0 for equal distributions.
        precision: Share of drawn images within reach of real ones.
        recall: Share of real images within reach of drawn ones.
        real: Number of real images.
        drawn: Number of drawn images.
    """

    frechet: float
    kernel: float
    precision: float
    recall: float
    real: int
    drawn: int


def measure_realism(real: Tensor, drawn: Tensor, neighbors: int = NEIGHBORS) -> Realism:
    """Computes all metrics of two sets of features.

    Args:
        real: Features of real images of this rank, floats ``(N, F)``.
        drawn: Features of drawn images of this rank, ``(M, F)``.
        neighbors: k of precision and recall.

    Returns:
        The metrics over all ranks, the same on each.

    Raises:
        ValueError: If features do not fit together, are not finite, or are of fewer than ``neighbors + 1`` images.

    Example:
        >>> features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> same = measure_realism(features, features)
        >>> round(same.frechet, 6), same.precision, same.recall
        (0.0, 1.0, 1.0)
    """
    real, drawn = (_all(name, rows, neighbors) for name, rows in (("real", real), ("drawn", drawn)))
    if real.shape[1] != drawn.shape[1]:
        raise ValueError(
            f"'real' and 'drawn' must have the same number of features, got {real.shape[1]} and {drawn.shape[1]}. Take "
            "both from one network."
        )
    precision, recall = precision_and_recall(real, drawn, neighbors)
    distances = frechet_distance(real, drawn), kernel_distance(real, drawn)
    return Realism(*distances, precision, recall, len(real), len(drawn))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Computes the Fréchet distance of the normal distributions with two sets' means and covariances.

    Args:
        first: Features ``(N, F)``, N at least 2.
        second: Features ``(M, F)``, M at least 2.
    """
    (mean_1, root_1), (mean_2, root_2) = (_mean_and_root(in_float64(rows)) for rows in (first, second))
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2)
    shared = torch.linalg.svdvals(root_1 @ root_2).sum()
    squares = root_1.square().sum() + root_2.square().sum()  # tr C1 + tr C2
    return float(((mean_1 - mean_2).square().sum() + squares - 2 * shared).clamp_min(0))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Estimates, without bias, the squared maximum mean discrepancy with the kernel (x y / F + 1)^3.

    Args:
        first: Features ``(N, F)``, N at least 2.
        second: Features ``(M, F)``, M at least 2.
    """
    first, second = in_float64(first), in_float64(second)
    own = [_kernel_sum(rows, rows) - _kernel(rows, rows).sum() for rows in (first, second)]
    numbers = [len(rows) * (len(rows) - 1) for rows in (first, second)]
    across = _kernel_sum(first, second) / (len(first) * len(second))
    return float(own[0] / numbers[0] + own[1] / numbers[1] - 2 * across)


def precision_and_recall(real: Tensor, drawn: Tensor, neighbors: int = NEIGHBORS) -> tuple[float, float]:
    """Computes the shares of drawn images within reach of real ones, and of real ones within reach of drawn ones.

    Args:
        real: Features ``(N, F)``, N above ``neighbors``.
        drawn: Features ``(M, F)``, M above ``neighbors``.
        neighbors: k; the distance to the k-th neighbor is the reach of an image.
    """
    real, drawn = in_float64(real), in_float64(drawn)
    return _reached(drawn, real, neighbors), _reached(real, drawn, neighbors)


def nearest_neighbors(queries: Tensor, among: Tensor) -> Tensor:
    """Returns the index of the row nearest to each query: ``(M, F)`` and ``(N, F)`` -> int64 ``(M,)``."""
    return torch.cat([torch.cdist(block, among).argmin(1) for block in queries.split(BLOCK_ROWS)])


def _mean_and_root(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Computes mean ``(F,)`` and symmetric root of the covariance (n - 1) ``(F, F)``."""
    mean = rows.mean(0)
    centered = rows - mean
    values, vectors = torch.linalg.eigh(centered.T @ centered / (len(rows) - 1))
    return mean, vectors * values.clamp_min(0).sqrt() @ vectors.T


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Computes the kernel of pairs of rows, ``(N,)``."""
    return ((first * second).sum(-1) / first.shape[1] + 1) ** 3


def _kernel_sum(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack(
        [((block @ second.T / first.shape[1] + 1) ** 3).sum() for block in first.split(BLOCK_ROWS)]
    ).sum()


def _reached(queries: Tensor, among: Tensor, neighbors: int) -> float:
    """Computes the share of the queries that lie within reach of a row of ``among``."""
    reach = torch.cat(
        [torch.cdist(block, among).kthvalue(neighbors + 1, dim=1).values for block in among.split(BLOCK_ROWS)]
    )
    hits = [(torch.cdist(block, among) <= reach).any(1) for block in queries.split(BLOCK_ROWS)]
    return float(torch.cat(hits).double().mean())


def _all(name: str, rows: Tensor, neighbors: int) -> Tensor:
    """Checks rows and returns those of all ranks in float64."""
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"'{name}' must be floats (N, F), got {rows.dtype} {tuple(rows.shape)}. Flatten the features.")
    rows = gather_rows(in_float64(rows), torch.ones(len(rows), dtype=torch.bool, device=rows.device))
    if not bool(rows.isfinite().all()):
        raise ValueError(f"'{name}' must be finite, got NaN or infinity. Check the images.")
    if len(rows) <= neighbors:
        raise ValueError(f"'{name}' must be of more than {neighbors} images, got {len(rows)}. Draw more.")
    return rows
