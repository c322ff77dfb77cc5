import math

import pytest
import torch

from gmvq.priors import CodeShape, Frequencies, NGram


def test_frequencies_by_hand():
    prior = Frequencies(CodeShape((2,), (3,)))
    prior.fit([torch.tensor([[0, 0], [0, 2]])])
    prior.fit([torch.tensor([[0, 1]])])
    shares = torch.tensor([4.5, 1.5, 1.5]) / 7.5
    torch.testing.assert_close(prior.next_probabilities(torch.zeros(1, 1, dtype=torch.int64))[0].float(), shares)
    torch.testing.assert_close(prior.log_prob(torch.tensor([[0, 1]])), (shares[0] * shares[1]).log()[None])


def test_nothing_seen_means_all_codes_alike():
    for prior in (Frequencies(CodeShape((2, 2), (8,))), NGram(CodeShape((2, 2), (8,)))):
        codes = torch.randint(8, (5, 2, 2))
        torch.testing.assert_close(prior.log_prob(codes), torch.full((5,), -4 * math.log(8)))


def test_contexts_by_hand():
    prior = NGram(CodeShape((1, 2), (2,)))
    codes = torch.tensor([[[0, 1]], [[0, 1]], [[0, 0]], [[1, 0]]])
    prior.fit([codes[:3], codes[3:]])
    # after a 0 to the left: 1 twice, 0 once; nothing stands above, so the longer context is the same
    unigram = torch.tensor([5.5, 3.5]) / 9  # 5 and 3 of 8, each with a half more
    bigram = (torch.tensor([1.0, 2.0]) + 2 * unigram) / 5
    trigram = (torch.tensor([1.0, 2.0]) + 2 * bigram) / 5
    found = prior.next_probabilities(torch.tensor([[0]]))[0]
    torch.testing.assert_close(found.float(), trigram)


def test_neighbours_are_to_the_left_and_above():
    prior = NGram(CodeShape((3, 3), (10,)))
    grid = torch.arange(9).reshape(1, 3, 3)
    left, above = (part.reshape(3, 3).tolist() for part in prior._neighbors(prior.sequence(grid)))
    assert left == [[10, 0, 1], [10, 3, 4], [10, 6, 7]]
    assert above == [[10, 10, 10], [0, 1, 2], [3, 4, 5]]


def test_levels_look_at_the_level_before_and_to_the_left():
    prior = NGram(CodeShape((1, 2), (10, 10)))
    codes = torch.tensor([[[[1, 2], [3, 4]]]])
    first, second = (part.tolist() for part in prior._neighbors(prior.sequence(codes)))
    assert first == [[10, 1, 1, 3]]
    assert second == [[10, 10, 10, 2]]


def test_a_dependence_is_learned_that_frequencies_cannot_see():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(4, (400, 6, 1), generator=generator).expand(-1, -1, 6)  # each row has one code
    shape = CodeShape((6, 6), (4,))
    bits = {}
    for prior in (Frequencies(shape), NGram(shape)):
        prior.fit([codes[:300]])
        bits[type(prior)] = prior.bits_per_code(codes[300:])
    assert bits[Frequencies] == pytest.approx(2, abs=0.02)
    assert bits[NGram] < 0.5


def test_a_codebook_too_large_for_contexts_gets_a_reason():
    with pytest.raises(ValueError, match="Use Frequencies"):
        NGram(CodeShape((2, 2), (2**21,)))
