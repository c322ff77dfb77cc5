import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from gmvq.quantizers import (
    ALBO,
    ELBO,
    AdaptiveNoise,
    ConstantNoise,
    GaussianMixtureQuantizer,
    Geometric,
    GumbelSoftmax,
    Linear,
    Rotation,
    VectorQuantizer,
)
from gmvq.quantizers.mixture import LATENT_WEIGHT
from gmvq.quantizers.parts.estimators import relaxed_sample
from gmvq.quantizers.parts.gaussian_mixture import Mixture


def fitted(rows, **options):
    quantizer = GaussianMixtureQuantizer(rows.shape[-1], 5, codebook_dim=rows.shape[-1], **options).to(rows.dtype)
    quantizer(rows)
    quantizer.update()
    return quantizer.eval()


@pytest.fixture
def rows():
    return torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.3, "shared", "code", "feature"])
@pytest.mark.parametrize("learned", [(), ("mixture_weights",)])
def test_posterior_is_that_of_the_mixture(rows, variance, learned):
    quantizer = fitted(rows, variance=variance, learned=learned)
    means, prior = quantizer.codebook.numpy(), quantizer.log_prior.exp().numpy()
    variances = np.broadcast_to(quantizer.variance.value(quantizer.codebook).numpy(), means.shape)
    density = np.stack(
        [
            weight * multivariate_normal(mean, np.diag(spread)).pdf(rows.numpy())
            for weight, mean, spread in zip(prior, means, variances, strict=True)
        ],
        axis=1,
    )
    responsibilities = density / density.sum(1, keepdims=True)
    posterior = quantizer.posterior(rows)
    np.testing.assert_allclose(posterior.responsibilities.numpy(), responsibilities, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(posterior.log_density.numpy(), np.log(density.sum(1)), rtol=1e-9)
    entropy = -(responsibilities * np.log(np.maximum(responsibilities, 1e-300))).sum(1)
    np.testing.assert_allclose(posterior.entropy.numpy(), entropy, atol=1e-9)


def test_albo_and_elbo_equal_the_equations_by_hand(rows):
    quantizer = fitted(rows, variance=0.7)
    distances = torch.cdist(rows, quantizer.codebook).square()
    energies = distances / (2 * 0.7)
    q = torch.softmax(-energies, -1)
    aggregated = q.mean(0)
    expected_distance = (q * energies).sum(-1).mean()
    expected_divergence = (aggregated * (aggregated.log() + math.log(5))).sum()
    out = quantizer(rows)
    torch.testing.assert_close(out.terms["distance"], expected_distance)
    torch.testing.assert_close(out.terms["aggregated_divergence"], expected_divergence)
    nat = LATENT_WEIGHT * 2 * 0.7 / 3  # as a squared error of the latents
    torch.testing.assert_close(out.loss, nat * (expected_distance + expected_divergence))
    quantizer.objective = ALBO(distance_weight=0.5, prior_weight=3.0)
    torch.testing.assert_close(quantizer(rows).loss, nat * (0.5 * expected_distance + 3 * expected_divergence))
    quantizer.objective, quantizer.noise = ELBO(), AdaptiveNoise(1.5)
    ratio = 1.5**2 * energies / 3
    latent = (q * 3 / 2 * (ratio - 1 - ratio.log())).sum(-1).mean()
    code = (q * (q.log() + math.log(5))).sum(-1).mean()
    torch.testing.assert_close(quantizer(rows).loss, nat * (latent + code))
    torch.testing.assert_close(quantizer.divergence(rows).mean(), latent + code)


@pytest.mark.parametrize("noise", [0.0, 1.0, ConstantNoise(1.0), ConstantNoise(0.999)], ids=repr)
@pytest.mark.parametrize("variance", [1e4, 1e8])
def test_the_elbo_is_a_divergence_and_not_negative(rows, variance, noise):
    """A posterior as wide as the prior: entropy and log K differ by rounding."""
    for size in (3, 7, 16, 100):
        quantizer = GaussianMixtureQuantizer(3, size, objective="elbo", variance=variance, noise=noise)
        for _ in range(3):
            assert quantizer(rows.float()).loss >= 0
        assert (quantizer.divergence(rows.float()) >= 0).all()


def test_the_categorical_part_is_that_of_the_elbo_less_the_mutual_information(rows):
    # equation (9)
    quantizer = fitted(rows)
    q = quantizer.posterior(rows).responsibilities
    aggregated = q.mean(0)
    information = (q * (q / aggregated).log()).sum(-1).mean()
    assert quantizer.divergence(rows).mean() - quantizer(rows).terms["aggregated_divergence"] == pytest.approx(
        information
    )


def test_sigma_to_zero_is_plain_vector_quantization(rows):
    mixture = GaussianMixtureQuantizer(3, 8, codebook_dim=3, variance=1e-9, decay=0.9).double()
    vector = VectorQuantizer(3, 8, decay=0.9).double()
    for step in range(4):
        batch = rows.roll(step, 0)[: 150 + step] * (1 + step)
        soft, hard = mixture(batch), vector(batch)
        if step == 0:  # they start from the same k-means, but with other counts
            mixture.moving.place(vector.moving.codes, vector.moving.counts)
            mixture.moving.collect(torch.zeros(8), torch.zeros(8, 3))
            soft = mixture(batch)
            vector.moving.place(mixture.moving.codes, mixture.moving.counts)
            hard = vector(batch)
        assert torch.equal(soft.codes, hard.codes)
        torch.testing.assert_close(soft.values, hard.values)


@pytest.mark.parametrize(
    ("rows_of_code", "updates", "steps"),
    [(4, 0, 20), (16, 0, 5), (1, 0, 20), (1, 1000, 50), (1, 9000, 80), (0.5, 9000, 160)],
)
def test_what_codes_remember_follows_the_number_of_latents(rows_of_code, updates, steps):
    quantizer = GaussianMixtureQuantizer(3, 8, codebook_dim=3)
    quantizer(torch.randn(round(8 * rows_of_code), 3))
    quantizer.moving.updates.fill_(updates)
    assert float(quantizer.moving.new_share()) == pytest.approx(1 - math.exp(-1 / steps), rel=0.01)
    quantizer.update()
    quantizer.update()  # without latents
    assert quantizer.moving.updates == updates + 1


def test_scaling_latents_and_codebook_together_scales_values_and_loss(rows):
    for estimator in (None, GumbelSoftmax()):
        losses = []
        for scale in (1.0, 64.0):
            torch.manual_seed(0)
            quantizer = GaussianMixtureQuantizer(3, 5, codebook_dim=3, noise=0.5, estimator=estimator).double()
            out = quantizer(rows * scale)
            losses.append(torch.cat([out.loss[None] / scale**2, (out.values / scale).flatten()]))
        torch.testing.assert_close(losses[0], losses[1])


def test_codes_far_from_all_latents_come_back_without_a_restart():
    # half of the codes start far outside of the data
    torch.manual_seed(0)
    rows = torch.randn(2000, 2)
    starts = torch.cat([torch.randn(16, 2), torch.randn(16, 2) + 8])
    used = {}
    for name, quantizer in {
        "mixture": GaussianMixtureQuantizer(2, 32, codebook_dim=2, decay=0.9),
        "vector": VectorQuantizer(2, 32, decay=0.9),
    }.items():
        quantizer(rows)
        quantizer.moving.place(starts, torch.full((32,), 1.0))
        for _ in range(200):
            quantizer(rows)
        used[name] = len(quantizer.encode(rows).unique())
    assert used["vector"] <= 17
    assert used["mixture"] >= 22


def test_the_default_projects_wide_latents_to_few_dimensions():
    assert GaussianMixtureQuantizer(64, 16).codebook_dim == 4
    assert GaussianMixtureQuantizer(3, 16).codebook_dim == 3
    assert GaussianMixtureQuantizer(64, 16, codebook_dim=8).code_vectors.shape == (16, 8)


def test_schedules_follow_the_trainers_progress(rows):
    quantizer = fitted(rows, sharpening=Geometric(4.0, 0.01))
    entropies = []
    for progress in (0.0, 0.5, 1.0):
        quantizer.set_progress(progress)
        entropies.append(quantizer.posterior(rows).entropy.mean().item())
    assert entropies[0] > entropies[1] > entropies[2] >= 0
    assert entropies[2] < 0.01


def test_gumbel_samples_have_the_posterior_as_their_frequencies():
    torch.manual_seed(0)
    log_posterior = torch.tensor([0.6, 0.3, 0.1]).log().expand(20000, 3)
    temperature = GumbelSoftmax(Linear(1.0, 0.01)).temperature_at(1.0)
    _, _, weights = relaxed_sample(log_posterior, torch.randn(3, 2), temperature)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20000))
    frequencies = torch.bincount(weights.argmax(-1), minlength=3) / 20000
    torch.testing.assert_close(frequencies, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)


