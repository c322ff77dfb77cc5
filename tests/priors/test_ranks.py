"""Losses that are means over a random number of codes, which differs from rank to rank."""

import pytest
import torch

from gmvq.priors import CodeFlowPrior, CodeShape, LatentFlowPrior, MaskedPrior
from gmvq.priors.flow import FlowConfig, LatentFlowConfig
from gmvq.priors.masked import MaskedConfig

SIZE = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
SHAPE = CodeShape((4, 4), (8,))


def latent_flow():
    prior = LatentFlowPrior(SHAPE, LatentFlowConfig(codebook_dim=2, **SIZE))
    prior.place(torch.randn(8, 2))
    return prior


MAKE = {
    "masked": lambda: MaskedPrior(SHAPE, MaskedConfig(**SIZE)),
    "code-flow": lambda: CodeFlowPrior(SHAPE, FlowConfig(**SIZE)),
    "latent-flow": latent_flow,
}


@pytest.mark.parametrize("name", MAKE)
def test_the_mean_is_over_the_codes_of_all_ranks(name, monkeypatch):
    """Another rank with 40 codes more: the sum over n codes is divided by half of 2 n + 40."""
    torch.manual_seed(0)
    prior, codes = MAKE[name](), torch.randint(8, (6, 4, 4))

    def loss(*, training):
        torch.manual_seed(1)
        return prior.train(training)(codes).item()

    alone, evaluated = loss(training=True), loss(training=False)
    monkeypatch.setattr("gmvq.distributed.world_size", lambda: 2)
    monkeypatch.setattr("gmvq.distributed.sum_over_ranks", lambda own: 2 * own + 40)
    number = 20 * loss(training=True) / (alone - loss(training=True))
    assert number == pytest.approx(round(number), abs=0.01)
    assert 0 < round(number) <= codes.numel()
    assert loss(training=False) == evaluated  # one rank evaluates, and waits for no other
