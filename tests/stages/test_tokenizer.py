import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

import gmvq
from gmvq import hub, recipes, stages
from gmvq.data.sealing import read_record, write_record
from gmvq.models import AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.networks import Classifier
from gmvq.stages import classifier as classifying
from gmvq.stages import tokenizer as running
from gmvq.stages.layout import METRICS, RECORD, REPORT, read_json
from gmvq.stages.tokenizer import LEARNED
from gmvq.training import Interrupted, NonFiniteLossError
from gmvq.training.loop import Loop

# what the issue asks of metrics.json
WANTED = {
    "psnr", "ssim", "mse", "usage", "perplexity", "bits_per_pixel", "elbo_bits_per_dim", "albo_bits_per_dim",
    "iwae_bits_per_dim", "posterior_entropy", "mutual_information", "seconds", "items_per_second",
}  # fmt: skip
QUIET = Console(quiet=True)


def tiny(**changes):
    settings = {"steps": 3, "batch_size": 8, "width": 8, "blocks": 1, "codebook_size": 16, "evaluated": 20}
    return recipes.changed(recipes.digits(), **{**settings, **changes})


def fitted(recipe):
    return stages.fitted(recipe, stages.load_data(recipe.data))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    return out, recipes.run(tiny(), out, command="gmvq train digits", console=QUIET)


def test_a_run_leaves_all_its_files(finished):
    out, metrics = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        "checkpoint",
        RECORD,
        METRICS,
        REPORT,
        "reconstructions.png",
        "config.json",
        "log.jsonl",
        "model.safetensors",
    }
    assert read_record(out / "metrics.json") == metrics
    assert metrics.keys() >= WANTED
    assert all(metrics[name] is not None for name in WANTED)
    assert metrics["items"] == 20
    assert metrics["protocol"].startswith("20 images.")


def test_the_record_holds_the_whole_run(finished):
    out, _ = finished
    record = json.loads((out / "run.json").read_text())
    described = json.loads(json.dumps(fitted(tiny()).described()))
    assert record["run"] == {**described, "fingerprint": record["data"]["fingerprint"]}
    assert record["command"] == "gmvq train digits"
    assert record["versions"].keys() == {"python", "torch", "gmvq"}
    assert record["hardware"]
    assert len(record["data"]["fingerprint"]) == 64
    assert record["fingerprint"] == hub.fingerprint(gmvq.load(out))
    assert "finished" in record
    assert stages.read_run(out) == fitted(tiny())


def test_the_picture_shows_pairs(finished):
    out, _ = finished
    with PIL.Image.open(out / "reconstructions.png") as picture:
        # eight digits of 8 pixels, enlarged 8 times, with gaps of 2 between them
        assert picture.size == (8 * 8 * 8 + 7 * 2, 2 * 8 * 8 + 2)


def test_the_seed_makes_the_run(tmp_path, finished):
    _, metrics = finished
    again = recipes.run(tiny(), tmp_path / "again", console=QUIET, report=False)
    assert again["mse"] == metrics["mse"]
    assert not (tmp_path / "again" / "report.html").exists()
    assert recipes.run(tiny(seed=1), tmp_path / "other", console=QUIET, report=False)["mse"] != metrics["mse"]


