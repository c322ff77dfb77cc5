import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gmvq
from gmvq import recipes, refinement
from gmvq.evaluation import evaluate
from gmvq.modalities import Image
from gmvq.quantizers import QUANTIZERS
from gmvq.refinement import refine
from gmvq.stages import load_data

NAMES = [name for name in QUANTIZERS if name not in ("none", "hierarchical")]


def small(quantizer="gaussian-mixture", **options):
    torch.manual_seed(0)
    defaults = {"width": 8, "blocks": 1, "codebook_size": 16}
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer=quantizer, **{**defaults, **options}))
    model(torch.rand(4, model.signal.channels, 16, 16))  # codebooks start from latents
    return model.eval()


def error_of(model, images, codes):
    return (model.decode(codes, images.shape[-2:]) - images).square().flatten(1).mean(1)


@pytest.mark.parametrize("quantizer", NAMES)
@pytest.mark.parametrize("listed", [True, False])
def test_no_image_gets_worse_and_most_get_better(quantizer, listed, monkeypatch):
    monkeypatch.setattr(refinement, "MOST_LISTED", 2**16 if listed else 1)
    model = small(quantizer)
    images = torch.rand(4, 3, 18, 13)
    codes = model.encode(images)
    kept = codes.clone()
    refined = refine(model, images, codes, 6)
    assert torch.equal(codes, kept)
    assert refined.codes.dtype == torch.int64
    torch.testing.assert_close(refined.error_before, error_of(model, images, codes))
    torch.testing.assert_close(refined.error_after, error_of(model, images, refined.codes))
    assert (refined.error_after <= refined.error_before).all()
    assert torch.equal(refined.codes, refine(model, images, codes, 6).codes)
    if listed:  # the encoder is random: better codes are near
        assert (refined.error_after < refined.error_before).sum() > 2


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "vector", "finite-scalar"])
def test_moves_that_go_too_far_are_not_taken(quantizer, monkeypatch):
    monkeypatch.setattr(refinement, "FIRST_CURVATURE", 0.01)
    model = small(quantizer)
    images = model.decode(torch.randint(16, (8, 4, 4)))
    images = (images + 0.05 * torch.randn(images.shape)).clamp(0, 1)
    codes = refine(model, images, model.encode(images), 20).codes
    for steps in (1, 2, 3):
        refined = refine(model, images, codes, steps)
        assert (refined.error_after <= refined.error_before).all()


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (1, (9, 30)), (3, (1, 1)), (4, (2, 17))])
@pytest.mark.parametrize("network", ["convolutional", "sq-vae"])
def test_any_size_and_any_channels(channels, size, network):
    model = small(modality=Image(channels), network=network)
    images = torch.rand(1, channels, *size)
    refined = refine(model, images, model.encode(images), 5)
    torch.testing.assert_close(refined.error_after, error_of(model, images, refined.codes))
    assert refined.error_after <= refined.error_before


@pytest.mark.parametrize("likelihood", ["gaussian", "mean-squared-error", "laplace", "bernoulli"])
def test_any_likelihood(likelihood):
    model = small(likelihood=likelihood)
    images = torch.rand(4, 3, 16, 16)
    refined = refine(model, images, model.encode(images), 6)
    torch.testing.assert_close(refined.error_after, error_of(model, images, refined.codes))
    assert refined.error_after.mean() < refined.error_before.mean()


def test_finds_the_best_codes_where_tokens_do_not_meet():
    # the pixels of a token are a linear map of its own values alone: its best code is known by trying all
    model = small("vector", code_dim=3, likelihood="mean-squared-error")
    model.decoder = torch.nn.ConvTranspose2d(3, 3, 4, stride=4)
    with torch.no_grad():
        model.bottleneck.learned.normal_()
        # features count differently: steepest descent without the decoder's metric finds two thirds of the best codes
        model.decoder.weight.mul_(0.15 * torch.tensor([1.0, 2.0, 4.0])[:, None, None, None])
        model.decoder.bias.fill_(0.5)
    codes = torch.randint(16, (4, 8, 8))
    images = model.decode(torch.randint(16, (4, 8, 8))) + 0.1 * torch.randn(4, 3, 32, 32)
    tiles = images.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3)  # (B, h, w, C, 4, 4)
    choices = model.decode(torch.arange(16).reshape(16, 1, 1))
    best = (tiles[..., None, :, :, :] - choices).square().flatten(-3).sum(-1).argmin(-1)
    assert (codes == best).float().mean() < 0.2
    assert (refine(model, images, codes, 40).codes == best).float().mean() > 0.85


def test_images_do_not_depend_on_each_other():
    model = small().double()  # rounding of another batch size decides nothing
    images = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    codes = model.encode(images)
    together = refine(model, images, codes, 8).codes
    assert not torch.equal(together, codes)
    assert torch.equal(together[1:2], refine(model, images[1:2], codes[1:2], 8).codes)
    assert torch.equal(together.flip(0), refine(model, images.flip(0), codes.flip(0), 8).codes)


