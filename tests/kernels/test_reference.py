import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq import kernels
from gmvq.kernels import reference


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 70), k=st.integers(1, 40), dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_nearest_code_and_distances_equal_brute_force(n, k, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    codebook = torch.randn(k, dim, generator=generator, dtype=torch.float64) + 5
    expected = (latents[:, None] - codebook).square().sum(-1)
    torch.testing.assert_close(kernels.squared_distances(latents, codebook), expected)
    assert torch.equal(kernels.nearest_code(latents, codebook), expected.argmin(-1))


def test_blocks_do_not_change_the_codes(monkeypatch):
    latents, codebook = torch.randn(100, 4), torch.randn(7, 4)
    whole = reference.nearest_code(latents, codebook)
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 20)
    assert torch.equal(reference.nearest_code(latents, codebook), whole)


def test_ties_go_to_the_lowest_index():
    assert kernels.nearest_code(torch.zeros(3, 2), torch.ones(5, 2)).tolist() == [0, 0, 0]


def test_an_offset_costs_no_precision():
    latents, codebook = torch.randn(50, 3), torch.randn(20, 3)
    assert torch.equal(
        kernels.nearest_code(latents + 1024, codebook + 1024),
        (latents + 1024 - 1024).sub((codebook + 1024 - 1024)[:, None]).square().sum(-1).argmin(0),
    )


@pytest.mark.parametrize("far", [1e6, 1e10, torch.inf, torch.nan])
def test_a_far_code_costs_the_others_no_precision(far):
    generator = torch.Generator().manual_seed(0)
    latents, codebook = torch.randn(100, 4, generator=generator), torch.randn(32, 4, generator=generator)
    weights = torch.rand(100, 4, generator=generator)
    differences = (latents[:, None].double() - codebook.double()).square()
    codebook[5] = far
    codebook.requires_grad_()
    for found, expected in (
        (kernels.squared_distances(latents, codebook), differences.sum(-1)),
        (kernels.weighted_squared_distances(latents, codebook, weights), (weights[:, None] * differences).sum(-1)),
    ):
        others = torch.arange(32) != 5
        torch.testing.assert_close(found[:, others].double(), expected[:, others], rtol=1e-5, atol=1e-5)
        assert (found[:, 5] > 1e9).all()  # and not NaN, which torch.argmin would take
        (gradient,) = torch.autograd.grad((-found).softmax(-1).square().sum(), codebook)
        assert gradient.isfinite().all()


def test_code_sums_weigh_their_rows():
    latents = torch.tensor([[1.0], [2.0], [4.0]])
    counts, sums = kernels.code_sums(latents, torch.tensor([2, 0, -1]), torch.tensor([1.0, 0.5, 0.0]), 3)
    assert counts.tolist() == [0.5, 0.0, 1.0]
    assert sums.flatten().tolist() == pytest.approx([1.0, 0.0, 1.0])
