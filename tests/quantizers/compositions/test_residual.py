"""Residual quantization: closed cases, the gradient, dropout of levels, beam search. The laws are in test_laws.py."""

import copy
import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from gmvq.quantizers import (
    FiniteScalarQuantizer,
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    OptimalTransportQuantizer,
    Product,
    Projected,
    Residual,
    Rotation,
    StochasticQuantizer,
    VectorQuantizer,
)
from gmvq.quantizers.compositions.residual import _beam_search


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_codes(*codebooks, **options):
    """A residual quantizer whose levels have these codes."""
    members = []
    for codes in codebooks:
        codes = torch.tensor(codes)
        member = VectorQuantizer(codes.shape[1], len(codes), kmeans_start=False, decay=0.5)
        member.moving.place(codes, torch.ones(len(codes)))
        members.append(member)
    return Residual(members, **options)


def separate(levels=3, **options):
    return Residual([VectorQuantizer(6, 16, decay=0.9) for _ in range(levels)], **options)


def trained(quantizer, steps=3):
    torch.manual_seed(0)
    for step in range(steps):
        quantizer(rows(200, quantizer.dim, seed=step))
    return quantizer


def test_each_level_quantizes_what_is_left():
    quantizer = with_codes([[0.0], [10.0]], [[-1.0], [1.0]], [[-0.25], [0.25]]).eval()
    latents = torch.tensor([[10.9], [-1.1], [4.0]])
    out = quantizer(latents)
    assert out.codes.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert out.values.tolist() == [[10.75], [-1.25], [1.25]]
    assert torch.equal(quantizer.encode(latents), out.codes)


@pytest.mark.parametrize(("nested", "beam_size"), [(False, 1), (True, 1), (False, 4)])
def test_float64_latents_leave_what_float64_has(nested, beam_size):
    torch.manual_seed(0)
    levels = [VectorQuantizer(6, 32, codebook_dim=2) for _ in range(3)]
    members = [Product([level, VectorQuantizer(2, 4)]) for level in levels] if nested else levels
    quantizer = Residual(members, beam_size=beam_size)
    latents = rows(300, quantizer.dim, dtype=torch.float64) + 1e5  # float32 has steps of 0.008 there
    quantizer(latents)
    out, expected = quantizer.eval()(latents), copy.deepcopy(quantizer).double()
    assert torch.equal(out.codes, expected.encode(latents))
    assert torch.equal(quantizer.encode(latents), out.codes)
    torch.testing.assert_close(out.values, expected.decode(out.codes), rtol=0, atol=1e-9)
    assert torch.equal(quantizer.posterior_mean(latents), out.values)
    assert quantizer.decode(out.codes).dtype == torch.float32
    if beam_size == 1:
        left, codes = latents, []
        for member in expected.places:
            codes.append(member.encode(left))
            left = left - member.decode(codes[-1])
        assert torch.equal(out.codes, torch.stack(codes, 1))


def test_loss_and_its_gradient_by_hand():
    quantizer = with_codes([[0.0], [10.0]], [[-1.0], [1.0]], commitment_weight=0.5).double().eval()
    latents = torch.tensor([[10.75], [-1.5]], dtype=torch.float64, requires_grad=True)
    out = quantizer(latents)
    first, second = torch.tensor([[0.75], [-1.5]]), torch.tensor([[-0.25], [-0.5]])  # what the levels leave
    members = 0.25 * (first.square().mean() + second.square().mean())
    torch.testing.assert_close(out.loss, (members + 0.5 * second.square().mean()).double())
    torch.testing.assert_close(out.terms["commitment"], second.square().mean().double())
    out.loss.backward()
    # of the members' commitments that of the first reaches the latents, and of the others that of the composite
    torch.testing.assert_close(latents.grad, (0.25 * first + 0.5 * second).double())


MEMBERS = {
    "gradient": lambda: VectorQuantizer(6, 16, decay=None),
    "average": lambda: VectorQuantizer(6, 16, decay=0.9, revive_below=1.0),
    "rotation": lambda: VectorQuantizer(6, 16, estimator=Rotation(), codebook_dim=3),
    "mixture": lambda: GaussianMixtureQuantizer(6, 16, noise=0.3),
    "product": lambda: Product(VectorQuantizer(3, 16), heads=2),
}


