import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gmvq
from gmvq import hub

OLD_MODELS = sorted((Path(__file__).parent / "golden/models").iterdir())


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(width=8, blocks=1, codebook_size=12))
    model(torch.rand(4, 3, 8, 8))
    return model


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "vector", "vector-ema", "none"])
def test_a_loaded_model_is_the_saved_one(tmp_path, quantizer):
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer=quantizer, width=8, blocks=1))
    images = torch.rand(2, 3, 9, 9)
    model(images)
    gmvq.save(model, tmp_path / "run")
    loaded = gmvq.load(tmp_path / "run")
    assert not loaded.training
    assert torch.equal(loaded.reconstruct(images), model.eval().reconstruct(images))
    assert hub.fingerprint(loaded) == hub.fingerprint(model)


def test_the_fingerprint_sees_a_single_weight(model):
    before = hub.fingerprint(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert hub.fingerprint(model) != before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: (run / "config.json").write_text("{"), "not JSON"),
        (lambda run: (run / "config.json").write_text("[]"), "not of format"),
        (lambda run: (run / "config.json").write_text('{"format": "gmvq.autoencoder", "version": 99}'), "version 99"),
        (
            lambda run: (run / "config.json").write_text('{"format": "gmvq.autoencoder", "version": 1}'),
            "cannot|does not hold",
        ),
        (lambda run: (run / "model.safetensors").write_bytes(b"\x10"), "damaged"),
        (lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9]), "damaged"),
    ],
)
def test_damaged_files_get_a_reason(tmp_path, model, spoil, reason):
    gmvq.save(model, tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=reason):
        gmvq.load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path, model):
    gmvq.save(model, tmp_path / "one")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    gmvq.save(model, tmp_path / "two")
    (tmp_path / "two/config.json").write_bytes((tmp_path / "one/config.json").read_bytes())
    with pytest.raises(ValueError, match="fingerprint"):
        gmvq.load(tmp_path / "two")


def test_a_missing_run_gets_a_reason(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        gmvq.load(tmp_path / "nowhere")
    gmvq.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not there"):
        gmvq.load(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    hub.write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        hub.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_at_rest_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        hub.write_json(tmp_path / "x.json", {"psnr": float("nan")})


def test_golden_description(tmp_path, model):
    gmvq.save(model, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["format"] == "gmvq.autoencoder"
    assert description["version"] == 1
    assert description["config"]["codebook_size"] == 12
    assert len(description["fingerprint"]) == 64


@pytest.mark.parametrize("run", OLD_MODELS, ids=lambda run: run.name)
def test_old_runs_load(tmp_path, run):
    expected = load_file(run / "expected.safetensors")
    model = gmvq.load(run)
    codes = model.encode(expected["images"])
    if run.name == "none":
        torch.testing.assert_close(codes, expected["codes"], atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(codes, expected["codes"])
    torch.testing.assert_close(model.decode(expected["codes"]), expected["reconstruction"], atol=1e-4, rtol=1e-4)
    # codes written with the old model name it by its fingerprint: it stays, and that of a copy saved anew is the same
    described = json.loads((run / "config.json").read_text())["fingerprint"]
    assert hub.fingerprint(model) == hub.fingerprint(copy.deepcopy(model)) == described
    gmvq.save(model, tmp_path)
    assert hub.fingerprint(gmvq.load(tmp_path)) == described


@pytest.mark.parametrize("run", OLD_MODELS, ids=lambda run: run.name)
def test_old_runs_learn_on(run):
    model = gmvq.load(run).train()
    before = hub.fingerprint(model)
    loss = model(load_file(run / "expected.safetensors")["images"]).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert hub.fingerprint(model) != before
