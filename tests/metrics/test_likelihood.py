"""The bounds are tested on models small enough to integrate exactly.

`Discrete`: an image of 2 tokens, each one of K = 3 codes; x is one of 4 patterns. All 9 pairs of codes are summed.
`Mixture`: a number x = z + noise, z from a mixture of 3 normals with a mixture as posterior, c summed out of both;
p(x) by quadrature over z.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, MixtureSameFamily, Normal

from gmvq.metrics.information import MixtureInformation
from gmvq.metrics.likelihood import (
    aggregated_bound,
    bits_per_dimension,
    categorical_divergence,
    evidence_lower_bound,
    importance_weighted_bound,
)


class Discrete:
    """p(x | c_1, c_2) a table, p(c) and q(c | x) independent over the 2 tokens."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.log_table = self.normal(3, 3, 4).mul(2).log_softmax(-1)  # log p(x | c_1, c_2)
        self.log_prior = self.normal(3).log_softmax(-1)
        self.log_posterior = self.normal(4, 2, 3).log_softmax(-1)  # log q(c_t | x)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def joint(self):
        """The three figures of each of the 9 pairs of codes for each pattern, (9, 4)."""
        a, b = torch.tensor(list(itertools.product(range(3), repeat=2))).T
        log_prior = (self.log_prior[a] + self.log_prior[b])[:, None].expand(9, 4)
        log_posterior = (self.log_posterior[:, 0, a] + self.log_posterior[:, 1, b]).T
        return self.log_table[a, b], log_prior, log_posterior

    def evidence(self):
        """log p(x) of the 4 patterns, by enumeration."""
        log_likelihood, log_prior, _ = self.joint()
        return (log_likelihood + log_prior).logsumexp(0)

    def exact_elbo(self):
        """The evidence lower bound with its expectation enumerated, through the function that is tested."""
        log_likelihood, _, log_posterior = self.joint()
        return evidence_lower_bound((log_posterior.exp() * log_likelihood).sum(0, keepdim=True), self.divergence())

    def exact_bound(self, samples):
        """Expectation of the importance-weighted bound over all 9^S outcomes of S draws, without noise."""
        outcomes = torch.tensor(list(itertools.product(range(9), repeat=samples))).T  # (S, 9^S)
        draws = [values[outcomes].flatten(1) for values in self.joint()]  # (S, 9^S * 4)
        probabilities = draws[2].sum(0).exp().reshape(-1, 4)
        return (probabilities * importance_weighted_bound(*draws).reshape(-1, 4)).sum(0)

    def divergence(self):
        return categorical_divergence(self.log_posterior.exp(), self.log_prior).sum(1)

    def draws(self, samples):
        """Figures (S, 4) of S draws for each of the 4 patterns."""
        probabilities = self.log_posterior.exp().flatten(0, 1)
        codes = torch.multinomial(probabilities, samples, replacement=True, generator=self.generator)
        codes = codes.reshape(4, 2, samples)
        patterns = torch.arange(4)[:, None]
        log_likelihood = self.log_table[codes[:, 0], codes[:, 1], patterns]
        log_prior = self.log_prior[codes].sum(1)
        log_posterior = self.log_posterior.gather(2, codes).sum(1)
        return log_likelihood.T, log_prior.T, log_posterior.T


