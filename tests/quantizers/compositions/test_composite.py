"""What all compositions share, and the product of groups of features. The laws are in test_laws.py."""

import math

import pytest
import torch

from gmvq.quantizers import (
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Hierarchical,
    ImplicitResidual,
    LookupFreeQuantizer,
    NoPosteriorError,
    Product,
    Projected,
    Residual,
    StochasticQuantizer,
    VectorQuantizer,
)


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def started(quantizer, steps=2):
    torch.manual_seed(0)
    for step in range(steps):
        quantizer(rows(100, quantizer.dim, seed=step))
    return quantizer


def separate():
    return Product([VectorQuantizer(4, 16, commitment_weight=1.0), VectorQuantizer(2, 8, commitment_weight=1.0)])


def test_a_product_is_its_members_side_by_side():
    quantizer, latents = started(separate()).eval(), rows(30, 6, seed=5)
    values, codes, loss, terms = quantizer(latents)
    groups = latents.split([4, 2], dim=-1)
    for place, (member, group) in enumerate(zip(quantizer.places, groups, strict=True)):
        out = member(group)
        assert torch.equal(codes[:, place], out.codes)
        assert torch.equal(values.split([4, 2], dim=-1)[place], out.values)
        assert torch.equal(terms[f"{place}.commitment"], out.terms["commitment"])
    # means over groups of 4 and of 2 features make the mean over all 6
    torch.testing.assert_close(loss, (latents - values).square().mean())
    assert quantizer.codebook_sizes == (16, 8)
    assert (quantizer.codebook_size, quantizer.heads, quantizer.code_shape) == (16, 2, (2,))


def test_a_shared_product_quantizes_all_groups_as_one_batch():
    torch.manual_seed(0)
    member = VectorQuantizer(3, 16, decay=0.5, commitment_weight=1.0)
    quantizer, latents = Product(member, heads=2), rows(40, 6)
    mask = torch.arange(40) % 4 != 0
    values, codes, loss, _ = quantizer(latents, mask)
    # each group of each row that counts, once
    assert member.moving.pending_counts.sum() == 30 * 2
    alone = VectorQuantizer(3, 16, decay=0.5, commitment_weight=1.0)
    expected = alone(latents[mask].reshape(-1, 3))
    assert torch.equal(codes[mask].flatten(), expected.codes)
    torch.testing.assert_close(alone.moving.pending_sums, member.moving.pending_sums)
    torch.testing.assert_close(loss, (latents - values)[mask].square().mean())
    assert list(quantizer.members) == [member]
    assert len([name for name in quantizer.state_dict() if name.endswith("moving.codes")]) == 1


def test_the_gradient_of_a_product_is_that_of_each_group():
    quantizer = started(separate()).eval()
    latents = rows(9, 6, dtype=torch.float64).requires_grad_()
    out = quantizer.double()(latents)
    weights = rows(9, 6, seed=3, dtype=torch.float64)
    ((out.values * weights).sum() + out.loss).backward()
    expected = weights + 2 * (latents - out.values).detach() / latents.numel()
    torch.testing.assert_close(latents.grad, expected)


def test_posteriors_of_independent_groups_multiply():
    mixtures = [GaussianMixtureQuantizer(3, 16), GaussianMixtureQuantizer(3, 4)]
    quantizer, latents = started(Product(mixtures)).eval(), rows(2, 5, 6)
    responsibilities, entropy, log_density = quantizer.posterior(latents)
    parts = [member.posterior(group) for member, group in zip(mixtures, latents.split(3, -1), strict=True)]
    assert responsibilities.shape == (2, 5, 2, 16)
    assert (responsibilities[..., 1, 4:] == 0).all()
    assert torch.equal(responsibilities.argmax(-1), quantizer.encode(latents))
    torch.testing.assert_close(entropy, parts[0].entropy + parts[1].entropy)
    torch.testing.assert_close(log_density, parts[0].log_density + parts[1].log_density)
    torch.testing.assert_close(
        quantizer.divergence(latents),
        mixtures[0].divergence(latents[..., :3]) + mixtures[1].divergence(latents[..., 3:]),
    )
    draw = quantizer.sample_posterior(latents, torch.Generator().manual_seed(0))
    assert draw.values.shape == latents.shape
    assert draw.log_prior.shape == draw.log_posterior.shape == (2, 5)
    shared = started(Product(GaussianMixtureQuantizer(3, 16), heads=2)).eval()
    member = shared.members[0]
    torch.testing.assert_close(
        shared.posterior(latents).log_density, member.posterior(latents.unflatten(-1, (2, 3))).log_density.sum(-1)
    )
    torch.testing.assert_close(shared.divergence(latents), member.divergence(latents.unflatten(-1, (2, 3))).sum(-1))


