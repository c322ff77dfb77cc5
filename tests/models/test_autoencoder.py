from typing import get_args

import pytest
import torch

import gmvq
from gmvq.models import QuantizerName
from gmvq.models.bottlenecks import make_bottleneck

QUANTIZERS = get_args(QuantizerName)


def small(quantizer="gaussian-mixture", **options):
    torch.manual_seed(0)
    defaults = {"width": 8, "blocks": 1, "codebook_size": 16}
    return gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer=quantizer, **{**defaults, **options}))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", [(16, 16), (17, 9), (1, 1), (3, 30)])
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_any_size_and_any_channels(quantizer, size, channels):
    model = small(quantizer, channels=channels)
    images = torch.rand(2, channels, *size)
    out = model(images)
    assert out.images.shape == images.shape
    model.eval()
    codes = model.encode(images)
    if model.bottleneck.quantizes_rows:
        assert codes.shape[:3] == (2, *model.grid(size))
    else:
        assert codes.shape == (2, sum(rows * columns for rows, columns in model.bottleneck.grids(model.grid(size))))
    decoded = model.decode(codes, size)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    torch.testing.assert_close(model(images).images, decoded)
    torch.testing.assert_close(model.reconstruct(images), decoded)
    # the GEMM of a batch and of one image round differently
    torch.testing.assert_close(model.reconstruct(images[1:]), decoded[1:], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("likelihood", ["gaussian", "mean-squared-error", "laplace", "bernoulli"])
def test_each_pair_learns(quantizer, likelihood):
    model = small(quantizer, likelihood=likelihood, channels=1, downsampling=2)
    # one bit for each token: under an ELBO more would cost as much as it explains
    images = torch.rand(16, 1, 4, 4).round().repeat_interleave(2, -1).repeat_interleave(2, -2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        out = model(images)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.terms["mse"].item())
    assert losses[-1] < 0.85 * losses[0]


def test_codes_of_several_scales_need_the_size_of_their_image():
    model = small("hierarchical").eval()
    codes = model.encode(torch.rand(1, 3, 16, 16))
    assert model.codebook_size == 8  # 16 ** 0.75: the bits of one code for each place, over four scales
    assert not model.has_code_maps
    with pytest.raises(ValueError, match="'size' must be given for codes of several scales"):
        model.decode(codes)
    with pytest.raises(ValueError, match="'codes' must have shape"):
        model.decode(codes, (64, 64))


def test_uint8_equals_its_floats():
    model = small().eval()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(model.encode(images), model.encode(images.float() / 255))


def test_loss_weighs_tokens_against_dimensions():
    out = small("none")(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(out.terms["bottleneck"], out.terms["divergence"] * 16 / (3 * 16 * 16))
    torch.testing.assert_close(out.loss, out.terms["reconstruction"] + out.terms["bottleneck"])


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "vector"])
@pytest.mark.parametrize("likelihood", ["gaussian", "mean-squared-error"])
def test_a_squared_error_of_the_latents_weighs_as_one_of_the_images(quantizer, likelihood):
    model = small(quantizer, likelihood=likelihood)
    images = torch.rand(2, 3, 16, 16)
    out = model(images)
    weight = 1 if likelihood == "mean-squared-error" else 0.5 / out.terms["mse"]
    torch.testing.assert_close(out.terms["bottleneck"], weight * model.bottleneck(model.latents(images)).loss.detach())


def test_calibration_sets_the_variance_of_sampled_reconstructions():
    model = small()
    batch = torch.rand(8, 3, 8, 8)
    model(batch)
    model.decoder.eval()
    model.calibrate([batch, batch])
    assert model.training
    assert not model.decoder.training
    error = (model.eval()(batch).images - batch).square().mean().item()
    assert error < model.likelihood.variance.item() < 3 * error


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.rand(3, 8, 8), "must have shape"),
        (torch.rand(1, 1, 8, 8), "must have shape"),
        (torch.rand(1, 3, 0, 8), "must have shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "must be float"),
        (torch.full((1, 3, 8, 8), torch.nan), "must be finite"),
    ],
)
def test_bad_images_get_a_reason(images, reason):
    with pytest.raises(ValueError, match=reason):
        small().encode(images)


