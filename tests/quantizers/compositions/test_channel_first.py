"""Channels first equals channels last."""

import pytest
import torch

from gmvq.quantizers import (
    ChannelFirst,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Hierarchical,
    Product,
    Residual,
    VectorQuantizer,
)

QUANTIZERS = {
    "vector": lambda: VectorQuantizer(6, 16, decay=0.9),
    "projected": lambda: VectorQuantizer(6, 16, codebook_dim=2),
    "mixture": lambda: GaussianMixtureQuantizer(6, 16),
    "residual": lambda: Residual(VectorQuantizer(6, 16, decay=0.9), 3),
    "product": lambda: Product([VectorQuantizer(3, 16), VectorQuantizer(3, 16)]),
    "nested": lambda: Residual([Product(VectorQuantizer(3, 16), heads=2) for _ in range(2)]),
}
SPATIAL = {"sequence": (7,), "image": (4, 5), "volume": (2, 3, 4)}
members = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())
layouts = pytest.mark.parametrize("spatial", SPATIAL.values(), ids=SPATIAL.keys())


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(make):
    torch.manual_seed(0)
    quantizer = make()
    for step in range(3):
        quantizer(rows(200, 6, seed=step))
    return quantizer


@members
@layouts
@pytest.mark.parametrize("training", [True, False])
def test_channels_first_equals_channels_last(make, spatial, training):
    last = trained(make).train(training)
    first = ChannelFirst(trained(make).train(training))
    latents = rows(2, *spatial, 6)
    mask = rows(2, *spatial) > 0
    expected = last(latents, mask)
    values, codes, loss, terms = first(latents.movedim(-1, 1), mask)
    assert values.shape == (2, 6, *spatial)
    assert codes.shape == (2, *spatial, *last.code_shape)
    assert torch.equal(values.movedim(1, -1), expected.values)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(loss, expected.loss)
    assert terms.keys() == expected.terms.keys()
    assert torch.equal(first.decode(codes), values)
    assert torch.equal(first.encode(latents.movedim(-1, 1), mask), last.encode(latents, mask))


@members
def test_lengths_of_sequences(make):
    quantizer, lengths = ChannelFirst(trained(make).eval()), torch.tensor([7, 3])
    latents = rows(2, 6, 7)
    out = quantizer(latents, lengths=lengths)
    mask = torch.arange(7) < lengths[:, None]
    assert (out.codes[~mask] == -1).all()
    assert (out.values.movedim(1, -1)[~mask] == 0).all()
    assert torch.equal(quantizer.encode(latents, lengths=lengths), out.codes)


@members
@pytest.mark.parametrize("shape", [(), (5,), (0,)])
def test_vectors_pass_unchanged(make, shape):
    last = trained(make).eval()
    first = ChannelFirst(last)
    latents = rows(*shape, 6)
    assert torch.equal(first(latents).values, last(latents).values)
    codes = first.encode(latents)
    assert torch.equal(codes, last.encode(latents))
    assert torch.equal(first.decode(codes), last.decode(codes))


def test_the_verbs_of_a_mixture():
    last = trained(QUANTIZERS["mixture"]).eval()
    first, latents = ChannelFirst(last), rows(2, 4, 5, 6)
    given = latents.movedim(-1, 1)
    for one, other in zip(first.posterior(given), last.posterior(latents), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first.posterior_mean(given).movedim(1, -1), last.posterior_mean(latents))
    assert torch.equal(first.divergence(given), last.divergence(latents))
    one, other = (q.sample_posterior(x, torch.Generator().manual_seed(0)) for q, x in ((first, given), (last, latents)))
    assert torch.equal(one.values.movedim(1, -1), other.values)
    assert torch.equal(one.log_prior, other.log_prior)


