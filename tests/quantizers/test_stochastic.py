"""SQ-VAE's quantizer: its equations by hand, its four variances, its sphere."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmvq.kernels import weighted_squared_distances
from gmvq.modalities import Image
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.quantizers import Geometric, GumbelSoftmax, VectorQuantizer
from gmvq.quantizers.stochastic import LARGEST_LOG_VARIANCE, StochasticQuantizer

VARIANCES = ("shared", "sample", "token", "feature")
Z = [[0.5, -1.0], [2.0, 0.25]]
CODES = [[0.0, 0.0], [1.0, -1.0], [2.0, 1.0]]


def with_codes(codes=CODES, initial_variance=1.0, **options) -> StochasticQuantizer:
    codes = torch.tensor(codes, dtype=torch.float64)
    quantizer = StochasticQuantizer(codes.shape[1], len(codes), initial_variance=initial_variance, **options).double()
    with torch.no_grad():
        quantizer.learned_codes.copy_(codes)
        # the start is of float32: again, in float64
        logarithm = math.log(initial_variance)
        quantizer.variance_offset.fill_(LARGEST_LOG_VARIANCE * math.atanh(logarithm / LARGEST_LOG_VARIANCE))
    return quantizer


def with_log_variances(quantizer: StochasticQuantizer, offset, head) -> StochasticQuantizer:
    """Sets b and W."""
    with torch.no_grad():
        quantizer.variance_offset.copy_(torch.tensor(offset, dtype=torch.float64))
        quantizer.variance_head.weight.copy_(torch.tensor(head, dtype=torch.float64))
    return quantizer


def bound(logarithm: float) -> float:
    return LARGEST_LOG_VARIANCE * math.tanh(logarithm / LARGEST_LOG_VARIANCE)


def by_hand(energies: list[list[float]]) -> tuple[float, float, float]:
    """Means over tokens of E_q[e], KL(q || uniform) and the objective's -log mean exp(-e)."""
    distance = divergence = free_energy = 0.0
    for e in energies:
        total = sum(math.exp(-value) for value in e)
        q = [math.exp(-value) / total for value in e]
        distance += sum(p * value for p, value in zip(q, e, strict=True)) / len(energies)
        divergence += (sum(p * math.log(p) for p in q) + math.log(len(e))) / len(energies)
        free_energy -= math.log(total / len(e)) / len(energies)
    return distance, divergence, free_energy


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_papers_by_hand(training):
    quantizer = with_codes(initial_variance=0.7).train(training)
    energies = [[sum((a - b) ** 2 for a, b in zip(z, c, strict=True)) / (2 * 0.7) for c in CODES] for z in Z]
    distance, divergence, free_energy = by_hand(energies)
    out = quantizer(torch.tensor(Z, dtype=torch.float64))
    assert out.loss.item() == pytest.approx(distance + divergence, rel=1e-9)
    assert out.loss.item() == pytest.approx(free_energy, rel=1e-9)
    assert out.terms["distance"].item() == pytest.approx(distance, rel=1e-9)
    assert out.terms["divergence"].item() == pytest.approx(divergence, rel=1e-9)
    assert out.terms["sigma"].item() == pytest.approx(0.7**0.5, rel=1e-9)


def test_a_variance_for_each_feature_by_hand():
    quantizer = with_log_variances(with_codes(variance="feature"), [0.1, -0.3], [[0.2, 0.0], [0.1, 0.4]])
    energies = []
    for z in Z:
        logs = [bound(0.1 + 0.2 * z[0]), bound(-0.3 + 0.1 * z[0] + 0.4 * z[1])]
        energies.append([sum((z[i] - c[i]) ** 2 / (2 * math.exp(logs[i])) for i in range(2)) for c in CODES])
    distance, divergence, free_energy = by_hand(energies)
    out = quantizer(torch.tensor(Z, dtype=torch.float64))
    assert out.loss.item() == pytest.approx(distance + divergence, rel=1e-9)
    assert out.loss.item() == pytest.approx(free_energy, rel=1e-9)


