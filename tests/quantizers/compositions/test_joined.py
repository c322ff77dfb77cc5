"""One code for each latent, where a composite has several. The laws are in test_laws.py."""

import copy

import pytest
import torch

from gmvq.metrics import CodebookStatistics
from gmvq.quantizers import (
    ChannelFirst,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Hierarchical,
    ImplicitResidual,
    Joined,
    NoPosteriorError,
    Product,
    Projected,
    Residual,
    StochasticQuantizer,
    VectorQuantizer,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(quantizer, steps=3):
    torch.manual_seed(0)
    for step in range(steps):
        quantizer(rows(200, quantizer.dim, seed=step))
    return quantizer


INSIDE = {
    "residual": lambda: Residual([VectorQuantizer(6, size, decay=0.9) for size in (5, 3, 2)]),
    "residual-shared": lambda: Residual(VectorQuantizer(6, 4, decay=0.9, revive_below=1.0), 3),
    "residual-of-product": lambda: Residual([Product([VectorQuantizer(3, size) for size in (4, 3)]) for _ in range(2)]),
    "product": lambda: Product([GaussianMixtureQuantizer(2, 3), GaussianMixtureQuantizer(4, 5)]),
    "product-nats": lambda: Product(StochasticQuantizer(3, 4), heads=2),
    "implicit": lambda: ImplicitResidual([VectorQuantizer(6, size, decay=None) for size in (4, 3)]),
    "projected": lambda: Projected(Residual(VectorQuantizer(3, 4), 2), 6),
}
insides = pytest.mark.parametrize("make", INSIDE.values(), ids=INSIDE.keys())


def number(digits, sizes):
    """Horner's rule, in Python's integers."""
    joint = 0
    for digit, size in zip(digits, sizes, strict=True):
        joint = joint * size + digit
    return joint


@insides
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_all_but_the_codes_is_that_of_the_quantizer_inside(make, training):
    inside = trained(make()).train(training)
    joined = Joined(copy.deepcopy(inside)).train(training)
    mask = torch.arange(40) % 3 != 1
    for step in range(3):
        outs, gradients = [], []
        for quantizer in (inside, joined):
            torch.manual_seed(step)
            quantizer.zero_grad()
            latents = rows(40, 6, seed=step).requires_grad_()
            outs.append(quantizer(latents, mask))
            (outs[-1].values.square().mean() + outs[-1].loss).backward()
            gradients.append([latents.grad, *(parameter.grad for parameter in quantizer.parameters())])
        (expected, given), codes = outs, outs[0].codes.flatten(1)
        numbers = [number(digits, inside.codebook_sizes) for digits in codes.tolist()]
        assert given.codes[mask].tolist() == [each for each, kept in zip(numbers, mask, strict=True) if kept]
        assert (given.codes[~mask] == -1).all()
        assert torch.equal(given.values, expected.values)
        assert torch.equal(given.loss, expected.loss)
        assert given.terms == expected.terms
        for first, second in zip(*gradients, strict=True):
            assert (first is None and second is None) or torch.equal(first, second)
    assert joined.loss_in_nats == inside.loss_in_nats
    for name, tensor in inside.state_dict().items():
        assert torch.equal(joined.state_dict()[f"quantizer.{name}"], tensor), name


@insides
def test_codes_split_into_those_of_the_quantizer_inside(make):
    joined = trained(Joined(make())).eval()
    inside = joined.quantizer
    latents = rows(2, 3, 5, 6)
    codes = joined.encode(latents)
    assert codes.shape == (2, 3, 5)
    assert torch.equal(joined.split(codes), inside.encode(latents))
    every = torch.arange(joined.codebook_size)
    split = joined.split(every).reshape(len(every), -1)
    assert torch.equal(split, torch.cartesian_prod(*map(torch.arange, inside.codebook_sizes)))
    assert (joined.split(torch.tensor([[-1]])) == -1).all()
    assert torch.equal(joined.join(joined.split(codes)), codes)
    assert torch.equal(joined.join(joined.split(every).clone().fill_(-1)), torch.full_like(every, -1))
    assert joined.split(codes[:0]).shape == (0, 3, 5, *inside.code_shape)
    assert torch.equal(joined.codebook, inside.decode(joined.split(every)))
    assert joined.code_shape == ()
    assert joined.codebook_sizes == (len(every),)


def test_join_refuses_what_are_no_codes():
    joined = Joined(Product([VectorQuantizer(2, size) for size in (5, 4, 3)]))
    with pytest.raises(ValueError, match=r"'parts' must be integers of shape \(\*, 3\)"):
        joined.join(torch.zeros(7, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="'parts' must be integers"):
        joined.join(torch.zeros(7, 3))
    for wrong, named in (([0, 0, 3], 3), ([-2, 0, 0], -2)):
        with pytest.raises(ValueError, match=rf"'parts' must lie in \[-1, 5, 4, 3\), got {named}"):
            joined.join(torch.tensor(wrong))


@pytest.mark.parametrize(("codes", "reason"), [(torch.tensor([60]), "must lie in"), (torch.ones(3), "be integers")])
def test_split_refuses_what_is_no_code(codes, reason):
    with pytest.raises(ValueError, match=reason):
        Joined(Product([VectorQuantizer(2, size) for size in (5, 4, 3)])).split(codes)


def test_numbers_up_to_2_to_the_62_are_exact():
    joined = trained(Joined(Product(VectorQuantizer(2, 4), heads=31))).eval()
    assert joined.codebook_size == 2**62
    largest = torch.full((31,), 3)
    values = joined.quantizer.decode(largest)
    assert torch.equal(joined.decode(torch.tensor(2**62 - 1)), values)
    assert int(joined.encode(values)) == 2**62 - 1
    assert torch.equal(joined.split(torch.tensor(2**62 - 2)), torch.tensor([3] * 30 + [2]))
    statistics = CodebookStatistics(joined.codebook_size)
    statistics.update(joined.encode(rows(50, 62)))
    assert statistics.used == 50
    with pytest.raises(ValueError, match=r"at most 2\*\*24 to write out"):
        joined.codebook  # noqa: B018
    beyond = [FiniteScalarQuantizer((size,), symmetric=True) for size in (5, 5581, 8681, 49477, 384773)]
    with pytest.raises(ValueError, match=rf"'quantizer' must have at most 2\*\*62 codes in all, got {2**62 + 1} of"):
        Joined(Product(beyond))


def test_the_posterior_is_that_of_all_combinations():
    inside = trained(INSIDE["product"]()).eval()
    joined, latents = Joined(inside), rows(4, 7, 6)
    given, expected = joined.posterior(latents), inside.posterior(latents)
    assert given.responsibilities.shape == (4, 7, 15)
    torch.testing.assert_close(given.responsibilities.sum(-1), torch.ones(4, 7))
    for code in range(15):
        first, second = expected.responsibilities[..., 0, code // 5], expected.responsibilities[..., 1, code % 5]
        torch.testing.assert_close(given.responsibilities[..., code], first * second)
    torch.testing.assert_close(torch.special.entr(given.responsibilities).sum(-1), given.entropy)
    assert torch.equal(given.entropy, expected.entropy)
    assert torch.equal(given.log_density, expected.log_density)


def test_a_posterior_that_is_none_or_too_large_is_refused():
    many = Joined(Product(GaussianMixtureQuantizer(2, 257), heads=2))
    assert many.quantizer.has_posterior
    for joined in (many, Joined(INSIDE["residual"]())):
        assert not joined.has_posterior
        with pytest.raises(
            NoPosteriorError,
            match=f"Joined has no posterior over its {joined.codebook_size} codes together. Use .quantizer",
        ):
            joined.posterior(rows(3, joined.dim))


def test_freezing_updates_and_progress_reach_the_quantizer_inside():
    joined = trained(Joined(INSIDE["residual"]()))
    inside = joined.quantizer
    joined.set_progress(0.25)
    assert inside.progress == inside.members[0].progress == 0.25
    before = joined.codebook.clone()
    joined.freeze()
    joined(rows(100, 6) + 3)
    joined.update()
    assert inside.members[0].frozen
    assert torch.equal(joined.codebook, before)
    joined.unfreeze()
    joined.updates_itself = False
    for _ in range(2):
        joined(rows(100, 6) + 3)
    assert torch.equal(joined.codebook, before)
    joined.update()
    assert not torch.equal(joined.codebook, before)


def test_it_stands_where_one_code_is_wanted():
    torch.manual_seed(0)

    def member():
        return Joined(Product([VectorQuantizer(3, size, decay=None) for size in (4, 3)]))

    beams = trained(Residual([member(), member()], beam_size=4)).eval()
    assert torch.equal(beams(rows(30, 6)).values, beams.decode(beams.encode(rows(30, 6))))
    implicit = trained(ImplicitResidual([member(), member()]))
    out = implicit(rows(30, 6))
    assert torch.equal(out.values, implicit.decode(out.codes))
    maps = Hierarchical([member(), member()], (0.5, 1.0))
    assert maps(rows(2, 4, 4, 6)).codes.shape == (2, 4 + 16)
    first = ChannelFirst(trained(member()))
    assert first.codebook_size == 12
    assert first(rows(2, 6, 4, 5)).codes.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        ("x", "'quantizer' must be a quantizer, got 'x'"),
        (Residual, "'quantizer' must be a quantizer, got the class Residual"),
        (GaussianBottleneck(3), "'quantizer' must be a quantizer, got GaussianBottleneck"),
        (VectorQuantizer(3, 8), "must have several codes for each latent, got a VectorQuantizer with one. Use it as"),
        (Joined(Residual(VectorQuantizer(3, 8), 2)), "must have several codes for each latent, got a Joined with one"),
        (Hierarchical(VectorQuantizer(3, 8), (0.5, 1.0)), "must quantize each latent by itself, got a Hierarchical"),
        (Residual(VectorQuantizer(3, 8), 2, quantizer_dropout=0.1), "must use all its levels"),
        (Projected(Residual(VectorQuantizer(3, 8), 2, quantizer_dropout=True), 6), "Make it with quantizer_dropout=F"),
    ],
)
def test_bad_arguments_get_a_reason(quantizer, reason):
    with pytest.raises(ValueError, match=reason):
        Joined(quantizer)


def test_a_quantizer_that_was_refused_still_learns_alone():
    quantizer = Residual(VectorQuantizer(3, 8), 2, quantizer_dropout=0.1)
    with pytest.raises(ValueError, match="levels"):
        Joined(quantizer)
    assert quantizer.updates_itself
