"""k-means by distinct rows."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from gmvq.quantizers.parts.clustering import clusters, distinct_rows, groups, k_means, off_codes


def error(rows, codes):
    return torch.cdist(rows, codes).min(-1).values.square().sum().item()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def repeating(distinct=301, dim=8):
    """1,000 rows, of which one fills all but the distinct others."""
    rows = torch.randn(distinct, dim, generator=generator())
    rows = torch.cat([rows, rows[:1].expand(1000 - distinct, -1)])
    return rows[torch.randperm(len(rows), generator=generator(1))]


def test_codes_are_distinct_where_most_rows_are_equal():
    rows = repeating()
    codes = k_means(rows, 64)
    assert len(codes.unique(dim=0)) == 64
    assert len(torch.cdist(rows, codes).argmin(-1).unique()) == 64
    others = rows.unique(dim=0)
    assert error(rows, codes) < 1.1 * error(rows, k_means(others, 64))


def test_k_means_on_blobs_is_as_good_as_that_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(9):
        centers = 10 * torch.randn(20, 8, generator=generator(seed))
        rows = (centers[:, None] + torch.randn(20, 60, 8, generator=generator(seed + 100))).flatten(0, 1)
        ours.append(error(rows, k_means(rows, 20)))
        theirs.append(KMeans(20, init="k-means++", n_init=1, random_state=seed).fit(rows.numpy()).inertia_)
    assert np.median(ours) < 1.05 * np.median(theirs)


@pytest.mark.parametrize("distinct", [1, 2, 9, 10])
def test_fewer_distinct_rows_than_codes_are_the_first_codes(distinct):
    points = torch.randn(distinct, 3, generator=generator())
    rows = points[torch.cat([torch.arange(distinct), torch.zeros(50, dtype=torch.long)])]
    found = clusters(rows, 10)
    assert torch.equal(found.codes[:distinct], points)
    assert found.own.tolist() == [True] * distinct + [False] * (10 - distinct)
    assert found.counts[0] == 51
    assert found.counts.sum() == len(rows)
    assert found.codes.isfinite().all()
    assert len(found.codes.unique(dim=0)) == 10
    assert torch.equal(found.codes, k_means(rows.clone(), 10))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1.0, 1e10])
def test_no_scale_makes_nan_or_equal_codes(scale):
    for rows in (scale * repeating(), scale * repeating(40), (scale * repeating()).double()):
        codes = k_means(rows, 64)
        assert codes.dtype == rows.dtype
        assert codes.isfinite().all()
        assert len(codes.unique(dim=0)) == 64


def test_codes_do_not_depend_on_the_global_generator():
    rows = torch.randn(500, 4, generator=generator())
    torch.manual_seed(1)
    first = k_means(rows, 32)
    torch.manual_seed(2)
    assert torch.equal(k_means(rows, 32), first)


def test_a_large_codebook_is_drawn_in_rounds_from_a_sample():
    rows = torch.randn(20_000, 2, generator=generator())
    codes = k_means(rows, 1500, iterations=2)
    assert len(codes.unique(dim=0)) == 1500
    drawn = rows[torch.randperm(len(rows), generator=generator())[:1500]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two rounds do not converge
        start = KMeans(1500, init=drawn.numpy(), n_init=1, max_iter=2).fit(rows.numpy())
    assert error(rows, codes) < start.inertia_


def test_distinct_rows_come_in_order_with_their_numbers():
    points = torch.tensor([[2.0, 0.0], [-0.0, 1.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    for rows in (points, points.double(), points[:, :1], points[:0]):
        distinct, numbers = distinct_rows(rows)
        expected = list(dict.fromkeys(tuple(row) for row in (rows + 0.0).tolist()))
        assert [tuple(row) for row in distinct.tolist()] == expected
        assert numbers.tolist() == [sum(tuple(row) == each for row in rows.tolist()) for each in expected]
        numbers, first = groups(rows)
        assert first.sum() == len(expected)
        assert torch.equal(numbers[:, None] == numbers, (rows[:, None] == rows).all(-1))


def test_rows_that_a_product_of_matrices_rounds_apart_are_equal():
    rows, matrix = torch.randn(30, 6, generator=generator()), torch.randn(6, 4, generator=generator(1))
    together = torch.cat([rows.repeat(n, 1) @ matrix for n in (1, 2, 3, 7)] + [row[None] @ matrix for row in rows])
    assert len(distinct_rows(together)[0]) == 30


def test_a_row_is_off_its_code_by_the_distance_of_codes_and_by_rounding():
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1e6, 0.0]])  # one far code changes nothing
    rows = torch.tensor([[0.0, 0.0], [0.05, 0.0], [0.2, 0.0]])
    assert off_codes(rows, codes[:1].expand(3, -1), codes).tolist() == [False, False, True]
    alone = torch.tensor([[100.0, 0.0]])
    rows = alone + torch.tensor([[0.0, 0.0], [1e-5, 0.0], [1e-2, 0.0]])
    assert off_codes(rows, alone.expand(3, -1), alone).tolist() == [False, False, True]
