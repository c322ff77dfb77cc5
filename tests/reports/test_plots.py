import io

import numpy as np
import pytest
import torch
from PIL import Image

from gmvq.reports import plots
from gmvq.reports.plots import Curve


def pixels_of(picture) -> np.ndarray:
    assert picture.kind == "png"
    return np.asarray(Image.open(io.BytesIO(picture.data)))


def test_code_colors_follow_the_codebook():
    codebook = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3.0, 2.0, 1.0, 0.5])
    colors = plots.code_colors(codebook)
    assert len(np.unique(colors, axis=0)) == 64
    first = codebook[:, 0].argsort()
    lightness = colors[first].astype(float).sum(1)
    assert abs(np.corrcoef(lightness, np.arange(64))[0, 1]) > 0.9  # the sign of a principal axis is arbitrary


@pytest.mark.parametrize("codebook", [torch.zeros(4, 3), torch.randn(1, 3), torch.randn(4, 1), torch.full((3, 2), 1e6)])
def test_code_colors_of_degenerate_codebooks(codebook):
    colors = plots.code_colors(codebook)
    assert colors.shape == (len(codebook), 3)
    assert colors.dtype == np.uint8


def test_oklab_knows_white_black_and_gray():
    colors = plots._oklab_to_srgb(np.array([1.0, 0.0, 0.5]), np.zeros(3), np.zeros(3))
    assert colors.tolist() == [[255, 255, 255], [0, 0, 0], [99, 99, 99]]


def test_a_map_paints_each_token_as_a_square():
    colors = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    picture = plots.token_map(colors, "codes")
    painted = pixels_of(picture)
    side = painted.shape[0] // 2
    assert painted.shape == (2 * side, 3 * side, 3)
    assert picture.width == 3 * side
    assert abs(picture.width - plots.MAP_WIDTH) <= 3
    for row, column in np.ndindex(*painted.shape[:2]):
        assert (painted[row, column] == colors[row // side, column // side]).all()


@pytest.mark.parametrize("length", [1, 8, 1000])
def test_a_map_of_a_sequence_runs_from_left_to_right(length):
    colors = np.arange(3 * length, dtype=np.int64).astype(np.uint8).reshape(length, 3)
    painted = pixels_of(plots.token_map(colors, "codes"))
    side = painted.shape[1] // length
    assert painted.shape[1] == side * length
    np.testing.assert_array_equal(painted[0, ::side], colors)
    assert (painted == painted[:1]).all()


def test_heat_runs_along_the_bar():
    bar = pixels_of(plots.color_bar())
    np.testing.assert_array_equal(plots.heat(torch.tensor([0.0, 2.0, 9.0]), 2.0), bar[0, [0, -1, -1]])
    assert plots.heat(torch.zeros(1, 2), 0.0).max() <= bar[0, 0].max()


@pytest.mark.parametrize("counts", [[5], [3, 0, 0], [1, 1], list(range(20000))])
def test_usage_chart(counts):
    svg = plots.usage_chart(torch.tensor(counts), 'use "of" <codes>')
    assert svg.startswith("<svg")
    assert 'aria-label="use &quot;of&quot; &lt;codes&gt;"' in svg
    assert len(svg) < 100_000


@pytest.mark.parametrize(
    "curve",
    [
        Curve([1], [0.0], [], []),
        Curve([], [], [10], [3.0]),
        Curve([1, 2], [5.0, 5.0], [2], [1e30]),
        Curve(list(range(500)), [1e6] + [1.0] * 499, [], []),
    ],
)
def test_curve_chart(curve):
    svg = plots.curve_chart(curve, "a curve", (4.0, "four"))
    assert "four</text>" in svg
    assert "DejaVu" not in svg
    assert "<metadata" not in svg


def test_limits_leave_out_the_first_steps():
    low, high = plots._limits(np.array([1e6] + [1.0, 2.0] * 50), np.array([3.0]))
    assert 0 < low < 1
    assert 3 < high < 4
