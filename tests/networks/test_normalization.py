"""Normalization layers; that two ranks equal one is tested by whole runs, in tests/training/test_two_ranks.py."""

import pytest
import torch
from torch import nn

from gmvq.networks.layers import ResidualBlock, normalization_layer, through

BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def drawn(axes, number=6):
    return torch.randn(number, 4, *[5] * axes, generator=torch.Generator().manual_seed(axes)) * 3 + 2


@pytest.mark.parametrize("axes", BATCH_NORMS)
def test_batch_normalization_is_that_of_torch(axes):
    own, known = normalization_layer("batch", 4, axes), BATCH_NORMS[axes](4)
    assert own.state_dict().keys() == known.state_dict().keys()
    for mode in (True, False):
        assert torch.equal(own.train(mode)(drawn(axes)), known.train(mode)(drawn(axes)))
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in known.state_dict().items())


@pytest.mark.parametrize("axes", BATCH_NORMS)
def test_a_mask_of_all_places_changes_nothing(axes):
    """The statistics of a mask, and of ranks, are other formulas than torch's: also far from 0."""
    own, known = normalization_layer("batch", 4, axes).double(), BATCH_NORMS[axes](4).double()
    features = (drawn(axes).double() + 1e4).requires_grad_()
    mask = torch.ones(6, *[5] * axes, dtype=torch.bool)
    expected, given = known(features), own(features, mask)
    torch.testing.assert_close(given, expected)
    weights = torch.linspace(-1, 1, expected.numel()).double().reshape(expected.shape)
    gradients = [torch.autograd.grad((made * weights).sum(), features)[0] for made in (expected, given)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    for name, value in known.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)


@pytest.mark.parametrize("name", ["batch", "group", "layer", "none"])
def test_padding_has_no_part_in_statistics(name):
    """Two sequences of one length, padded with anything, are what they are without padding."""
    torch.manual_seed(0)
    block = ResidualBlock(4, name, 1)
    features, lengths = drawn(1, 2), torch.tensor([5, 5])
    expected = block(features)
    padded = torch.cat([features, torch.full((2, 4, 3), 100.0)], -1)
    given, counted = through(block, padded, lengths)
    assert torch.equal(counted, lengths)
    torch.testing.assert_close(given[..., :5], expected)
    if name == "batch":
        # two forwards, each of which moves a tenth of the way
        torch.testing.assert_close(block.layers[0].running_mean, 0.19 * features.mean((0, 2)))


def test_half_precision_is_normalized_in_float32():
    layer = normalization_layer("batch", 4, 1)
    features = (drawn(1) + 300).bfloat16()
    expected = nn.BatchNorm1d(4)(features.float()).bfloat16()
    given = layer(features, torch.ones(6, 5, dtype=torch.bool))
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given, expected)
