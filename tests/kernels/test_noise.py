"""Counter-based noise: published values, and the laws of its distributions."""

from __future__ import annotations

import math

import pytest
import torch

from gmvq.kernels.noise import exponential, philox, random_words

# of Random123, the authors' own implementation: kat_vectors
KNOWN = [
    (7, [0, 0, 0, 0], [0, 0], [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    (7, [0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
    (10, [0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (10, [0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), KNOWN)
def test_philox_gives_its_authors_values(rounds, counter, key, words):
    first, second, third, fourth = (torch.tensor(word) for word in counter)
    assert (
        philox((first, second, third, fourth), (torch.tensor(key[0]), torch.tensor(key[1])), rounds).tolist() == words
    )


def test_an_element_depends_on_its_place_alone():
    seed = torch.tensor(77)
    whole = random_words(seed, torch.arange(50), 300)
    torch.testing.assert_close(random_words(seed, torch.arange(20, 30), 300), whole[20:30], rtol=0, atol=0)
    torch.testing.assert_close(random_words(seed, torch.arange(50), 131), whole[:, :131], rtol=0, atol=0)


def test_rows_beyond_32_bits_and_seeds_of_62_bits_differ():
    rows = torch.tensor([0, 2**32, 2**33 + 5])
    words = random_words(torch.tensor(2**61 + 1), rows, 64)
    assert len(torch.unique(torch.cat([words, random_words(torch.tensor(1), rows, 64)]))) == 6 * 64


def test_draws_are_exponential():
    draws = exponential(torch.tensor(3), torch.arange(1000), 1000, torch.float64).flatten()
    assert draws.min() > 0
    # sums of 10^6: five standard deviations
    assert abs(draws.mean() - 1) < 5e-3
    assert abs(draws.square().mean() - 2) < 5 * math.sqrt(20) * 1e-3
    empirical = (draws[:, None] < torch.tensor([0.1, 0.5, 1.0, 3.0, 8.0])).double().mean(0)
    expected = 1 - (-torch.tensor([0.1, 0.5, 1.0, 3.0, 8.0], dtype=torch.float64)).exp()
    torch.testing.assert_close(empirical, expected, rtol=0, atol=2.5e-3)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (0, 16), (0, 64), (7, 3)])
def test_neighbours_are_uncorrelated(shift):
    uniform = (-exponential(torch.tensor(9), torch.arange(500), 512, torch.float64)).exp() - 0.5
    rows, columns = shift
    product = uniform[rows:, columns:] * uniform[: 500 - rows, : 512 - columns]
    assert abs(product.mean()) < 5 / 12 / math.sqrt(product.numel())


def test_float32_holds_the_same_numbers():
    seed, rows = torch.tensor(4), torch.arange(100)
    exact, single = exponential(seed, rows, 200, torch.float64), exponential(seed, rows, 200, torch.float32)
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)