def test_a_variance_for_each_token_and_the_mean_over_a_sample():
    latents = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [3], [1]])
    own = [[bound(0.5 + 0.3 * float(z[0]) - 0.2 * float(z[1])) for z in sample] for sample in latents]
    of_tokens = with_log_variances(with_codes(variance="token"), [0.5], [[0.3, -0.2]]).variances(latents, mask)
    of_samples = with_log_variances(with_codes(variance="sample"), [0.5], [[0.3, -0.2]]).variances(latents, mask)
    for b, number in enumerate((4, 3, 1)):
        mean = sum(own[b][:number]) / number
        for t in range(number):
            assert math.log(of_tokens[b, t]) == pytest.approx(own[b][t])
            assert math.log(of_samples[b, t]) == pytest.approx(mean)
    unmasked = with_log_variances(with_codes(variance="sample"), [0.5], [[0.3, -0.2]]).variances(latents)
    assert math.log(unmasked[2, 0]) == pytest.approx(sum(own[2]) / 4)


def test_masked_and_spoiled_tokens_have_no_part_in_their_samples_variance():
    quantizer = with_log_variances(with_codes(variance="sample"), [0.5], [[0.3, -0.2]]).eval()
    latents = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    spoiled = latents.clone()
    spoiled[0, 3] = torch.nan
    short, masked, broken = quantizer(latents[:, :3]), quantizer(spoiled, mask), quantizer(spoiled)
    for out in (masked, broken):
        torch.testing.assert_close(out.loss, short.loss)
        assert torch.equal(out.codes[:, :3], short.codes)


@pytest.mark.parametrize("variance", VARIANCES)
def test_all_variances_start_as_the_shared_one(variance):
    latents = torch.randn(5, 3, 4)
    torch.manual_seed(0)
    shared = StochasticQuantizer(4, 8).eval()
    other = StochasticQuantizer(4, 8, variance=variance).eval()
    other.load_state_dict({**other.state_dict(), "learned_codes": shared.learned_codes.detach()})
    torch.testing.assert_close(other(latents).loss, shared(latents).loss)
    torch.testing.assert_close(other.variances(latents).mean(), torch.tensor(4 * 20 / 64))


def test_the_sphere_by_hand():
    quantizer = with_codes(distribution="von-mises-fisher", initial_variance=0.4)
    unit = [[v / math.hypot(*point) for v in point] for point in Z]
    codes = [[3.0, 0.0], [1.0, -1.0], [0.0, 2.0]]
    with torch.no_grad():
        quantizer.learned_codes.copy_(torch.tensor(codes))
    directions = [[v / math.hypot(*code) for v in code] for code in codes]
    kappa = 1 / 0.4
    energies = [[kappa * (1 - sum(a * b for a, b in zip(z, c, strict=True))) for c in directions] for z in unit]
    distance, divergence, _ = by_hand(energies)
    latents = torch.tensor(Z, dtype=torch.float64)
    out = quantizer(latents)
    assert out.loss.item() == pytest.approx(distance + divergence, rel=1e-9)
    assert out.terms["kappa"].item() == pytest.approx(kappa)
    expected = (
        kappa * torch.tensor(unit, dtype=torch.float64) @ torch.tensor(directions, dtype=torch.float64).T
    ).softmax(-1)
    torch.testing.assert_close(quantizer.posterior(latents).responsibilities, expected)
    assert quantizer.posterior(latents).log_density is None
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(3, dtype=torch.float64))


def test_the_gradient_is_that_of_the_two_terms():
    latents = torch.tensor(Z, dtype=torch.float64)
    gradients = []
    for written_out in (False, True):
        quantizer = with_codes(initial_variance=0.5)
        z = latents.clone().requires_grad_()
        if written_out:
            variance = quantizer.variance_offset.div(20).tanh().mul(20).exp()
            energies = (z[:, None] - quantizer.learned_codes).square().sum(-1) / (2 * variance)
            q = (-energies).softmax(-1)
            ((q * energies).sum(-1) + (q * q.log()).sum(-1)).mean().backward()
        else:
            quantizer(z).loss.backward()
        gradients.append([z.grad, quantizer.learned_codes.grad, quantizer.variance_offset.grad])
    for given, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(given, expected)


