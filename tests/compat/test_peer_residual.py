"""Levels train as theirs: their losses, implicit codebooks, shares of the gradient, and levels that a seed leaves."""

import copy

import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours

theirs = pytest.importorskip("vector_quantize_pytorch")

RESIDUAL = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
LEARNED = {"learnable_codebook": True, "ema_update": False}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def descent(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def pair(kind="ResidualVQ", **options):
    """A module of theirs, and ours with its state."""
    module = getattr(theirs, kind)(**RESIDUAL | options)
    dropin = getattr(ours, kind)(**RESIDUAL | copy.deepcopy(options))
    dropin.load_state_dict(module.state_dict())
    return module, dropin


def steps(module, dropin, **call):
    """Answers and gradients of both, theirs first, for the same latents and seed."""
    x, weights, found = torch.randn(2, 10, 8), torch.randn(2, 10, 8), []
    for each in (module, dropin):
        torch.manual_seed(1)
        latents = x.clone().requires_grad_()
        values, codes, losses = each(latents, **call)[:3]
        ((values * weights).sum() + (losses * torch.arange(1.0, 4.0)).sum()).backward()
        found.append((values, codes, losses, latents.grad))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"orthogonal_reg_weight": 2.0},
        {"orthogonal_reg_weight": 2.0, "orthogonal_reg_max_codes": 5},
        {"orthogonal_reg_weight": 2.0, "codebook_dim": 4, "commitment_weight": 0.5},
        {"commitment_use_cross_entropy_loss": True},
        {"in_place_codebook_optimizer": descent},
    ],
    ids=lambda each: "-".join(each),
)
@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_losses_of_levels_have_all_parts(kind, options):
    other, mine = steps(*pair(kind, **LEARNED, **options))
    assert torch.equal(mine[1], other[1])
    torch.testing.assert_close(mine[2], other[2])


def test_uneven_use_is_in_the_losses_of_levels():
    calm, uneven = (ours.ResidualVQ(**RESIDUAL, codebook_diversity_loss_weight=weight) for weight in (0.0, 0.5))
    uneven.load_state_dict(calm.state_dict())
    x = torch.randn(2, 10, 8)
    assert bool((uneven(x)[2] > calm(x)[2] + 0.01).all())


def test_each_loss_has_a_gradient_of_its_own():
    module, dropin = pair(rotation_trick=False, codebook_dim=4)
    x, found = torch.randn(2, 10, 8), []
    for each in (module, dropin):
        latents = x.clone().requires_grad_()
        losses = each(latents)[2]
        found.append([torch.autograd.grad(loss, latents, retain_graph=True)[0] for loss in losses])
    torch.testing.assert_close(found[1], found[0])
    assert not torch.allclose(found[1][0], found[1][2])


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("options", [{}, {"rotation_trick": False, **LEARNED}], ids=str)
def test_a_share_of_the_gradient_goes_on(share, options):
    module, dropin = pair(quant_grad_frac=share, codebook_dim=4, **options)
    other, mine = steps(module, dropin)
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
    ways_in = module.project_in.weight.grad, dropin.quantizer.project_in[0].weight.grad
    torch.testing.assert_close(ways_in[1], ways_in[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4, "mlp_kwargs": {"depth": 2, "dim_hidden": 6}}], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_codes_depend_on_the_sum_so_far(options, shared):
    options = options | {"implicit_neural_codebook": True, "shared_codebook": shared, "quant_grad_frac": 1.0}
    module, dropin = pair(**options)
    other, mine = steps(module, dropin)
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
    inner = dropin.quantizer if "codebook_dim" not in options else dropin.quantizer.quantizer
    theirs_of = module.mlps[1].layers[0][0].weight.grad
    torch.testing.assert_close(inner.networks[1].layers[0][0].weight.grad, theirs_of, atol=1e-5, rtol=1e-3)
    for each in (module.eval(), dropin.eval()):
        each.answer = each(torch.ones(2, 10, 8), return_all_codes=True)
    torch.testing.assert_close(dropin.answer[0], module.answer[0])
    torch.testing.assert_close(dropin.answer[3], module.answer[3])
    values, codes, *_ = dropin.answer
    torch.testing.assert_close(dropin.get_output_from_indices(codes), values)
    torch.testing.assert_close(dropin.quantizer.encode(torch.ones(2, 10, 8)), codes)
    assert dropin.get_output_from_indices(codes[..., :1]).shape == values.shape
    assert not dropin.get_codes_from_indices(codes[..., :1])[1:].any()


