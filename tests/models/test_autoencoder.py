import json
from dataclasses import dataclass

import pytest
import torch

import gmvq
from gmvq.modalities import Image
from gmvq.quantizers import QUANTIZERS, make_bottleneck
from gmvq.types import Batch, Signal


def small(quantizer="gaussian-mixture", channels=3, **options):
    torch.manual_seed(0)
    options = {"modality": Image(channels), **options}
    defaults = {"width": 8, "blocks": 1, "codebook_size": 16}
    return gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer=quantizer, **{**defaults, **options}))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", [(16, 16), (17, 9), (1, 1), (3, 30)])
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_any_size_and_any_channels(quantizer, size, channels):
    model = small(quantizer, channels=channels)
    images = torch.rand(2, channels, *size)
    out = model(images)
    assert out.items.shape == images.shape
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
    torch.testing.assert_close(model(images).items, decoded)
    torch.testing.assert_close(model.reconstruct(images), decoded)
    # the GEMM of a batch and of one image round differently
    torch.testing.assert_close(model.reconstruct(images[1:]), decoded[1:], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("quantizer", ["vector-ema", "simvq", "residual", "none"])
def test_equal_seeds_give_equal_networks_for_bottlenecks_as_wide(quantizer):
    model, other = small(), small(quantizer)
    for ours, theirs in ((model.encoder, other.encoder), (model.decoder, other.decoder)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


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
    model.calibrate([Batch(batch), Batch(batch)])
    assert model.training
    assert not model.decoder.training
    error = (model.eval()(batch).items - batch).square().mean().item()
    assert error < model.likelihood.variance.item() < 3 * error


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.rand(3, 8, 8), "must have shape"),
        (torch.rand(1, 1, 8, 8), "must have shape"),
        (torch.rand(1, 3, 0, 8), "must have shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "must be floats or uint8"),
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
    with pytest.raises(ValueError, match="'codes' must be a tensor"):
        small().decode([[0]])


@pytest.mark.parametrize(
    "options",
    [{"downsampling": 3}, {"downsampling": 0}, {"width": 0}, {"codebook_size": -1}, {"network": "transformer"}],
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
        images = model(torch.rand(2, 3, 30, 33)).items
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


@pytest.mark.parametrize("images", [torch.rand(1, 3, 8, 8) * 2 - 1, torch.rand(1, 3, 8, 8) * 255])
def test_images_out_of_range_are_refused_with_what_was_probably_meant(images):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*They look"):
        small().encode(images)


def test_a_configuration_is_described_and_made_again():
    config = gmvq.AutoencoderConfig(network="sq-vae", quantizer_options={"noise": 1.0}, modality=Image(1))
    described = json.loads(json.dumps(config.described()))
    assert gmvq.AutoencoderConfig.from_description(described) == config
    with pytest.raises(ValueError, match="'modality' must be known"):
        gmvq.Autoencoder(gmvq.AutoencoderConfig(modality=None))


@dataclass(frozen=True)
class Toy(Image):
    """Items of any signal, for networks by number of axes."""

    axes: int = 1
    values: str = "unit"
    downsampling = 4

    @property
    def signal(self):
        return Signal("toy", self.axes, self.channels, self.values)


def of(axes, values="unit", quantizer="gaussian-mixture", **options):
    return small(quantizer, modality=Toy(3 if values != "symbols" else 11, axes=axes, values=values), **options)


def drawn(axes, values, number=4, size=11):
    torch.manual_seed(1)
    if values == "symbols":
        return torch.randint(0, 11, (number, size))
    items = torch.rand(number, 3, *[size] * axes)
    return {"unit": items, "signed": 2 * items - 1, "real": 7 + 30 * items}[values]


SIGNALS = [*[(axes, values) for axes in (0, 1, 2, 3) for values in ("unit", "signed", "real")], (1, "symbols")]


@pytest.mark.parametrize(("axes", "values"), SIGNALS)
@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "residual", "none"])
def test_items_of_any_number_of_axes_and_kind_of_value(axes, values, quantizer):
    model = of(axes, values, quantizer, downsampling=4 if axes else 1)
    items = drawn(axes, values)
    model.standardize([items])
    out = model(items)
    assert out.items.shape == items.shape
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    model.eval()
    codes = model.encode(items)
    assert codes.shape[: 1 + axes] == (4, *model.grid(model.signal.size(items)))
    made = model.decode(codes, model.signal.size(items))
    assert made.shape == items.shape
    assert made.dtype == (torch.int64 if values == "symbols" else torch.float32)
    torch.testing.assert_close(model.reconstruct(items[:1]), made[:1], atol=1e-3, rtol=1e-3)
    assert model.likelihood.log_prob(model.decode_values(model.bottleneck.decode(codes), model.signal.size(items)),
                                     model.prepared(items)).isfinite().all()  # fmt: skip


@pytest.mark.parametrize("values", ["unit", "signed", "real", "symbols"])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "residual", "finite-scalar"])
def test_lengths_equal_shorter_sequences(values, stride, quantizer):
    model = of(1, values, quantizer, downsampling=stride).eval()
    items, lengths = drawn(1, values, number=3, size=22), torch.tensor([22, 13, 1])
    codes = model.encode(items, lengths)
    made = model.decode(codes, (22,))
    for place, length in enumerate(lengths.tolist()):
        alone = items[place : place + 1, ..., :length]
        tokens = -(-length // stride)
        assert torch.equal(codes[place : place + 1, :tokens], model.encode(alone))
        assert (codes[place, tokens:] == -1).all()
        torch.testing.assert_close(made[place : place + 1, ..., :length], model.reconstruct(alone))
    # what stands behind the end of a sequence has no part in its loss
    changed = items.clone()
    changed[1, ..., 13:] = changed[0, ..., 13:]
    torch.testing.assert_close(model(items, lengths).loss, model(changed, lengths).loss)
    parts = [model(items[i : i + 1, ..., :n]).terms["reconstruction"] for i, n in enumerate(lengths.tolist())]
    assert all(part.isfinite() for part in parts)


@pytest.mark.parametrize("quantizer", ["stochastic", "gaussian-mixture"])
@pytest.mark.parametrize("values", ["signed", "symbols"])
def test_padding_has_no_part_in_the_weight_of_the_codes(values, quantizer):
    """13 samples are 4 tokens; 13 and the padding up to 22 are 6, another share."""
    model = of(1, values, quantizer, downsampling=4).eval()
    items, lengths = drawn(1, values, number=3, size=22), torch.tensor([13, 13, 13])
    expected = model(items[..., :13])
    torch.testing.assert_close(model(items, lengths).terms["bottleneck"], expected.terms["bottleneck"])


def test_real_items_keep_their_units():
    model = of(1, "real", downsampling=1)
    items = drawn(1, "real", number=64) * torch.tensor([1.0, 1000.0, 0.0])[:, None]
    model.standardize(items.split(7))
    torch.testing.assert_close(model.standardization.location, items.mean((0, 2)))
    torch.testing.assert_close(model.standardization.scale[:2], items.std((0, 2), correction=0)[:2])
    assert model.standardization.scale[2] == 1  # a channel that never changes
    prepared = model.prepared(items)
    torch.testing.assert_close(model.standardization.undo(prepared), items)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("axes", "values"), [(2, "unit"), (1, "symbols"), (1, "real"), (0, "real")])
@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "vector-ema", "residual", "finite-scalar", "none"])
def test_a_model_in_half_precision_encodes_decodes_and_learns(dtype, axes, values, quantizer):
    model = of(axes, values, quantizer, downsampling=4 if axes else 1)
    items = drawn(axes, values)
    model(items)
    exact = model.eval().encode(items)
    model = model.to(dtype)
    codes = model.encode(items)
    assert codes.shape == exact.shape
    if values != "symbols":
        assert model.encode(items.to(dtype)).shape == exact.shape
    made = model.reconstruct(items)
    assert made.shape == items.shape
    assert values == "symbols" or made.float().isfinite().all()
    model.train()(items).loss.backward()


@pytest.mark.parametrize(("axes", "values"), [(2, "unit"), (1, "signed"), (1, "symbols")])
def test_encode_and_reconstruct_can_be_exported(axes, values):
    model, items = of(axes, values).eval(), drawn(axes, values, size=16)

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, items):
            return self.model.encode(items), self.model.reconstruct(items)

    exported = torch.export.export(Encode(), (items,)).module()
    codes, made = exported(items)
    assert torch.equal(codes, model.encode(items))
    torch.testing.assert_close(made, model.reconstruct(items))