class Mixture:
    """p(z) = sum_c pi_c N(mu_c, 0.5^2), p(x | z) = N(z, 0.7^2), q(z | x) = sum_c q(c | x) N(mu_c, 0.6^2)."""

    def __init__(self, x):
        self.x = torch.tensor(x, dtype=torch.float64)
        self.means = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)
        self.prior = self.mixture(torch.tensor([0.2, 0.5, 0.3]).log(), 0.5)
        self.posterior = self.mixture(-((self.x - self.means) ** 2), 0.6)

    def mixture(self, logits, deviation):
        normals = Normal(self.means, torch.full_like(self.means, deviation))
        return MixtureSameFamily(Categorical(logits=logits.double()), normals)

    def log_likelihood(self, z):
        return Normal(z, 0.7).log_prob(self.x)

    def evidence(self):
        z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        joint = (self.log_likelihood(z) + self.prior.log_prob(z)).exp()
        return float(torch.trapezoid(joint, z).log())

    def draws(self, samples, images, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch.distributions takes no generator
            z = self.posterior.sample((samples, images))
        return self.log_likelihood(z), self.prior.log_prob(z), self.posterior.log_prob(z)


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_the_discrete_model_rise_with_each_draw_and_stay_below(seed):
    model = Discrete(seed)
    evidence = model.evidence()
    assert torch.allclose(model.exact_bound(1), model.exact_elbo(), rtol=0, atol=1e-12)
    bounds = [model.exact_elbo(), *(model.exact_bound(samples) for samples in (2, 3, 4)), evidence]
    for lower, higher in itertools.pairwise(bounds):
        assert (lower < higher).all()


@pytest.mark.parametrize("seed", range(5))
def test_bound_of_the_discrete_model_converges(seed):
    model = Discrete(seed)
    draws = model.draws(100_000)
    weights = (draws[0] + draws[1] - draws[2]).exp()
    error = weights.std(0) / weights.mean(0) / math.sqrt(100_000)  # standard error of the logarithm of the mean
    assert ((importance_weighted_bound(*draws) - model.evidence()).abs() < 5 * error).all()
    assert (error < 0.03).all()
    elbo = evidence_lower_bound(draws[0], model.divergence())
    assert ((elbo - model.exact_elbo()).abs() < 5 * draws[0].std(0) / math.sqrt(100_000)).all()


@pytest.mark.parametrize("x", [-3.0, 0.1, 2.5])
def test_bounds_of_a_continuous_mixture_are_ordered_and_converge(x):
    model = Mixture(x)
    evidence = model.evidence()
    expected = []
    for samples in (1, 4, 64):
        expected.append(float(importance_weighted_bound(*model.draws(samples, 40_000)).mean()))
    assert expected[0] < expected[1] < expected[2] < evidence + 2e-3
    assert float(importance_weighted_bound(*model.draws(400_000, 1))) == pytest.approx(evidence, abs=0.01)


def test_exact_posterior_gives_the_evidence_with_one_draw():
    # x = z + noise with one normal: q(z | x) = N(x v, v (1 - v)...) in closed form, and no draw is off.
    x, prior, noise = 1.3, 2.0, 0.5
    gain = prior**2 / (prior**2 + noise**2)
    posterior = Normal(torch.tensor(gain * x).double(), math.sqrt(gain) * noise)
    z = torch.linspace(-5, 5, 50, dtype=torch.float64)[None]
    bound = importance_weighted_bound(
        Normal(z, noise).log_prob(torch.tensor(x)), Normal(0.0, prior).log_prob(z), posterior.log_prob(z)
    )
    evidence = Normal(0.0, math.hypot(prior, noise)).log_prob(torch.tensor(x))
    assert torch.allclose(bound, evidence.double(), atol=1e-6)


def test_importance_weights_far_outside_of_the_range_of_exp():
    nats = torch.tensor([[-20_000.0], [-20_001.0]])
    bound = importance_weighted_bound(nats, torch.zeros(2, 1), torch.zeros(2, 1))
    assert bound.dtype == torch.float64
    assert float(bound) == pytest.approx(-20_000 + math.log((1 + math.exp(-1)) / 2), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**16))
def test_the_bound_lies_between_mean_and_maximum_of_the_weights(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(samples, 3, generator=generator, dtype=torch.float64) * 30 for _ in range(3)]
    weights = draws[0] + draws[1] - draws[2]
    bound = importance_weighted_bound(*draws)
    assert (weights.mean(0) <= bound + 1e-9).all()
    assert (bound <= weights.amax(0) + 1e-9).all()


def test_aggregated_bound_exceeds_the_elbo_by_the_mutual_information():
    # Equation (9), with the distance in the place of the KL of z: all tokens of an image share p(c) uniform.
    posterior = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    log_prior = torch.full((3,), -math.log(3), dtype=torch.float64)
    likelihood, distance = torch.tensor([[-3.0, -4.0], [-5.0, -4.5]]), torch.tensor([0.5, 0.25])
    information = MixtureInformation(3)
    information.update(posterior)
    shared = categorical_divergence(information.aggregated_posterior, log_prior)
    albo = aggregated_bound(likelihood, distance, shared.expand(2))
    elbo = evidence_lower_bound(likelihood, distance + categorical_divergence(posterior, log_prior))
    assert float((albo - elbo).mean()) == pytest.approx(information.mutual_information, abs=1e-12)


def test_categorical_divergence():
    uniform = torch.full((4,), -math.log(4))
    assert float(categorical_divergence(torch.full((4,), 0.25), uniform)) == pytest.approx(0, abs=1e-7)
    one_hot = torch.eye(4)
    assert categorical_divergence(one_hot, uniform).tolist() == pytest.approx([math.log(4)] * 4, rel=1e-6)
    impossible = torch.tensor([0.0, 1.0]).log()
    assert categorical_divergence(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), impossible).tolist() == [0.0, math.inf]
    generator = torch.Generator().manual_seed(0)
    q, p = torch.randn(2, 50, 9, generator=generator, dtype=torch.float64).softmax(-1)
    expected = torch.distributions.kl_divergence(Categorical(q), Categorical(p[0].expand(50, 9)))
    assert torch.allclose(categorical_divergence(q, p[0].log()), expected)


def test_bits_per_dimension():
    assert bits_per_dimension(-8 * math.log(2), 4) == pytest.approx(2)
    assert bits_per_dimension(torch.tensor([-4.0, -4.0]) * math.log(2), 4) == pytest.approx(2)
    with pytest.raises(ValueError, match="dimensions"):
        bits_per_dimension(-1.0, 0)
    with pytest.raises(ValueError, match="finite"):
        bits_per_dimension(torch.tensor([-math.inf]), 4)


