"""A large item by the verbs: in tiles, to the codes of the whole, with no whole copy of it in floats."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gmvq
from gmvq.__main__ import main
from gmvq.models.tiles import TILE
from gmvq.tokenization import TokenFile
from gmvq.types import Signal

HEIGHT, WIDTH = 1003, 1101


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture that is a little larger than a tile, not of whole tokens."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    rows, columns = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH))
    pixels = 120 + 60 * np.sin(rows / 50) + 50 * np.cos(columns / 70 + rows / 90) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def largest(monkeypatch):
    """Samples of the items that are converted to floats, and of the parts that are decoded."""
    seen, checked, mean = [], Signal.checked, gmvq.Autoencoder.mean

    def check(self, items):
        seen.append(items.numel())
        return checked(self, items)

    def made(self, parameters):
        seen.append(parameters.numel())
        return mean(self, parameters)

    monkeypatch.setattr(Signal, "checked", check)
    monkeypatch.setattr(gmvq.Autoencoder, "mean", made)
    return seen


def result_of(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_large_picture_in_tiles_is_that_of_the_whole(trained_digits, picture, tmp_path, capsys, largest):
    model = gmvq.load(trained_digits)
    with Image.open(picture) as image:
        item = torch.from_numpy(np.array(image))[None, None]
    codes = model.encode(item, tile=None)
    whole = model.decode(codes, (HEIGHT, WIDTH), tile=None)
    largest.clear()
    found = result_of(capsys, "reconstruct", trained_digits, picture, tmp_path / "made.png")
    result_of(capsys, "tokenize", trained_digits, picture, tmp_path / "codes")
    result_of(capsys, "detokenize", trained_digits, tmp_path / "codes", tmp_path / "out")
    assert 0 < max(largest) <= TILE < item.numel()
    assert torch.equal(TokenFile(tmp_path / "codes")[0], codes[0])
    assert codes.unique().numel() > 2
    error = (whole - item / 255).double().square().mean()
    assert found["psnr"] == pytest.approx(float(-10 * error.log10()), abs=1e-4)
    assert found["files"][0]["psnr"] == found["psnr"]
    expected = (whole * 255).round()[0, 0].numpy()
    for path in ("made.png", "out/large.png"):
        with Image.open(tmp_path / path) as image:
            differing = np.abs(np.asarray(image) - expected)
        # kernels may round other shapes otherwise, and so half a step
        assert differing.max() <= 1
        assert (differing > 0).mean() < 1e-4
