"""Training goes on as it would have in theirs, but for what docs/coming-from-vector-quantize-pytorch.md lists."""

import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.conversion import dropin_of

theirs = pytest.importorskip("vector_quantize_pytorch")

LEARNED = {"learnable_codebook": True, "ema_update": False}
SEPARATE = {"heads": 2, "separate_codebook_per_head": True}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradients(module, x, weights):
    """Values, codes, loss and gradients of a step that weighs values and adds the loss."""
    x = x.clone().requires_grad_()
    values, codes, *loss = module(x)
    module.zero_grad()
    ((values * weights).sum() + sum(part.sum() for part in loss)).backward()
    return values.detach(), codes, [part.detach() for part in loss], x.grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation_trick": False},
        {"route_gradients_to_input": False},
        {"commitment_weight": 0.25},
        {"use_cosine_sim": True},
        {"codebook_dim": 4, **SEPARATE},
        {"heads": 2, "codebook_dim": 4},
        {"codebook_dim": 3},
        {"affine_param": True},
        LEARNED,
        {"codebook_dim": 4, **LEARNED, **SEPARATE},
    ],
    ids=str,
)
def test_a_step_gives_the_same_loss_and_gradient(options):
    module = theirs.VectorQuantize(dim=8, codebook_size=16, **options)
    module(torch.randn(4, 50, 8))
    dropin = dropin_of(module)
    x, weights = torch.randn(4, 50, 8), torch.randn(4, 50, 8)
    _, codes, loss, gradient = gradients(dropin, x, weights)
    _, their_codes, their_loss, their_gradient = gradients(module, x, weights)
    assert torch.equal(codes, their_codes)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-5, rtol=1e-4)
    if "learnable_codebook" in options:
        mine = torch.stack([member.learned.grad for member in dropin.members])
        torch.testing.assert_close(mine, module._codebook.embed.grad)


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"codebook_dim": 4, **SEPARATE}], ids=str)
def test_moving_averages_go_on(options):
    module = theirs.VectorQuantize(dim=8, codebook_size=16, **options)
    for _ in range(3):
        module(torch.randn(4, 100, 8))
    dropin = dropin_of(module)
    for _ in range(5):
        x = torch.randn(4, 100, 8)
        assert torch.equal(dropin(x)[1], module(x)[1])
    dropin.update()
    # theirs adds 1e-5 to all counts
    expected = module._codebook.embed
    torch.testing.assert_close(
        torch.stack([member.code_vectors for member in dropin.members]), expected, atol=1e-4, rtol=1e-3
    )
    counts = torch.stack([member.moving.counts for member in dropin.members])
    torch.testing.assert_close(counts, module._codebook.cluster_size)


def test_dead_codes_are_replaced_below_the_same_count():
    module = theirs.VectorQuantize(dim=8, codebook_size=64, threshold_ema_dead_code=2)
    dropin = dropin_of(module)
    x = torch.randn(1, 80, 8)
    module(x), dropin(x)
    dropin.update()
    replaced = module._codebook.cluster_size[0] == 2
    assert 0 < int(replaced.sum()) < 64
    assert torch.equal(dropin.members[0].moving.counts == 2, replaced)
    rows = dropin.codebook[replaced]
    assert bool((rows[:, None] == x[0]).all(-1).any(-1).all())


@pytest.mark.parametrize("options", [{}, {"preserve_symmetry": True}, {"dim": 8}, {"bound_hard_clamp": True}], ids=str)
def test_scalar_gradient_is_theirs(options):
    module = theirs.FSQ(levels=[5, 4, 3], **options)
    dropin = dropin_of(module)
    x = torch.randn(4, 50, module.dim)
    weights = torch.randn_like(x)
    values, codes, _, gradient = gradients(dropin, x, weights)
    their_values, their_codes, _, their_gradient = _without_loss(module, x, weights)
    torch.testing.assert_close(values, their_values)
    assert torch.equal(codes, their_codes.long())
    torch.testing.assert_close(gradient, their_gradient)


def _without_loss(module, x, weights):
    x = x.clone().requires_grad_()
    values, codes = module(x)
    (values * weights).sum().backward()
    return values.detach(), codes, None, x.grad


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_loss_weight": 0.0, "commitment_loss_weight": 0.25},
        {"entropy_loss_weight": 0.1},
        {"entropy_loss_weight": 0.1, "num_codebooks": 2},
        {"entropy_loss_weight": 0.1, "spherical": True, "diversity_gamma": 0.5},
        {"entropy_loss_weight": 0.1, "dim": 8},
    ],
    ids=str,
)
def test_binary_loss_is_theirs_but_for_a_constant(options):
    module = theirs.LFQ(codebook_size=16, **options)
    dropin = dropin_of(module)
    x = 0.05 * torch.randn(4, 50, module.dim)  # where a temperature of 0.01 leaves doubt
    weights = torch.randn_like(x)
    _, codes, (loss,), gradient = gradients(dropin, x, weights)
    _, their_codes, (their_loss,), their_gradient = gradients(module, x, weights)
    constant = module.entropy_loss_weight * module.diversity_gamma * torch.tensor(16.0).log()
    assert torch.equal(codes, their_codes.long())
    # theirs cuts logarithms off at 1e-5
    torch.testing.assert_close(loss, their_loss + constant, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, their_gradient, atol=2e-4, rtol=1e-3)


