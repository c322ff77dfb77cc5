import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.perturbation import ACTIVATIONS, PENALTIES

theirs = pytest.importorskip("vector_quantize_pytorch")

CASES = [
    ({}, (2, 10, 3)),
    ({"dim": 8}, (2, 10, 8)),
    ({"dim": 8, "projection_has_bias": False}, (4, 8)),
    ({"channel_first": True}, (2, 3, 4, 5)),
    ({"need_inv_act": True, "act_name": "normal"}, (2, 10, 3)),
    ({"act_name": "laplace", "vector_norm": "var_laplace", "quantize_rate": 0.5}, (2, 10, 3)),
    ({"act_name": "sigmoid", "vector_norm": "kurt", "quantize_rate": 1.0}, (2, 10, 3)),
    ({"act_name": "cauchy", "vector_norm": "none", "need_inv_act": True, "quantize_rate": 0.3}, (2, 10, 3)),
]


def step(module, shape, seed):
    """All that a step gives, under the same noise."""
    torch.manual_seed(seed)
    z = torch.randn(shape).requires_grad_()
    values, indices, loss, info = module(z)
    module.zero_grad()
    (values.square().sum() + loss).backward()
    learned = [parameter.grad for parameter in module.parameters()]
    return values.detach(), indices, loss.detach(), info, z.grad, learned


@pytest.mark.parametrize(("options", "shape"), CASES)
def test_gives_what_theirs_gives(options, shape):
    torch.manual_seed(0)
    module, dropin = (library.FSP([8, 5, 4], **options) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    for training in (True, False):
        found, expected = (step(each.train(training), shape, seed=5) for each in (dropin, module))
        for place in (0, 1, 2, 4, 5):
            torch.testing.assert_close(found[place], expected[place], atol=1e-5, rtol=1e-4)
        assert found[3].keys() == expected[3].keys()
        torch.testing.assert_close(found[3]["level_indices"], expected[3]["level_indices"])
        torch.testing.assert_close(found[3]["norm_info"], expected[3]["norm_info"])
    torch.testing.assert_close(dropin.indices_to_codes(found[1]), found[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dropin.indices_to_codes(found[1]), module.indices_to_codes(found[1]))
    names = ("codebook_size", "codebook_dim", "dim", "has_projections", "channel_first", "act_name", "quantize_rate")
    assert [getattr(dropin, name) for name in names] == [getattr(module, name) for name in names]


def test_one_latent_has_a_loss():
    values, _, loss, _ = ours.FSP([8, 5, 4])(torch.randn(3))
    assert values.shape == (3,)
    assert bool(loss.isfinite())  # theirs is NaN: one latent has no unbiased variance


def test_the_first_feature_counts_fastest():
    dropin = ours.FSP([8, 5, 4])
    indices = torch.arange(160)
    levels = dropin.indices_to_level_indices(indices)
    assert torch.equal(levels @ torch.tensor([1, 8, 40]), indices)
    assert torch.equal(dropin.level_indices_to_indices(levels), indices.int())
    assert ours.FSP([256] * 5)(torch.ones(2, 5))[1].dtype == torch.int64


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_are_distributions(name):
    function, inverse = ours.build_cdf_act(name)
    z = torch.linspace(-3, 3, 101, dtype=torch.float64).requires_grad_()
    p = function(z)
    torch.testing.assert_close(inverse(p), z)
    torch.testing.assert_close(p + function(-z), torch.ones_like(z))
    assert bool((torch.autograd.grad(p.sum(), z)[0][torch.arange(101) != 50] > 0).all())


@pytest.mark.parametrize(("act_name", "penalty"), [("tanh", "var_tanh"), ("sigmoid", "var_sigmoid")])
def test_the_wanted_moments_make_intervals_even(act_name, penalty):
    p = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    z = ACTIVATIONS[act_name][1](p)[:, None]
    loss, moments = PENALTIES[penalty](z)
    torch.testing.assert_close(
        moments.variance, torch.tensor([PENALTIES[penalty].variance]).double(), atol=0.02, rtol=0
    )
    assert float(loss) < 1e-3


def test_noise_is_as_wide_as_an_interval():
    dropin = ours.FSP([4], act_name="sigmoid", vector_norm="none").train()
    z = torch.zeros(20_000, 1)
    values, indices, _, info = dropin(z)
    p = values * 12**-0.5 + 0.5
    assert float((p - 0.5).abs().max()) <= 1 / 8 + 1e-6
    assert abs(float(p.var()) - (1 / 4) ** 2 / 12) < 1e-4
    assert set(indices.tolist()) == {2}
    assert float(info["p_accept_prob"]) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay(dtype):
    dropin = ours.FSP([8, 5, 4], dim=8).to(dtype)
    z = torch.randn(2, 10, 8, dtype=dtype, requires_grad=True)
    values, _, loss, _ = dropin(z)
    (values.sum() + loss).backward()
    assert values.dtype == dtype
    assert all(bool(p.grad.isfinite().all()) for p in (z, *dropin.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize_rate": 1.5}, r"'quantize_rate' must lie in \[0, 1\]"),
        ({"act_name": "relu"}, "'act_name' must be one of tanh, sigmoid"),
        ({"vector_norm": "mean"}, "'vector_norm' must be one of none, var"),
    ],
)
def test_says_what_it_cannot(options, message):
    with pytest.raises(ValueError, match=message):
        ours.FSP([8, 5], **options)
    with pytest.raises(ValueError, match="Axis -1 of 'z' must have 2 features"):
        ours.FSP([8, 5])(torch.randn(2, 10, 3))


def test_shows_its_arguments():
    assert "levels=[8, 5], dim=2, codebook_size=40, act_name='tanh'" in repr(nn.Sequential(ours.FSP([8, 5])))
