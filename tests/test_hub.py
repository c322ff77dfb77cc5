import copy
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gmvq
from gmvq import hub
from gmvq.data.parsing import LARGEST_JSON
from gmvq.data.sealing import write_record, write_sealed
from gmvq.data.writing import write_atomically, write_json
from gmvq.modalities import Image
from gmvq.models import DiffusionConfig, DiffusionDecoder
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.priors import PRIORS, CodeShape, make_prior
from gmvq.quantizers import QUANTIZERS

GOLDEN = sorted((Path(__file__).parent / "golden/models").iterdir())


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(width=8, blocks=1, codebook_size=12))
    model(torch.rand(4, 3, 8, 8))
    return model


def rewrite(folder, **changes):
    """Changes entries of a configuration, and seals it again: as a stranger could."""
    description = json.loads((folder / hub.CONFIG).read_text())
    del description["digest"]
    write_record(folder / hub.CONFIG, {**description, **changes})


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
            "not what was written",
        ),
        (
            lambda run: write_record(run / "config.json", {"format": "gmvq.autoencoder", "version": 1}),
            "has no configuration",
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
    with pytest.raises(ValueError, match="not of one part"):
        gmvq.load(tmp_path / "two")


def test_a_fingerprint_of_another_model_is_noticed(tmp_path, model):
    gmvq.save(model, tmp_path)
    write_sealed(tmp_path / hub.WEIGHTS, hub.kind_of(type(model)).weights, {"fingerprint": "abc"}, model.state_dict())
    rewrite(tmp_path, fingerprint="abc")
    with pytest.raises(hub.DamagedFileError, match="does not have the fingerprint"):
        gmvq.load(tmp_path)


@pytest.mark.parametrize("name", [hub.WEIGHTS, hub.CONFIG])
def test_any_changed_byte_is_noticed(tmp_path, model, name):
    gmvq.save(model, tmp_path, tokenizer="abc")
    whole, expected = (tmp_path / name).read_bytes(), hub.fingerprint(model)
    generator, refused = random.Random(0), 0
    for place in generator.sample(range(len(whole)), 200):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(spoilt)
        try:
            assert hub.fingerprint(gmvq.load(tmp_path)) == expected
            assert hub.tokenizer_of(tmp_path, gmvq.Autoencoder) == "abc"
            assert bytes(spoilt).split() == whole.split()  # JSON may have other spaces
        except hub.DamagedFileError:
            refused += 1
    assert refused > 150


def test_a_missing_run_gets_a_reason(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        gmvq.load(tmp_path / "nowhere")
    gmvq.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not there"):
        gmvq.load(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_at_rest_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"psnr": float("nan")})


def test_golden_description(tmp_path, model):
    gmvq.save(model, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["format"] == "gmvq.autoencoder"
    assert description["version"] == 1
    assert description["config"]["codebook_size"] == 12
    assert len(description["fingerprint"]) == 64


@pytest.mark.parametrize("run", GOLDEN, ids=lambda run: run.name)
def test_models_that_were_saved_once_load(tmp_path, run):
    expected = load_file(run / "expected.safetensors")
    model = gmvq.load(run)
    codes = model.encode(expected["images"])
    if run.name == "none":
        torch.testing.assert_close(codes, expected["codes"], atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(codes, expected["codes"])
    torch.testing.assert_close(model.decode(expected["codes"]), expected["reconstruction"], atol=1e-4, rtol=1e-4)
    described = json.loads((run / "config.json").read_text())["fingerprint"]
    assert hub.fingerprint(model) == hub.fingerprint(copy.deepcopy(model)) == described
    gmvq.save(model, tmp_path)
    for name in (hub.WEIGHTS, hub.CONFIG):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def priors():
    """A small prior of each name."""
    shape = CodeShape((2, 2), (4,))
    sizes = {"width": 8, "depth": 1, "heads": 2}
    found = {}
    for name, kind in PRIORS.items():
        options = {} if kind.config is None else {**sizes, **({"codebook_dim": 2} if name == "latent-flow" else {})}
        prior = make_prior(name, shape, options)
        if kind.config is None:
            prior.fit([torch.zeros(3, 2, 2, dtype=torch.int64)])
        if name == "latent-flow":
            prior.place(torch.randn(4, 2), 0.0, torch.ones(4))
        found[name] = prior
    return found


def parts():
    """One part of each kind, each quantizer and each prior."""
    torch.manual_seed(0)
    small = {"width": 8, "blocks": 1, "codebook_size": 16}
    for quantizer in QUANTIZERS:
        yield f"autoencoder {quantizer}", gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer, **small))
    for name, prior in priors().items():
        yield f"prior {name}", prior
    yield "decoder", DiffusionDecoder(DiffusionConfig(channels=3, dim=4, downsampling=4, width=8, blocks=1))
    yield "classifier", Classifier(ClassifierConfig(Image(3).signal, 4, width=8, features=8))


PARTS = dict(parts())


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_part_is_saved_and_loaded_in_its_precision(tmp_path, name, dtype):
    part = copy.deepcopy(PARTS[name]).to(dtype)
    kind = hub.kind_of(type(part)).part
    hub.save(part, tmp_path, tokenizer="abc")
    loaded = hub.load(tmp_path, kind)
    assert type(loaded) is type(part)
    assert hub.tokenizer_of(tmp_path, kind) == "abc"
    state = part.state_dict()
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == state[key].dtype, key
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"width": 2**50},
        {"blocks": 10**9},
        {"codebook_size": 10**12},
        {"code_dim": 10**8},
        {"quantizer": "nothing"},
        {"quantizer": 7},
        {"quantizer_options": [1]},
        {"quantizer_options": {"kind": "x"}},
        {"downsampling": 2**40},
        {"modality": {"kind": "nothing"}},
        {"modality": {"kind": "image", "channels": "many"}},
        {"modality": {"kind": "image", "path": "/etc"}},
        {"modality": 3},
        {"likelihood": True},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_asks_for_anything_is_refused_before_memory_is_taken(tmp_path, model, change):
    hub.save(model, tmp_path)
    rewrite(tmp_path, config=model.config.described() | change)
    with pytest.raises(hub.DamagedFileError, match="can build"):
        hub.load(tmp_path)