def test_samples_of_the_prior_follow_its_weights():
    torch.manual_seed(0)
    quantizer = GaussianMixtureQuantizer(4, 3, learned=("mixture_weights",), noise=1.0)
    quantizer.moving.place(torch.tensor([[0.0] * 4, [100.0] * 4, [-100.0] * 4]), torch.tensor([6.0, 3.0, 1.0]))
    quantizer.variance.start(torch.tensor([1.0, 1.0, 1.0]), torch.full((3, 4), 4.0))
    values, codes, *_ = quantizer.sample(100, 200)
    assert values.shape == (100, 200, 4)
    torch.testing.assert_close(
        torch.bincount(codes.flatten()) / 20000, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0
    )
    assert (values - quantizer.decode(codes)).std().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"objective": "vlbo"}, "'objective'"),
        ({"variance": 0.0}, "'variance'"),
        ({"variance": "all"}, "'variance'"),
        ({"noise": -1.0}, "'noise'"),
        ({"decay": 1.0}, "'decay'"),
        ({"learned": "codebook"}, "'learned'"),
        ({"learned": ("sigma",)}, "'learned'"),
        ({"sharpening": 0.0}, "'sharpening'"),
        ({"codebook_dim": 9}, "'codebook_dim'"),
        ({"estimator": GumbelSoftmax}, None),
    ],
)
def test_bad_arguments_get_a_reason(options, reason):
    if reason is None:
        with pytest.raises(ValueError, match="'temperature'"):
            GumbelSoftmax(-1.0)
        return
    with pytest.raises(ValueError, match=reason):
        GaussianMixtureQuantizer(8, 4, **options)
    with pytest.raises(ValueError, match="'codebook_size'"):
        GaussianMixtureQuantizer(8, 0)