OPTIONS = ({}, {"quantizer_dropout": True}, {"beam_size": 4})


@pytest.mark.parametrize(
    ("name", "options"),
    # beam search needs a vector for each code, and a product has none
    [(name, options) for name in MEMBERS for options in OPTIONS if (name, *options) != ("product", "beam_size")],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_one_level_is_its_member(name, training, options):
    torch.manual_seed(0)
    member = MEMBERS[name]()
    quantizer = Residual([copy.deepcopy(member)], **options)
    for step in range(3):
        outs = []
        for quantized in (member, quantizer):
            quantized.train(training or step < 2)
            torch.manual_seed(step)
            if "quantizer_dropout" in options and quantized is member and quantized.training:
                torch.rand(2)  # the draw of the number of levels
            latents = rows(4, 20, 6, seed=step).requires_grad_()
            out = quantized(latents)
            quantized.zero_grad()
            (out.loss + out.values.square().mean()).backward()
            outs.append((out, latents.grad, [p.grad for p in quantized.parameters()]))
        (first, gradient, gradients), (second, given, others) = outs
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.codes, second.codes[:, :, 0])
        searched = "beam_size" in options and not quantizer.training
        if not searched or name in ("average", "mixture"):  # whose loss is their commitment, or needs no choice
            assert torch.equal(first.loss, second.loss)
        if not searched:
            assert torch.equal(gradient, given)
            for one, other in zip(gradients, others, strict=True):
                assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_the_gradient_counts_once(levels):
    """Straight-through levels of detached residuals would give ``levels`` times the identity."""
    for quantizer in (separate(levels), Residual(VectorQuantizer(6, 16), levels)):
        trained(quantizer)
        latents = rows(50, 6).requires_grad_()
        (quantizer(latents).values * rows(50, 6, seed=9)).sum().backward()
        torch.testing.assert_close(latents.grad, rows(50, 6, seed=9))


def test_the_derivative_of_the_sum_composes_the_estimators():
    quantizer = trained(Residual([VectorQuantizer(4, 8, estimator=Rotation()) for _ in range(3)])).double().eval()
    latents = rows(4, dtype=torch.float64)
    given = torch.autograd.functional.jacobian(lambda x: quantizer(x).values, latents)
    kept, residual = torch.eye(4, dtype=torch.float64), latents
    for member in quantizer.members:
        step = torch.autograd.functional.jacobian(lambda x, member=member: member(x).values, residual)
        kept = (torch.eye(4, dtype=torch.float64) - step) @ kept
        residual = residual - member(residual).values
    torch.testing.assert_close(given, torch.eye(4, dtype=torch.float64) - kept)


def test_a_shared_codebook_starts_from_the_first_level_and_stands_still_within_a_forward():
    torch.manual_seed(0)
    alone, member = VectorQuantizer(6, 16, decay=0.5), VectorQuantizer(6, 16, decay=0.5)
    quantizer, latents = Residual(member, 3), rows(200, 6)
    alone(latents)
    out = quantizer(latents)
    assert torch.equal(member.codebook, alone.codebook)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    assert member.moving.pending_counts.sum() == 3 * 200
    residuals = torch.cat([latents - quantizer.decode(out.codes[:, :n]) for n in (1, 2)])
    sums = torch.zeros(16, 6).index_add(0, out.codes.T.flatten(), torch.cat([latents, residuals]))
    torch.testing.assert_close(member.moving.pending_sums, sums)
    assert len([name for name in quantizer.state_dict() if name.endswith("moving.codes")]) == 1
    before = member.codebook.clone()
    quantizer(latents)
    assert not torch.equal(member.codebook, before)


def test_levels_may_differ_in_size_and_stand_alone():
    quantizer = trained(Residual([VectorQuantizer(6, size) for size in (16, 4, 2)])).eval()
    assert (quantizer.codebook_sizes, quantizer.codebook_size, quantizer.num_quantizers) == ((16, 4, 2), 16, 3)
    latents, total = rows(3, 20, 6), 0
    codes = quantizer.encode(latents)
    errors = []
    for levels in (1, 2, 3):
        total = total + quantizer.members[levels - 1].decode(codes[..., levels - 1])
        assert torch.equal(quantizer.decode(codes[..., :levels]), total)
        errors.append((latents - total).square().mean())
    assert errors[0] > errors[1] > errors[2]
    for levels in (0, 4):
        with pytest.raises(ValueError, match="codes for each latent"):
            quantizer.decode(torch.zeros(5, levels, dtype=torch.int64))


