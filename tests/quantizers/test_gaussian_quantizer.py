"""Gaussian Quant: conversion without training, and training under its constraint."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from gmvq.quantizers import GaussianBottleneck
from gmvq.quantizers.gaussian_quantizer import GaussianQuantizer


def with_moments(quantizer: GaussianQuantizer, gain: float = 1.0, deviation: float = 0.5) -> GaussianQuantizer:
    """Sets q(z | x) to Normal(gain x, deviation^2)."""
    size = quantizer.codebook_dim
    with torch.no_grad():
        quantizer.moments.weight.zero_()
        quantizer.moments.weight[:size] = gain * torch.eye(size)
        quantizer.moments.bias[:size] = 0
        quantizer.moments.bias[size:] = 2 * math.log(deviation)
    return quantizer


def randomized(quantizer: GaussianQuantizer) -> GaussianQuantizer:
    with torch.no_grad():
        for parameter in quantizer.moments.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return quantizer


@pytest.mark.parametrize("prior_weight", [0.0, 0.4, 1.0])
def test_the_code_is_that_of_the_largest_density_ratio(prior_weight):
    torch.manual_seed(0)
    quantizer = randomized(GaussianQuantizer(6, 32, group_dim=3, prior_weight=prior_weight)).double().eval()
    latents = torch.randn(50, 6, dtype=torch.float64)
    mean, log_variance = quantizer.moments(latents).chunk(2, dim=-1)
    posterior = Normal(mean.reshape(50, 2, 1, 3), (log_variance / 2).exp().reshape(50, 2, 1, 3))
    prior = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    ratio = posterior.log_prob(quantizer.noise).sum(-1) - prior_weight * prior.log_prob(quantizer.noise).sum(-1)
    assert torch.equal(quantizer.encode(latents), ratio.argmax(-1))
    result = quantizer.posterior(latents)
    torch.testing.assert_close(result.responsibilities, ratio.softmax(-1))
    assert result.log_density is None
    entropy = -(ratio.softmax(-1) * ratio.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(result.entropy, entropy.sum(-1))


def test_the_rate_is_the_divergence_from_the_prior():
    quantizer = randomized(GaussianQuantizer(6, 32, group_dim=2)).eval()
    latents = torch.randn(20, 6)
    mean, log_variance = quantizer.moments(latents).chunk(2, dim=-1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(6), torch.ones(6)))
    torch.testing.assert_close(quantizer.group_divergences(latents), expected.reshape(20, 3, 2).sum(-1))


def test_a_conversion_keeps_the_error_of_draws_once_log_k_is_above_the_rate():
    """The exact VAE of x ~ N(0, I): q(z | x) = N(a x, s^2) with a^2 = 1 - s^2, decoded by a z, of error s^2."""
    rate, group = 4 * 1.0, 4
    s = math.exp(-rate / group)
    a = math.sqrt(1 - s**2)
    bottleneck = GaussianBottleneck(8).eval()
    with torch.no_grad():
        bottleneck.moments.weight.copy_(torch.cat([a * torch.eye(8), torch.zeros(8, 8)]))
        bottleneck.moments.bias[8:] = 2 * math.log(s)
    data = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    drawn = bottleneck.sample_posterior(data, torch.Generator().manual_seed(1)).values
    of_draws = F.mse_loss(a * drawn, data).item()
    assert of_draws == pytest.approx(s**2, rel=0.05)
    ratios = {}
    for excess in (-2, 0, 2, 3):
        size = round(math.exp(rate + excess))
        quantizer = GaussianQuantizer.from_bottleneck(bottleneck, size, group_dim=group)
        assert quantizer.group_divergences(data).mean().item() == pytest.approx(rate, rel=0.05)
        ratios[excess] = F.mse_loss(a * quantizer.decode(quantizer.encode(data)), data).item() / of_draws
    assert ratios[3] < ratios[2] < 1  # better than a draw: the best of many
    assert ratios[0] < 2.5
    assert ratios[-2] > 3
    # the code nearest to the mean is no better: a decoder that shrinks z wants codes further out
    nearest = GaussianQuantizer.from_bottleneck(
        bottleneck, round(math.exp(rate + 2)), group_dim=group, prior_weight=0.0
    )
    assert F.mse_loss(a * nearest.decode(nearest.encode(data)), data).item() / of_draws > ratios[2]


@pytest.mark.parametrize("code_dim", [6, 4])
def test_a_conversion_takes_over_the_bottleneck(code_dim):
    torch.manual_seed(0)
    bottleneck = GaussianBottleneck(6, code_dim)
    nn.init.normal_(bottleneck.moments.weight)
    bottleneck.set_progress(0.5)
    quantizer = GaussianQuantizer.from_bottleneck(bottleneck.eval(), 64, group_dim=2, seed=3)
    assert not quantizer.training
    assert quantizer.progress == 0.5
    for name, tensor in bottleneck.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name], tensor)
    latents = torch.randn(10, 6)
    torch.testing.assert_close(quantizer.group_divergences(latents).sum(-1), bottleneck.divergence(latents))
    with torch.no_grad():
        quantizer.moments.weight.zero_()
    assert bottleneck.moments.weight.abs().sum() > 0
    assert GaussianQuantizer.from_bottleneck(bottleneck.double(), 64).noise.dtype == torch.float64
    with pytest.raises(ValueError, match="'bottleneck' must be a GaussianBottleneck, got Linear"):
        GaussianQuantizer.from_bottleneck(nn.Linear(2, 2), 64)


def test_the_codebook_follows_from_its_seed_and_is_saved():
    torch.manual_seed(0)
    first, again, other = (GaussianQuantizer(4, 1000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)
    assert first.noise.mean().abs() < 0.1
    assert first.noise.std() == pytest.approx(1, abs=0.1)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.codebook, first.noise)
    assert "noise" not in dict(first.named_parameters())


def test_codes_of_groups():
    quantizer = GaussianQuantizer(6, 16, group_dim=2).eval()
    assert quantizer.code_shape == (3,)
    assert quantizer.codebook_sizes == (16, 16, 16)
    assert GaussianQuantizer(6, 16).code_shape == ()
    latents = torch.randn(4, 5, 6)
    out = quantizer(latents)
    assert out.codes.shape == (4, 5, 3)
    assert torch.equal(out.values, quantizer.noise[out.codes].flatten(-2))
    assert torch.equal(out.values, quantizer.decode(out.codes))
    partly = quantizer.decode(torch.tensor([3, -1, 5]))
    assert torch.equal(partly, torch.cat([quantizer.noise[3], torch.zeros(2), quantizer.noise[5]]))
    assert (quantizer.decode(torch.full((2, 3), -1)) == 0).all()
    assert (quantizer(latents, torch.zeros(4, 5, dtype=torch.bool)).codes == -1).all()
    with pytest.raises(ValueError, match="last axis of 'codes' must have 3 groups"):
        quantizer.decode(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"Use \.noise"):
        _ = quantizer.codebook


def test_training_shows_a_draw_and_evaluation_a_code():
    torch.manual_seed(0)
    quantizer = with_moments(GaussianQuantizer(4, 16), gain=0.8, deviation=0.5)
    latents = torch.randn(20_000, 4)
    out = quantizer(latents)
    residuals = out.values.detach() - 0.8 * latents
    assert residuals.mean().abs() < 0.01
    assert residuals.std() == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(out.values, quantizer.decode(out.codes))
    assert torch.equal(out.codes, quantizer.encode(latents))
    out = quantizer.eval()(latents)
    assert torch.equal(out.values, quantizer.decode(out.codes))


def test_a_hard_code_has_the_gradient_of_the_draw_that_gives_it():
    torch.manual_seed(0)
    quantizer = GaussianQuantizer(4, 16, hard=True)
    moments = torch.randn(30, 8, requires_grad=True)
    quantizer._moments = lambda rows: tuple(moments.chunk(2, dim=-1))
    out = quantizer(torch.zeros(30, 4))
    assert torch.equal(out.values, quantizer.decode(out.codes))
    slopes = torch.randn(30, 4)
    (gradient,) = torch.autograd.grad((out.values * slopes).sum(), moments)
    torch.testing.assert_close(gradient[:, :4], slopes)
    # dz / d log s^2 = s epsilon / 2, and s epsilon = c - m
    torch.testing.assert_close(gradient[:, 4:], slopes * (out.values.detach() - moments[:, :4].detach()) / 2)


def test_the_loss_weighs_rates_by_where_they_stand():
    quantizer = with_moments(GaussianQuantizer(2, 32, group_dim=1, margin=0.3), deviation=0.04)
    quantizer.divergence_weights.copy_(torch.tensor([0.5, 2.0, 3.0]))
    latents = torch.tensor([[0.0, 1.3], [0.4, 2.5]])
    target, loss, places = math.log(32), 0.0, set()
    for row in latents.tolist():
        for m in row:
            rate = (m**2 + 0.04**2 - 1 - 2 * math.log(0.04)) / 2
            place = (rate > target + 0.3) - (rate < target - 0.3)
            places.add(place)
            loss += 2.0 * {-1: 0.5, 0: 1.0, 1: 3.0}[place] * rate / 2  # sum over groups, mean over tokens
    assert places == {-1, 0, 1}
    assert quantizer.eval()(latents).loss.item() == pytest.approx(loss, rel=1e-5)


def test_weights_move_toward_the_target():
    up, down = 1.01, 1 / 1.01
    for deviation, expected in (
        (1e-3, [1.0, up, up]),  # rates too high
        (0.9, [down, down, 1.0]),  # rates too low
    ):
        quantizer = with_moments(GaussianQuantizer(4, 16), gain=0.1, deviation=deviation)
        quantizer(torch.randn(30, 4))
        torch.testing.assert_close(quantizer.divergence_weights, torch.ones(3))  # as used by the forward
        quantizer.update()
        torch.testing.assert_close(quantizer.divergence_weights, torch.tensor(expected))
        quantizer.update()  # nothing is pending any more
        torch.testing.assert_close(quantizer.divergence_weights, torch.tensor(expected))
    quantizer.divergence_weights.copy_(torch.tensor([0.5, 1.0, 2.0]))
    with_moments(quantizer, gain=0.0, deviation=math.exp(-math.log(16) / 4 - 0.48))(torch.randn(30, 4))
    quantizer.update()  # all within the margin
    torch.testing.assert_close(quantizer.divergence_weights[::2], torch.tensor([0.5 * up, 2.0 * down]))
    for _ in range(3000):
        quantizer.pending_rows.fill_(1)
        quantizer.pending_excess.copy_(torch.tensor([-5.0, 1.0, 5.0]))
        quantizer.update()
    torch.testing.assert_close(quantizer.divergence_weights, torch.tensor([1e-3, 1e3, 1e3]))


def test_only_rows_that_count_move_the_weights():
    quantizer = with_moments(GaussianQuantizer(4, 16), deviation=1e-3)
    for latents, mask in (
        (torch.randn(5, 4), torch.zeros(5, dtype=torch.bool)),
        (torch.randn(0, 4), None),
        (torch.full((5, 4), torch.nan), None),
    ):
        quantizer(latents, mask)
        quantizer.update()
        assert (quantizer.divergence_weights == 1).all()
    quantizer.freeze()(torch.randn(5, 4))
    quantizer.unfreeze().update()
    assert (quantizer.divergence_weights == 1).all()


@pytest.mark.parametrize("hard", [False, True])
def test_training_holds_the_rate_at_log_k(hard):
    torch.manual_seed(0)
    scales = torch.tensor([4.0, 2.0, 1.0, 0.5])
    quantizer, decoder = GaussianQuantizer(4, 64, group_dim=2, hard=hard), nn.Linear(4, 4)
    encoder = nn.Linear(4, 4)
    parameters = [*encoder.parameters(), *quantizer.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(700):
        data = scales * torch.randn(64, 4)
        out = quantizer(encoder(data))
        loss = 4 / 2 * F.mse_loss(decoder(out.values), data).log() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data = scales * torch.randn(2000, 4)
    rates = quantizer.eval().group_divergences(encoder(data))
    torch.testing.assert_close(rates.mean(0), torch.full((2,), math.log(64)), rtol=0, atol=0.35)
    assert F.mse_loss(decoder(quantizer(encoder(data)).values), data) < 0.2 * data.var()


def test_importance_weights_stand_for_the_posterior():
    quantizer = with_moments(GaussianQuantizer(2, 20_000), gain=1.0, deviation=0.3).eval()
    latents = torch.tensor([[0.5, -1.0], [-0.2, 0.3]])
    torch.testing.assert_close(quantizer.posterior_mean(latents), latents, rtol=0, atol=0.05)
    torch.testing.assert_close(
        quantizer.divergence(latents), quantizer.group_divergences(latents)[:, 0], rtol=0, atol=0.1
    )
    drawn = quantizer.sample_posterior(latents[:1].expand(500, 2), torch.Generator().manual_seed(0)).values
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 0.3), rtol=0, atol=0.04)


def test_blocks_of_encode_change_nothing(monkeypatch):
    quantizer = randomized(GaussianQuantizer(6, 16, group_dim=2)).eval()
    latents = torch.randn(50, 6)
    whole = quantizer.encode(latents)
    monkeypatch.setattr("gmvq.kernels.reference.BLOCK_ELEMENTS", 7 * 16)
    assert torch.equal(quantizer.encode(latents), whole)


def test_bad_arguments_get_a_reason():
    for options, match in (
        ({"group_dim": 4}, "'group_dim' must divide the 6 features of z, got 4"),
        ({"group_dim": 0}, "'group_dim' must be an integer of at least 1"),
        ({"prior_weight": 1.5}, "'prior_weight' must lie in"),
        ({"prior_weight": math.nan}, "'prior_weight' must lie in"),
        ({"margin": -1.0}, "'margin' must be a finite number"),
    ):
        with pytest.raises(ValueError, match=match):
            GaussianQuantizer(6, 8, **options)


@pytest.mark.parametrize("hard", [True, False])
def test_an_encoder_learns_behind_it_in_evaluation(hard):
    torch.manual_seed(0)
    quantizer = randomized(GaussianQuantizer(6, 16, group_dim=3, hard=hard)).eval()
    rows = torch.randn(20, 6, requires_grad=True)
    out = quantizer(rows)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    (given,) = torch.autograd.grad((out.values * out.values.detach()).sum(), rows)
    hard_out = quantizer.train()(rows)
    if hard:
        torch.testing.assert_close(
            given, torch.autograd.grad((hard_out.values * hard_out.values.detach()).sum(), rows)[0]
        )
    assert (given.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_terms_are_no_views_of_the_state(training):
    quantizer = GaussianQuantizer(6, 16).train(training)
    out = quantizer(torch.randn(20, 6))
    before = out.terms["divergence_weight"].item()
    quantizer.divergence_weights.fill_(7.0)
    assert out.terms["divergence_weight"].item() == before
    out.terms["divergence_weight"].zero_()
    assert (quantizer.divergence_weights == 7.0).all()


def test_rates_are_the_same_under_autocast_and_of_any_shape():
    torch.manual_seed(0)
    quantizer = randomized(GaussianQuantizer(6, 16, group_dim=3)).eval()
    rows = torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rates, posterior = quantizer.group_divergences(rows), quantizer.posterior(rows)
    assert torch.equal(rates, quantizer.group_divergences(rows))
    assert torch.equal(posterior.responsibilities, quantizer.posterior(rows).responsibilities)
    assert quantizer.group_divergences(rows[:0].reshape(2, 0, 6)).shape == (2, 0, 2)
    assert quantizer.posterior(rows[:0].reshape(2, 0, 6)).responsibilities.shape == (2, 0, 2, 16)


def test_a_frozen_constraint_stays():
    quantizer = GaussianQuantizer(6, 16)
    quantizer(10 * torch.randn(20, 6))
    quantizer.freeze().update()
    assert (quantizer.divergence_weights == 1).all()
