"""``benchmarks/leaderboard/gradients.py``: the exact gradient is exact, and estimators stand to it as theory says."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmvq.modalities import Image

PATH = Path(__file__).parents[2] / "benchmarks/leaderboard/gradients.py"
ENTROPY = 1.0


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gradients", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gradients"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gradients"]


@pytest.fixture(scope="module")
def settings(script):
    return script.Settings(
        codebook_sizes=(8,), temperatures=(0.2, 5.0), entropies=(ENTROPY,), states=2, training_steps=60, batch_size=64,
        patches=6, blocks=24, block_draws=100, slope_draws=256,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["enumeration", "straight-through"])
def state(request, script, settings):
    return script.trained_state(Image().load("bundled:photographs"), 8, request.param, 0, settings)


@pytest.fixture(scope="module")
def sigma(script, state):
    return script.sigma_of_entropy(state, ENTROPY)


@pytest.fixture(scope="module")
def rows(script, state, sigma, settings):
    found = script.rows_of(state, sigma, script.smoothed_slope(state, settings.slope_draws), settings)
    return {(row["estimator"], row["temperature"], row["with_respect_to"]): row for row in found}


def enumerated_loss(script, state, sigma, latents, codebook):
    loss = 0.0
    for x, z in zip(state.patches, latents, strict=True):
        weights = torch.stack([(-(z - mu).square().sum() / (2 * sigma**2)).exp() for mu in codebook])
        errors = torch.stack([(x - state.decoder(mu)).square().mean() for mu in codebook])
        loss = loss + (weights / weights.sum()) @ errors / len(latents)
    return loss


def test_the_exact_gradient_is_the_covariance_of_errors_and_codes(script, state, sigma):
    posterior = script.log_posterior(state.latents, state.codebook, sigma).exp()
    errors = script.code_errors(state.decoder, state.codebook, state.patches)
    excess = posterior * (errors - (posterior * errors).sum(-1, keepdim=True))
    found = script.exact_gradient(state, sigma).latents
    torch.testing.assert_close(found, excess @ state.codebook / sigma**2 / len(found))


def test_the_exact_gradient_is_the_slope_of_the_enumerated_loss(script, state, sigma):
    exact = script.exact_gradient(state, sigma)
    generator = torch.Generator().manual_seed(1)
    for part, gradient in zip(("latents", "codebook"), exact, strict=True):
        way = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-4 * sigma
        ends = [
            enumerated_loss(script, moved, sigma, moved.latents, moved.codebook)
            for moved in (state._replace(**{part: getattr(state, part) + sign * step * way}) for sign in (1, -1))
        ]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-5, abs=1e-9)


def test_the_posterior_has_the_entropy_asked_for(script, state, sigma, settings):
    assert script.mean_entropy(state, sigma) == pytest.approx(ENTROPY, abs=1e-6)
    with pytest.raises(ValueError, match="'entropies' must lie between 0 and log"):
        script.sigma_of_entropy(state, math.log(8))


@pytest.mark.parametrize("name", ["latents", "encoder", "codebook"])
def test_bias_and_variance(rows, name):
    exact, reinforce = rows["exact", None, name], rows["reinforce", None, name]
    cold, warm = (rows["gumbel-softmax", temperature, name] for temperature in (0.2, 5.0))
    assert exact["bias"] < 1e-9
    assert exact["variance"] == 0
    assert exact["cosine"] == pytest.approx(1)
    # an unbiased estimator's bias is one standard error, as a root mean square
    assert 0 < reinforce["bias"] < 4 * reinforce["standard_error"]
    assert warm["bias"] > cold["bias"] + 2 * cold["standard_error"]
    assert warm["variance"] < cold["variance"] / 10
    assert warm["bias"] > 4 * warm["standard_error"]


def test_variance_is_that_of_one_draw(script, state, sigma, settings, rows):
    """The variance of REINFORCE by enumeration: of latents of different patches, it adds up."""
    posterior = script.log_posterior(state.latents, state.codebook, sigma).exp()
    errors = script.code_errors(state.decoder, state.codebook, state.patches)
    advantage = errors - (posterior * errors).sum(-1, keepdim=True)
    means = posterior @ state.codebook
    scores = (state.codebook - means[:, None]) / sigma**2  # gradient of log q(c | x)
    draws = advantage[..., None] * scores / len(errors)
    mean = (posterior[..., None] * draws).sum(1)
    trace = float((posterior * (draws - mean[:, None]).square().sum(-1)).sum())
    expected = trace / float(script.exact_gradient(state, sigma).latents.square().sum())
    # 24 blocks of about 6 directions: a tenth, and heavy tails
    assert rows["reinforce", None, "latents"]["variance"] == pytest.approx(expected, rel=0.5)


def test_estimators_without_draws_repeat(script, state, sigma, settings):
    for estimator in script.estimators(settings.temperatures):
        first, second = script.block_means(state, sigma, estimator, 2, 1).latents
        assert torch.equal(first, second) is not estimator.draws
    rotation = next(one for one in script.estimators(()) if one.name == "rotation")
    assert not script.block_means(state, sigma, rotation, 1, 1).codebook.any()


def test_the_encoders_gradient_is_that_of_its_latents(script, state):
    assert state.jacobian.shape == (state.latents.numel(), 16 * 32 + 32 + 32 * 4 + 4)
    # the last layer's bias moves all latents alike
    ones = state.jacobian[:, -4:].reshape(len(state.latents), 4, 4)
    torch.testing.assert_close(ones, torch.eye(4, dtype=ones.dtype).expand_as(ones))


def test_the_smoothed_slope_of_two_codes(script, state):
    """The most likely of two codes changes on a plane: smoothed, the error is a normal distribution function of z."""
    two = state._replace(codebook=state.codebook[:2], latents=state.codebook[:1] + torch.zeros_like(state.latents))
    way = two.codebook[1] - two.codebook[0]
    radius = way.norm() / 2 / math.sqrt(4)
    errors = script.code_errors(two.decoder, two.codebook, two.patches)
    density = math.exp(-((way.norm() / 2 / radius) ** 2) / 2) / math.sqrt(2 * math.pi) / radius
    expected = (errors[:, 1:] - errors[:, :1]) * density * way / way.norm() / len(errors)
    torch.manual_seed(0)
    found = script.smoothed_slope(two, 1 << 16)
    # 65,536 pairs, of which one in ten crosses the plane: a percent
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_row_is_the_median_over_trainings(script):
    rows = [
        {"estimator": "x", "hard_cosine": None if bias == 9.0 else bias}
        | dict.fromkeys(("sigma", "posterior_entropy", "standard_error", "bias", "variance", "cosine"), bias)
        for bias in (1.0, 2.0, 9.0)
    ]
    found = script.summary(rows)
    assert (found["bias"], found["bias_spread"]) == (2.0, 1.0)
    assert (found["hard_cosine"], found["hard_cosine_spread"]) == (1.5, 0.5)
    nowhere = script.summary([row | {"hard_cosine": script.cosine(torch.zeros(2), torch.ones(2))} for row in rows])
    assert (nowhere["hard_cosine"], nowhere["hard_cosine_spread"]) == (None, None)


def test_the_file(script, settings, tmp_path, monkeypatch):
    fast = replace(settings, blocks=2, block_draws=10, training_steps=20)
    monkeypatch.setattr(script, "Settings", lambda: fast)
    monkeypatch.setattr(sys, "argv", ["gradients.py", "--out", str(tmp_path / "gradients.json")])
    script.main()
    found = json.loads((tmp_path / "gradients.json").read_text())
    assert (found["format"], found["version"]) == ("gmvq.gradients", 1)
    assert found["protocol"]["patches"] == 6
    assert found["protocol"]["sentence"].startswith("An autoencoder of 4x4 gray patches")
    assert {row["trained_by"] for row in found["rows"]} == {"enumeration", "straight-through"}
    assert len(found["states"]) == 4
    # ten estimators, of which the rotation gives codes nothing, in two trainings
    assert len(found["rows"]) == 2 * (3 * 10 - 1)
    for row in found["rows"]:
        assert row["with_respect_to"] != "codebook" or row["hard_cosine"] is None
        assert row["posterior_entropy"] == pytest.approx(ENTROPY, abs=1e-3)