def test_a_finished_run_is_found_again_and_another_is_not_replaced_unless_asked(tmp_path):
    out = tmp_path / "run"
    first = recipes.run(tiny(), out, console=QUIET, report=False)
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (the console writes until the test ends)
    with console.file:
        assert recipes.run(tiny(), out, console=console, report=False) == first
    assert "--overwrite" in console.export_text()
    with pytest.raises(ValueError, match=r"differs in model.width \(8 there, 16 now\), training.seed"):
        recipes.run(tiny(width=16, seed=3), out, console=QUIET)
    # what no step depends on may differ
    assert recipes.run(tiny(threads=1, checkpoint_every=7), out, console=QUIET, report=False) == first
    (out / "report.html").write_text("of the former run")
    again = recipes.run(tiny(seed=3), out, overwrite=True, console=QUIET, report=False)
    assert again["mse"] != first["mse"]
    assert not (out / "report.html").exists()


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    hub.save(Autoencoder(AutoencoderConfig(width=8)), tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    fit = {"model": "differs in", "mine": "holds thesis.txt", "file": "is a file"}
    for name, reason in fit.items():
        if name != "model":
            with pytest.raises(ValueError, match=reason):
                recipes.run(tiny(), tmp_path / name, console=QUIET)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_other_data_are_another_run(finished):
    out, _ = finished
    data = stages.load_data(recipes.digits().data)
    with pytest.raises(ValueError, match="differs in fingerprint"):
        recipes.run(tiny(), out, data=data._replace(train=data.held_out), console=QUIET)


def test_the_data_of_a_run_are_those_that_it_learned_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    recipe = recipes.changed(recipes.fashion_mnist(tmp_path / "x.npy"), steps=1, width=8, batch_size=4)
    recipes.run(recipe, tmp_path / "run", console=QUIET, report=False)
    config = stages.read_run(tmp_path / "run").data
    held_out = stages.data_of_run(tmp_path / "run", config).held_out.names
    # a copy of the folder, as from a stranger, names no path that is read
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(ValueError, match="give the data with --data"):
        stages.data_of_run(tmp_path / "copy", config)
    assert stages.data_of_run(tmp_path / "copy", config, tmp_path / "x.npy").held_out.names == held_out
    # other data at that path are not taken for what was held out
    np.save(tmp_path / "x.npy", np.concatenate([pixels, pixels[:2] // 2]))
    with pytest.raises(ValueError, match="differ from those of"):
        stages.data_of_run(tmp_path / "run", config)


def test_training_starts_from_another_run(tmp_path, finished):
    out, metrics = finished
    recipe = replace(tiny(learning_rate=1e-9), start=str(out))
    again = recipes.run(recipe, tmp_path / "run", console=QUIET, report=False)
    assert again["mse"] == pytest.approx(metrics["mse"], rel=0.1)
    with pytest.raises(ValueError, match="differs in width"):
        recipes.run(recipes.changed(recipe, width=16), tmp_path / "other", console=QUIET)


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
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(running.TokenizerStage, "learn", lambda *_, **__: None)
    assert recipes.run(tiny(), tmp_path / "run", console=QUIET) == {}
    assert not (tmp_path / "run").exists()


def test_divergence_is_not_hidden(tmp_path):
    with pytest.raises(NonFiniteLossError):
        recipes.run(tiny(learning_rate=1e38, gradient_clip=1e38, steps=20), tmp_path, console=QUIET)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_files_that_are_no_json_objects(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_json(tmp_path / "run.json") is None
    with pytest.raises(FileNotFoundError, match="gmvq train"):
        stages.read_run(tmp_path)
    with pytest.raises(ValueError, match="must be a folder of its own"):
        recipes.run(tiny(), tmp_path, console=QUIET)


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_changed_record_is_noticed(finished, tmp_path, name):
    out = shutil.copytree(finished[0], tmp_path / "run")
    text = (out / name).read_text()
    (out / name).write_text(text.replace("20", "21"))
    if name == "run.json":
        with pytest.raises(FileNotFoundError, match=r"run\.json is missing or damaged"):
            stages.read_run(out)
        with pytest.raises(hub.DamagedFileError, match="pass --overwrite"):
            recipes.run(tiny(), out, console=QUIET)
    else:  # it is measured again
        assert recipes.run(tiny(), out, console=QUIET, resume=True)["items"] == 20
        assert read_record(out / name)["items"] == 20


def test_records_of_other_versions(tmp_path):
    write_record(tmp_path / "run.json", {"run": {"name": "x", "data": {"colour": 1}, "model": {}}})
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
        PIL.Image.fromarray(pixels).save((folder if index % 2 else folder / "nested") / f"{index}{suffix}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")
    recipe = recipes.changed(recipes.folder(folder), steps=2, width=8, blocks=1, batch_size=4, codebook_size=16)
    with pytest.warns(UserWarning, match="Skipped 1 file"):
        metrics = recipes.run(recipe, tmp_path / "run", console=QUIET)
    with pytest.warns(UserWarning, match="Skipped 1 file"):
        data = stages.load_data(recipe.data)
    assert metrics["items"] == len(data.held_out)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [skipped["path"] for skipped in record["data"]["skipped"]] == [str(folder / "broken.jpg")]
    assert record["run"]["data"]["size"] == 64


def test_features_are_learned_from_the_data_first(tmp_path, monkeypatch):
    short = replace(classifying._TRAINING, steps=2)
    monkeypatch.setattr(classifying, "_TRAINING", short)
    against = AdversarialConfig(width=8, layers=2, feature_weight=0.5)
    recipe = replace(tiny(), adversarial=against, features=LEARNED)
    recipes.run(recipe, tmp_path / "run", console=QUIET)
    assert stages.read_run(tmp_path / "run") == fitted(recipe)
    learned = hub.load(tmp_path / "run/features", Classifier)
    assert learned.config.classes == 10
    line = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert line["feature_distance"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(classifying, "learn", None)  # it is found again
        again = recipes.run(recipe, tmp_path / "run", overwrite=True, console=QUIET)
    # and is the same as by its folder
    by_folder = replace(recipe, features=str(tmp_path / "run/features"))
    assert recipes.run(by_folder, tmp_path / "other", console=QUIET)["mse"] == again["mse"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("run.json", "The record could not be written to"),
        ("checkpoint/state.safetensors", "The checkpoint of step 3 could not be written to"),
        ("model.safetensors", "The model could not be written to .* checkpoint of its last step is valid"),
        ("metrics.json", "What was measured could not be written to .* The model is valid"),
        ("reconstructions.png", "The sheet of reconstructions could not be written to .* its metrics are valid"),
        ("report.html", "The report could not be written to .* give the same command again"),
    ],
)
def test_a_full_disk_is_named_and_made_up_for(tmp_path, monkeypatch, file, said):
    run, out = tiny(), tmp_path / "run"
    replace_file = Path.replace

    def full(self, target):
        if Path(target) == out / file:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match=rf"^{said}.*") as caught:
            recipes.run(run, out, console=QUIET)
    message = str(caught.value)
    assert str(out / file) in message
    assert "No space left on device" in message
    assert "\n" not in message
    steps = []
    monkeypatch.setattr(Loop, "_step", lambda loop, batches, step=Loop._step: (steps.append(1), step(loop, batches)))
    metrics = recipes.run(run, out, console=QUIET, resume=True)
    assert (out / "report.html").is_file()
    assert (out / "reconstructions.png").is_file()
    assert read_record(out / "metrics.json") == metrics
    assert len(steps) == (3 if file in ("run.json", "checkpoint/state.safetensors") else 0)