def test_bad_codes_get_a_reason():
    with pytest.raises(ValueError, match="3 axes"):
        small().decode(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must lie in"):
        small().decode(torch.full((1, 2, 2), 16))
    with pytest.raises(ValueError, match="continuous bottleneck"):
        small("none").decode(torch.zeros(1, 2, 2, 9))


@pytest.mark.parametrize(
    "options", [{"downsampling": 3}, {"downsampling": 1}, {"width": 0}, {"codebook_size": -1}, {"channels": 1.5}]
)
def test_bad_configurations_get_a_reason(options):
    with pytest.raises(ValueError, match=f"'{next(iter(options))}'"):
        gmvq.AutoencoderConfig(**options)


def test_unknown_names_get_a_reason():
    with pytest.raises(ValueError, match="'quantizer'"):
        make_bottleneck("voronoi", 4, 16)
    with pytest.raises(ValueError, match="'normalization'"):
        small(normalization="instance")


@pytest.mark.parametrize("normalization", ["layer", "group", "batch", "none"])
def test_normalizations(normalization):
    model = small(normalization=normalization)
    model(torch.rand(2, 3, 8, 8)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_a_crop_is_coded_as_in_the_whole_image():
    # tokens whose receptive field lies inside of the crop
    model = small(downsampling=4).eval()
    image = torch.rand(1, 3, 96, 96)
    whole, crop = model.latents(image), model.latents(image[..., 16:80, 16:80])
    torch.testing.assert_close(crop[:, 4:-4, 4:-4], whole[:, 8:16, 8:16])


def test_the_networks_of_sq_vae_mirror_each_other():
    config = gmvq.AutoencoderConfig(network="sq-vae", code_dim=64, width=64, blocks=2, codebook_size=16)
    model = gmvq.Autoencoder(config)
    strides = [layer.stride for layer in model.encoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert strides[:2] == [(2, 2), (2, 2)]
    widths = [layer.out_channels for layer in model.encoder.modules() if isinstance(layer, torch.nn.Conv2d)][:3]
    assert widths == [32, 64, 64]
    with torch.no_grad():
        images = model(torch.rand(2, 3, 30, 33)).images
    assert images.shape == (2, 3, 30, 33)
    assert ((images > 0) & (images < 1)).all()
    assert model.latents(torch.rand(1, 3, 8, 8)).shape == (1, 2, 2, 64)


def test_options_replace_the_arguments_that_a_name_stands_for():
    options = {
        "codebook_dim": 2,
        "estimator": {"kind": "GumbelSoftmax", "temperature": {"kind": "Linear", "start": 2.0, "end": 0.5}},
    }
    bottleneck = make_bottleneck("gaussian-mixture", 4, 16, options)
    assert bottleneck.codebook_dim == 2
    assert bottleneck.estimator.temperature_at(1.0) == 0.5
    with pytest.raises(ValueError, match="'quantizer_options' must be arguments of simvq"):
        make_bottleneck("simvq", 4, 16, {"hue": 1})
    with pytest.raises(ValueError, match=r"'kind' of an option must be one of.*got 'Hue'"):
        make_bottleneck("simvq", 4, 16, {"estimator": {"kind": "Hue"}})
    with pytest.raises(ValueError, match="'ELBO' has no such arguments"):
        make_bottleneck("gaussian-mixture", 4, 16, {"objective": {"kind": "ELBO", "hue": 1}})
    with pytest.raises(ValueError, match="'network' must be one of convolutional, sq-vae"):
        gmvq.AutoencoderConfig(network="transformer")


def test_later_fields_at_their_defaults_are_no_part_of_a_models_name():
    assert "network" not in gmvq.AutoencoderConfig().identity()
    changed = gmvq.AutoencoderConfig(network="sq-vae", quantizer_options={"noise": 1.0})
    assert changed.identity()["network"] == "sq-vae"
    assert changed.identity()["quantizer_options"] == {"noise": 1.0}