def numbers_of_levels(quantizer, forwards):
    out = [quantizer(rows(4, quantizer.dim)).codes for _ in range(forwards)]
    assert all(torch.equal(codes.min(0).values >= 0, codes.max(0).values >= 0) for codes in out)
    kept = torch.stack([codes[0] >= 0 for codes in out])
    assert torch.equal(kept, kept.int().cummin(1).values.bool())  # the first levels, without a gap
    return kept.sum(1).bincount(minlength=quantizer.num_quantizers + 1).tolist()


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"quantizer_dropout": True}, [0, 0.25, 0.25, 0.25, 0.25]),
        ({"quantizer_dropout": True, "dropout_cutoff": 3}, [0, 0, 0, 0.5, 0.5]),
        ({"quantizer_dropout": True, "dropout_multiple_of": 2}, [0, 0, 0.5, 0, 0.5]),
        ({"quantizer_dropout": True, "dropout_multiple_of": 3}, [0, 0, 0, 0.75, 0.25]),
        ({"quantizer_dropout": 0.5}, [0, 0.125, 0.125, 0.125, 0.625]),
        ({"quantizer_dropout": 0.0}, [0, 0, 0, 0, 1.0]),
    ],
)
def test_dropout_leaves_a_random_number_of_levels(options, shares):
    quantizer = Residual(VectorQuantizer(2, 4, kmeans_start=False, decay=None), 4, **options)
    quantizer(rows(4, 2))
    torch.manual_seed(0)
    numbers = torch.tensor(numbers_of_levels(quantizer, 400)) / 400
    torch.testing.assert_close(numbers, torch.tensor(shares), rtol=0, atol=0.1)  # 4 standard deviations
    assert (numbers[torch.tensor(shares) == 0] == 0).all()
    assert numbers_of_levels(quantizer.eval(), 20)[-1] == 20


def test_the_first_batch_drops_no_level():
    for seed in range(5):
        torch.manual_seed(seed)
        quantizer = separate(4, quantizer_dropout=True)
        assert (quantizer(rows(100, 6), torch.zeros(100, dtype=torch.bool)).codes == -1).all()  # no row: not yet
        assert (quantizer(rows(100, 6)).codes >= 0).all()
        assert all(member.moving.has_started for member in quantizer.members)
    drawn = [(quantizer(rows(100, 6)).codes >= 0).sum().item() for _ in range(20)]
    assert min(drawn) < 400


def test_dropped_levels_have_no_part_in_anything():
    quantizer = trained(separate(4, quantizer_dropout=True))
    quantizer.update()
    latents, mask = rows(100, 6, seed=8), torch.arange(100) % 3 != 0
    seen = set()
    for seed in range(20):
        dropping = copy.deepcopy(quantizer)
        torch.manual_seed(seed)
        given = latents.clone().requires_grad_()
        out = dropping(given, mask)
        number = int((out.codes[1] >= 0).sum())
        seen.add(number)
        short = Residual([copy.deepcopy(member) for member in quantizer.members[:number]])
        same = latents.clone().requires_grad_()
        expected = short(same, mask)
        assert torch.equal(out.codes[:, :number], expected.codes)
        assert (out.codes[:, number:] == -1).all()
        assert torch.equal(out.values, expected.values)
        assert torch.equal(out.values, dropping.decode(out.codes))
        torch.testing.assert_close(out.loss, expected.loss)
        (out.values.square().mean() + out.loss).backward()
        (expected.values.square().mean() + expected.loss).backward()
        torch.testing.assert_close(given.grad, same.grad)
        assert [int(member.moving.pending_counts.sum()) for member in dropping.members] == [66] * number + [0] * (
            4 - number
        )
    assert seen == {1, 2, 3, 4}