def test_an_implicit_codebook_is_not_converted():
    module, _ = pair(implicit_neural_codebook=True, mlp_kwargs={"depth": 1})
    with pytest.raises(ValueError, match=r"'implicit_neural_codebook' must be False .* gmvq\.ImplicitResidual"):
        ours.convert(module)


def test_the_sum_strays_from_its_error_in_the_gradient_alone():
    module, dropin = pair(diveq=True)
    other, mine = steps(module, dropin)
    assert torch.equal(mine[1], other[1])
    assert not mine[2].any()
    torch.testing.assert_close(mine[3], other[3], atol=1e-5, rtol=1e-4)
    learned = [member.learned.grad for member in dropin.quantizer.members]
    torch.testing.assert_close(learned, [layer._codebook.embed.grad[0] for layer in module.layers])
    assert torch.equal(dropin.get_output_from_indices(mine[1]), mine[0])
    x = torch.randn(2, 10, 8)
    assert torch.equal(dropin.eval()(x)[0], dropin(x)[0])


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ", "ResidualFSQ", "GroupedResidualFSQ"])
def test_the_same_seed_leaves_the_same_levels(kind):
    grouped, scalar = kind.startswith("Grouped"), kind.endswith("FSQ")
    options = {"levels": [5] * (4 if grouped else 8), "dim": 8} if scalar else RESIDUAL
    options = {**options, "num_quantizers": 6}
    options |= {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1, "quantize_dropout_multiple_of": 2}
    options |= {"groups": 2} if grouped else {}
    module, dropin = getattr(theirs, kind)(**options), getattr(ours, kind)(**options)
    dropin.load_state_dict(module.state_dict())
    x, seen = torch.randn(2, 10, 8), set()
    for seed in range(12):
        calls = [{}] if grouped else [{}, {"rand_quantize_dropout_fixed_seed": seed}]
        for call in calls:
            left = []
            for each in (module, dropin):
                torch.manual_seed(seed)
                left.append((each(x, **call)[1] >= 0).sum(-1).unique().tolist())
            assert left[0] == left[1]
            seen |= {*left[1]}
    assert seen == {2, 4, 6}


def test_levels_that_are_left_out_have_no_loss():
    dropin = ours.ResidualVQ(**RESIDUAL, quantize_dropout=True)
    for seed in range(8):
        _, codes, losses = dropin(torch.randn(2, 10, 8), rand_quantize_dropout_fixed_seed=seed)
        assert torch.equal((codes >= 0).all((0, 1)), losses > 0)


def test_a_search_of_one_call():
    dropin = ours.ResidualVQ(**RESIDUAL).eval()
    x = torch.randn(4, 100, 8)
    errors = [(dropin(x, beam_size=size)[0] - x).square().mean() for size in (None, 4)]
    assert errors[1] < errors[0]
    assert torch.equal(dropin(x)[0], dropin(x, beam_size=None)[0])


def test_drawn_codes_of_levels():
    module, dropin = pair(stochastic_sample_codes=True, codebook_dim=4)
    other, mine = steps(module, dropin, sample_codebook_temp=0.5)
    assert torch.equal(mine[1], other[1])
    assert not torch.equal(steps(module, dropin, sample_codebook_temp=0.0)[1][1], mine[1])
