"""Codebooks train as theirs: their own steps, drawn codes, weighted and accumulated statistics, and networks."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.conversion import dropin_of

theirs = pytest.importorskip("vector_quantize_pytorch")

VECTOR = {"dim": 8, "codebook_size": 16}
LEARNED = {"learnable_codebook": True, "ema_update": False}
SEPARATE = {"heads": 2, "separate_codebook_per_head": True}
MASK = torch.arange(10) < torch.tensor([[10], [4]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def descent(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def pair(**options):
    """A module of theirs, and ours with its state."""
    module = theirs.VectorQuantize(**VECTOR, **options)
    dropin = ours.VectorQuantize(**VECTOR, **copy.deepcopy(options))
    dropin.load_state_dict(module.state_dict())
    return module, dropin


def answers(module, dropin, x, **call):
    """What both answer under the same seed, theirs first."""
    found = []
    for each in (module, dropin):
        torch.manual_seed(1)
        found.append(each(x, **call))
    return found


@pytest.mark.parametrize("freezes", [None, False])
def test_codes_that_do_not_learn_stay(freezes):
    _, dropin = pair(ema_update=False)
    before = dropin.codebook.detach().clone()
    dropin(torch.randn(2, 10, 8), freeze_codebook=freezes)[2].sum()
    assert not any(parameter.requires_grad for parameter in dropin.parameters())
    assert torch.equal(dropin.codebook, before)


@pytest.mark.parametrize("own", [descent, adam])
@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4, **SEPARATE}], ids=str)
def test_codes_move_by_their_own_steps_and_by_those_of_the_model(own, options):
    module, dropin = pair(**LEARNED, **options, in_place_codebook_optimizer=own)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (module, dropin)]
    for _ in range(3):
        x, weights = torch.randn(2, 10, 8), torch.randn(2, 10, 8)
        for each, optimizer in zip((module, dropin), optimizers, strict=True):
            optimizer.zero_grad()
            values, _, loss = each(x.clone().requires_grad_())
            ((values * weights).sum() + loss).backward()
            optimizer.step()
    torch.testing.assert_close(dropin.codebook, module.codebook, atol=1e-4, rtol=1e-3)


def test_the_own_step_leaves_the_gradient_of_others():
    _, dropin = pair(**LEARNED, in_place_codebook_optimizer=descent)
    x = torch.randn(2, 10, 8)
    dropin(x)[2].backward()
    earlier = dropin.members[0].learned.grad.clone()
    dropin(x)
    assert torch.equal(dropin.members[0].learned.grad, earlier)


def test_own_steps_by_hand_wait():
    module, dropin = pair(**LEARNED, in_place_codebook_optimizer=descent, manual_in_place_optimizer_update=True)
    before, x = dropin.codebook.detach().clone(), torch.randn(2, 10, 8)
    answers(module, dropin, x)
    assert torch.equal(dropin.codebook, before)
    for each in (module, dropin):
        each.update_in_place_optimizer()
    torch.testing.assert_close(dropin.codebook, module.codebook)
    assert not torch.equal(dropin.codebook, before)


@pytest.mark.parametrize("options", [{}, {"stochastic_sample_codes": True, "threshold_ema_dead_code": 1}], ids=str)
def test_a_repeated_forward_takes_no_second_step(options):
    _, dropin = pair(**LEARNED, **options, in_place_codebook_optimizer=descent)
    another, x = copy.deepcopy(dropin), torch.randn(2, 10, 8, requires_grad=True)
    torch.manual_seed(1)
    dropin(x)[2].backward()
    after = torch.rand(1)
    torch.manual_seed(1)
    loss = checkpoint(lambda x: another(x)[2], x, use_reentrant=False)
    loss.backward()
    assert torch.equal(another.members[0].learned.grad, dropin.members[0].learned.grad)
    assert torch.equal(another.codebook, dropin.codebook)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    "options", [{"in_place_codebook_optimizer": descent}, {"rotation_trick": False}], ids=lambda each: next(iter(each))
)
def test_a_network_makes_the_codes(options):
    bridge = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    module, dropin = pair(vq_bridge=bridge, **options)
    x, weights = torch.randn(2, 10, 8), torch.randn(2, 10, 8)
    for each in (module, dropin):
        values, each.codes, loss = each(x.clone().requires_grad_())
        ((values * weights).sum() + loss).backward()
    assert torch.equal(dropin.codes, module.codes)
    mine, other = dropin.members[0].bridge, module._codebook.vq_bridge
    torch.testing.assert_close(mine[0].weight.grad, other[0].weight.grad)
    torch.testing.assert_close(mine[0].weight, other[0].weight)
    values, codes, _ = dropin.eval()(x)
    torch.testing.assert_close(values, module.eval()(x)[0])
    assert torch.equal(dropin.get_output_from_indices(codes), values)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"stochastic_sample_codes": True}, {}),
        ({"stochastic_sample_codes": True, "sample_codebook_temp": 0.1}, {}),
        ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.3}),
        ({"stochastic_sample_codes": True, "use_cosine_sim": True, "codebook_dim": 4}, {}),
        ({"stochastic_sample_codes": True, "rotation_trick": False, "straight_through": True}, {}),
        ({"stochastic_sample_codes": True}, {"sample_codebook_temp": 0.0}),
    ],
)
def test_the_same_seed_draws_the_same_codes(options, call):
    module, dropin = pair(**options)
    x = torch.randn(4, 10, 8, requires_grad=True)
    nearest = dropin.eval()(x)[1]
    other, mine = answers(module, dropin.train(), x, **call)
    assert torch.equal(mine[1], other[1])
    torch.testing.assert_close(mine[2], other[2])
    assert torch.equal(mine[1], nearest) == (call == {"sample_codebook_temp": 0.0})


@pytest.mark.parametrize("is_function", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True, "codebook_dim": 4}], ids=str)
def test_codes_take_a_share_of_their_step(options, is_function):
    module, dropin = pair(**options)
    before = dropin.codebook.clone()
    shares = torch.linspace(0, 1, 16)
    weight = (lambda sums, counts: shares + 0 * counts[0] + 0 * sums[0].sum(-1)) if is_function else shares
    answers(module, dropin, torch.randn(4, 100, 8), ema_update_weight=weight)
    torch.testing.assert_close(dropin.codebook, module.codebook, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(dropin._codebook.cluster_size, module._codebook.cluster_size)
    moved = (dropin.codebook - before).norm(dim=-1)
    assert moved[0] < 1e-6 < moved[-1]


def test_accumulated_statistics_wait_for_the_last_forward():
    module, dropin = pair()
    before = dropin.codebook.clone()
    for _ in range(2):
        answers(module, dropin, torch.randn(4, 100, 8), accum_ema_update=True)
        assert torch.equal(dropin.codebook, before)
    answers(module, dropin, torch.randn(4, 100, 8))
    torch.testing.assert_close(dropin.codebook, module.codebook, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(dropin._codebook.cluster_size, module._codebook.cluster_size)


def test_a_call_without_statistics():
    module, dropin = pair()
    before = dropin.codebook.clone()
    answers(module, dropin, torch.randn(4, 100, 8), ema_update=False)
    assert torch.equal(dropin.codebook, before)
    assert torch.equal(module.codebook, before)


def test_reading_the_codebook_and_evaluation_fold_statistics_in():
    _, dropin = pair()
    for evaluates in (False, True):
        before = dropin.members[0].code_vectors.clone()
        dropin.train()(torch.randn(4, 100, 8))
        dropin.eval() if evaluates else dropin.codebook
        assert not torch.equal(dropin.members[0].code_vectors, before)


def test_codes_that_are_to_stay_stay():
    module, dropin = pair(decay=1.0)
    before = dropin.codebook.clone()
    answers(module, dropin, torch.randn(4, 100, 8))
    assert torch.equal(dropin.codebook, before)
    torch.testing.assert_close(module.codebook, before)


def test_learning_codes_die_by_the_same_counts():
    module, dropin = pair(**LEARNED, threshold_ema_dead_code=1e-9, decay=0.5)
    answers(module, dropin, torch.randn(1, 20, 8))
    torch.testing.assert_close(dropin._codebook.cluster_size, module._codebook.cluster_size)


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4}, {"use_cosine_sim": True}], ids=str)
def test_counts_of_codes_chosen_elsewhere(options):
    module, dropin = pair(**options)
    x, indices = torch.randn(2, 10, 8), torch.randint(0, 16, (2, 10))
    for each in (module, dropin):
        each.update_indices(x, indices, mask=MASK)
    torch.testing.assert_close(dropin._codebook.cluster_size, module._codebook.cluster_size)
    torch.testing.assert_close(dropin._codebook.embed_avg, module._codebook.embed_avg)
    torch.testing.assert_close(dropin.codebook, module.codebook, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "shape", "call"),
    [
        ({}, (2, 10, 8), {"mask": MASK}),
        ({"codebook_dim": 4, "commitment_weight": 0.5}, (2, 10, 8), {}),
        ({"accept_image_fmap": True}, (2, 8, 3, 4), {}),
        ({"use_cosine_sim": True, "stochastic_sample_codes": True}, (5, 8), {}),
        ({"return_zeros_for_masked_padding": False}, (2, 10, 8), {"mask": MASK}),
    ],
)
def test_several_codes_of_a_latent(options, shape, call, training):
    module, dropin = pair(**options)
    before, x = dropin.codebook.clone(), torch.randn(shape, requires_grad=True)
    other, mine = answers(module.train(training), dropin.train(training), x, topk=3, **call)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(dropin.codebook, before)  # nothing is counted
    gradients = [torch.autograd.grad(each[0].sum(), x)[0] for each in (mine, other)] if training else [x, x]
    torch.testing.assert_close(*gradients)


def test_the_best_code_is_that_of_a_forward():
    dropin = ours.VectorQuantize(dim=64, codebook_size=512).eval()
    dropin.codebook = 1e-4 * torch.randn(512, 64)  # many are as near, but for a rounding
    x = torch.randn(4, 500, 64)
    assert torch.equal(dropin(x, topk=2)[1][..., 0], dropin(x)[1])


def test_the_best_codes_are_at_most_all():
    _, dropin = pair()
    values, codes, losses = dropin(torch.randn(2, 10, 8), topk=99)
    assert values.shape == (2, 10, 16, 8)
    assert codes.shape == losses.shape == (2, 10, 16)


@pytest.mark.parametrize("options", [LEARNED, {**LEARNED, **SEPARATE}, {**LEARNED, "heads": 2}], ids=str)
def test_cross_entropy_of_codes(options):
    module, dropin = pair(**options)
    x = torch.randn(2, 10, 8)
    indices = torch.randint(-1, 16, (2, 10, 2) if "heads" in options else (2, 10))
    found = []
    for each in (module, dropin):
        values, loss = each(latents := x.clone().requires_grad_(), indices=indices)
        assert values.shape[:2] == (2, 10) or "heads" in options
        found.append((loss, torch.autograd.grad(loss, latents)[0]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "options",
    [
        {"commitment_use_cross_entropy_loss": True},
        {"commitment_use_cross_entropy_loss": True, **SEPARATE, "commitment_weight": 0.3},
        {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
        {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 5},
        {"commitment_weight": 0.25},
        {"route_gradients_to_input": False},
    ],
    ids=str,
)
def test_losses_and_gradients_of_learning_codes(options):
    module, dropin = pair(**LEARNED, **options)
    x, weights = torch.randn(2, 10, 8, requires_grad=True), torch.randn(2, 10, 8)
    for each in (module, dropin):
        torch.manual_seed(1)
        values, _, each.loss = each(x)
        ((values * weights).sum() + each.loss).backward()
    torch.testing.assert_close(dropin.loss, module.loss)
    mine = torch.stack([member.learned.grad for member in dropin.members])
    torch.testing.assert_close(mine, module._codebook.embed.grad)


def test_losses_of_moving_averages_reach_the_latents():
    dropin = ours.VectorQuantize(**VECTOR, codebook_diversity_loss_weight=1.0, commitment_weight=0.0)
    x = torch.randn(2, 10, 8, requires_grad=True)
    dropin(x)[2].backward()
    assert bool(x.grad.any())


def test_a_frozen_codebook_learns_by_gradient_in_a_call_that_says_so():
    _, dropin = pair(**LEARNED, freeze_codebook=True)
    learned = dropin.members[0].learned
    dropin(torch.randn(2, 10, 8))[2].sum()
    assert learned.grad is None
    dropin(torch.randn(2, 10, 8), freeze_codebook=False)[2].backward()
    assert bool(learned.grad.any())
    assert dropin.members[0].frozen
    learned.grad = None
    x = torch.randn(2, 10, 8, requires_grad=True)
    dropin(x)[2].backward()
    assert learned.grad is None


def test_the_direction_strays_by_an_absolute_size():
    module, dropin = pair(directional_reparam=True, directional_reparam_variance=1.0, threshold_ema_dead_code=1e-9)
    x, weights = torch.randn(2, 10, 8), torch.randn(2, 10, 8)
    found = []
    for each in (module, dropin):
        torch.manual_seed(1)
        latents = x.clone().requires_grad_()
        found.append(torch.autograd.grad((each(latents)[0] * weights).sum(), latents)[0])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("training", [True, False])
def test_codes_and_latents_of_no_length(training):
    module, dropin = pair(use_cosine_sim=True, rotation_trick=False)
    codes = nn.functional.normalize(torch.randn(16, 8), dim=-1)
    codes[5] = 0  # as near as a right angle, and not nearer
    module.codebook = codes
    dropin.codebook = codes
    x = torch.randn(4, 50, 8)
    x[0, :3] = 0
    other, mine = answers(module.train(training), dropin.train(training), x)
    assert torch.equal(mine[1], other[1])
    assert not mine[1][0, :3].any()


def test_a_copy_has_an_optimizer_of_its_own():
    _, dropin = pair(**LEARNED, in_place_codebook_optimizer=adam)
    another = copy.deepcopy(dropin)
    before = dropin.codebook.detach().clone()
    another(torch.randn(2, 10, 8))
    assert not torch.equal(another.codebook, before)
    assert torch.equal(dropin.codebook, before)


@pytest.mark.parametrize("optimizer", [descent, adam, torch.optim.AdamW], ids=lambda each: each.__name__)
def test_a_module_like_theirs_has_an_optimizer_of_the_same_kind(optimizer):
    module, _ = pair(**LEARNED, in_place_codebook_optimizer=optimizer)
    dropin = dropin_of(module)
    own = dropin.members[0].own_optimizer
    assert type(own) is type(module.in_place_codebook_optimizer)
    assert own.defaults["lr"] == module.in_place_codebook_optimizer.defaults["lr"]
    x = torch.randn(2, 10, 8)
    other, mine = answers(module, dropin, x)
    torch.testing.assert_close(mine[0], other[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ", "GroupedResidualVQ", "ResidualFSQ"])
def test_half_precision_looks_up_in_half_precision(kind):
    options = {"levels": [5] * 8} if kind == "ResidualFSQ" else {**VECTOR, "codebook_dim": 4}
    options |= {} if kind == "VectorQuantize" else {"num_quantizers": 2}
    module = getattr(theirs, kind)(**options).bfloat16().eval()
    x = torch.randn(2, 10, 8, dtype=torch.bfloat16)
    alike = [] if kind == "ResidualFSQ" else [dropin_of(module)]  # whose state has no type
    for dropin in (getattr(ours, kind)(**options).bfloat16().eval(), *alike):
        values, codes, *_ = dropin(x)
        assert torch.equal(dropin.get_output_from_indices(codes), values)
        assert dropin.get_output_from_indices(codes).dtype == torch.bfloat16
        assert dropin.get_codes_from_indices(codes).dtype == torch.bfloat16


def test_a_codebook_prints_in_one_line():
    _, dropin = pair(**LEARNED, in_place_codebook_optimizer=adam, decay=0.5)
    assert "ways=Ways(decay=0.5, optimizer=...)" in repr(dropin)