def test_dropout_is_the_same_after_save_and_load():
    quantizer = trained(separate(4, quantizer_dropout=True))
    other = separate(4, quantizer_dropout=True)
    other.load_state_dict(quantizer.state_dict())
    for seed in range(4):
        codes = []
        for residual in (quantizer, other):
            torch.manual_seed(seed)
            codes.append(residual(rows(50, 6)).codes)
        assert torch.equal(*codes)


def test_beam_search_finds_the_best_sum_if_it_is_wide_enough():
    quantizer = trained(Residual([VectorQuantizer(3, 5) for _ in range(3)], beam_size=25)).eval()
    latents = rows(40, 3, seed=7)
    sums = torch.stack([quantizer.decode(torch.tensor(codes)) for codes in itertools.product(range(5), repeat=3)])
    best = torch.cdist(latents, sums).min(-1).values
    found = (latents - quantizer.decode(quantizer.encode(latents))).norm(dim=-1)
    torch.testing.assert_close(found, best)


@pytest.mark.parametrize("beam_size", [2, 3, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_beam_search_is_never_worse_than_the_members_choice(beam_size, shared):
    torch.manual_seed(0)
    make = lambda: VectorQuantizer(4, 8, decay=0.5)  # noqa: E731
    quantizer = trained(Residual(make(), 5) if shared else Residual([make() for _ in range(5)])).eval()
    latents = rows(2000, 4, seed=7)
    greedy = quantizer.encode(latents)
    quantizer.beam_size = beam_size
    codes = quantizer.encode(latents)
    error, before = ((latents - quantizer.decode(chosen)).square().sum(-1) for chosen in (codes, greedy))
    assert (error <= before).all()
    assert error.mean() < 0.98 * before.mean()
    # without the members' own choice in the race it would be, for some
    plain = _beam_search(latents, [member.codebook for member in quantizer.places], beam_size)
    alone = (latents - quantizer.decode(plain)).square().sum(-1)
    assert beam_size > 2 or (alone > before + 1e-6).any()
    # batches do not matter; of one codebook for all levels, codes in another order are the same sum, and may win a tie
    single = torch.stack([quantizer.encode(row) for row in latents[:20]])
    torch.testing.assert_close(quantizer.decode(single), quantizer.decode(codes[:20]))
    assert shared or torch.equal(single, codes[:20])


def test_beam_search_is_for_evaluation():
    quantizer = trained(separate(3, beam_size=4, commitment_weight=0.5))
    latents = rows(50, 6)
    greedy = Residual([copy.deepcopy(member) for member in quantizer.members])
    assert torch.equal(quantizer(latents).codes, greedy(latents).codes)
    quantizer.eval()
    given = latents.clone().requires_grad_()
    mask = torch.arange(50) < 30
    out = quantizer(given, mask)
    assert torch.equal(out.codes, quantizer.encode(latents, mask))
    assert torch.equal(out.values, quantizer.decode(out.codes))
    errors = [(latents - quantizer.decode(out.codes[:, :n]))[:30].square().mean() for n in (1, 2, 3)]
    torch.testing.assert_close(out.loss, 0.25 * sum(errors) + 0.5 * sum(errors[1:]))
    torch.testing.assert_close(out.terms["commitment"], sum(errors[1:]))
    out.values.sum().backward()
    torch.testing.assert_close(given.grad, mask[:, None].expand(50, 6).float())
    assert quantizer.encode(rows(0, 6)).shape == (0, 3)


def test_the_loss_of_beam_search_is_the_loss_where_it_finds_the_members_choice():
    quantizer = trained(Residual([VectorQuantizer(6, 16, commitment_weight=beta) for beta in (0.1, 0.2, 0.4)])).eval()
    latents = rows(300, 6)
    chosen = quantizer.encode(latents)
    quantizer.beam_size = 2
    latents = latents[(quantizer.encode(latents) == chosen).all(-1)]
    assert len(latents) > 100
    losses, gradients = [], []
    for quantizer.beam_size in (1, 2):
        given = latents.clone().requires_grad_()
        losses.append(quantizer(given).loss)
        gradients.append(torch.autograd.grad(losses[-1], given)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_the_loss_of_beam_search_has_nats_of_members_whose_loss_needs_no_choice():
    torch.manual_seed(0)
    members = [StochasticQuantizer(6, 16) for _ in range(2)]
    quantizer, latents = Residual(members, beam_size=4).eval(), rows(50, 6)
    out = quantizer(latents)
    left = latents - members[0].decode(out.codes[:, 0])
    torch.testing.assert_close(out.loss, members[0](latents).loss + members[1](left).loss)
    assert out.loss > 0


def commitment_of(member):
    """What the composite adds in its second level, as a share of the squared error that this leaves."""
    torch.manual_seed(0)
    quantizer, latents = Residual(member, 2), rows(100, 6)
    trained(quantizer)
    torch.manual_seed(9)
    first = quantizer.eval()(latents)
    left = latents - member.decode(first.codes[:, 0])
    losses = member(latents).loss + member(left).loss
    return ((first.loss - losses) / first.terms["commitment"]).item()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: VectorQuantizer(6, 16, commitment_weight=0.7), 0.7),
        (lambda: VectorQuantizer(6, 16, commitment_weight=0.0), 0.0),
        (lambda: OptimalTransportQuantizer(6, 16), 1.0),
        (lambda: FiniteScalarQuantizer((4, 4), dim=6), 0.0),
        (lambda: StochasticQuantizer(6, 16), 0.0),
        (lambda: Projected(VectorQuantizer(3, 16, commitment_weight=0.7), 6), 0.7),
        (lambda: Product([VectorQuantizer(4, 16, commitment_weight=0.3), VectorQuantizer(2, 8)]), (4 * 0.3 + 0.5) / 6),
        (lambda: Residual(VectorQuantizer(6, 16), 2, commitment_weight=0.5), 0.5),
        (lambda: Residual(VectorQuantizer(6, 16, commitment_weight=0.6), 2), 0.6),
    ],
)
def test_the_commitment_is_the_members_own(make, expected):
    assert commitment_of(make()) == pytest.approx(expected, abs=1e-4)


