import pytest
import torch

from gmvq.kernels.origin import SAMPLE, origin_of


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("far", [1e4, -1e10, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("size", [3, 32, SAMPLE, SAMPLE + 1, 1000])
def test_it_lies_amid_the_codes_wherever_a_fifth_of_them_are(size, far):
    codebook = random(size, 7) + 100
    codebook[torch.randperm(size, generator=torch.Generator().manual_seed(1))[: max(1, size // 5)]] = far
    assert ((origin_of(codebook) - 100).abs() < 3).all()


def test_it_is_the_median_of_each_feature():
    codebook = random(SAMPLE, 5)
    assert torch.equal(origin_of(codebook), codebook.sort(0).values[SAMPLE // 2])
    assert torch.equal(origin_of(codebook[:4]), codebook[:4].sort(0).values[1])  # of two the lower


def test_it_is_finite_where_nothing_is():
    for value in (torch.nan, torch.inf):
        assert origin_of(torch.full((5, 2), value)).tolist() == [0, 0]
    assert origin_of(torch.empty(0, 3)).tolist() == [0, 0, 0]


def test_it_has_no_gradient():
    assert not origin_of(random(5, 2).requires_grad_()).requires_grad
