"""One list of names: every list elsewhere is this one, and one entry adds to all of them."""

import pytest
import torch

import gmvq
from gmvq.experiments import CONTENDERS, running
from gmvq.quantizers import QUANTIZERS, GaussianBottleneck, make_bottleneck
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


def test_comparisons_and_contenders_are_of_the_list():
    assert set(running.QUANTIZERS) <= set(QUANTIZERS)
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


def test_a_continuous_bottleneck_has_no_codebook():
    made = make_bottleneck("none", 8, 256)
    assert isinstance(made, GaussianBottleneck)
    for name in ("codebook", "codebook_sizes"):
        with pytest.raises(TypeError, match=f"GaussianBottleneck is continuous and has no {name}"):
            getattr(made, name)


def test_combined_quantizers_have_members_of_any_kind():
    options = {"levels": 3, "member": "gaussian-mixture", "codebook_dim": 2, "quantizer_dropout": 1.0, "beam_size": 2}
    made = make_bottleneck("residual", 8, 16**3, options)
    assert [type(level) for level in made.members] == [gmvq.GaussianMixtureQuantizer] * 3
    assert made.members[0].codebook_dim == 2
    assert (made.quantizer_dropout, made.beam_size, made.codebook_sizes) == (1.0, 2, (16, 16, 16))
    assert isinstance(make_bottleneck("product", 8, 64, {"member": "stochastic"}).members[0], gmvq.StochasticQuantizer)
    for options, named in (({"member": "none"}, "'member'"), ({"member": "nothing"}, "nothing"), ({"beam": 2}, "beam")):
        with pytest.raises(ValueError, match=named):
            make_bottleneck("residual", 8, 64, options)
