import math

import pytest
import torch

from gmvq.quantizers import (
    AbstractEstimator,
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    ImplicitResidual,
    OptimalTransportQuantizer,
    RandomProjectionQuantizer,
    Rotation,
    SimVQ,
    StochasticQuantizer,
    StraightThrough,
    VectorQuantizer,
)
from gmvq.quantizers.parts.checks import check_listing, checked_estimator, non_negative


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", None, 1j])
def test_a_weight_is_a_finite_number_of_at_least_0(value):
    with pytest.raises(ValueError, match=r"'weight' must be a finite number of at least 0, got .* Give for example"):
        non_negative("weight", value)


def test_a_weight_that_is_one_stays_as_it_is():
    assert non_negative("weight", 0) == 0
    assert non_negative("weight", 0.25) == 0.25


def test_an_estimator_stays_as_it_is():
    class Own(AbstractEstimator):
        def __call__(self, latents, values):
            return values

    assert checked_estimator(None) == StraightThrough()
    for estimator in (Rotation(), Own()):
        assert checked_estimator(estimator) is estimator
    assert checked_estimator(GumbelSoftmax(), draws=True) == GumbelSoftmax()


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (Rotation, r"'estimator' must be an object and not a class, got .*Rotation.* Use Rotation\(\)"),
        ("rotation", r"'estimator' must be an estimator, got 'rotation'. Use StraightThrough\(\)"),
        (GumbelSoftmax(), r"'estimator' must not draw codes, .* got GumbelSoftmax.* Use StraightThrough\(\)"),
        (torch.nn.Identity(), "'estimator' must be an estimator"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda estimator: SimVQ(4, 8, estimator=estimator),
        lambda estimator: OptimalTransportQuantizer(4, 8, estimator=estimator),
        lambda estimator: RandomProjectionQuantizer(4, 8, codebook_dim=2, estimator=estimator),
        lambda estimator: ImplicitResidual([VectorQuantizer(4, 8)], estimator=estimator),
    ],
)
def test_constructors_refuse_what_is_no_estimator(make, estimator, reason):
    with pytest.raises(ValueError, match=reason):
        make(estimator)


@pytest.mark.parametrize("estimator", [GumbelSoftmax, Rotation, "gumbel"])
def test_the_mixture_refuses_classes_and_words(estimator):
    with pytest.raises(ValueError, match="'estimator' must"):
        GaussianMixtureQuantizer(4, 8, estimator=estimator)


@pytest.mark.parametrize("estimator", [StraightThrough(), GumbelSoftmax, "gumbel"])
def test_a_stochastic_quantizer_draws(estimator):
    with pytest.raises(ValueError, match="'estimator' must"):
        StochasticQuantizer(4, 8, estimator=estimator)
    with pytest.raises(ValueError, match=r"'estimator' must have a temperature.* Use GumbelSoftmax\(\)"):
        StochasticQuantizer(4, 8, estimator=Rotation())


def test_a_codebook_of_too_many_codes_is_not_written_out():
    check_listing(2**24)
    with pytest.raises(ValueError, match=r"at most 2\*\*24 to write out all codes, got 16777217. Use decode"):
        check_listing(2**24 + 1)
