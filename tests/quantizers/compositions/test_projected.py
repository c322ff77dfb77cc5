"""A quantizer in another space. The laws are in test_laws.py."""

import pytest
import torch
from torch import nn

from gmvq.quantizers import (
    BinarySphericalQuantizer,
    ChannelFirst,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    Projected,
    Residual,
    VectorQuantizer,
)


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(quantizer, steps=3):
    torch.manual_seed(0)
    for step in range(steps):
        quantizer(rows(200, quantizer.dim, seed=step))
    return quantizer


def test_tied_maps_are_the_projection_that_a_quantizer_has_itself():
    torch.manual_seed(0)
    alone = VectorQuantizer(8, 16, codebook_dim=3)
    quantizer = Projected(VectorQuantizer(3, 16), 8)
    quantizer.projection.load_state_dict(alone.projection.state_dict())
    quantizer.projection.offset.data.fill_(0.3)
    alone.projection.offset.data.fill_(0.3)
    for step in range(3):
        first, second = alone(rows(100, 8, seed=step)), quantizer(rows(100, 8, seed=step))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.loss, second.loss)
    assert torch.equal(alone.codebook, quantizer.codebook)
    assert set(second.terms) == {"commitment"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Projected(VectorQuantizer(3, 16, decay=0.9), 8),
        lambda: Projected(VectorQuantizer(3, 16, cosine=True), 8, normalize=True),
        lambda: Projected(VectorQuantizer(8, 16), 8),
        lambda: Projected(GaussianMixtureQuantizer(3, 16), 8),
        lambda: Projected(Projected(VectorQuantizer(2, 16), 4), 8),
    ],
)
def test_codes_of_decoded_codes_are_the_codes(make):
    quantizer, codes = trained(make()).eval(), torch.arange(16)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    assert torch.equal(quantizer.codebook, quantizer.decode(codes))
    assert quantizer.code_shape == ()


def test_two_linear_maps_are_those_of_the_formula():
    quantizer, latents = trained(Projected(VectorQuantizer(3, 16), 8, tied=False)).eval(), rows(5, 4, 8)
    quantizer.project_out.bias.data.fill_(2.0)
    values, codes, _, _ = quantizer(latents)
    expected = quantizer.quantizer(quantizer.project_in(latents))
    assert torch.equal(codes, expected.codes)
    torch.testing.assert_close(values, quantizer.project_out(expected.values))
    names = {name for name in quantizer.state_dict() if name.startswith("project")}
    assert names == {f"project_{way}.{part}" for way in ("in", "out") for part in ("weight", "bias")}


def test_a_masked_token_is_zero_although_the_way_out_has_a_bias():
    for tied in (True, False):
        quantizer = trained(Projected(VectorQuantizer(3, 16), 8, tied=tied))
        (quantizer.projection.offset if tied else quantizer.project_out.bias).data.fill_(2.0)
        mask = torch.arange(10) < 4
        out = quantizer(rows(10, 8), mask)
        assert (out.values[4:] == 0).all()
        assert (out.codes[4:] == -1).all()
        assert torch.equal(quantizer.decode(out.codes), out.values)
        assert out.values[:4].abs().sum(-1).min() > 0
        residual = trained(Projected(Residual(VectorQuantizer(3, 16), 2), 8, tied=tied))
        assert (residual.decode(torch.full((3, 2), -1)) == 0).all()


def test_a_higher_dimension_needs_separate_maps():
    quantizer = trained(Projected(VectorQuantizer(12, 16), 8, tied=False))
    out = quantizer(rows(5, 8))
    assert out.values.shape == (5, 8)
    assert quantizer.codebook.shape == (16, 8)
    with pytest.raises(ValueError, match="'dim' must be at least 12"):
        Projected(VectorQuantizer(12, 16), 8)


def test_normalized_latents_lie_on_the_sphere():
    seen = []

    class Recorded(VectorQuantizer):
        def _forward_rows(self, rows, kept):
            seen.append(rows.detach())
            return super()._forward_rows(rows, kept)

    quantizer = Projected(Recorded(3, 16), 8, normalize=True)
    first = quantizer(rows(20, 8))
    torch.testing.assert_close(seen[0].norm(dim=-1), torch.ones(20))
    # the scale of the latents does not matter
    second = quantizer.eval()(rows(20, 8) * 10)
    assert torch.equal(first.codes, second.codes)
    sphere = trained(Projected(BinarySphericalQuantizer(8, 16), 8, normalize=True))
    assert torch.equal(sphere.encode(rows(20, 8)), sphere.encode(rows(20, 8) * 5))


def test_a_latent_of_zero_has_a_gradient_of_bounded_size():
    for tied in (True, False):
        quantizer = trained(Projected(VectorQuantizer(3, 16), 8, normalize=True, tied=tied))
        latents = rows(5, 8)
        latents[0] = 0
        if not tied:
            quantizer.project_in.bias.data.zero_()
        out = quantizer(latents.requires_grad_())
        (out.loss + out.values.square().mean()).backward()
        assert latents.grad.isfinite().all()
        assert latents.grad[0].abs().max() < 1e5  # 1 / 1e-4 and a derivative of about 1


