"""Temperatures whose schedule ends at 0, the hard limit."""

import pytest
import torch
from members import DIM, SIZE, latents

from gmvq.quantizers import (
    BinarySphericalQuantizer,
    Cosine,
    GaussianMixtureQuantizer,
    Geometric,
    GumbelSoftmax,
    IndexBackpropagationQuantizer,
    Linear,
    LookupFreeQuantizer,
    OptimalTransportQuantizer,
    StochasticQuantizer,
)
from gmvq.quantizers.parts.schedules import LEAST_TEMPERATURE, temperature_at

END = Linear(1.0, 0.0)
MAKE = {
    "lookup-free": lambda: LookupFreeQuantizer(DIM, SIZE, temperature=END),
    "binary-spherical": lambda: BinarySphericalQuantizer(DIM, SIZE, temperature=END),
    "index": lambda: IndexBackpropagationQuantizer(DIM, SIZE, temperature=END, entropy_temperature=Cosine(1.0, 0.0)),
    "transport": lambda: OptimalTransportQuantizer(DIM, SIZE, temperature=END),
    "mixture": lambda: GaussianMixtureQuantizer(DIM, SIZE, sharpening=END),
    "mixture-gumbel": lambda: GaussianMixtureQuantizer(DIM, SIZE, estimator=GumbelSoftmax(END)),
    "stochastic": lambda: StochasticQuantizer(DIM, SIZE, estimator=GumbelSoftmax(END)),
    "stochastic-hard": lambda: StochasticQuantizer(DIM, SIZE, estimator=GumbelSoftmax(END, hard=True)),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_a_temperature_may_end_at_0(make):
    torch.manual_seed(0)
    quantizer = make()
    quantizer(latents(50))
    quantizer.set_progress(1.0)
    for rows in (latents(50), torch.zeros(50, DIM), latents(50) * 1e-3):
        rows = rows.requires_grad_()
        out = quantizer(rows)
        (out.loss + out.values.sum()).backward()
        assert out.values.isfinite().all()
        assert out.loss.isfinite()
        assert rows.grad.isfinite().all()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in quantizer.parameters())
    if quantizer.has_posterior:
        assert quantizer.posterior(latents(5)).responsibilities.sum(-1).allclose(torch.ones(5))


def test_a_temperature_is_at_least_the_least():
    assert temperature_at(END, 0.25) == 0.75
    assert temperature_at(END, 1.0) == LEAST_TEMPERATURE
    assert temperature_at(Linear(1.0, -1.0), torch.tensor(1.0)) == LEAST_TEMPERATURE


def test_geometric_needs_ends_above_0():
    with pytest.raises(ValueError, match="above 0"):
        Geometric(1.0, 0.0)
