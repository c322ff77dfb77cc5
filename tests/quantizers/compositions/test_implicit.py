import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gmvq.quantizers import (
    DiVeQ,
    FiniteScalarQuantizer,
    GaussianMixtureQuantizer,
    GaussianQuantizer,
    GumbelSoftmax,
    Product,
    Projected,
    Residual,
    Rotation,
    StochasticQuantizer,
    VectorQuantizer,
)
from gmvq.quantizers.compositions import implicit
from gmvq.quantizers.compositions.implicit import ImplicitResidual

DIM, SIZE = 3, 8


def base(**options):
    return VectorQuantizer(DIM, **{"codebook_size": SIZE, "decay": None, **options})


def levels(number=3, **options):
    return [base(**options) for _ in range(number)]


MAKE = {
    "own": lambda: ImplicitResidual(levels(), hidden_dim=5),
    "sizes": lambda: ImplicitResidual([VectorQuantizer(DIM, k, decay=None) for k in (8, 4, 6)], hidden_dim=5, blocks=0),
    "shared": lambda: ImplicitResidual(base(), 3, hidden_dim=5, blocks=1),
    "averages": lambda: ImplicitResidual(levels(decay=0.9, revive_below=1.0), hidden_dim=5, estimator=DiVeQ()),
    "shared-averages": lambda: ImplicitResidual(base(decay=0.9), 3, hidden_dim=5),
    "projected": lambda: ImplicitResidual(levels(codebook_dim=2), hidden_dim=5),
    "rotation": lambda: ImplicitResidual(levels(cosine=True), hidden_dim=5, estimator=Rotation()),
    "mixture": lambda: ImplicitResidual([GaussianMixtureQuantizer(DIM, SIZE) for _ in range(2)], hidden_dim=5),
    "finite-scalar": lambda: ImplicitResidual([FiniteScalarQuantizer((3, 3, 3)) for _ in range(2)], hidden_dim=5),
}
makes = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def rows(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64).to(dtype)


def trained(make):
    """After some steps of an optimizer: the networks are far from where they start."""
    torch.manual_seed(0)
    quantizer = make()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.03)
    for seed in range(5):
        optimizer.zero_grad()
        quantizer(rows(100, seed=seed)).loss.backward()
        optimizer.step()
    quantizer.zero_grad()
    return quantizer


# what it computes


def transformed(transform, mu, xhat):
    """The network of the docstring, for one pair."""
    h = mu + transform.from_code.weight @ mu + transform.from_reconstruction.weight @ xhat + transform.from_code.bias
    for way_in, way_out in zip(transform.ways_in, transform.ways_out, strict=True):
        h = h + way_out.weight @ torch.relu(way_in.weight @ h)
    return h


def test_equals_the_equations_row_by_row():
    quantizer = trained(MAKE["own"]).double()
    z = rows(20, seed=7, dtype=torch.float64)
    codes, errors = [], []
    reconstructions = []
    for row in z:
        xhat, chosen = torch.zeros(DIM, dtype=torch.float64), []
        for level, member in enumerate(quantizer.places):
            codebook = member.codebook
            if level:
                codebook = torch.stack([transformed(quantizer.transforms[level - 1], mu, xhat) for mu in codebook])
            chosen.append((row - xhat - codebook).square().sum(-1).argmin())
            xhat = xhat + codebook[chosen[-1]]
            errors.append((row - xhat).square().mean())
        codes.append(torch.stack(chosen))
        reconstructions.append(xhat)
    out = quantizer(z)
    assert torch.equal(out.codes, torch.stack(codes))
    torch.testing.assert_close(out.values, torch.stack(reconstructions))
    torch.testing.assert_close(out.loss, 1.25 * torch.stack(errors).sum() / len(z))