def test_tied_to_as_many_features_there_is_no_map():
    quantizer = Projected(VectorQuantizer(8, 16), 8)
    assert [name for name, _ in quantizer.named_parameters()] == []
    alone = VectorQuantizer(8, 16)
    assert torch.equal(quantizer(rows(50, 8)).values, alone(rows(50, 8)).values)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("x", 8), "'quantizer' must be a quantizer, got 'x'"),
        ((VectorQuantizer, 8), "'quantizer' must be a quantizer, got the class VectorQuantizer"),
        ((GaussianBottleneck(3), 8), "'quantizer' must be a quantizer, got GaussianBottleneck"),
        (([VectorQuantizer(3, 16)], 8), "'quantizer' must be a quantizer, got"),
        ((VectorQuantizer(3, 16), "8"), "'dim' must be an integer"),
        ((VectorQuantizer(3, 16), 0), "'dim' must be an integer"),
    ],
)
def test_bad_arguments_get_a_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Projected(*arguments)
    with pytest.raises(ValueError, match="'project_in' must be a module, got 'x'"):
        Projected(VectorQuantizer(3, 16), 8, project_in="x", project_out=nn.Identity())


def test_maps_may_be_any_modules():
    quantizer = Projected(
        VectorQuantizer(3, 16),
        8,
        project_in=nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3)),
        project_out=nn.Linear(3, 8, bias=False),
    )
    latents = rows(50, 8).requires_grad_()
    out = trained(quantizer)(latents)
    (out.values.square().mean() + out.loss).backward()
    assert all(parameter.grad is not None for parameter in quantizer.parameters())
    assert latents.grad.abs().sum(-1).min() > 0
    assert "project_in.1.weight" in quantizer.state_dict()
    identity = Projected(VectorQuantizer(3, 16), 3, project_in=nn.Identity(), project_out=nn.Identity())
    assert torch.equal(identity(rows(50, 3)).values, identity.quantizer.codebook[identity(rows(50, 3)).codes])
    for one in ({"project_in": nn.Identity()}, {"project_out": nn.Identity()}):
        with pytest.raises(ValueError, match="must be given together"):
            Projected(VectorQuantizer(3, 16), 3, **one)


@pytest.mark.parametrize("tied", [True, False])
def test_float64_latents_pass_float32_maps(tied):
    quantizer = trained(Projected(VectorQuantizer(3, 16), 8, tied=tied)).eval()
    low, high = quantizer(rows(50, 8)), quantizer(rows(50, 8, dtype=torch.float64))
    assert high.values.dtype == torch.float64
    assert torch.equal(low.codes, high.codes)
    torch.testing.assert_close(high.values.float(), low.values)
    half = quantizer.to(torch.bfloat16)
    assert next(half.parameters()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(half(rows(50, 8)).values, low.values)
        assert torch.equal(half.decode(low.codes), low.values.bfloat16())


def test_the_posterior_is_that_of_the_quantizer_inside():
    quantizer, latents = trained(Projected(GaussianMixtureQuantizer(3, 16), 8)).eval(), rows(2, 5, 8)
    assert quantizer.has_posterior
    given = quantizer.posterior(latents)
    expected = quantizer.quantizer.posterior(quantizer.projection.project_in(latents.reshape(-1, 8)))
    assert given.responsibilities.shape == (2, 5, 16)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one.flatten(0, 1), other)
    draw = quantizer.sample_posterior(latents, torch.Generator().manual_seed(0))
    assert draw.values.shape == latents.shape
    assert quantizer.divergence(latents).shape == (2, 5)
    assert quantizer.posterior_mean(latents).shape == latents.shape


def test_a_projected_composite_has_no_one_codebook():
    quantizer = Projected(Residual(VectorQuantizer(3, 16), 2), 8)
    assert (quantizer.code_shape, quantizer.codebook_sizes) == ((2,), (16, 16))
    assert quantizer.decode(torch.zeros(5, 1, dtype=torch.int64)).shape == (5, 8)  # the first level alone
    for name in ("codebook", "code_vectors"):
        with pytest.raises(TypeError, match="a codebook for each member"):
            getattr(quantizer, name)


def test_round_trip_of_codes_for_images_with_a_code_dimension():
    """vector-quantize-pytorch fails on it."""
    for tied in (True, False):
        quantizer = ChannelFirst(trained(Projected(VectorQuantizer(3, 16), 8, tied=tied)).eval())
        values, codes, _, _ = quantizer(rows(2, 8, 4, 5))
        assert torch.equal(quantizer.decode(codes), values)


def test_beam_search_goes_through_projections():
    quantizer = trained(Residual([Projected(VectorQuantizer(3, 16), 8) for _ in range(3)])).eval()
    latents = rows(200, 8)
    before = (latents - quantizer.decode(quantizer.encode(latents))).square().sum(-1)
    quantizer.beam_size = 4
    error = (latents - quantizer.decode(quantizer.encode(latents))).square().sum(-1)
    assert (error <= before).all()
    assert error.sum() < before.sum()
