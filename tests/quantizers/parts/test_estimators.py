"""What the backward pass sees, and who draws codes. The gradients of each are in the tests of its docstring."""

from dataclasses import dataclass

import pytest
import torch
from members import DIM, SIZE, latents

from gmvq.quantizers import (
    AbstractEstimator,
    DiVeQ,
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    NoGradient,
    Rotation,
    StochasticQuantizer,
    StraightThrough,
    VectorQuantizer,
)
from gmvq.quantizers.parts.estimators import relaxed_sample

ESTIMATORS = [StraightThrough(), StraightThrough(0.5), Rotation(), DiVeQ(), NoGradient(), GumbelSoftmax(0.5)]
QUANTIZERS = {
    "vector": lambda estimator: VectorQuantizer(DIM, SIZE, decay=None, estimator=estimator),
    "mixture": lambda estimator: GaussianMixtureQuantizer(DIM, SIZE, estimator=estimator),
    "stochastic": lambda estimator: StochasticQuantizer(DIM, SIZE, estimator=estimator),
}
quantizers = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())
estimators = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


@dataclass(frozen=True)
class Own(AbstractEstimator):
    """One that draws and that no quantizer knows."""

    hard: bool = False

    def temperature_at(self, progress):
        return 0.5

    def __call__(self, latents, values):
        return values.detach()


@estimators
def test_the_value_is_that_of_the_code(estimator):
    rows, codes = latents(50), latents(50, seed=1)
    assert torch.equal(estimator(rows, codes), codes)


@estimators
@pytest.mark.parametrize("name", ["vector", "mixture"])
def test_the_decoder_sees_codes_in_evaluation(name, estimator):
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](estimator)
    quantizer(latents(200))
    out = quantizer.eval()(latents(50, seed=1).requires_grad_())
    assert torch.equal(out.values, quantizer.decode(out.codes))
    assert torch.equal(out.codes, quantizer.encode(latents(50, seed=1)))


@quantizers
@pytest.mark.parametrize("hard", [False, True])
def test_any_estimator_with_a_temperature_draws(make, hard):
    outs = []
    for estimator in (GumbelSoftmax(0.5, hard=hard), Own(hard)):
        torch.manual_seed(0)
        quantizer = make(estimator)
        quantizer(latents(200))
        out = quantizer(latents(200, seed=1))
        outs.append(out)
        assert torch.equal(out.values, quantizer.decode(out.codes)) == hard
        assert torch.equal(out.codes, quantizer.encode(latents(200, seed=1))) != hard
    assert torch.equal(outs[0].values, outs[1].values)
    assert torch.equal(outs[0].codes, outs[1].codes)


def test_a_hard_sample_is_a_code_with_the_gradient_of_the_blend():
    gradients = []
    for hard in (False, True):
        torch.manual_seed(0)
        codebook = latents(SIZE).requires_grad_()
        logits = latents(30, dim=SIZE).requires_grad_()
        values, codes, weights = relaxed_sample(logits.log_softmax(-1), codebook, 0.5, hard)
        assert torch.equal(codes, weights.argmax(-1) if hard else logits.argmax(-1))
        assert torch.equal(values, codebook[codes] if hard else weights @ codebook)
        (values * latents(30, seed=3)).sum().backward()
        gradients.append((logits.grad, codebook.grad))
    for soft, hard in zip(*gradients, strict=True):
        torch.testing.assert_close(soft, hard)


def test_a_latent_without_a_direction_is_not_turned():
    rows = torch.tensor([[0.0, 0.0], [1e-8, 0.0], [1e-3, 0.0]], requires_grad=True)
    Rotation()(rows, torch.tensor([[0.0, 300.0]]).expand(3, 2)).backward(torch.ones(3, 2))
    assert rows.grad[:2].tolist() == [[1.0, 1.0]] * 2
    torch.testing.assert_close(rows.grad[2], torch.tensor([1e4, -1e4]))  # lambda is bounded
