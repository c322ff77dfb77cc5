"""``benchmarks/leaderboard/plots.py``: names of points have room."""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest

for folder in ("benchmarks", "benchmarks/leaderboard"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))

import plots  # noqa: E402


@pytest.mark.parametrize("seed", range(5))
def test_names_cover_neither_each_other_nor_points(seed):
    draw = random.Random(seed)
    crowd = [(400 + draw.gauss(0, 40), 60 + draw.gauss(0, 25)) for _ in range(22)]
    points = np.array([(min(max(x, 5), 595), min(max(y, 5), 295)) for x, y in crowd])
    sizes, bar = [(draw.uniform(30, 110), 11.0) for _ in points], np.array([[300.0, 55, 500, 57]])
    boxes = plots.place_names(points, sizes, np.array([0.0, 0, 600, 300]), bar)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], sizes)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [600, 300]).all()
    for one, other in itertools.combinations([*boxes, bar[0]], 2):
        assert not ((one[:2] < other[2:]) & (other[:2] < one[2:])).all()
    inside = (boxes[:, None, :2] < points) & (points < boxes[:, None, 2:])
    assert not inside.all(-1).any()


def test_a_line_through_a_box_is_told_from_one_that_passes_it():
    point, box = np.array([[0.0, 0.0]]), np.array([[10.0, -1, 12, 1]])
    others = np.array([[4.0, -1, 6, 1], [4, 1, 6, 2], [11, -1, 12, 1], [-6, -1, -4, 1], [np.nan] * 4])
    assert plots._crosses(point, box, others).tolist() == [True, False, False, False, False]
