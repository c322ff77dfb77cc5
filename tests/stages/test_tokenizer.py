import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gmvq import stages
from gmvq.stages.layout import read_json
from gmvq.stages.tokenizer import LEARNED
from gmvq.networks import Classifier
import gmvq
from gmvq import hub, recipes
from gmvq.models import AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.recipes import classifying, running
from gmvq.stages.layout import METRICS, PICTURE, RECORD, REPORT
from gmvq.training import Interrupted, NonFiniteLossError

# what the issue asks of metrics.json
WANTED = {
    "psnr", "ssim", "mse", "usage", "perplexity", "bits_per_pixel", "elbo_bits_per_dim", "albo_bits_per_dim",
    "iwae_bits_per_dim", "posterior_entropy", "mutual_information", "seconds", "items_per_second",
}  # fmt: skip
QUIET = Console(quiet=True)


def tiny(**changes):
    settings = {"steps": 3, "batch_size": 8, "width": 8, "blocks": 1, "codebook_size": 16, "evaluated": 20}
    return recipes.changed(recipes.digits(), **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    return out, recipes.run(tiny(), out, command="gmvq train digits", console=QUIET)


def test_a_run_leaves_all_its_files(finished):
    out, metrics = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"checkpoint", RECORD, METRICS, REPORT, PICTURE, "config.json", "log.jsonl", "model.safetensors"}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics.keys() >= WANTED
    assert all(metrics[name] is not None for name in WANTED)
    assert metrics["items"] == 20
    assert metrics["protocol"].startswith("20 images.")


def test_the_record_holds_the_whole_run(finished):
    out, _ = finished
    record = json.loads((out / "run.json").read_text())
    assert record["run"] == json.loads(json.dumps(asdict(tiny())))
    assert record["command"] == "gmvq train digits"
    assert record["versions"].keys() == {"python", "torch", "gmvq"}
    assert record["hardware"]
    assert len(record["data"]["fingerprint"]) == 64
    assert record["fingerprint"] == hub.fingerprint(gmvq.load(out))
    assert "finished" in record
    assert stages.read_run(out) == tiny()


def test_the_picture_shows_pairs(finished):
    out, _ = finished
    with Image.open(out / "reconstructions.png") as picture:
        # eight digits of 8 pixels, enlarged 16 times, with gaps of 4 between them
        assert picture.size == (8 * 8 * 16 + 7 * 4, 2 * 8 * 16 + 4)


def test_the_seed_makes_the_run(tmp_path, finished):
    _, metrics = finished
    again = recipes.run(tiny(), tmp_path / "again", console=QUIET, report=False)
    assert again["mse"] == metrics["mse"]
    assert not (tmp_path / "again" / "report.html").exists()
    assert recipes.run(tiny(seed=1), tmp_path / "other", console=QUIET, report=False)["mse"] != metrics["mse"]


def test_the_same_run_replaces_and_another_does_not(tmp_path):
    out = tmp_path / "run"
    first = recipes.run(tiny(), out, console=QUIET, report=False)
    (out / "report.html").write_text("of the former run")
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (the console writes until the test ends)
    with console.file:
        assert recipes.run(tiny(), out, console=console, report=False)["mse"] == first["mse"]
    assert "Replacing" in console.export_text()
    assert not (out / "report.html").exists()
    with pytest.raises(ValueError, match=r"differs in model.width \(8 there, 16 now\), training.seed"):
        recipes.run(tiny(width=16, seed=3), out, console=QUIET)
    # what no step depends on may differ
    recipes.check_folder(out, tiny(threads=1, checkpoint_every=7))


def test_records_from_before_a_field_was_there(tmp_path, finished):
    out, _ = finished
    record = json.loads((out / "run.json").read_text())
    for part, name in (("data", "face_side"), ("data", "train_limit"), ("training", "betas"), ("model", "network")):
        del record["run"][part][name]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert stages.read_run(tmp_path) == tiny()
    recipes.check_folder(tmp_path, tiny())
    with pytest.raises(ValueError, match=r"differs in data.train_limit \(None there, 9 now\)\."):
        recipes.check_folder(tmp_path, tiny(train_limit=9))
    # what is missing altogether is not taken for the defaults
    del record["run"]["data"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="another run"):
        recipes.check_folder(tmp_path, tiny())


