import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq.kernels import code_sums, codes, reference
from gmvq.kernels.compiled import library


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("GMVQ_KERNELS", "torch")
    elif library() is None:
        pytest.skip("no C++ compiler")
    return request.param


@settings(max_examples=40, deadline=None, suppress_health_check=["function_scoped_fixture"])
@given(
    n=st.integers(0, 300),
    k=st.integers(1, 300),
    dim=st.integers(0, 40),
    seed=st.integers(0, 99),
    weighted=st.booleans(),
)
def test_sums_equal_the_reference(n, k, dim, seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, dim, generator=generator)
    chosen = torch.randint(0, k, (n,), generator=generator)
    weights = torch.rand(n, generator=generator) if weighted else torch.rand(n, generator=generator) < 0.7
    chosen[:3], weights[:3] = -1, 0
    expected = reference.code_sums(latents.double(), chosen, weights, k)
    for given_sums, exact in zip(code_sums(latents, chosen, weights, k), expected, strict=True):
        torch.testing.assert_close(given_sums, exact.float())
    for given_sums, exact in zip(code_sums(latents.double(), chosen, weights, k), expected, strict=True):
        torch.testing.assert_close(given_sums, exact)


def test_sums_are_the_same_bits_with_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    latents, weights = torch.randn(5000, 33, generator=generator), torch.rand(5000, generator=generator)
    chosen = torch.randint(0, 50, (5000,), generator=generator).square() % 50  # some codes have many rows, some none
    threads = torch.get_num_threads()
    try:
        sums = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            sums.append(code_sums(latents, chosen, weights, 50))
    finally:
        torch.set_num_threads(threads)
    for counts, totals in sums[1:]:
        assert torch.equal(counts, sums[0][0])
        assert torch.equal(totals, sums[0][1])


def test_a_code_out_of_range_raises():
    with pytest.raises(IndexError):
        code_sums(torch.ones(2, 3), torch.tensor([0, 4]), torch.ones(2), 4)


def test_strides_and_other_integers_are_taken():
    latents, chosen = torch.arange(12.0).reshape(3, 4).T, torch.tensor([1, 0, 1, 1], dtype=torch.int32)
    counts, sums = code_sums(latents, chosen, torch.ones(4, dtype=torch.bool), 2)
    assert counts.tolist() == [1, 3]
    assert sums.tolist() == [[1, 5, 9], [5, 17, 29]]


def test_the_operator_keeps_the_rules_of_torch():
    torch.library.opcheck(codes._code_sums, (torch.randn(9, 4), torch.arange(9) % 3, torch.ones(9), 3))


@pytest.mark.parametrize(
    ("latents", "codes", "weights", "codebook_size", "message"),
    [
        (torch.ones(4), torch.zeros(4, dtype=torch.long), torch.ones(4), 2, "'latents' must be floats"),
        (torch.ones(4, 3), torch.zeros(3, dtype=torch.long), torch.ones(4), 2, "'codes' must be of shape"),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(1), 2, "'weights' must be of shape"),
        (torch.ones(4, 3), torch.zeros(4), torch.ones(4), 2, "'codes' must be integers"),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(4), 0, "'codebook_size' must be"),
    ],
)
def test_wrong_arguments(latents, codes, weights, codebook_size, message):
    with pytest.raises(ValueError, match=message):
        code_sums(latents, codes, weights, codebook_size)