def test_gradients_are_those_of_the_loss():
    quantizer = trained(MAKE["own"]).double()
    z = rows(20, seed=7, dtype=torch.float64).requires_grad_()
    weights = rows(20, seed=8, dtype=torch.float64)
    out = quantizer(z)
    (out.loss + (out.values * weights).sum()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in quantizer.named_parameters()}
    quantizer.zero_grad()
    xhat, loss = torch.zeros(20, DIM, dtype=torch.float64), 0
    commitment = 0
    for level, member in enumerate(quantizer.places):
        code = member.codebook[out.codes[:, level]]
        if level:
            transform = quantizer.transforms[level - 1]
            code = torch.stack([transformed(transform, mu, x) for mu, x in zip(code, xhat, strict=True)])
        xhat = xhat + code  # not detached: a level also learns for those that follow
        loss = loss + F.mse_loss(xhat, z.detach())
        commitment = commitment + 2 * 0.25 * (z - xhat).detach() / z.numel()
    loss.backward()
    for name, parameter in quantizer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    torch.testing.assert_close(z.grad, weights + commitment)


def test_one_level_is_its_member():
    torch.manual_seed(0)
    quantizer, member = ImplicitResidual([base()]), base()
    member.load_state_dict(quantizer.places[0].state_dict())
    for seed in range(2):
        first, second = rows(40, seed=seed).requires_grad_(), rows(40, seed=seed).requires_grad_()
        out, expected = quantizer(first), member(second)
        (out.loss + out.values.square().sum()).backward()
        (expected.loss + expected.values.square().sum()).backward()
        assert torch.equal(out.codes[:, 0], expected.codes)
        assert torch.equal(out.values, expected.values)
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(first.grad, second.grad)
    torch.testing.assert_close(quantizer.places[0].learned.grad, member.learned.grad)


def test_starts_near_a_residual_quantizer():
    torch.manual_seed(0)
    quantizer, residual = ImplicitResidual(levels(4)), Residual(levels(4))
    z = rows(400)
    error, expected = ((part(z).values - z).square().mean() for part in (quantizer, residual))
    assert error == pytest.approx(expected.item(), rel=0.1)