@pytest.mark.parametrize("network", ["convolutional", "sq-vae"])
def test_leaves_the_model_as_it_was(network):
    model = small(network=network)
    model.decoder.train()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    codes = model.encode(images)
    random_state = torch.get_rng_state()
    refine(model, images, codes, 3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_any_context_and_memory_format(context):
    model = small(code_dim=8, quantizer_options={"codebook_dim": 4})
    images = torch.rand(2, 3, 16, 16)
    codes = model.encode(images)
    expected = refine(model, images, codes, 6)
    with context():
        found = refine(model, images + 0, codes + 0, 6)
    assert torch.equal(found.codes, expected.codes)
    assert found.error_after.dtype == torch.float32
    model = model.to(memory_format=torch.channels_last)
    found = refine(model, images.contiguous(memory_format=torch.channels_last), codes, 6)
    torch.testing.assert_close(found.error_before, expected.error_before)
    assert (found.error_after < found.error_before).any()


def test_encoding_refines():
    model = small()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    codes = model.encode(images)
    assert torch.equal(refine(model, images, codes, 0).codes, codes)
    expected = refine(model, images, codes, 5)
    assert not torch.equal(expected.codes, codes)
    torch.testing.assert_close(expected.error_after, error_of(model, images / 255, expected.codes))


def test_counts_the_passes_of_the_decoder():
    model, calls = small(), []
    model.decoder.register_forward_hook(lambda *_: calls.append("forward"))
    model.decoder.register_full_backward_hook(lambda *_: calls.append("backward"))
    images = torch.rand(2, 3, 16, 16)
    codes = model.encode(images)
    for steps, passes in ((0, 3), (1, 4), (2, 6), (8, 18)):
        calls.clear()
        assert refine(model, images, codes, steps).decoder_passes == passes == len(calls)
    unchanged = refine(model, images, codes, 0)
    assert torch.equal(unchanged.codes, codes)
    assert torch.equal(unchanged.error_before, unchanged.error_after)


def test_a_decoder_that_is_not_finite_changes_nothing():
    model = small()
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(torch.nan)
    images = torch.rand(2, 3, 16, 16)
    codes = model.encode(images)
    assert torch.equal(refine(model, images, codes, 4).codes, codes)


def test_no_images_take_no_steps():
    refined = refine(small(), torch.rand(0, 3, 16, 16), torch.zeros(0, 4, 4, dtype=torch.int64), 4)
    assert refined.codes.shape == (0, 4, 4)
    assert refined.error_after.shape == (0,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": -1}, "'steps' must be an integer of at least 0, got -1"),
        ({"steps": 2.0}, "'steps' must be an integer"),
        ({"steps": True}, "'steps' must be an integer"),
        ({"codes": torch.zeros(1, 4, 4)}, "'codes' must be integers"),
        ({"codes": torch.zeros(1, 4, 5, dtype=torch.int64)}, r"of shape \(1, 4, 4\)"),
        ({"codes": torch.full((1, 4, 4), -1)}, "of at least 0"),
        ({"codes": torch.full((1, 4, 4), 16)}, "'codes' must lie in"),
        ({"images": torch.rand(3, 16, 16)}, "'items' must have shape"),
        ({"images": torch.full((1, 3, 16, 16), torch.nan)}, "'items' must be finite"),
    ],
)
def test_bad_arguments_get_a_reason(change, reason):
    fitting = {"images": torch.rand(1, 3, 16, 16), "codes": torch.zeros(1, 4, 4, dtype=torch.int64), "steps": 1}
    with pytest.raises(ValueError, match=reason):
        refine(small(), **{**fitting, **change})


def test_a_continuous_bottleneck_gets_a_reason():
    model = small("none")
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="'model' must have codes to refine, got one with a GaussianBottleneck"):
        refine(model, images, model.encode(images), 1)


def test_codes_of_several_scales_get_a_reason():
    model = small("hierarchical")
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="whose codes are of several scales"):
        refine(model, images, model.encode(images), 1)


@pytest.mark.parametrize("quantizer", ["vector", "residual"])  # a code for a token, and several
def test_the_script_adds_runs_to_its_table(tmp_path, capsys, quantizer):
    path = Path(__file__).parents[1] / "benchmarks/leaderboard/refinement.py"
    spec = importlib.util.spec_from_file_location("refinement_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    digits = recipes.digits()
    for seed in (0, 1):
        training = replace(digits.training, steps=2, seed=seed)
        model = replace(digits.model, width=8, quantizer=quantizer)
        data = replace(digits.data, evaluated=2)
        run = replace(digits, name=f"digits-4x4/{quantizer}", data=data, model=model, training=training)
        recipes.run(run, tmp_path / f"{seed}", report=False)
    table = tmp_path / "table.json"
    (tmp_path / "diverged").mkdir()
    options = ["--data", "bundled:digits", "--images", "7", "--batch-size", "4", "--out", str(table)]
    script.main([str(tmp_path / "0"), str(tmp_path / "diverged"), *options, "--steps", "2"])
    assert "holds no model" in capsys.readouterr().out
    first = json.loads(table.read_text())
    assert [(row["seed"], row["steps"], row["decoder_passes"]) for row in first["rows"]] == [(0, 0, 0), (0, 2, 6)]
    encoded, refined = first["rows"]
    assert (encoded["protocol"], encoded["contender"], encoded["images"]) == ("digits-4x4", quantizer, 7)
    assert refined["mse"] < encoded["mse"]
    assert refined["psnr"] > encoded["psnr"]
    measured = evaluate(gmvq.load(tmp_path / "0"), load_data(digits.data).held_out, limit=7).metrics
    for name in ("mse", "psnr", "usage", "perplexity"):
        assert encoded[name] == pytest.approx(measured[name], rel=1e-5)
    script.main([str(tmp_path / "1"), *options, "--steps", "1"])
    script.main([str(tmp_path / "0"), *options, "--steps", "1"])
    rows = json.loads(table.read_text())["rows"]
    assert [(row["seed"], row["steps"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert str(tmp_path) not in table.read_text()
    np.save(tmp_path / "other.npy", np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8))
    with pytest.raises(ValueError, match="'--data' must be the training data"):
        script.main([str(tmp_path / "0"), *options, "--data", str(tmp_path / "other.npy")])
    table.write_text("{}")
    with pytest.raises(ValueError, match="'--out' must be a table"):
        script.main([str(tmp_path / "0"), *options, "--steps", "1"])
