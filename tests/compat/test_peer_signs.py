"""Signs train as theirs: a temperature for a call, a share of the entropies, an activation, and masks of items."""

import math

import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours

theirs = pytest.importorskip("vector_quantize_pytorch")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def steps(options, shape=(3, 20, 4), **call):
    """Answers and gradients of both, theirs first; their loss is lower by a constant."""
    x, weights, found = 0.3 * torch.randn(shape), torch.randn(shape), []
    for library in (theirs, ours):
        module = library.LFQ(codebook_size=16, **options)
        torch.manual_seed(1)
        latents = x.clone().requires_grad_()
        values, codes, loss = module(latents, **call)
        ((values * weights).sum() + loss).backward()
        found.append((values, codes.long(), loss, latents.grad))
    return found


CONSTANT = 0.1 * math.log(16)


@pytest.mark.parametrize("inverse", [1.0, 10.0])
@pytest.mark.parametrize("options", [{}, {"spherical": True}, {"frac_per_sample_entropy": 0.5}], ids=str)
def test_losses_at_a_temperature_of_the_call(options, inverse):
    other, mine = steps(options, inv_temperature=inverse)
    torch.testing.assert_close(mine[2], other[2] + CONSTANT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine[3], other[3], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(mine[2], steps(options)[1][2])


def test_the_temperature_of_a_call_ends_with_it():
    dropin, x = ours.LFQ(codebook_size=16), 0.3 * torch.randn(3, 20, 4)
    before = dropin(x).entropy_aux_loss
    dropin(x, inv_temperature=1.0)
    assert torch.equal(dropin(x).entropy_aux_loss, before)


def test_a_softplus_of_the_entropies():
    options = {"experimental_softplus_entropy_loss": True, "entropy_loss_offset": 2.0, "diversity_gamma": 0.5}
    other, mine = steps(options, inv_temperature=5.0)
    torch.testing.assert_close(mine[2], other[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine[3], other[3], atol=2e-4, rtol=1e-3)


def test_the_gradient_passes_through_an_activation():
    options = {"straight_through_activation": nn.Tanh(), "entropy_loss_weight": 0.0}
    other, mine = steps(options)
    torch.testing.assert_close(mine[0], other[0])
    torch.testing.assert_close(mine[3], other[3])
    assert not torch.allclose(mine[3], steps({"entropy_loss_weight": 0.0})[1][3])


def test_an_activation_loads():
    module = theirs.LFQ(codebook_size=16, straight_through_activation=nn.PReLU(init=0.7))
    dropin = ours.LFQ(codebook_size=16, straight_through_activation=nn.PReLU())
    dropin.load_state_dict(module.state_dict())
    assert float(dropin.quantizer.activation.weight.detach()) == pytest.approx(0.7)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_masks_of_items(share):
    mask = torch.tensor([True, False, True])
    options = {"frac_per_sample_entropy": share, "commitment_loss_weight": 0.5}
    other, mine = steps(options, (3, 4, 5, 5), mask=mask, inv_temperature=5.0)
    torch.testing.assert_close(mine[2], other[2] + CONSTANT, atol=1e-4, rtol=1e-4)
    assert torch.equal((mine[1] >= 0).all((1, 2)), mask)
    assert torch.equal(mine[1][mask], other[1][mask])
    assert not mine[0][~mask].any()


@pytest.mark.parametrize("shape", [(3, 20), (3, 4, 5)])
def test_masks_of_places_of_images(shape):
    mask = torch.rand(shape) > 0.5
    dropin = ours.LFQ(codebook_size=16)
    codes = dropin(torch.randn(3, 4, 4, 5), mask=mask).indices
    assert torch.equal(codes >= 0, mask.reshape(3, 4, 5))


def test_no_item_gives_no_loss():
    dropin = ours.LFQ(codebook_size=16, frac_per_sample_entropy=0.5)
    assert float(dropin(torch.randn(2, 20, 4), mask=torch.zeros(2, dtype=torch.bool)).entropy_aux_loss.isfinite())