def informed(responsibilities):
    information = MixtureInformation(responsibilities.shape[-1])
    information.update(responsibilities)
    return information


@pytest.mark.parametrize("size", [1, 2, 7, 512])
def test_one_hot_over_all_codes_informs_log_k(size):
    information = informed(torch.eye(size).repeat(3, 1))
    assert information.posterior_entropy == 0
    assert information.mutual_information <= math.log(size)
    assert information.mutual_information == pytest.approx(math.log(size), abs=1e-12)
    assert information.aggregated_posterior_entropy == information.mutual_information


@pytest.mark.parametrize("row", [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
def test_a_constant_posterior_informs_nothing(row):
    information = informed(torch.tensor(row).expand(5, 4, 3))
    assert information.tokens == 20
    assert information.mutual_information == pytest.approx(0, abs=1e-12)
    assert information.posterior_entropy == pytest.approx(float(Categorical(torch.tensor(row)).entropy()), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.floats(0, 1000), st.integers(0, 2**16))
def test_information_is_within_its_bounds_and_streams(tokens, size, sharpness, seed):
    generator = torch.Generator().manual_seed(seed)
    responsibilities = (torch.randn(tokens, size, generator=generator) * sharpness).softmax(-1)
    information = informed(responsibilities)
    assert 0 <= information.mutual_information <= math.log(size)
    assert information.mutual_information <= math.log(tokens) + 1e-12
    streamed = MixtureInformation(size)
    for part in responsibilities.split(3):
        streamed.update(part)
    assert streamed.merged().posterior_entropy == pytest.approx(information.posterior_entropy, abs=1e-12)
    assert torch.allclose(streamed.aggregated_posterior, information.aggregated_posterior)
    assert float(information.aggregated_posterior.sum()) == pytest.approx(1, abs=1e-12)


def test_mask_equals_fewer_tokens():
    responsibilities = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mask = torch.arange(20).reshape(4, 5) % 3 == 0
    masked = MixtureInformation(3)
    masked.update(responsibilities, mask)
    assert masked.tokens == int(mask.sum())
    assert masked.posterior_entropy == informed(responsibilities[mask]).posterior_entropy


def test_half_precision_rows_are_normalized():
    responsibilities = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert informed(responsibilities.bfloat16()).posterior_entropy == pytest.approx(
        informed(responsibilities).posterior_entropy, abs=5e-3
    )


def test_nothing_seen():
    information = MixtureInformation(3)
    information.update(torch.zeros(0, 3))
    for name in ("posterior_entropy", "aggregated_posterior_entropy", "mutual_information"):
        with pytest.raises(ValueError, match="at least 1 token"):
            getattr(information, name)


@pytest.mark.parametrize(
    ("responsibilities", "mask", "message"),
    [
        (torch.eye(4), None, "last axis"),
        (torch.tensor(1.0), None, "last axis"),
        (torch.ones(2, 3), None, "sum to 1"),
        (torch.tensor([[math.nan, 0.5, 0.5]]), None, "sum to 1"),
        (torch.tensor([[1.5, -0.5, 0.0]]), None, "sum to 1"),
        (torch.eye(3), torch.ones(2, dtype=torch.bool), "mask"),
    ],
)
def test_bad_responsibilities_are_refused(responsibilities, mask, message):
    with pytest.raises(ValueError, match=message):
        MixtureInformation(3).update(responsibilities, mask)


def test_empty_codebook_is_refused():
    with pytest.raises(ValueError, match="codebook_size"):
        MixtureInformation(0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nats_that_are_not_finite_are_refused(value):
    good, bad = torch.zeros(2, 3), torch.zeros(2, 3)
    bad[1, 2] = value
    for position, name in enumerate(("log_likelihood", "log_prior", "log_posterior")):
        draws = [good, good, good]
        draws[position] = bad
        with pytest.raises(ValueError, match=f"'{name}' must be finite"):
            importance_weighted_bound(*draws)
    with pytest.raises(ValueError, match="'log_likelihood' must be finite"):
        evidence_lower_bound(bad, torch.zeros(3))
    with pytest.raises(ValueError, match="'divergence' must be finite"):
        evidence_lower_bound(good, bad[1])


def test_shapes_that_do_not_fit_are_refused():
    good = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"'log_likelihood' must have the shape \(S, B\)"):
        evidence_lower_bound(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="'log_likelihood'"):
        importance_weighted_bound(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="'divergence'"):
        evidence_lower_bound(good, torch.zeros(1))
    with pytest.raises(ValueError, match="'log_prior' must have the shape"):
        importance_weighted_bound(good, torch.zeros(1, 3), good)
    with pytest.raises(ValueError, match="'categorical'"):
        aggregated_bound(good, torch.zeros(3), torch.zeros(()))
    with pytest.raises(ValueError, match="'log_prior'"):
        categorical_divergence(torch.eye(3), torch.zeros(4))
