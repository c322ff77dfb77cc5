"""A wrapper that changes nothing is the bottleneck inside, in everything."""

import copy

import pytest
import torch
from members import BOTTLENECKS, latents, trained

from gmvq.quantizers import AbstractWrapper, NoPosteriorError, VectorQuantizer

bottlenecks = pytest.mark.parametrize("make", BOTTLENECKS.values(), ids=BOTTLENECKS.keys())


class Plain(AbstractWrapper):
    """A wrapper that changes nothing."""


def equal(first, second):
    if isinstance(first, tuple):
        return all(equal(one, other) for one, other in zip(first, second, strict=True))
    if isinstance(first, dict):
        return first.keys() == second.keys() and equal(tuple(first.values()), tuple(second.values()))
    return first is second if first is None else torch.equal(first, second)


@bottlenecks
def test_training_through_a_wrapper_is_training(make):
    bottleneck = trained(make)
    wrapper = Plain(copy.deepcopy(bottleneck))
    mask = torch.arange(40) % 3 != 1
    for step in range(3):
        outs = []
        for each in (bottleneck, wrapper):
            torch.manual_seed(step)
            outs.append(each(latents(40, seed=step), mask))
        assert equal(*outs)
    for each in (bottleneck, wrapper):
        each.update()
    for name, tensor in bottleneck.state_dict().items():
        assert torch.equal(wrapper.state_dict()[f"quantizer.{name}"], tensor), name


@bottlenecks
def test_all_else_is_that_of_the_quantizer_inside(make):
    bottleneck = trained(make).eval()
    wrapper, rows = Plain(bottleneck), latents(2, 3)
    for name in ("dim", "codebook_size", "code_shape", "has_posterior", "quantizes_rows", "loss_in_nats"):
        assert getattr(wrapper, name) == getattr(bottleneck, name), name
    codes = bottleneck.encode(rows)
    assert torch.equal(wrapper.encode(rows), codes)
    assert torch.equal(wrapper.decode(codes), bottleneck.decode(codes))
    assert torch.equal(wrapper.posterior_mean(rows), bottleneck.posterior_mean(rows))
    assert torch.equal(wrapper.divergence(rows), bottleneck.divergence(rows))
    draws = [each.sample_posterior(rows, torch.Generator().manual_seed(0)) for each in (wrapper, bottleneck)]
    assert equal(*draws)
    if bottleneck.has_posterior:
        assert equal(wrapper.posterior(rows), bottleneck.posterior(rows))
    else:
        with pytest.raises(NoPosteriorError, match="has no posterior"):
            wrapper.posterior(rows)
    weight = torch.tensor(2.0)
    assert equal(wrapper.loss_weight(weight, 0.1), bottleneck.loss_weight(weight, 0.1))


def test_the_quantizer_inside_still_learns_alone():
    inside = VectorQuantizer(6, 16, decay=0.5)
    wrapper = Plain(inside)
    for seed in range(2):
        inside(latents(100, seed=seed))
    before = inside.codebook.clone()
    inside(latents(100))
    assert not torch.equal(inside.codebook, before)
    wrapper.updates_itself = False
    assert not inside.updates_itself


def test_a_frozen_quantizer_inside_stays():
    wrapper = Plain(VectorQuantizer(6, 16, decay=0.5))
    for seed in range(2):
        wrapper(latents(100, seed=seed))
    wrapper.freeze()
    before = wrapper.codebook.clone()
    wrapper(latents(100))
    wrapper.update()
    assert wrapper.quantizer.frozen
    assert torch.equal(wrapper.codebook, before)
    assert not wrapper.unfreeze().quantizer.frozen
