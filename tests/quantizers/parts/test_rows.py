"""Changes of type, and losses that are means over rows, where ranks have different numbers of them.

Members that draw in training are left out of the test with two processes; here their losses are taken in evaluation.
"""

import pytest
import torch
from members import DIM, SIZE, latents

from gmvq.compat.taming import GumbelQuantizer
from gmvq.quantizers import GaussianBottleneck, GaussianQuantizer, StochasticQuantizer
from gmvq.quantizers.parts.rows import as_type

MAKE = {
    "stochastic": lambda: StochasticQuantizer(DIM, SIZE),
    "gaussian": lambda: GaussianBottleneck(DIM),
    "gaussian-codes": lambda: GaussianQuantizer(DIM, SIZE),
    "gumbel": lambda: GumbelQuantizer(DIM, SIZE, divergence_weight=1.0),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_the_mean_over_ranks_is_the_mean_over_the_rows_of_all(make, monkeypatch):
    torch.manual_seed(0)
    bottleneck, rows, kept = make().eval(), latents(20), torch.arange(20) < 13
    expected = bottleneck(rows, kept)
    monkeypatch.setattr("gmvq.distributed.world_size", lambda: 2)
    monkeypatch.setattr("gmvq.distributed.sum_over_ranks", lambda own: torch.full_like(own, 13))
    first, second = (bottleneck(part, mask) for part, mask in zip(rows.chunk(2), kept.chunk(2), strict=True))
    torch.testing.assert_close((first.loss + second.loss) / 2, expected.loss)
    torch.testing.assert_close(
        (first.terms["divergence"] + second.terms["divergence"]) / 2, expected.terms["divergence"]
    )


def test_a_finite_number_stays_finite_in_a_narrower_type():
    wide = torch.tensor([1.5, 1e5, -1e30, torch.inf, -torch.inf, torch.nan], requires_grad=True)
    narrow = as_type(wide, torch.float16)
    assert narrow.dtype == torch.float16
    torch.testing.assert_close(
        narrow.detach().double(),
        torch.tensor([1.5, 65504.0, -65504.0, torch.inf, -torch.inf, torch.nan]).double(),
        equal_nan=True,
    )
    narrow[:3].backward(torch.tensor([2.0, 3.0, 4.0]).half())  # one out of range still learns
    assert wide.grad.tolist() == [2.0, 3.0, 4.0, 0.0, 0.0, 0.0]
    assert as_type(wide, torch.float32) is wide


def test_a_finite_gradient_stays_finite_in_a_narrower_type():
    narrow = torch.ones(4, dtype=torch.float16, requires_grad=True)
    as_type(narrow, torch.float32).backward(torch.tensor([2.0, 1e6, -1e30, torch.inf]))
    assert narrow.grad.tolist() == [2.0, 65504.0, -65504.0, torch.inf]  # which a scaler of the loss looks for