def test_learns_what_fixed_codebooks_cannot():
    # a circle: what is left of a point lies along the tangent, whose direction depends on the first code
    torch.manual_seed(0)
    angles = torch.linspace(0, 6.28, 400)
    z = torch.stack([angles.cos(), angles.sin()], -1)
    errors = []
    for make in (ImplicitResidual, Residual):
        quantizer = make([VectorQuantizer(2, 8, decay=None), VectorQuantizer(2, 4, decay=None)])
        optimizer = torch.optim.Adam(quantizer.parameters(), 3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            quantizer(z).loss.backward()
            optimizer.step()
        errors.append((quantizer.eval()(z).values - z).square().mean().item())
    assert errors[0] < 0.5 * errors[1]


def test_moving_averages_follow_the_residuals():
    torch.manual_seed(0)
    quantizer = ImplicitResidual(levels(2, decay=0.5), hidden_dim=5)
    quantizer(rows(200))
    quantizer.update()
    z = rows(200, seed=1)
    out = quantizer(z)
    residual = z - quantizer.decode(out.codes[:, :1])
    own = quantizer.places[1].encode(residual)
    moving = quantizer.places[1].moving
    sums = 0.5 * moving.sums.index_add(0, own, residual)
    counts = 0.5 * moving.counts.index_add(0, own, torch.ones(200))
    quantizer.update()
    torch.testing.assert_close(quantizer.places[1].code_vectors, sums / counts[:, None])


def test_blocks_of_any_size_choose_the_same(monkeypatch):
    quantizer = trained(MAKE["own"])
    codes = quantizer.encode(rows(50))
    for elements in (1, 3 * quantizer.width * SIZE, 1000):
        monkeypatch.setattr(implicit, "BLOCK_ELEMENTS", elements)
        assert torch.equal(quantizer.encode(rows(50)), codes)
        assert torch.equal(quantizer(rows(50)).codes, codes)


def test_keeps_no_transformed_codebook_for_each_row():
    quantizer = ImplicitResidual([VectorQuantizer(4, 64, decay=None) for _ in range(2)], hidden_dim=16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: (sizes.append(kept.numel()), kept)[1], lambda kept: kept
    ):
        quantizer(torch.randn(500, 4)).loss.backward()
    assert 0 < max(sizes) <= 500 * 16  # N times hidden; with all codes it is 64 times that


# codes


@makes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_equal_decoded_codes(make, masked, dtype):
    quantizer = trained(make)
    z = rows(4, 30, seed=9, dtype=dtype)
    mask = torch.rand(4, 30) < 0.5 if masked else None
    for double in (False, True):  # latents of another type than the parameters' too
        quantizer = quantizer.double() if double else quantizer
        for training in (True, False):
            out = quantizer.train(training)(z, mask)
            assert torch.equal(out.values, quantizer.decode(out.codes).to(dtype))
        assert torch.equal(out.codes, quantizer.encode(z, mask))


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("number", [20, 64])
def test_codes_that_wait_do_not_move_behind_a_level_that_chose_them(number, cosine):
    for seed in range(5):
        torch.manual_seed(seed)
        quantizer = ImplicitResidual(base(codebook_size=100, cosine=cosine, decay=0.0), 3, blocks=0)
        for step in range(2):
            z = rows(number, seed=10 * seed + step)
            out = quantizer(z)
            assert torch.equal(out.values, quantizer.decode(out.codes))
            assert torch.equal(out.codes, quantizer.encode(z))


def test_first_levels_decode_alone():
    quantizer = trained(MAKE["sizes"])
    z = rows(200)
    codes = quantizer.encode(z)
    assert quantizer.codebook_sizes == (8, 4, 6)
    torch.testing.assert_close(quantizer.decode(codes[:, :1]), quantizer.places[0].decode(codes[:, 0]))
    errors = []
    for number in (1, 2, 3):
        cut = codes.clone()
        cut[:, number:] = -1
        assert torch.equal(quantizer.decode(codes[:, :number]), quantizer.decode(cut))
        errors.append((quantizer.decode(cut) - z).square().mean())
    assert errors[0] > errors[1] > errors[2]
    assert (quantizer.decode(torch.full((5, 3), -1)) == 0).all()


def test_decode_refuses_what_is_no_code():
    quantizer = MAKE["sizes"]()
    for codes, reason in (
        (torch.tensor([[0, 5, 0]]), "must lie in"),  # the second level has 4 codes
        (torch.tensor([[0, 0, -2]]), "must lie in"),
        (torch.zeros(1, 3), "must be integers"),
        (torch.zeros(1, 4, dtype=torch.int64), "codes for each latent"),
        (torch.zeros(1, 0, dtype=torch.int64), "codes for each latent"),
    ):
        with pytest.raises(ValueError, match=reason):
            quantizer.decode(codes)


# laws that the common list has for one of these only


@pytest.mark.parametrize("make", [make for name, make in MAKE.items() if name != "averages"])  # draws for each row
def test_a_mask_equals_a_shorter_input(make):
    torch.manual_seed(0)
    full, short = make(), make()
    short.load_state_dict(full.state_dict())
    z, mask = rows(3, 40), torch.rand(3, 40) < 0.5
    for _ in range(2):
        out, expected = full(torch.where(mask[..., None], z, 1e6), mask), short(z[mask])
    assert torch.equal(out.codes[mask], expected.codes)
    assert (out.codes[~mask] == -1).all()
    assert (out.values[~mask] == 0).all()
    torch.testing.assert_close(out.values[mask], expected.values)
    torch.testing.assert_close(out.loss, expected.loss)
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(tensor, short.state_dict()[name], msg=name)


@makes
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_checkpointed_forward_leaves_the_same_state(make, reentrant, fresh):
    torch.manual_seed(0)
    plain = make() if fresh else trained(make)
    again = copy.deepcopy(plain)
    layer, gradients = nn.Linear(DIM, DIM), []
    for quantizer, wrapped in ((plain, False), (again, True)):
        for step in range(3):
            torch.manual_seed(step)
            layer.zero_grad()

            def run(z, quantizer=quantizer):
                out = quantizer(layer(z))
                return out.values, out.loss

            z = rows(60, seed=20 + step).requires_grad_()
            values, loss = checkpoint(run, z, use_reentrant=reentrant) if wrapped else run(z)
            (values.square().mean() + loss).backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@makes
def test_gradient_reaches_the_latents_and_what_makes_codes(make):
    quantizer = trained(make)
    z = rows(100, seed=4).requires_grad_()
    out = quantizer(z)
    (out.values.square().sum() + out.loss).backward()
    assert (z.grad.abs().sum(-1) > 0).all()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


PARTIAL = {
    "stochastic": (lambda: StochasticQuantizer(DIM, SIZE, variance="token"), {"learned_codes"}),
    "gaussian": (lambda: GaussianQuantizer(DIM, SIZE, hard=True), set()),
    "untied": (
        lambda: Projected(VectorQuantizer(2, SIZE, decay=None), DIM, tied=False),
        {"quantizer.learned", "project_out.weight", "project_out.bias"},
    ),
    "feature-weights": (lambda: GaussianMixtureQuantizer(DIM, SIZE, learned=("feature_weights",)), set()),
    "whole": (lambda: VectorQuantizer(DIM, SIZE, decay=None, codebook_dim=2), None),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_parameters_beside_the_codebook_have_no_gradient_to_wait_for(name):
    make, names = PARTIAL[name]
    torch.manual_seed(0)
    with torch.no_grad():
        member = make()
        every = {key for key, _ in member.named_parameters()}
        quantizer = ImplicitResidual([member, make()], hidden_dim=5)
    learned = {key for key, parameter in member.named_parameters() if parameter.requires_grad}
    assert learned == (every if names is None else names)
    out = quantizer(rows(100).requires_grad_())
    (out.values.square().sum() + out.loss).backward()
    for key, parameter in quantizer.named_parameters():  # what data parallel training asks for
        assert (parameter.grad is not None) == parameter.requires_grad, key
    before = {key: parameter.requires_grad for key, parameter in quantizer.named_parameters()}
    quantizer.freeze().unfreeze()
    assert {key: parameter.requires_grad for key, parameter in quantizer.named_parameters()} == before


def test_the_loss_is_a_squared_error_whatever_the_members():
    torch.manual_seed(0)
    quantizer = ImplicitResidual([VectorQuantizer(DIM, SIZE), StochasticQuantizer(DIM, SIZE)], hidden_dim=5)
    assert not quantizer.loss_in_nats
    assert not ImplicitResidual(StochasticQuantizer(DIM, SIZE), 2).loss_in_nats
    weight = torch.tensor(3.0)
    assert quantizer.loss_weight(weight, 0.1) == weight
    z = rows(40)
    out = quantizer(z)
    errors = [(z - quantizer.decode(out.codes[:, :number])).square().mean() for number in (1, 2)]
    torch.testing.assert_close(out.loss, 1.25 * sum(errors))


def test_a_refused_composite_leaves_its_members_as_they_are():
    for options in ({"hidden_dim": 0}, {"blocks": -1}, {"commitment_weight": -1.0}, {"estimator": GumbelSoftmax()}):
        members = [StochasticQuantizer(DIM, SIZE) for _ in range(2)]
        with pytest.raises(ValueError, match=next(iter(options))):
            ImplicitResidual(members, **options)
        assert all(member.updates_itself for member in members)
        assert all(parameter.requires_grad for member in members for parameter in member.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_break(training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    quantizer = MAKE["shared-averages"]().train(training)
    plain = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for seed in range(3):
        z, mask = rows(4, 20, seed=seed), torch.rand(4, 20) < 0.7
        out, expected = compiled(z, mask), plain(z, mask)
        assert torch.equal(out.codes, expected.codes)
        torch.testing.assert_close(out.values, expected.values)
        torch.testing.assert_close(out.loss, expected.loss)
    for name, tensor in quantizer.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"quantizers": []}, "'quantizers' must be a quantizer or a list"),
        ({"quantizers": base()}, "'num_quantizers' must say"),
        ({"quantizers": [base(), Product(VectorQuantizer(1, 4), heads=DIM)]}, "one code for each latent"),
        ({"quantizers": [base(), VectorQuantizer(DIM + 1, 4)]}, "same 'dim'"),
        ({"num_quantizers": 4}, "'num_quantizers' must be the length"),
        ({"hidden_dim": 0}, "'hidden_dim'"),
        ({"blocks": -1}, "'blocks'"),
        ({"blocks": True}, "'blocks'"),
        ({"commitment_weight": float("nan")}, "'commitment_weight'"),
        ({"estimator": GumbelSoftmax()}, "'estimator'"),
    ],
)
def test_bad_arguments_get_a_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ImplicitResidual(**{"quantizers": levels(2), **arguments})