def test_an_autoencoder_minimizes_the_papers_objective():
    torch.manual_seed(0)
    model = Autoencoder(
        AutoencoderConfig(quantizer="none", modality=Image(1), code_dim=4, width=8, downsampling=2, blocks=1)
    )
    model.bottleneck = StochasticQuantizer(4, 8)
    images = torch.rand(3, 1, 8, 8)
    out = model(images)
    dimensions, tokens = 64, 16
    half_log_error = out.terms["reconstruction"]  # of the likelihood at its maximum, for each dimension
    expected = dimensions * half_log_error + tokens * (out.terms["distance"] + out.terms["divergence"])
    assert (dimensions * out.loss).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_density_of_the_mixture_integrates_to_one_where_it_is_one(variance):
    quantizer = with_codes([[-1.0], [0.5], [2.0]], variance=variance, initial_variance=0.3)
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:, None]
    density = quantizer.posterior(grid).log_density
    if variance == "shared":
        assert torch.trapezoid(density.exp(), grid[:, 0]).item() == pytest.approx(1)
    else:
        assert density is None


def test_a_small_variance_gives_the_codes_of_vector_quantization():
    torch.manual_seed(0)
    hard = GumbelSoftmax(0.5, hard=True)
    quantizer = StochasticQuantizer(3, 16, initial_variance=1e-6, estimator=hard)
    plain = VectorQuantizer(3, 16, decay=None, kmeans_start=False)
    with torch.no_grad():
        plain.learned.copy_(quantizer.learned_codes)
    latents = torch.randn(100, 3)
    expected = plain.eval()(latents)
    for training in (True, False):
        out = quantizer.train(training)(latents)
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.values, expected.values)
    assert out.terms["divergence"].item() == pytest.approx(math.log(16), rel=1e-3)


def test_a_large_variance_forgets_the_latents():
    quantizer = StochasticQuantizer(3, 16, initial_variance=1e6)
    assert quantizer(torch.randn(100, 3)).loss.item() == pytest.approx(0, abs=1e-4)


def test_training_draws_from_the_posterior():
    torch.manual_seed(0)
    quantizer = with_codes(initial_variance=2.0, estimator=GumbelSoftmax(1.0, hard=True))
    latents = torch.tensor(Z[:1], dtype=torch.float64).expand(20_000, 2)
    shares = quantizer(latents).codes.bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares.double(), quantizer.posterior(latents[0]).responsibilities, rtol=0, atol=0.015)


def test_the_blend_becomes_a_code_as_the_temperature_falls():
    quantizer = StochasticQuantizer(3, 16)
    assert quantizer.estimator == GumbelSoftmax(Geometric(1.0, 0.2))
    latents, gaps = torch.randn(500, 3), []
    for estimator in (GumbelSoftmax(2.0), GumbelSoftmax(0.02)):
        quantizer.estimator = estimator
        gaps.append(torch.cdist(quantizer(latents).values, quantizer.codebook).amin(-1).mean().item())
    assert gaps[1] < 0.1 * gaps[0]


@pytest.mark.parametrize("variance", VARIANCES)
def test_evaluation_takes_the_most_likely_code(variance):
    quantizer = StochasticQuantizer(3, 16, variance=variance).eval()
    if quantizer.variance_head is not None:
        nn.init.normal_(quantizer.variance_head.weight)
    latents = torch.randn(4, 5, 3)
    out = quantizer(latents)
    assert torch.equal(out.codes, quantizer.posterior(latents).responsibilities.argmax(-1))
    assert torch.equal(out.codes, quantizer.encode(latents))
    assert torch.equal(out.values, quantizer.decode(out.codes))


def test_the_variance_is_bounded_and_leads_back():
    quantizer = StochasticQuantizer(3, 16, variance="token")
    with torch.no_grad():
        quantizer.variance_head.weight.fill_(1e6)
    variances = quantizer.variances(torch.randn(100, 3) * 1e10)
    assert (variances.log().abs() <= LARGEST_LOG_VARIANCE + 1e-4).all()
    narrow = StochasticQuantizer(3, 16)
    with torch.no_grad():
        narrow.variance_offset.fill_(-3 * LARGEST_LOG_VARIANCE)
    narrow(torch.randn(100, 3)).loss.backward()
    assert narrow.variance_offset.grad.item() < -1


