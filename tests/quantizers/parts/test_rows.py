"""Losses that are means over rows, where ranks have different numbers of them.

Members that draw in training are left out of the test with two processes; here their losses are taken in evaluation.
"""

import pytest
import torch
from members import DIM, SIZE, latents

from gmvq.compat.taming import GumbelQuantizer
from gmvq.quantizers import GaussianBottleneck, GaussianQuantizer, StochasticQuantizer

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