def test_each_level_has_its_own_commitment():
    quantizer = trained(Residual([VectorQuantizer(6, 16, commitment_weight=beta) for beta in (0.5, 0.1, 0.2)])).eval()
    latents = rows(50, 6)
    out = quantizer(latents)
    first, second, third = ((latents - quantizer.decode(out.codes[:, :n])).square().mean() for n in (1, 2, 3))
    torch.testing.assert_close(out.loss, 0.5 * first + 2 * 0.1 * second + 2 * 0.2 * third)
    torch.testing.assert_close(out.terms["commitment"], second + third)


def test_no_squared_error_is_added_to_nats():
    members = [StochasticQuantizer(6, 16) for _ in range(2)]
    with pytest.raises(ValueError, match="whose loss is in nats"):
        Residual(members, commitment_weight=0.25)
    assert Residual(members, commitment_weight=0.0).loss_in_nats


@pytest.mark.parametrize(
    "options",
    [
        {"quantizer_dropout": 2},
        {"dropout_cutoff": 9},
        {"dropout_multiple_of": 0},
        {"beam_size": 0},
        {"commitment_weight": -1.0},
    ],
)
def test_a_refused_composite_leaves_its_members_learning(options):
    members = [VectorQuantizer(6, 16) for _ in range(2)]
    with pytest.raises(ValueError, match=next(iter(options))):
        Residual(members, **options)
    assert all(member.updates_itself for member in members)
    for seed in range(2):
        members[0](rows(50, 6, seed=seed))
    before = members[0].codebook.clone()
    members[0](rows(50, 6))
    assert not torch.equal(members[0].codebook, before)


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_quantizer_drops_no_level(training):
    quantizer = trained(separate(4, quantizer_dropout=1.0)).freeze().train(training)
    for seed in range(10):
        assert (quantizer(rows(20, 6, seed=seed)).codes >= 0).all()
    dropped = [(quantizer.unfreeze().train()(rows(20, 6)).codes < 0).any() for _ in range(10)]
    assert any(dropped)


def test_levels_freeze():
    quantizer = trained(Residual([VectorQuantizer(6, 16, decay=None) for _ in range(3)]))
    assert quantizer.freeze_levels(0, 1) is quantizer
    latents = rows(100, 6).requires_grad_()
    quantizer(latents).loss.backward()
    assert [member.learned.grad is None for member in quantizer.members] == [True, True, False]
    average = trained(separate(3))
    average.update()
    average.freeze_levels(1)
    before = [member.codebook.clone() for member in average.members]
    average(rows(100, 6))
    average.update()
    moved = [not torch.equal(member.codebook, old) for member, old in zip(average.members, before, strict=True)]
    assert moved == [True, False, True]
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="'levels' must lie"):
            average.freeze_levels(wrong)
    with pytest.raises(ValueError, match="share a codebook"):
        Residual(VectorQuantizer(6, 16), 2).freeze_levels(0)


