import numpy as np
import pytest
import torch
from PIL import Image

from gmvq.training import figures
from gmvq.training.figures import Curve, save_reconstructions


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_pixels():
    image = torch.rand(5, 4, 6)
    assert figures.pixels(image).shape == (4, 6, 3)
    np.testing.assert_array_equal(figures.pixels(image[:1]), (image[0] * 255).round().byte().numpy())
    assert figures.pixels(image[:2])[..., 2].max() == 0
    assert figures.pixels(image[:4]).shape == (4, 6, 4)
    assert figures.pixels(torch.full((1, 1, 1), 7.0)) == 255


def test_code_colours_follow_the_codebook():
    codebook = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3.0, 2.0, 1.0, 0.5])
    tiles = torch.sigmoid(codebook[:, :3, None, None] / 5).expand(-1, -1, 4, 4)
    colours = figures.code_colours(codebook, tiles)
    assert len(np.unique(colours, axis=0)) == 64
    # the signs of the principal axes are arbitrary, the colours are not
    np.testing.assert_array_equal(figures.code_colours(-codebook, tiles), colours)
    lightness = colours.astype(float).sum(1)
    assert np.corrcoef(lightness, tiles.sum((1, 2, 3)))[0, 1] > 0.5


@pytest.mark.parametrize("codebook", [torch.zeros(4, 3), torch.randn(1, 3), torch.randn(4, 1), torch.full((3, 2), 1e6)])
def test_code_colours_of_degenerate_codebooks(codebook):
    colours = figures.code_colours(codebook, torch.rand(len(codebook), 1, 2, 2))
    assert colours.shape == (len(codebook), 3)
    assert colours.dtype == np.uint8


def test_oklab_knows_white_black_and_gray():
    colours = figures._oklab_to_srgb(np.array([1.0, 0.0, 0.5]), np.zeros(3), np.zeros(3))
    assert colours.tolist() == [[255, 255, 255], [0, 0, 0], [99, 99, 99]]


def test_maps_cover_the_pixels_of_their_tokens():
    codes = torch.tensor([[0, 1, 2], [2, 1, 0]])
    colours = np.arange(9, dtype=np.uint8).reshape(3, 3)
    painted = figures.code_map(codes, colours, 4, (7, 10))
    assert painted.shape == (7, 10, 3)
    for row, column in np.ndindex(7, 10):
        assert (painted[row, column] == colours[codes[row // 4, column // 4]]).all()
    heat, bar = figures.heat_map(torch.tensor([[0.0, 2.0, 9.0]]), 2.0, 1, (1, 3)), figures.colour_bar()
    np.testing.assert_array_equal(heat[0], bar[0, [0, -1, -1]])
    assert figures.heat_map(torch.zeros(1, 2), 0.0, 1, (1, 2)).max() <= bar[0, 0].max()


@pytest.mark.parametrize("channels", [1, 3])
def test_tile_sheet_sorts_and_fades(channels):
    tiles = torch.tensor([0.9, 0.1, 0.5])[:, None, None, None].expand(-1, channels, 8, 8)
    sheet = figures.tile_sheet(tiles, torch.tensor([True, True, False]), columns=1)
    assert sheet.shape == (3 * 26 - 2, 24, 4)
    assert sheet[[12, 38, 64], 12, 0].tolist() == [26, 230, 128]  # dark, light, and the dead one last
    assert sheet[[12, 38, 64], 12, 3].tolist() == [255, 255, 63]
    assert sheet[24:26, :, 3].max() == 0


@pytest.mark.parametrize("counts", [[5], [3, 0, 0], [1, 1], list(range(20000))])
def test_usage_chart(counts):
    svg = figures.usage_chart(torch.tensor(counts), 'use "of" <codes>')
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
    svg = figures.curve_chart(curve, "a curve", (4.0, "four"))
    assert "four</text>" in svg
    assert "DejaVu" not in svg
    assert "<metadata" not in svg


def test_limits_leave_out_the_first_steps():
    low, high = figures._limits(np.array([1e6] + [1.0, 2.0] * 50), np.array([3.0]))
    assert 0 < low < 1
    assert 3 < high < 4


@pytest.mark.parametrize("shape", [(3, 12, 16), (1, 8, 8), (4, 120, 90)])
def test_save_reconstructions(tmp_path, shape):
    originals, reconstructions = noise(5, *shape), torch.rand(5, *shape)
    path = save_reconstructions(tmp_path / "new" / "pairs.png", originals, reconstructions, columns=3, height=128)
    sheet = np.asarray(Image.open(path))
    height = {12: 60, 8: 64, 120: 120}[shape[1]]
    width, gap = height * shape[2] // shape[1], max(2, height // 32)
    assert sheet.shape == (4 * height + 3 * gap, 3 * width + 2 * gap, 4)
    assert sheet[height : height + gap, :, 3].max() == 0
    factor = height // shape[1]
    for top, image in ((0, originals[1]), (height + gap, reconstructions[1])):
        shown = np.asarray(Image.fromarray(figures.pixels(image)).convert("RGBA"))
        cell = sheet[top : top + height, width + gap : 2 * width + gap]
        np.testing.assert_array_equal(cell[::factor, ::factor], shown)


def test_save_reconstructions_of_mixed_sizes(tmp_path):
    images = [noise(3, 300, 200), noise(3, 100, 400)]
    path = save_reconstructions(tmp_path / "pairs.png", images, images, height=100)
    with Image.open(path) as sheet:
        assert sheet.size == (67 + 3 + 400, 203)


@pytest.mark.parametrize(("originals", "reconstructions"), [([], []), ([torch.zeros(1, 2, 2)], [])])
def test_save_reconstructions_wants_pairs(tmp_path, originals, reconstructions):
    with pytest.raises(ValueError, match="must be equally many, at least one"):
        save_reconstructions(tmp_path / "pairs.png", originals, reconstructions)
