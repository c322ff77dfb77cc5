"""The least rate of each direction."""

import pytest
import torch

from gmvq.quantizers import GaussianMixtureQuantizer
from gmvq.quantizers.parts.rates import LeastRates, least_rate


def latents_of(deviations, number=2048, dim=16, seed=0):
    """Latents that vary along as many directions as there are deviations."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(7))).Q[: len(deviations)]
    rows = torch.randn(number, len(deviations), generator=generator) * torch.tensor(deviations)
    return rows @ directions


def aligned():
    """A quantizer whose projection keeps exactly the directions of the latents."""
    torch.manual_seed(0)
    quantizer = GaussianMixtureQuantizer(16, 1024, codebook_dim=4)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(7))).Q[:4]
    quantizer.projection.directions.data.copy_(directions)
    return quantizer.train()


def shares(quantizer, latents):
    """Squared error that codes leave of the variance along each eigen-direction, the widest first."""
    inside = quantizer.projection.project_in(latents)
    error = inside - quantizer.projection.project_in(quantizer.decode(quantizer.encode(latents)))
    variances, directions = torch.linalg.eigh(inside.T.cov())
    return ((error @ directions).square().mean(0) / variances).flip(0).detach()


def trained(quantizer, deviations, steps=250):
    for step in range(steps):
        quantizer(latents_of(deviations, seed=step))
    return quantizer.eval()


def test_a_narrow_direction_keeps_its_least_rate():
    deviations = [10.0, 3.0, 2.0, 0.3]
    quantizer = trained(aligned(), deviations)
    weakest = shares(quantizer, latents_of(deviations, seed=1000))[-1]
    assert weakest < 0.6  # of new latents; of those that it learned from a quarter
    without = aligned()
    without.rates = None
    assert shares(trained(without, deviations), latents_of(deviations, seed=1000))[-1] > 0.9


def test_directions_that_have_their_rate_stay_as_they_are():
    deviations = [1.0, 0.9, 0.8, 0.7]
    quantizer = aligned()
    before = quantizer.projection.directions.detach().clone()
    trained(quantizer, deviations, 50)
    assert torch.equal(quantizer.projection.directions, before)
    assert torch.equal(quantizer.rates.pull, torch.eye(4))


def test_widening_changes_the_metric_and_not_the_values():
    deviations = [10.0, 3.0, 2.0, 0.3]
    quantizer = aligned()
    quantizer(latents_of(deviations))
    quantizer.eval()
    codes = torch.arange(1024)
    stretch = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.3]))
    decoded, distances = quantizer.decode(codes), torch.cdist(quantizer.code_vectors, quantizer.code_vectors)
    quantizer.projection.stretch(stretch)
    quantizer.moving.stretch(stretch)
    assert torch.allclose(quantizer.decode(codes), decoded, atol=1e-4)
    assert not torch.allclose(torch.cdist(quantizer.code_vectors, quantizer.code_vectors), distances, atol=1e-4)


@pytest.mark.parametrize("deviations", [[0.0], [1.0], [1.0, 0.5]])
def test_directions_without_variance_are_not_widened(deviations):
    quantizer = aligned()
    before = quantizer.projection.directions.detach().clone()
    trained(quantizer, deviations, 150)
    assert torch.linalg.cond(quantizer.projection.directions) < 1.01 * torch.linalg.cond(before)
    assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())


def test_nothing_pulls_along_a_direction_that_falls_short():
    rates = LeastRates(2, 2, bits=1.0)
    rows = torch.randn(1000, 2) * torch.tensor([1.0, 0.01])
    rates.collect(rows, torch.ones(1000))
    rates.update(torch.tensor(1e-3))
    pulled = rates.pulled(rows.requires_grad_())
    assert torch.equal(pulled, rows)
    pulled.square().sum().backward()
    assert rows.grad[:, 0].abs().mean() > 0.1
    assert rows.grad[:, 1].abs().max() < 0.01


def test_the_pull_is_whole_until_there_are_rows():
    rates = LeastRates(2, 2, bits=1.0)
    assert torch.equal(rates.update(torch.tensor(1.0)), torch.eye(2))
    assert torch.equal(rates.pull, torch.eye(2))


def test_in_evaluation_the_gradient_is_the_whole_one():
    quantizer, latents = aligned(), latents_of([10.0, 3.0, 2.0, 0.05])
    quantizer(latents)
    quantizer.eval().rates.pull.zero_()
    quantizer(latents.requires_grad_()).loss.backward()
    assert latents.grad.abs().sum() > 0


def test_a_forward_may_follow_another_before_the_backward():
    quantizer, latents = aligned(), latents_of([10.0, 3.0, 2.0, 0.3]).requires_grad_()
    first, second = quantizer(latents), quantizer(latents)
    (first.loss + second.loss + first.values.sum() + second.values.sum()).backward()
    assert latents.grad.isfinite().all()


def test_only_the_widest_directions_keep_a_rate():
    rates = LeastRates(3, 2, bits=1.0)
    rows = torch.randn(1000, 3) * torch.tensor([0.01, 1.0, 0.02])
    rates.collect(rows, torch.ones(1000))
    widened = rates.update(torch.tensor(1e-3))
    # the narrowest is pulled and not widened, the middle one widened and not pulled
    assert torch.allclose(widened.diagonal(), torch.tensor([1.0, 1.0, 1.01**0.5]), atol=1e-4)
    assert torch.allclose(rates.pull.diagonal(), torch.tensor([1.0, 1.0, 0.0]), atol=1e-2)


def test_as_many_directions_keep_a_rate_as_there_are_bits_for():
    assert least_rate(1024, 4) == (4, 1.0)
    assert least_rate(1024, 8) == least_rate(1024, 64) == (4, 1.0)
    assert least_rate(16, 4) == least_rate(1024, 1) == (0, 0.0)
    assert all(0.75 <= bits <= 1 for size in range(23, 70_000, 7) for _, bits in [least_rate(size, 16)])
    assert GaussianMixtureQuantizer(16, 16).rates is None
    assert GaussianMixtureQuantizer(4, 1024).rates is None  # no projection: its latents are the user's own