@pytest.mark.parametrize("estimator", [None, Rotation(), GumbelSoftmax(), GumbelSoftmax(hard=True)])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_an_encoder_learns_behind_a_mixture_in_evaluation(rows, estimator, noise):
    quantizer = fitted(rows, estimator=estimator, noise=noise)
    encoder = torch.nn.Linear(3, 3).double()
    out = quantizer(encoder(rows))
    assert torch.equal(out.values, quantizer.decode(out.codes))
    out.values.square().sum().backward()
    assert encoder.weight.grad.abs().sum() > 0


def test_the_expected_distance_is_the_same_under_autocast(rows):
    quantizer, rows = fitted(rows.float()), rows.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance, posterior = quantizer.expected_distance(rows), quantizer.posterior(rows)
    assert torch.equal(distance, quantizer.expected_distance(rows))
    assert torch.equal(posterior.responsibilities, quantizer.posterior(rows).responsibilities)
    assert quantizer.expected_distance(rows[:0].reshape(2, 0, 3)).shape == (2, 0)
    assert quantizer.posterior(rows[:0].reshape(2, 0, 3)).responsibilities.shape == (2, 0, 5)


@pytest.mark.parametrize("noise", [1e-3, 1e-20, 1e-200])
@pytest.mark.parametrize("objective", ["albo", "elbo"])
def test_little_noise_leaves_the_codes_alone(noise, objective):
    latents = torch.randn(500, 4)
    quantizer = GaussianMixtureQuantizer(4, 64, noise=noise, objective=objective)
    quantizer(latents)
    quantizer.freeze()
    quantized = quantizer(latents)
    assert quantized.loss.isfinite()
    assert torch.equal(quantized.codes, quantizer.encode(latents))
    assert quantized.codes.unique().numel() > 40


