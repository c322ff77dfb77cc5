import pytest
import torch

from gmvq.quantizers.parts.outliers import REACH, counting_weights, radius_of


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everyone(rows):
    return torch.ones(len(rows), dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_ordinary_rows_all_count_exactly_one(dtype):
    rows, codebook = random(4096, 8).to(dtype), random(64, 8, seed=1)
    assert torch.equal(counting_weights(rows, everyone(rows), codebook), torch.ones(4096, dtype=dtype))


def test_what_a_far_row_adds_is_bounded_wherever_it_is():
    rows, codebook = random(4096, 8), random(64, 8, seed=1)
    origin, radius = radius_of(codebook)
    for far in (1e3, 1e6, 1e10):
        rows[7] = far
        weights = counting_weights(rows, everyone(rows), codebook)
        assert torch.allclose(weights[:7], torch.ones(7), atol=1e-3)
        # one row at 1e10 raises the typical length of 4,096 rows, too
        reach = REACH * max(float(radius), float((rows - origin).norm(dim=-1).pow(0.25).mean() ** 4))
        assert float(weights[7] * (rows[7] - origin).square().sum()) <= 1.01 * reach**2
    assert float(weights[7] * 1e10) < 1e-3


def test_rows_that_do_not_count_have_no_part():
    rows, codebook, kept = random(100, 4), random(16, 4, seed=1), torch.arange(100) < 60
    rows[60:] = 1e8
    assert torch.equal(counting_weights(rows, kept, codebook), kept.float())
    assert torch.equal(counting_weights(rows, torch.zeros(100, dtype=torch.bool), codebook), torch.zeros(100))


def test_where_all_rows_are_far_all_count():
    rows, codebook = random(1000, 4) * 0.1 + 1e4, random(16, 4, seed=1)
    torch.testing.assert_close(counting_weights(rows, everyone(rows), codebook), torch.ones(1000), rtol=0, atol=1e-3)


@pytest.mark.parametrize("codebook", [torch.zeros(1, 4), torch.zeros(8, 4)], ids=["one code", "equal codes"])
def test_codes_without_a_spread_leave_the_rows_theirs(codebook):
    rows = random(1000, 4)
    assert torch.equal(counting_weights(rows, everyone(rows), codebook), torch.ones(1000))
    assert torch.equal(counting_weights(torch.zeros(9, 4), everyone(rows[:9]), codebook), torch.ones(9))


def test_far_codes_do_not_widen_the_reach():
    rows, codebook = random(1000, 4), random(64, 4, seed=1)
    codebook[::13] = 1e8
    rows[0] = 1e6
    assert counting_weights(rows, everyone(rows), codebook)[0] < 1e-8