def fields_of(value, at=()):
    """Places of all values in a nested configuration."""
    for key, inner in value.items():
        yield (*at, key)
        if isinstance(inner, dict):
            yield from fields_of(inner, (*at, key))


@pytest.mark.parametrize("name", ["autoencoder gaussian-mixture", "prior autoregressive", "decoder", "classifier"])
def test_no_value_of_a_configuration_has_another_outcome(tmp_path, name):
    kind = hub.kind_of(type(PARTS[name]))
    hub.save(PARTS[name], tmp_path)
    config = json.loads((tmp_path / hub.CONFIG).read_text())["config"]
    loaded, said = 0, []
    for *path, key in fields_of(config):
        for value in (10**9, None, "../../x", [[1]]):
            changed = copy.deepcopy(config)
            inner = changed
            for part in path:
                inner = inner[part]
            inner[key] = value
            rewrite(tmp_path, config=changed)
            try:
                hub.load(tmp_path, kind.part)
                loaded += 1
            except hub.DamagedFileError as error:
                said.append(str(error))
    assert max(map(len, said)) < 1000
    assert not any("\n" in each for each in said)
    assert loaded <= len(config)  # None where that is the default, too


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "null", "3", '{"format": "gmvq.autoencoder", "version": true}']
)
def test_json_that_is_none_of_ours_is_refused(tmp_path, model, text):
    hub.save(model, tmp_path)
    (tmp_path / hub.CONFIG).write_text(text)
    with pytest.raises(hub.DamagedFileError):
        hub.load(tmp_path)


def test_a_configuration_of_a_gigabyte_is_not_read(tmp_path, model):
    hub.save(model, tmp_path)
    with (tmp_path / hub.CONFIG).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(hub.DamagedFileError, match=f"larger than {LARGEST_JSON >> 20} MiB"):
        hub.load(tmp_path)


def test_weights_of_another_shape_or_kind_are_named(tmp_path, model):
    hub.save(model, tmp_path)
    weights = load_file(tmp_path / hub.WEIGHTS)
    first = next(name for name in weights if name.startswith("encoder"))
    for spoilt, reason in (
        ({**weights, first: weights[first][:1]}, first),
        ({**weights, first: weights[first].long()}, first),
        ({name: tensor for name, tensor in weights.items() if name != first}, "lack"),
        ({**weights, "more": torch.zeros(1)}, "more"),
    ):
        mark = {"fingerprint": hub.fingerprint(model)}
        write_sealed(tmp_path / hub.WEIGHTS, hub.kind_of(type(model)).weights, mark, spoilt)
        with pytest.raises(hub.DamagedFileError, match=reason):
            hub.load(tmp_path)


def test_a_copy_that_is_not_installed_saves(tmp_path, model, monkeypatch):
    def missing(_):
        raise hub.metadata.PackageNotFoundError

    monkeypatch.setattr(hub.metadata, "version", missing)
    hub.save(model, tmp_path)
    assert json.loads((tmp_path / hub.CONFIG).read_text())["gmvq"] == "unknown"
    hub.load(tmp_path)