@pytest.mark.parametrize(
    ("noise", "code_dim"),
    [(AdaptiveNoise(0.7), 3), (ConstantNoise(0.7), 3), (ConstantNoise(2.0), 5), (ConstantNoise(1e-5), 4)],
)
def test_the_divergence_of_the_latents_is_that_of_two_normal_distributions(noise, code_dim):
    energies = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)
    for energy, ratio in zip(energies, noise.ratio(energies, code_dim), strict=True):
        wide, narrow = (torch.distributions.Normal(torch.zeros(code_dim).double(), s) for s in (1.0, ratio.sqrt()))
        expected = torch.distributions.kl_divergence(narrow, wide).sum()
        torch.testing.assert_close(noise.divergence(energy, energy.log(), code_dim), expected)


def test_constant_noise_is_as_wide_for_all_codes(rows):
    torch.manual_seed(0)
    quantizer = fitted(rows, noise=ConstantNoise(0.5)).train()
    quantizer.freeze()
    latents = rows[:1].expand(20_000, -1)
    drawn = quantizer(latents)
    spread = (drawn.values - quantizer.decode(drawn.codes)).std(0)
    sigma = drawn.terms["sigma"]
    torch.testing.assert_close(spread, (0.5 * sigma).expand(3), rtol=0.03, atol=0.0)
    farther = quantizer(latents + 5 * sigma)
    farther_spread = (farther.values - quantizer.decode(farther.codes)).std(0)
    torch.testing.assert_close(farther_spread, spread, rtol=0.03, atol=0.0)


def test_with_the_models_own_noise_a_latent_costs_its_code_alone(rows):
    quantizer = fitted(rows, noise=ConstantNoise(1.0), objective="elbo")
    discrete = fitted(rows, objective="elbo")
    torch.testing.assert_close(quantizer.divergence(rows), discrete.divergence(rows))
    drawn = quantizer.sample_posterior(rows, torch.Generator().manual_seed(0))
    assert drawn.values.isfinite().all()
    # c is summed out, so the densities of z differ by no more than those of (z, c) do
    assert (drawn.log_posterior - drawn.log_prior).mean() <= quantizer.divergence(rows).mean() + 0.1


def test_noise_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'noise' must be a finite number of at least 0"):
        GaussianMixtureQuantizer(4, 3, noise=-1.0)
    with pytest.raises(ValueError, match="'scale' must be a finite number of at least 0"):
        ConstantNoise(float("nan"))


@pytest.mark.parametrize("options", [{}, {"estimator": GumbelSoftmax(), "noise": 1.0}, {"variance": "code"}], ids=str)
def test_each_verb_builds_the_mixture_once(monkeypatch, options):
    quantizer, latents = GaussianMixtureQuantizer(6, 8, **options), torch.randn(50, 6)
    quantizer(latents)
    built, of = [], Mixture.of
    monkeypatch.setattr(Mixture, "of", lambda *parts: built.append(1) or of(*parts))
    for training in (True, False):
        quantizer.train(training)
        for verb in ("__call__", "encode", "posterior", "posterior_mean", "divergence", "sample_posterior"):
            getattr(quantizer, verb)(latents)
            assert len(built) == 1, verb
            built.clear()


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_a_sharp_sample_of_far_latents_has_gradients_of_their_size(temperature):
    """Energies of 1e10 are rounded by 1e3 nats: computed again, a probability must not come out above 1."""
    torch.manual_seed(0)
    quantizer = GaussianMixtureQuantizer(6, 16, estimator=GumbelSoftmax(temperature), variance=1.0)
    for _ in range(5):
        latents = (1e5 * torch.randn(256, 6)).requires_grad_()
        out = quantizer(latents)
        (out.values.sum() + out.loss).backward()
        assert latents.grad.abs().max() < 1e15