def test_binary_loss_is_never_negative():
    x = torch.randn(4, 200, 8)
    assert float(theirs.LFQ(dim=8)(x).entropy_aux_loss) < 0
    assert float(ours.LFQ(dim=8)(x).entropy_aux_loss) >= 0


@pytest.mark.parametrize("options", [{}, {"rotation_trick": False}, {"commitment_weight": 0.5}], ids=str)
def test_a_step_of_linear_codes_is_theirs(options):
    module = theirs.SimVQ(dim=8, codebook_size=16, **options)
    dropin = dropin_of(module)
    x, weights = torch.randn(4, 50, 8), torch.randn(4, 50, 8)
    _, codes, loss, gradient = gradients(dropin, x, weights)
    _, their_codes, their_loss, their_gradient = gradients(module, x, weights)
    assert torch.equal(codes, their_codes)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dropin.quantizer.transform.weight.grad, module.code_transform.weight.grad)


def test_residual_losses_are_theirs():
    module = theirs.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, codebook_dim=4, rotation_trick=False)
    dropin = dropin_of(module)
    x = torch.randn(4, 50, 8)
    _, codes, (losses,), gradient = gradients(dropin, x, torch.zeros_like(x))
    _, their_codes, (their_losses,), their_gradient = gradients(module, x, torch.zeros_like(x))
    assert torch.equal(codes, their_codes)
    torch.testing.assert_close(losses, their_losses)
    torch.testing.assert_close(gradient, their_gradient)


def test_groups_have_the_losses_of_theirs():
    module = theirs.GroupedResidualVQ(dim=8, groups=2, codebook_size=16, num_quantizers=3, rotation_trick=False)
    dropin = dropin_of(module)
    x = torch.randn(4, 50, 8)
    _, _, (losses,), gradient = gradients(dropin, x, torch.zeros_like(x))
    _, _, (their_losses,), their_gradient = gradients(module, x, torch.zeros_like(x))
    torch.testing.assert_close(losses, their_losses)
    torch.testing.assert_close(gradient, their_gradient)


def test_the_gradient_through_levels_counts_once():
    options = {"dim": 8, "codebook_size": 16, "num_quantizers": 3, "rotation_trick": False, "commitment_weight": 0.0}
    x, weights = torch.randn(4, 50, 8), torch.ones(4, 50, 8)
    assert torch.equal(gradients(ours.ResidualVQ(**options), x, weights)[3], weights)
    torch.testing.assert_close(gradients(theirs.ResidualVQ(**options), x, weights)[3], 3 * weights)


def test_quantizer_dropout_leaves_as_many_levels():
    options = {"dim": 8, "codebook_size": 16, "num_quantizers": 6, "quantize_dropout": True}
    options |= {"quantize_dropout_cutoff_index": 1, "quantize_dropout_multiple_of": 2}
    x = torch.randn(1, 4, 8)
    for library in (theirs, ours):
        module = library.ResidualVQ(**options)
        module(x)
        seen = {int((module(x)[1][0, 0] >= 0).sum()) for _ in range(60)}
        assert seen == {2, 4, 6}


@pytest.mark.parametrize("kind", ["VectorQuantize", "ResidualVQ"])
def test_directional_reparametrization_trains_by_the_task_alone(kind):
    options = {
        "dim": 8,
        "codebook_size": 16,
        "commitment_weight": 0.5,
        **({"num_quantizers": 2} if kind == "ResidualVQ" else {}),
    }
    # almost no draw in the direction, and no code that is dead
    still = {"directional_reparam_variance": 1e-12, "threshold_ema_dead_code": 1e-9}
    module = getattr(theirs, kind)(**options, **still, directional_reparam=True)
    dropin = dropin_of(module)
    x, weights = torch.randn(4, 50, 8), torch.randn(4, 50, 8)
    found = []
    for each in (dropin, module):
        latents = x.clone().requires_grad_()
        values, codes, loss = each(latents)[:3]
        assert not loss.any()
        learned = [p for p in each.parameters() if p.requires_grad]
        if loss.requires_grad:  # a zero of the latents
            of_loss = torch.autograd.grad(loss.sum(), [latents, *learned], allow_unused=True, retain_graph=True)
            assert not any(gradient is not None and gradient.any() for gradient in of_loss)
        gradients_of_task = torch.autograd.grad((values * weights).sum(), [latents, *learned])
        found.append((codes, gradients_of_task[0], torch.cat([each.reshape(-1, 8) for each in gradients_of_task[1:]])))
    assert torch.equal(found[0][0], found[1][0])
    if kind == "VectorQuantize":  # of levels, theirs has the gradient as many times as there are
        torch.testing.assert_close(found[0][1:], found[1][1:], atol=1e-4, rtol=1e-4)