def test_a_run_is_resumed_from_a_record_without_newer_fields(tmp_path, finished):
    _, metrics = finished
    out = tmp_path / "run"
    recipes.run(tiny(), out, console=QUIET, report=False)
    record = json.loads((out / "run.json").read_text())
    del record["run"]["data"]["face_side"], record["run"]["data"]["train_limit"]
    (out / "run.json").write_text(json.dumps(record))
    assert recipes.run(tiny(), out, resume=True, console=QUIET, report=False)["mse"] == metrics["mse"]


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    hub.save(Autoencoder(AutoencoderConfig(width=8)), tmp_path)
    with pytest.raises(ValueError, match="no run of gmvq made"):
        recipes.run(tiny(), tmp_path, console=QUIET)


def test_other_data_are_another_run(finished):
    out, _ = finished
    data = stages.load_data(recipes.digits().data)
    recipes.check_folder(out, tiny(), data)
    with pytest.raises(ValueError, match="data fingerprint"):
        recipes.check_folder(out, tiny(), data._replace(train=data.held_out))


def test_resume_goes_on_and_without_a_checkpoint_begins(tmp_path, finished, monkeypatch):
    _, metrics = finished
    asked = []
    monkeypatch.setattr(running, "train", lambda *_, resume, **__: asked.append(resume) or stop())

    def stop():
        raise Interrupted(1, 3, tmp_path)

    with pytest.raises(Interrupted):
        recipes.run(tiny(), tmp_path / "new", resume=True, console=QUIET)
    assert asked == [False]
    assert read_json(tmp_path / "new" / "metrics.json") is None
    monkeypatch.undo()
    assert recipes.run(tiny(), tmp_path / "new", resume=True, console=QUIET, report=False)["mse"] == metrics["mse"]
    assert recipes.run(tiny(), tmp_path / "new", resume=True, console=QUIET, report=False)["mse"] == metrics["mse"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "train", lambda *_, **__: None)
    monkeypatch.setenv("RANK", "1")
    assert recipes.run(tiny(), tmp_path / "run", console=QUIET) == {}
    assert not (tmp_path / "run").exists()


def test_divergence_is_not_hidden(tmp_path):
    with pytest.raises(NonFiniteLossError):
        recipes.run(tiny(learning_rate=1e38, gradient_clip=1e38, steps=20), tmp_path, console=QUIET)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_files_that_are_no_json_objects(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_json(tmp_path / "run.json") is None
    with pytest.raises(FileNotFoundError, match="--data"):
        stages.read_run(tmp_path)
    with pytest.raises(ValueError, match="no run of gmvq"):
        recipes.check_folder(tmp_path, tiny())


def test_records_of_other_versions(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"run": {"name": "x", "data": {"colour": 1}, "model": {}}}))
    with pytest.raises(ValueError, match="not of this version"):
        stages.read_run(tmp_path)


def test_thirty_mixed_photographs_with_a_broken_one(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "nested").mkdir(parents=True)
    for index in range(30):
        size, mode = [(70, 90), (40, 40), (64, 100)][index % 3], ["RGB", "L", "RGBA"][index % 3]
        channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
        pixels = generator.integers(0, 256, (*size, channels), np.uint8).squeeze()
        suffix = [".png", ".webp", ".tiff"][index % 3]
        Image.fromarray(pixels).save((folder if index % 2 else folder / "nested") / f"{index}{suffix}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")
    recipe = recipes.changed(recipes.folder(folder), steps=2, width=8, blocks=1, batch_size=4, codebook_size=16)
    with pytest.warns(UserWarning, match="Skipped 1 file"):
        metrics = recipes.run(recipe, tmp_path / "run", console=QUIET)
    assert metrics["items"] == 3
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [skipped["path"] for skipped in record["data"]["skipped"]] == [str(folder / "broken.jpg")]
    assert record["run"]["data"]["crop"] == 64


def test_features_are_learned_from_the_data_first(tmp_path, monkeypatch):
    short = replace(classifying._TRAINING, steps=2)
    monkeypatch.setattr(classifying, "_TRAINING", short)
    against = AdversarialConfig(width=8, layers=2, feature_weight=0.5)
    recipe = replace(tiny(), adversarial=against, features=LEARNED)
    recipes.run(recipe, tmp_path / "run", console=QUIET)
    assert stages.read_run(tmp_path / "run") == recipe
    learned = hub.load(tmp_path / "run/features", Classifier)
    assert learned.config.classes == 10
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert line["feature_distance"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(classifying, "learn", None)  # it is found again
        again = recipes.run(recipe, tmp_path / "run", console=QUIET)
    # and is the same as by its folder
    by_folder = replace(recipe, features=str(tmp_path / "run/features"))
    assert recipes.run(by_folder, tmp_path / "other", console=QUIET)["mse"] == again["mse"]