def test_maps_of_scales_decode_with_their_size():
    torch.manual_seed(0)
    last = Hierarchical([VectorQuantizer(6, 8), VectorQuantizer(6, 16)], (0.5, 1.0))
    last(rows(4, 4, 6, 6))
    first, latents = ChannelFirst(last.eval()), rows(2, 4, 6, 6)
    out = first(latents.movedim(-1, 1))
    assert out.codes.shape == (2, 2 * 3 + 4 * 6)
    assert torch.equal(first.decode(out.codes, (4, 6)), out.values)
    for options in ({"size": (4, 6), "scales": 1}, {"size": (4, 6)}):
        given = first.decode(out.codes, **options)
        assert torch.equal(given.movedim(1, -1), last.decode(out.codes, **options))
    with pytest.raises(ValueError, match="'size' must be given"):
        first.decode(out.codes)
    with pytest.raises(TypeError, match="size"):
        ChannelFirst(VectorQuantizer(6, 16)).decode(torch.zeros(2, 3, dtype=torch.int64), 3)


def test_its_codebook_is_that_of_the_quantizer():
    last = trained(QUANTIZERS["projected"])
    assert torch.equal(ChannelFirst(last).codebook, last.codebook)
    assert ChannelFirst(last).codebook_sizes == (16,)
    assert ChannelFirst(QUANTIZERS["residual"]()).codebook_sizes == (16, 16, 16)
    with pytest.raises(TypeError, match="a codebook for each member"):
        ChannelFirst(QUANTIZERS["residual"]()).codebook  # noqa: B018
    for name in ("codebook", "codebook_sizes"):
        with pytest.raises(TypeError, match=f"GaussianBottleneck is continuous and has no {name}"):
            getattr(ChannelFirst(GaussianBottleneck(6)), name)


def test_a_trainer_can_hold_it():
    quantizer = ChannelFirst(Residual(VectorQuantizer(6, 16, decay=0.5), 2))
    assert (quantizer.dim, quantizer.codebook_size, quantizer.code_shape) == (6, 16, (2,))
    assert not quantizer.has_posterior
    assert quantizer.updates_itself
    quantizer.updates_itself = False
    assert not quantizer.quantizer.updates_itself
    quantizer(rows(2, 6, 8, 8))
    before = quantizer.quantizer.members[0].codebook.clone()
    quantizer(rows(2, 6, 8, 8, seed=1))
    assert torch.equal(quantizer.quantizer.members[0].codebook, before)
    quantizer.update()
    assert not torch.equal(quantizer.quantizer.members[0].codebook, before)
    quantizer.set_progress(0.5)
    assert quantizer.progress == quantizer.quantizer.members[0].progress == 0.5
    assert quantizer.freeze() is quantizer
    assert quantizer.frozen
    assert not quantizer.unfreeze().frozen
    weight = torch.tensor(2.0)
    assert quantizer.loss_weight(weight, 0.1) == weight
    other = ChannelFirst(Residual(VectorQuantizer(6, 16, decay=0.5), 2))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval()(rows(2, 6, 8)).values, quantizer.eval()(rows(2, 6, 8)).values)


def test_a_continuous_bottleneck_has_channels_too():
    torch.manual_seed(0)
    quantizer = ChannelFirst(GaussianBottleneck(6, 2)).eval()
    out = quantizer(rows(2, 6, 4, 5))
    assert quantizer.codebook_size is None
    assert out.codes.shape == (2, 4, 5, 2)
    torch.testing.assert_close(quantizer.decode(out.codes), out.values)


def test_bad_input_gets_a_reason():
    quantizer = ChannelFirst(VectorQuantizer(6, 16))
    for shape in ((), (5,), (2, 5), (2, 4, 4, 6)):
        with pytest.raises(ValueError, match=r"'latents' must be \(B, 6, \*spatial\)"):
            quantizer(torch.zeros(shape))
    with pytest.raises(ValueError, match="'mask' must be boolean"):
        quantizer(rows(2, 6, 4, 4), torch.ones(2, 6, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="'quantizer' must be a bottleneck"):
        ChannelFirst(torch.nn.Linear(2, 2))