def test_bad_arguments_get_a_reason():
    for options, reason in (
        ({"quantizer_dropout": 1.5}, "'quantizer_dropout' must lie"),
        ({"dropout_cutoff": 0}, "'dropout_cutoff' must be an integer"),
        ({"dropout_cutoff": 4}, "'dropout_cutoff' must be at most"),
        ({"dropout_multiple_of": 0}, "'dropout_multiple_of' must be"),
        ({"beam_size": 0}, "'beam_size' must be"),
        ({"commitment_weight": -1.0}, "'commitment_weight' must be"),
        ({"num_quantizers": 2}, "'num_quantizers' must be the length"),
    ):
        with pytest.raises(ValueError, match=reason):
            separate(3, **options)
    with pytest.raises(ValueError, match="must all have one 'dim'"):
        Residual([VectorQuantizer(6, 16), VectorQuantizer(4, 16)])
    with pytest.raises(ValueError, match="'beam_size' above 1 needs"):
        Residual([Product(VectorQuantizer(3, 16), heads=2) for _ in range(2)], beam_size=2)
    with pytest.raises(ValueError, match="'num_quantizers' must say"):
        Residual(VectorQuantizer(6, 16))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_checkpointing_repeats_dropout_and_noise_that_come_after_statistics(reentrant, dropout):
    """Revival draws random numbers in the first forward alone; the next level's noise must not shift by them."""
    torch.manual_seed(0)
    noisy = lambda: VectorQuantizer(  # noqa: E731
        6, 16, decay=0.9, revive_below=1.0, estimator=GumbelSoftmax(1.0, hard=True)
    )
    plain = Residual([noisy() for _ in range(3)], quantizer_dropout=dropout)
    again = copy.deepcopy(plain)
    layer = torch.nn.Linear(6, 6)
    for step in range(4):  # from the first on, whose levels start
        gradients = []
        for quantizer in (plain, again):

            def run(latents, quantizer=quantizer):
                out = quantizer(layer(latents))
                return out.values, out.loss

            torch.manual_seed(step)
            layer.zero_grad()
            latents = rows(60, 6, seed=step).requires_grad_()
            values, loss = run(latents) if quantizer is plain else checkpoint(run, latents, use_reentrant=reentrant)
            (values.square().mean() + loss).backward()
            gradients.append(layer.weight.grad.clone())
        assert torch.equal(*gradients)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("beam_size", [1, 3])
def test_images_of_codes(beam_size):
    quantizer = trained(separate(2, beam_size=beam_size)).eval()
    out = quantizer(rows(2, 5, 7, 6))
    assert out.codes.shape == (2, 5, 7, 2)
    assert torch.equal(quantizer.decode(out.codes), out.values)


def test_dropout_compiles_without_a_graph_break_from_the_first_batch():
    torch._dynamo.reset()
    torch.manual_seed(0)
    quantizer = separate(3, quantizer_dropout=True)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    numbers = {int((compiled(rows(64, 6, seed=seed).requires_grad_()).codes[0] >= 0).sum()) for seed in range(12)}
    assert numbers == {1, 2, 3}


@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize("make", [VectorQuantizer, GaussianMixtureQuantizer])
def test_levels_pull_latents_only_along_the_features_that_they_keep(make, beam_size):
    torch.manual_seed(0)
    quantizer = Residual([make(8, 16, codebook_dim=2) for _ in range(2)], beam_size=beam_size)
    quantizer(rows(200, 8))
    for training in (True, False):
        latents = rows(200, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(quantizer.train(training)(latents).loss, latents)
        kept = torch.linalg.qr(torch.cat([level.projection.directions for level in quantizer.members]).T).Q
        assert (gradient @ kept).norm() > 0
        torch.testing.assert_close(gradient @ kept @ kept.T, gradient, rtol=1e-4, atol=1e-8)
