import itertools
import math

import pytest
import torch

from gmvq.metrics import realism as realisms
from gmvq.metrics.realism import (
    frechet_distance,
    kernel_distance,
    measure_realism,
    nearest_neighbors,
    precision_and_recall,
)


def rows(number, features, seed=0, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(number, features, generator=generator, dtype=torch.float64)


def whitened(values):
    """With a mean of 0 and a covariance of I, exactly."""
    centered = values - values.mean(0)
    covariance = centered.T @ centered / (len(values) - 1)
    return centered @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T


def test_the_frechet_distance_of_known_moments():
    white = whitened(rows(500, 4))
    scales, shift = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([0.0, 1.0, -2.0, 0.5]).double()
    # of commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2
    expected = shift.square().sum() + (1 - scales).square().sum()
    assert frechet_distance(white, white * scales + shift) == pytest.approx(expected.item(), rel=1e-9)
    # of covariances that do not commute, by the square root of their product
    mix = rows(4, 4, seed=3)
    other = whitened(rows(400, 4, seed=1)) @ mix.T
    covariance = mix @ mix.T
    values = torch.linalg.eigvalsh(covariance)
    expected = 4 + covariance.trace() - 2 * values.sqrt().sum()
    assert frechet_distance(white, other) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(other, white) == pytest.approx(expected.item(), rel=1e-6)


def test_the_kernel_distance_by_hand_and_without_bias():
    first, second = rows(5, 3), rows(4, 3, seed=1)

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    own = [
        sum(kernel(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j)
        / len(part)
        / (len(part) - 1)
        for part in (first, second)
    ]
    across = sum(kernel(x, y) for x in first for y in second) / 20
    assert kernel_distance(first, second) == pytest.approx(sum(own) - 2 * across, rel=1e-9)
    same = [kernel_distance(rows(40, 3, seed=2 * i), rows(40, 3, seed=2 * i + 1)) for i in range(200)]
    mean, spread = sum(same) / 200, torch.tensor(same).std().item() / math.sqrt(200)
    assert abs(mean) < 4 * spread
    assert kernel_distance(rows(400, 3), rows(400, 3, seed=1, shift=1.0)) > 1


def test_precision_and_recall_of_sets_that_cover_each_other_or_not():
    real = rows(300, 2)
    inside, outside = rows(300, 2, seed=1, scale=0.3), rows(300, 2, seed=2, shift=50.0)
    precision, recall = precision_and_recall(real, inside)
    assert precision > 0.95
    assert recall < 0.6
    assert precision_and_recall(real, outside) == (0.0, 0.0)
    assert precision_and_recall(real, real) == (1.0, 1.0)
    halves = torch.cat([real[:150], outside[:150]])
    assert precision_and_recall(real, halves)[0] == pytest.approx(0.5, abs=0.02)


def test_blocks_change_nothing(monkeypatch):
    real, drawn = rows(50, 3), rows(40, 3, seed=1, shift=0.2)
    whole, nearest = measure_realism(real, drawn), nearest_neighbors(drawn, real)
    monkeypatch.setattr(realisms, "BLOCK_ROWS", 7)
    assert measure_realism(real, drawn) == pytest.approx(whole)
    assert torch.equal(nearest_neighbors(drawn, real), nearest)
    assert torch.equal(nearest, torch.cdist(drawn, real).argmin(1))
    assert whole.real == 50
    assert whole.drawn == 40


def test_more_different_is_farther():
    real = rows(400, 5)
    found = [measure_realism(real, rows(400, 5, seed=1, shift=shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    for one, other in itertools.pairwise(found):
        assert one.frechet < other.frechet
        assert one.kernel < other.kernel
        assert one.precision > other.precision


@pytest.mark.parametrize(
    ("real", "drawn", "reason"),
    [
        (rows(9, 3), rows(9, 4), "must have the same number of features"),
        (rows(3, 3), rows(9, 3), "'real' must be of more than 3 images"),
        (rows(9, 3), rows(9, 3) * math.nan, "'drawn' must be finite"),
        (rows(9, 3)[0], rows(9, 3), "'real' must be floats"),
        (torch.ones(9, 3, dtype=torch.int64), rows(9, 3), "'real' must be floats"),
    ],
)
def test_what_does_not_fit_gets_a_reason(real, drawn, reason):
    with pytest.raises(ValueError, match=reason):
        measure_realism(real, drawn)
