"""One list of names: every list elsewhere is this one, and one entry adds to all of them."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from gmvq.commands.options import parse
from gmvq.leaderboard import CONTENDERS

import gmvq
from gmvq import comparison
from gmvq.__main__ import main
from gmvq.quantizers import QUANTIZERS, GaussianBottleneck, Preset, VectorQuantizer, make_bottleneck
from gmvq.quantizers.catalogue import even_levels

names = pytest.mark.parametrize("name", QUANTIZERS)


@names
def test_a_name_makes_a_bottleneck_of_the_latents_of_its_model(name):
    preset = QUANTIZERS[name]
    dim = preset.latent_dim(8, 256)
    bottleneck = make_bottleneck(name, dim, 256)
    assert bottleneck.dim == dim
    assert bottleneck(torch.randn(2, 4, 4, dim)).values.shape == (2, 4, 4, dim)
    assert dim == {"finite-scalar": 3, "latent": 3}.get(name, 8)


@names
def test_a_title_is_one_line_of_its_own(name):
    title = QUANTIZERS[name].title
    assert 5 < len(title) < 80
    assert title[0].isupper()
    assert not title.endswith((".", ","))
    assert [preset.title for preset in QUANTIZERS.values()].count(title) == 1


def test_the_readme_has_the_same_list():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (listed,) = re.findall(r"`--quantizer` and one of\n(.*?)\. ", text, flags=re.DOTALL)
    assert re.findall(r"`([\w-]+)`", listed) == list(QUANTIZERS)


def test_comparisons_and_contenders_are_of_the_list():
    assert set(comparison.QUANTIZERS) <= set(QUANTIZERS)
    assert {contender.quantizer for contender in CONTENDERS.values()} == {*QUANTIZERS} - {"none"}


@pytest.mark.parametrize("name", ["voronoi", "", None, ["vector"], 3])
def test_an_unknown_name_fails_in_the_configuration(name):
    for make in (lambda: gmvq.AutoencoderConfig(quantizer=name), lambda: make_bottleneck(name, 4, 16)):
        with pytest.raises(ValueError, match=r"'quantizer' must be one of gaussian-mixture, .*, got") as caught:
            make()
        assert repr(name) in str(caught.value)


def test_levels_multiply_to_the_size():
    for size in (3, 8, 512, 1000, 4096, 7 * 5 * 3):
        levels = even_levels(size)
        assert torch.tensor(levels).prod() == size
        assert 3 <= min(levels) <= max(levels) <= 8
    for size in (1, 2, 11, 13 * 8):
        with pytest.raises(ValueError, match="must be a product of numbers from 3 to 8"):
            even_levels(size)


class Toy(VectorQuantizer):
    """A quantizer that gmvq does not know."""


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "toy", Preset(Toy, "A toy"))


def test_one_entry_adds_a_quantizer(toy, tmp_path, capsys):
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer="toy", width=8, codebook_size=16))
    assert type(model.bottleneck) is Toy
    out = tmp_path / "run"
    tiny = "--steps 2 --batch-size 4 --model.width 8 --codebook-size 16 --data.evaluated 1"
    words = ["train", "digits", "--quantizer", "toy", "--out", str(out), *shlex.split(tiny)]
    assert main(words) == 0, capsys.readouterr().err
    assert type(gmvq.load(out).bottleneck) is Toy
    assert "A toy describes each" in (out / "report.html").read_text()
    assert parse("compare", ["digits", "--quantizers", "toy"]).quantizers == ("toy",)


def test_a_continuous_bottleneck_has_no_codebook():
    made = make_bottleneck("none", 8, 256)
    assert isinstance(made, GaussianBottleneck)
    for name in ("codebook", "codebook_sizes"):
        with pytest.raises(TypeError, match=f"GaussianBottleneck is continuous and has no {name}"):
            getattr(made, name)
