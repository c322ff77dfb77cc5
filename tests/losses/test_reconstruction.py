import pytest
import torch
import torch.nn.functional as F

from gmvq.losses import FixedGaussianLikelihood, GaussianLikelihood, LaplaceLikelihood, make_likelihood

NAMES = ("gaussian", "mean-squared-error", "laplace", "bernoulli")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [3e-4, 0.05, 2.0])
def test_probabilities_of_the_256_values_sum_to_one(name, scale):
    likelihood = make_likelihood(name).eval()
    likelihood.calibrate(scale**2)
    if isinstance(likelihood, LaplaceLikelihood):
        likelihood.scale.fill_(scale)
    values = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    for parameter in (-0.5, 0.0, 0.31, 1.0, 1.7):
        log_prob = likelihood.log_prob(torch.full_like(values, parameter), values)
        assert log_prob.isfinite().all()
        assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_where_probability_rises(name):
    torch.manual_seed(0)
    likelihood = make_likelihood(name)
    images = torch.rand(4, 3, 8, 8)
    near, far = (images.logit(1e-3), -images.logit(1e-3)) if name == "bernoulli" else (images + 0.01, 1 - images)
    assert likelihood(near, images) < likelihood(far, images)
    assert (likelihood.log_prob(near, images) > likelihood.log_prob(far, images)).all()
    assert likelihood.log_prob(near, images).shape == (4,)
    mean = likelihood.mean(near)
    assert mean.min() >= 0
    assert mean.max() <= 1


def test_gaussian_loss_is_the_likelihood_at_its_best_variance():
    likelihood = GaussianLikelihood()
    images, parameters = torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16, requires_grad=True)
    loss = likelihood(parameters, images)
    error = F.mse_loss(parameters, images)
    torch.testing.assert_close(loss, error.log() / 2)
    for _ in range(40):
        likelihood(parameters, images)
    assert likelihood.variance.item() == pytest.approx(error.item(), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_squared_error_weight_is_the_derivative_of_the_loss(name):
    likelihood = make_likelihood(name)
    images = torch.full((4, 1, 8, 8), 0.5)
    losses, errors = [], []
    for offset in (0.0100, 0.0101):
        mean = images + offset * torch.tensor([1.0, -1.0]).repeat(4)
        losses.append(likelihood(mean.logit() if name == "bernoulli" else mean, images).double())
        errors.append((mean - images).square().mean().double())
    slope = (losses[1] - losses[0]) / (errors[1] - errors[0])
    assert likelihood.squared_error_weight(errors[0]).item() == pytest.approx(slope.item(), rel=0.1)


def test_perfect_reconstruction_stays_finite():
    images = torch.rand(2, 1, 4, 4)
    for name in ("gaussian", "laplace", "mean-squared-error"):
        likelihood = make_likelihood(name)
        parameters = images.clone().requires_grad_()
        loss = likelihood(parameters, images)
        loss.backward()
        assert loss.isfinite()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all()


def test_mean_squared_error_is_its_loss():
    images, parameters = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(FixedGaussianLikelihood()(parameters, images), F.mse_loss(parameters, images))


def test_bad_arguments_get_a_reason():
    with pytest.raises(ValueError, match="'likelihood'"):
        make_likelihood("poisson")
    with pytest.raises(ValueError, match="'fixed'"):
        FixedGaussianLikelihood(fixed=0.0)
