"""``benchmarks/modelling.py`` and ``benchmarks/sharpening.py``, small."""

import json
import sys
from pathlib import Path

import pytest
import torch

from gmvq.data import ArrayItems
from gmvq.modalities import Data, Image
from gmvq.modalities.image import read_image
from gmvq.stages.prior import PriorStage
from gmvq.stages.tokenizer import TokenizerStage

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import drawing
import modelling
import sharpening


def test_priors_over_several_tokenizers_are_compared(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 3
    sides = ArrayItems(images[:48], 2, labels[:48]), ArrayItems(images[48:], 2, labels[48:])
    data = Data("noise", *sides, Image(channels=1))
    monkeypatch.setattr(modelling, "load_data", lambda config: data)
    out = tmp_path / "modelling.json"
    small = ["--steps", "2", "--prior-steps", "3", "--width", "16", "--depth", "1", "--runs", str(tmp_path / "runs")]
    words = ["--data", str(tmp_path), "--tokenizers", "finite-scalar", "residual", *small, "--out", str(out)]
    modelling.main(words)
    written = json.loads(out.read_text())
    assert [(row["tokenizer"], row["levels"]) for row in written["rows"]] == [("finite-scalar", 1), ("residual", 2)]
    for row in written["rows"]:
        assert 0 < row["frequencies_bits_per_token"] < 14
        assert row["bits_per_dim"] > row["bits_per_token"] * 49 / 784
    capsys.readouterr()
    with monkeypatch.context() as patch:
        for stage in (TokenizerStage, PriorStage):
            patch.setattr(stage, "learn", None)  # nothing is trained again
        modelling.main(words)
    assert json.loads(out.read_text())["rows"] == written["rows"]
    assert "residual: " in capsys.readouterr().out
    modelling.main([*words, "--prior-steps", "4"])  # another one is: its figures are others
    changed = json.loads(out.read_text())["rows"]
    assert [row["mse"] for row in changed] == [row["mse"] for row in written["rows"]]
    pairs = zip(changed, written["rows"], strict=True)
    assert all(one["bits_per_token"] != other["bits_per_token"] for one, other in pairs)


def test_tiles_are_parts_of_their_images():
    images = torch.arange(2 * 3 * 70 * 40).reshape(2, 3, 70, 40).remainder(251).byte()
    data = Data("numbers", ArrayItems(images, 2), ArrayItems(images, 2), Image(channels=3))
    found = sharpening.tiles(data, 9)
    assert found.shape == (4, 3, 32, 32)
    assert torch.equal(found[1], images[0, :, 32:64, :32].float() / 255)
    assert torch.equal(sharpening.tiles(data, 2), found[::2])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_ways_to_sharpness_are_compared(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 128, 96), dtype=torch.uint8, generator=generator)
    data = Data("noise", ArrayItems(images[:4, :, :96], 2), ArrayItems(images[4:], 2), Image(channels=3))
    monkeypatch.setattr(sharpening, "SHOWN", 64)
    monkeypatch.setattr(sharpening, "load_data", lambda config: data)
    out = tmp_path / "sharpening.json"
    small = ["--steps", "10", "--decoder-steps", "2", "--judge-steps", "2", "--width", "8", "--seeds", "2"]
    sharpening.main([*small, "--runs", str(tmp_path / "runs"), "--out", str(out), "--pictures", str(tmp_path)])
    assert read_image(tmp_path / "sharpening.png", 3).shape == (3, 7 * 66 - 2, 2 * 66 - 2)
    written = json.loads(out.read_text())
    rows = [(row["name"], row["seed"]) for row in written["rows"]]
    trained = ("plain", "pixels", "features", "distance", "both")
    first = [(name, 0) for name in (*trained, "diffusion decoder")]
    assert rows == first + [(name, 1) for name in trained]
    assert written["tiles"] == 24
    assert written["judge"].keys() == {"blurred", "noisy", "tinted"}
    assert all(row["frechet"] >= 0 and row["psnr"] > 0 for row in written["rows"])
    assert "adversarial_weight" not in written["curves"]["plain"]
    assert [step for step, _ in written["curves"]["both"]["psnr"]] == list(range(1, 11))


def test_every_prior_draws_before_the_judge(tmp_path):
    small = ["--tokenizer-steps", "3", "--steps", "3", "--width", "16", "--depth", "1", "--judge-steps", "2"]
    out, pictures = tmp_path / "drawing.json", tmp_path / "pictures"
    words = ["--priors", "autoregressive", "n-gram", "latent-flow", *small, "--number", "20"]
    drawing.main([*words, "--runs", str(tmp_path / "runs"), "--pictures", str(pictures), "--out", str(out)])
    written = json.loads(out.read_text())
    expected = [(name, guidance) for name in ("autoregressive", "latent-flow") for guidance in (1.0, 1.5)]
    assert sorted((row["prior"], row["guidance"]) for row in written["rows"]) == sorted([*expected, ("n-gram", 1.0)])
    for row in written["rows"]:
        assert row["drawn"] == 20
        assert (row["bits_per_code"] is None) == (row["prior"] == "latent-flow")
        assert 0 <= row["agreement"] <= 1
    names = {path.stem for path in pictures.iterdir()}
    assert names == {"autoregressive", "latent-flow", "completions", "interpolations", "swaps"}
