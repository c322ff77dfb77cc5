import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours


def network(library, seed=0, **options):
    torch.manual_seed(seed)
    return library.EvoLFQ(nn.Linear(6, 8), nn.Linear(8, 6), **{"dim": 8, "pop_size": 16, "generations": 5} | options)


@pytest.fixture
def pair():
    theirs = pytest.importorskip("vector_quantize_pytorch")

    def made(**options):
        module, dropin = network(theirs, **options), network(ours, **options)
        dropin.load_state_dict(module.state_dict())
        return dropin, module

    return made


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (5, 6)),
        ({}, (3, 4, 6)),
        ({"codebook_size": 16, "num_codebooks": 2}, (3, 4, 6)),
        ({"spherical": True}, (5, 6)),
    ],
)
def test_gives_what_theirs_gives(pair, options, shape):
    dropin, module = pair(**options)
    x = torch.randn(shape)
    for each in (dropin, module):
        each.eval()
    found, expected = dropin(x), module(x)
    torch.testing.assert_close(found.reconstructed, expected.reconstructed)
    assert torch.equal(found.indices, expected.indices.long())
    for signs in (False, True):
        bits = dropin.encode(x, return_signs=signs)
        assert torch.equal(bits, module.encode(x, return_signs=signs))
        torch.testing.assert_close(dropin.decode_bits(bits), found.reconstructed)
    if "num_codebooks" not in options:  # theirs takes no sequences of several codebooks
        torch.testing.assert_close(dropin.decode_bits(bits), module.decode_bits(bits))


@pytest.mark.parametrize("mutation_rate", [0.0, 0.1])
@pytest.mark.parametrize("is_sign", [False, True])
def test_a_search_draws_as_theirs(pair, is_sign, mutation_rate):
    dropin, module = pair(mutation_rate=mutation_rate)
    found = []
    for each in (dropin, module):
        torch.manual_seed(4)
        x = torch.randn(3, 6)
        population = each.init_population_from_data(x, is_sign=is_sign)
        for _ in range(4):
            population, fitnesses = each.step(population, lambda decoded, _: -decoded.abs().sum(-1), is_sign=is_sign)
        random = each.init_random_population(shape=(2, 8), is_sign=is_sign)
        selected = each.tournament_selection(population, fitnesses)
        found.append((population, fitnesses, random, selected))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_fittest_is_found_and_kept():
    search = network(ours, generations=30, pop_size=32)
    generations = list(search.evolve(lambda _, bits: bits.sum(-1), shape=(8,), return_best_decoded=True, batch_size=7))
    best = [each.best_fitness for each in generations]
    assert best == sorted(best)
    assert best[-1] == 8
    for each in generations:  # theirs takes it from the next population
        assert float(each.best_gene.sum()) == each.best_fitness
        torch.testing.assert_close(each.best_decoded, search.decode_bits(each.best_gene[None])[0])
    assert len(generations) == 30


def test_images_have_bits_too():
    torch.manual_seed(0)
    search = ours.EvoLFQ(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1), dim=8).eval()
    x = torch.randn(2, 1, 3, 4)
    bits = search.encode(x)
    assert bits.shape == (2, 3, 4, 8)
    torch.testing.assert_close(search.decode_bits(bits), search(x).reconstructed)


def test_a_search_leaves_the_mode_as_it_is():
    search = network(ours).train()
    search.encode(torch.randn(2, 6))
    assert search.training
    assert search.lfq.training


def test_says_what_it_cannot():
    with pytest.raises(ValueError, match="'pop_size' must be above 'elitism_count' = 1, got 1"):
        network(ours, pop_size=1)
    with pytest.raises(ValueError, match="'shape' must be given"):
        next(network(ours).evolve(lambda _, bits: bits.sum(-1)))