def test_a_posterior_of_no_latents_and_under_autocast():
    for make in (
        lambda: Product([GaussianMixtureQuantizer(3, 16), GaussianMixtureQuantizer(3, 4)]),
        lambda: Product(GaussianMixtureQuantizer(3, 16), heads=2),
        lambda: Projected(Product(GaussianMixtureQuantizer(2, 16), heads=2), 6),
        lambda: Projected(GaussianMixtureQuantizer(6, 16), 6, tied=False),
    ):
        quantizer, latents = started(make()).eval(), rows(2, 5, 6)
        expected = quantizer.posterior(latents)
        assert expected.responsibilities.shape == (2, 5, *quantizer.code_shape, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = quantizer.posterior(latents)
        for one, other in zip(given, expected, strict=True):
            assert torch.equal(one, other)
        for shape in ((0,), (2, 0), ()):
            one = quantizer.posterior(rows(*shape, 6))
            assert one.responsibilities.shape == (*shape, *quantizer.code_shape, 16)
            assert one.entropy.shape == one.log_density.shape == shape


@pytest.mark.parametrize(
    "make",
    [
        lambda: Residual([VectorQuantizer(6, 16, codebook_dim=3) for _ in range(3)]),
        lambda: Product([Projected(VectorQuantizer(2, 16), 3, tied=False) for _ in range(2)]),
        lambda: Projected(Residual(VectorQuantizer(3, 16), 2), 6),
        lambda: ImplicitResidual([VectorQuantizer(6, 16) for _ in range(3)], hidden_dim=16),
    ],
)
def test_values_are_decoded_codes_under_autocast(make):
    quantizer, latents = started(make()).eval(), rows(50, 6)
    expected = quantizer(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, codes, _, _ = quantizer(latents)
        assert torch.equal(values, quantizer.decode(codes))
    assert torch.equal(values, expected.values)


def test_a_composite_without_a_posterior_says_whom_to_ask():
    for quantizer in (
        Product([GaussianMixtureQuantizer(3, 4), VectorQuantizer(3, 4)]),
        Residual(GaussianMixtureQuantizer(6, 4), 2),
        Product(Projected(VectorQuantizer(3, 4), 6), heads=1),
    ):
        assert not quantizer.has_posterior
        with pytest.raises(NoPosteriorError, match="members"):
            quantizer.posterior(rows(2, 6))


def test_there_is_no_one_codebook():
    for name in ("codebook", "code_vectors"):
        with pytest.raises(TypeError, match="a codebook for each member"):
            getattr(separate(), name)
    with pytest.raises(AttributeError):
        separate().no_such_name  # noqa: B018


def test_deterministic_composites_have_a_uniform_prior():
    quantizer = started(Residual([VectorQuantizer(6, 16), VectorQuantizer(6, 4)])).eval()
    latents = rows(5, 6)
    torch.testing.assert_close(quantizer.divergence(latents), torch.full((5,), math.log(64)))
    draw = quantizer.sample_posterior(latents)
    assert torch.equal(draw.values, quantizer(latents).values)
    torch.testing.assert_close(draw.log_posterior - draw.log_prior, quantizer.divergence(latents))
    assert torch.equal(quantizer.posterior_mean(latents), draw.values)


@pytest.mark.parametrize("make", [separate, lambda: Product(VectorQuantizer(3, 8), heads=2)])
def test_a_code_of_minus_one_adds_nothing(make):
    quantizer = started(make()).eval()
    codes = torch.tensor([[1, 2], [-1, 2], [1, -1], [-1, -1]])
    values = quantizer.decode(codes)
    cut = quantizer.places[0].dim
    torch.testing.assert_close(values[1, cut:], values[0, cut:])
    torch.testing.assert_close(values[2, :cut], values[0, :cut])
    assert (values[1, :cut] == 0).all()
    assert (values[2, cut:] == 0).all()
    assert (values[3] == 0).all()


def test_decode_checks_each_place_and_the_shape():
    quantizer = separate()
    assert quantizer.decode(torch.tensor([15, 7])).shape == (6,)
    with pytest.raises(ValueError, match=r"must lie in \[0, 8\)"):
        quantizer.decode(torch.tensor([[15, 8]]))
    with pytest.raises(ValueError, match=r"must have \(2,\) codes for each latent"):
        quantizer.decode(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes for each latent"):
        quantizer.decode(torch.tensor(3))
    nested = Residual([Product(VectorQuantizer(3, 8), heads=2) for _ in range(3)])
    assert nested.decode(torch.zeros(5, 2, 2, dtype=torch.int64)).shape == (5, 6)
    with pytest.raises(ValueError, match=r"must have \(3, 2\) codes"):
        nested.decode(torch.zeros(5, 3, 1, dtype=torch.int64))
    coarse = Product([Residual(VectorQuantizer(3, 8), 4) for _ in range(2)])
    assert coarse.decode(torch.zeros(5, 2, 3, dtype=torch.int64)).shape == (5, 6)
    assert coarse.decode(torch.zeros(0, 2, 4, dtype=torch.int64)).shape == (0, 6)


def test_members_that_do_not_fit_get_a_reason():
    member = VectorQuantizer(4, 8)
    for make, reason in (
        (lambda: Product([]), "must be a quantizer or a list of at least one, got a list of nothing"),
        (lambda: Product("ab"), "must be a quantizer or a list of at least one, got 'ab'"),
        (lambda: Product([VectorQuantizer]), "got a list of the class VectorQuantizer"),
        (lambda: Product(GaussianBottleneck(4), heads=2), "at least one, got GaussianBottleneck"),
        (lambda: Product([member], heads=True), "'heads' must be the length of the list"),
        (lambda: Product([VectorQuantizer(4, 8), StochasticQuantizer(4, 8)]), "losses of one unit"),
        (lambda: Product([torch.nn.Linear(2, 2)]), "must be a quantizer or a list"),
        (lambda: Product(None), "must be a quantizer or a list"),
        (lambda: Product(member), "'heads' must say"),
        (lambda: Product(member, heads=0), "'heads' must be an integer"),
        (lambda: Product([member], heads=2), "'heads' must be the length of the list"),
        (lambda: Product([member, member]), "must be separate instances"),
        (lambda: Residual([Projected(member, 6), Projected(member, 6)]), "must be separate instances"),
        (lambda: Product([member, Residual(VectorQuantizer(4, 8), 2)]), "codes of one shape"),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


def test_a_quantizer_of_maps_has_no_place_inside():
    inner = Hierarchical(VectorQuantizer(4, 8), (1, 1.0))
    for make in (
        lambda: Residual([inner]),
        lambda: Residual(inner, 2),
        lambda: Product(inner, heads=2),
        lambda: Projected(inner, 6),
        lambda: Projected(inner, 6, tied=False),
        lambda: ImplicitResidual([inner]),
        lambda: Hierarchical(inner, (1, 1.0)),
    ):
        with pytest.raises(ValueError, match="must quantize each latent by itself, got a Hierarchical"):
            make()
    assert inner.updates_itself


def test_members_are_updated_once_by_the_composite():
    inner = Residual([VectorQuantizer(3, 8, decay=0.5) for _ in range(2)])
    quantizer = Product([inner, Residual(VectorQuantizer(3, 8, decay=0.5), 2)])
    leaves = [*inner.members, quantizer.members[1].members[0]]
    assert quantizer.updates_itself
    assert not any(member.updates_itself for member in [*leaves, *quantizer.members])
    quantizer(rows(100, 6))
    quantizer(rows(100, 6, seed=1))
    before = [member.codebook.clone() for member in leaves]
    assert all(member.moving.pending_counts.sum() > 0 for member in leaves)
    assert leaves[-1].moving.pending_counts.sum() == 200
    inner.members[0].freeze()
    calls = []
    for member in leaves:
        member.update = lambda member=member, update=member.update: (calls.append(member), update())
    quantizer.update()
    assert calls == leaves[1:]  # each once, but the frozen one
    changed = [not torch.equal(member.codebook, old) for member, old in zip(leaves, before, strict=True)]
    assert changed == [False, True, True]


def test_members_of_a_refused_composite_update_themselves():
    for members in (
        [VectorQuantizer(3, 8), Residual(VectorQuantizer(3, 8), 2)],
        [VectorQuantizer(3, 8), StochasticQuantizer(3, 8)],
        [VectorQuantizer(3, 8), Hierarchical(VectorQuantizer(3, 8), (1, 1.0))],
    ):
        with pytest.raises(ValueError, match="'quantizers' must"):
            Product(members)
        assert all(member.updates_itself for member in members)


def test_progress_and_freezing_reach_all_members():
    quantizer = Product([Residual(VectorQuantizer(3, 8, decay=None), 2), Residual(VectorQuantizer(3, 8), 2)])
    quantizer.set_progress(0.25)
    assert all(member.progress == 0.25 for member in quantizer.members)
    assert quantizer.members[0].members[0].progress == 0.25
    quantizer.freeze()
    assert quantizer.members[0].members[0].frozen
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    assert not quantizer.unfreeze().members[1].members[0].frozen


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_masks_with_a_codebook_dim_and_heads(heads):
    """vector-quantize-pytorch fails on each of these: its issues 62 and 149."""
    quantizer = started(Product(VectorQuantizer(8 // heads, 16, codebook_dim=2), heads=heads)).eval()
    latents, lengths = rows(3, 7, 8), torch.tensor([7, 3, 0])
    mask = torch.arange(7) < lengths[:, None]
    out = quantizer(latents, mask)
    assert (out.codes[~mask] == -1).all()
    assert (out.values[~mask] == 0).all()
    assert torch.equal(out.codes[mask], quantizer(latents[mask]).codes)
    assert torch.equal(quantizer(latents, lengths=lengths).codes, out.codes)
    assert torch.equal(quantizer.encode(latents, lengths=lengths), out.codes)
    torch.testing.assert_close(out.loss, quantizer(latents[mask]).loss)


def test_members_of_any_kind_nest():
    quantizer = started(Product([Projected(LookupFreeQuantizer(4, 16), 6), GaussianMixtureQuantizer(2, 8)]))
    out = quantizer(rows(4, 5, 8))
    assert out.codes.shape == (4, 5, 2)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    deep = started(Residual([Product([separate(), separate()]) for _ in range(2)]))
    assert deep.code_shape == (2, 2, 2)
    assert deep.codebook_sizes == (16, 8, 16, 8) * 2
    out = deep(rows(3, 12))
    assert out.codes.shape == (3, 2, 2, 2)
    assert torch.equal(out.values, deep.decode(out.codes))
    assert "1.0.1.commitment" in out.terms


def test_a_vector_and_an_empty_batch():
    quantizer = started(separate()).eval()
    assert quantizer(rows(6)).codes.shape == (2,)
    assert quantizer(rows(0, 6)).codes.shape == (0, 2)
    assert quantizer.encode(rows(0, 6)).shape == (0, 2)
    shared = started(Product(VectorQuantizer(3, 8), heads=2)).eval()
    assert shared(rows(2, 0, 6)).codes.shape == (2, 0, 2)
    assert shared.decode(shared.encode(rows(6))).shape == (6,)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_group_that_is_not_finite_marks_the_whole_row(bad):
    quantizer, latents = started(separate()), rows(5, 6)
    latents[2, 5] = bad
    out = quantizer(latents)
    assert (out.codes[2] == -1).all()
    assert out.values[2].isnan().all()
    assert out.loss.isfinite()