def test_blocks_of_encode_change_nothing(monkeypatch):
    quantizer = StochasticQuantizer(3, 16, variance="feature").eval()
    latents = torch.randn(50, 3)
    whole = quantizer.encode(latents)
    monkeypatch.setattr("gmvq.kernels.reference.BLOCK_ELEMENTS", 7 * 16)
    assert torch.equal(quantizer.encode(latents), whole)


def test_weighted_distances_by_their_definition():
    latents, codes = torch.randn(20, 5, dtype=torch.float64) + 3, torch.randn(7, 5, dtype=torch.float64) + 3
    weights = torch.rand(20, 5, dtype=torch.float64)
    expected = (weights[:, None] * (latents[:, None] - codes).square()).sum(-1)
    torch.testing.assert_close(weighted_squared_distances(latents, codes, weights), expected)


def test_the_quantization_anneals_itself():
    """Four clusters, a linear decoder: sigma falls from where draws are blind to where they tell clusters apart."""
    torch.manual_seed(0)
    centers = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    quantizer, decoder = StochasticQuantizer(2, 8, initial_variance=4.0), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*quantizer.parameters(), *decoder.parameters()], lr=0.02)
    for step in range(400):
        quantizer.set_progress(step / 400)
        data = centers[torch.randint(4, (128,))] + 0.05 * torch.randn(128, 2)
        out = quantizer(data)
        # each sample counts as 8 dimensions of data, so that two bits are worth their nats
        loss = 8 / 2 * F.mse_loss(decoder(out.values), data).log() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert out.terms["sigma"] < 0.8
    assert out.terms["divergence"] > 1.2  # of the two bits that it takes, 1.39 nats
    quantizer.eval()
    assert F.mse_loss(decoder(quantizer(data).values), data) < 0.01
    assert len(quantizer.encode(centers).unique()) == 4


def test_bad_arguments_get_a_reason():
    for options, match in (
        ({"variance": "code"}, "'variance' must be one of 'shared', 'sample', 'token', 'feature', got 'code'"),
        ({"distribution": "normal"}, "'distribution' must be one of"),
        ({"distribution": "von-mises-fisher", "variance": "feature"}, "'variance' must not be 'feature' on the sphere"),
        ({"initial_variance": 0.0}, "'initial_variance' must lie between"),
        ({"initial_variance": math.nan}, "'initial_variance' must lie between"),
        ({"initial_variance": 1e12}, "'initial_variance' must lie between"),
    ):
        with pytest.raises(ValueError, match=match):
            StochasticQuantizer(4, 8, **options)


@pytest.mark.parametrize("variance", VARIANCES)
def test_variances_are_the_same_under_autocast_and_of_any_shape(variance):
    torch.manual_seed(0)
    quantizer = StochasticQuantizer(6, 8, codebook_dim=3, variance=variance).eval()
    if quantizer.variance_head is not None:
        nn.init.normal_(quantizer.variance_head.weight)
    latents = torch.randn(4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        variances, posterior = quantizer.variances(latents), quantizer.posterior(latents)
    assert torch.equal(variances, quantizer.variances(latents))
    assert torch.equal(posterior.responsibilities, quantizer.posterior(latents).responsibilities)
    features = 3 if variance == "feature" else 1
    assert quantizer.variances(latents[:, :0]).shape == (4, 0, features)
    assert quantizer.posterior(latents[:, :0]).responsibilities.shape == (4, 0, 8)


@pytest.mark.parametrize("distribution", ["gaussian", "von-mises-fisher"])
def test_an_encoder_learns_behind_it_in_evaluation(distribution):
    torch.manual_seed(0)
    quantizer = StochasticQuantizer(4, 8, distribution=distribution).eval()
    rows = torch.randn(20, 4, requires_grad=True)
    out = quantizer(rows)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    (out.values * torch.randn(20, 4)).sum().backward()
    assert (rows.grad.abs().sum(-1) > 0).all()
