import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmvq.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def test_the_losses_by_hand():
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(2 / 3)
    softplus = [math.log1p(math.exp(x)) for x in (-2, -0.5, 1)], [math.log1p(math.exp(x)) for x in (-3, 0, 1)]
    expected = sum(softplus[0]) / 3 + sum(softplus[1]) / 3
    assert discriminator_loss("non-saturating", REAL, FAKE).item() == pytest.approx(expected)
    expected = sum(math.log1p(math.exp(x)) for x in (3, 0, -1)) / 3
    assert generator_loss("non-saturating", FAKE).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["hinge", "non-saturating"])
def test_each_side_gains_where_the_other_loses(kind):
    assert discriminator_loss(kind, REAL + 1, FAKE - 1) < discriminator_loss(kind, REAL, FAKE)
    assert generator_loss(kind, FAKE + 1) < generator_loss(kind, FAKE)
    with pytest.raises(ValueError, match="'loss' must be one of hinge"):
        generator_loss("wasserstein", FAKE)


def test_the_gradient_penalty_of_a_linear_discriminator_is_its_length():
    weights = torch.randn(3, 4, 4, requires_grad=True)
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    penalty = gradient_penalty((images * weights).sum((1, 2, 3)), images)
    torch.testing.assert_close(penalty, weights.square().sum())
    penalty.backward()
    torch.testing.assert_close(weights.grad, 2 * weights.detach())
    patches = (images * weights).sum((1, 2, 3))[:, None, None, None].expand(-1, 1, 3, 2)
    torch.testing.assert_close(gradient_penalty(patches, images), penalty)  # as many patches as there may be


def test_the_regularizer_follows_the_logits_and_holds_them_apart_no_more():
    lecam = LeCam(decay=0.5)
    for _ in range(2):  # forwards of one step
        assert lecam(REAL, FAKE).item() == pytest.approx((4 + 0.25) / 3 + 9 / 3)
    lecam.update()
    assert lecam.real.item() == pytest.approx(0.25)
    assert lecam.fake.item() == pytest.approx(-1 / 3)
    lecam.eval()
    before = lecam.real.clone()
    lecam(REAL, FAKE)
    lecam.update()
    assert torch.equal(lecam.real, before)
    assert lecam(REAL + 9, FAKE - 9) > lecam(REAL, FAKE)


def test_the_weight_balances_the_pulls_at_the_pixels():
    images, scale = torch.rand(4, 3, 5, 7), torch.tensor(30.0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    made = network(images)
    adversarial = made.square().mean()
    weight = adaptive_weight(adversarial, made, images.requires_grad_(), scale)
    assert not weight.requires_grad
    first = torch.autograd.grad(scale * F.mse_loss(made, images), made, retain_graph=True)[0].norm()
    second = torch.autograd.grad(weight * adversarial, made, retain_graph=True)[0].norm()
    torch.testing.assert_close(first, second)
    assert adaptive_weight(0 * adversarial, made, images, scale) == 1e4


def test_the_weight_stays_where_the_error_of_a_batch_adds_up_to_nothing():
    images = torch.rand(4, 1, 8, 8)
    bias = nn.Parameter(images.mean())
    made = bias.expand_as(images).clone()  # the best that one number can do: its own gradient is 0
    assert torch.autograd.grad(F.mse_loss(made, images), bias, retain_graph=True)[0].abs() < 1e-6
    pull, error = made.square().mean(), F.mse_loss(made, images).item()
    expected = 2 * (error * images.numel()) ** 0.5 / torch.autograd.grad(pull, made, retain_graph=True)[0].norm()
    weight = adaptive_weight(pull, made, images, torch.tensor(1.0))
    torch.testing.assert_close(weight * images.numel(), expected)
