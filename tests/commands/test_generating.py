import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from gmvq import hub, recipes, stages
from gmvq.__main__ import main
from gmvq.networks import Classifier
from gmvq.stages import judge as judging
from gmvq.training import Interrupted
from gmvq.training.loop import Loop


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A tokenizer of the bundled digits and a prior over its codes, by the commands."""
    folder = tmp_path_factory.mktemp("digits")
    run = str(folder / "run")
    small = ["--steps", "3", "--batch-size", "8"]
    assert main(["train", "digits", "--out", run, *small, "--width", "8", "--codebook-size", "16"]) == 0
    assert main(["fit-prior", run, *small, "--width", "16", "--depth", "1", "--heads", "2"]) == 0
    return folder / "run"


@pytest.fixture
def run(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "run")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_samples_are_drawn_by_class_and_seed(run, tmp_path, capsys):
    assert main(["sample", str(run), "-n", "12", "--label", "3", "5", "--guidance", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == [3, 5] * 6
    first = pixels(found["out"])
    assert first.shape == (2 * 64 + 2, 8 * 64 + 7 * 2)  # eightfold, since they are small
    again, other = str(tmp_path / "again.png"), str(tmp_path / "other.png")
    assert main(["sample", str(run), "-n", "12", "--label", "3", "5", "--guidance", "2", "--out", again]) == 0
    assert np.array_equal(pixels(again), first)
    assert main(["sample", str(run), "-n", "12", "--seed", "1", "--out", other]) == 0
    assert not np.array_equal(pixels(other), first)
    assert "12 item(s)" in capsys.readouterr().out


def test_drawn_codes_decode_to_the_same_images(run, tmp_path):
    codes, sheet = str(tmp_path / "codes.safetensors"), str(tmp_path / "sheet.png")
    assert main(["sample", str(run), "-n", "4", "--columns", "1", "--out", sheet, "--codes", codes]) == 0
    assert main(["detokenize", str(run), codes, str(tmp_path / "decoded")]) == 0
    decoded = [pixels(tmp_path / f"decoded/{index:05d}.png") for index in range(4)]
    shown = pixels(sheet)
    for index, one in enumerate(decoded):
        part = shown[66 * index : 66 * index + 64]
        assert np.abs(part[::8, ::8].astype(int) - one).max() <= 1
        assert np.array_equal(part[::8, ::8], part[7::8, 7::8])


@pytest.mark.parametrize("mask", ["lower", "upper", "left", "right", "middle", "picture"])
def test_a_completion_shows_the_image_the_mask_and_the_draws(run, tmp_path, capsys, mask):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    Image.fromarray(image).save(tmp_path / "image.png")
    hidden = np.zeros((8, 8), np.uint8)
    hidden[2:4, 5] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    words = str(tmp_path / "mask.png") if mask == "picture" else mask
    out = str(tmp_path / "out.png")
    assert main(["complete", str(run), str(tmp_path / "image.png"), out, "--mask", words, "-n", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hidden"] == {"middle": 0.25, "picture": 2 / 64}.get(mask, 0.5)
    shown = pixels(out)
    assert shown.shape == (64, 5 * 64 + 4 * 2)
    first, masked, drawn = (shown[::8, 66 * place : 66 * place + 64 : 8] for place in range(3))
    assert np.array_equal(first, image)
    kept = masked != 128
    assert np.array_equal(drawn[kept], image[kept])


@pytest.fixture
def pair(tmp_path):
    generator = np.random.default_rng(0)
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return paths


def test_an_interpolation_is_shown_between_its_ends(run, pair, tmp_path, capsys):
    out = tmp_path / "between.png"
    assert main(["interpolate", str(run), *map(str, pair), str(out), "-n", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 5
    shown = pixels(out)
    assert shown.shape == (64, 7 * 64 + 6 * 2)
    for place, path in ((0, pair[0]), (6, pair[1])):
        assert np.array_equal(shown[::8, 66 * place : 66 * place + 64 : 8], pixels(path))
    assert main(["interpolate", str(run), *map(str, pair), str(out), "-n", "1"]) == 1
    assert "'number' must be an integer of at least 2, got 1" in capsys.readouterr().err


def test_held_out_images_go_by_their_number(run, tmp_path, capsys):
    data = stages.load_data(stages.read_run(run).data)
    out = str(tmp_path / "out.png")
    assert main(["interpolate", str(run), "3", "5", out, "-n", "2"]) == 0
    shown = pixels(out)
    assert np.array_equal(shown[::8, :64:8], data.held_out[3][0].numpy())
    assert np.array_equal(shown[::8, 3 * 66 :: 8], data.held_out[5][0].numpy())
    assert main(["complete", str(run), "7", out, "-n", "1"]) == 0
    assert np.array_equal(pixels(out)[::8, :64:8], data.held_out[7][0].numpy())
    capsys.readouterr()
    assert main(["swap", str(run), "3", "99999", out]) == 1
    assert "held-out images, got the number 99999" in capsys.readouterr().err


def test_codes_are_swapped_where_the_mask_says(run, pair, tmp_path, capsys):
    out = tmp_path / "swapped.png"
    words = ["swap", str(run), *map(str, pair), str(out)]
    assert main([*words, "--mask", "right", "--json"]) == 0
    model = hub.load(run)
    first, second = (model.encode(torch.tensor(pixels(path))[None, None]) for path in pair)
    half = first.shape[-1] // 2
    assert json.loads(capsys.readouterr().out)["changed_codes"] == int((first != second)[..., half:].sum())
    mixed = torch.cat([first[..., :half], second[..., half:]], dim=-1)
    expected = (model.decode(mixed)[0, 0] * 255).round().byte().numpy()
    assert np.abs(pixels(out)[::8, 132::8].astype(int) - expected).max() <= 1
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(pair[1])
    assert main(words) == 1
    assert "must have one size, got 8x8 and 9x8 samples" in capsys.readouterr().err


def test_the_judge_learns_once_and_shows_nearest_neighbours(run, capsys):
    words = ["judge", str(run), "-n", "24", "--steps", "3", "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "Training a classifier" in captured.err
    found = json.loads(captured.out)
    assert set(found["metrics"]) == {
        *("agreement", "real_accuracy", "frechet", "kernel", "precision", "recall", "real", "drawn"),
        *("reconstructed_frechet", "reconstructed_kernel"),
    }
    assert found["metrics"]["drawn"] == 24
    assert pixels(found["out"]).shape == (4 * 64 + 3 * 2, 10 * 64 + 9 * 2)
    for number, shape in ((15, (130, 10 * 64 + 9 * 2)), (4, (130, 4 * 64 + 3 * 2))):
        assert main(["judge", str(run), "-n", str(number), "--steps", "3"]) == 0
        assert pixels(found["out"]).shape == shape
    capsys.readouterr()
    assert main(words[:-1]) == 0
    again = capsys.readouterr()
    assert "Training a classifier" not in again.err
    assert "class seen in drawn items" in again.out


def test_steps_of_drawing_are_for_priors_that_have_some(run, tmp_path, capsys):
    assert main(["sample", str(run), "-n", "2", "--draw-steps", "3"]) == 1
    assert "'draw_steps' must be left out" in capsys.readouterr().err
    small = ["--steps", "3", "--batch-size", "8", "--width", "16", "--depth", "1", "--heads", "2"]
    assert main(["fit-prior", str(run), "--prior", "masked", "--overwrite", *small]) == 0
    sheets = [str(tmp_path / f"{steps}.png") for steps in (1, 8)]
    for sheet in sheets:
        steps = sheet.rpartition("/")[2].partition(".")[0]
        assert main(["sample", str(run), "-n", "2", "--draw-steps", steps, "--out", sheet]) == 0
    assert not np.array_equal(*map(pixels, sheets))


def test_the_judge_compares_with_reconstructions_of_the_same_decoder(run, capsys):
    small = ["--steps", "2", "--batch-size", "8", "--width", "8", "--blocks", "1"]
    assert main(["fit-decoder", str(run), *small]) == 0
    found = []
    for decoder in ([], ["--decoder", str(run / "decoder")]):
        capsys.readouterr()
        assert main(["judge", str(run), "-n", "24", "--steps", "3", "--json", *decoder]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    for name in ("frechet", "reconstructed_frechet"):
        assert found[0][name] != found[1][name]
    assert found[0]["real_accuracy"] == found[1]["real_accuracy"]


def test_the_judge_tells_fid_where_its_network_is_at_hand(run, monkeypatch, capsys):
    monkeypatch.setattr("gmvq.commands.judge.load_inception", lambda path: lambda images: images.flatten(1)[:, ::5])
    assert main(["judge", str(run), "-n", "24", "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "FID" in said
    assert "FID and KID by Inception" in said
    assert "no FID" not in said


def test_a_drawn_copy_is_its_own_nearest_neighbour(run):
    data = stages.load_data(stages.read_run(run).data)
    classifier = stages.classifier_of(data, run / "classifier", 3, Console(quiet=True))
    copies = torch.stack([data.train[index] for index in (5, 400, 77)]).float() / 255
    found = judging.nearest_real(classifier, copies, data.train)
    assert all(torch.equal(data.train[one], data.train[other]) for one, other in zip(found, (5, 400, 77), strict=True))


@pytest.mark.parametrize("tint", [0.0, 0.3])
def test_a_judge_that_was_stopped_goes_on(run, tmp_path, monkeypatch, tint):
    data, quiet = stages.load_data(stages.read_run(run).data), Console(quiet=True)
    whole = stages.classifier_of(data, tmp_path / "whole", 3, quiet, tint=tint)
    step, steps = Loop._step, []

    def stop(trainer, batches):
        step(trainer, batches)
        if trainer.step == 2:
            trainer._save()
            raise Interrupted(2, 3, trainer.out)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stop)
        with pytest.raises(Interrupted):
            stages.classifier_of(data, tmp_path / "stopped", 3, quiet, tint=tint)

    def counted(trainer, batches):
        steps.append(trainer.step)
        step(trainer, batches)

    monkeypatch.setattr(Loop, "_step", counted)
    resumed = stages.classifier_of(data, tmp_path / "stopped", 3, quiet, tint=tint)
    assert steps == [2]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_images_without_labels_are_judged_by_exemplars(tmp_path, capsys):
    run, small = tmp_path / "run", ["--steps", "3", "--batch-size", "8"]
    assert main(["train", "photos", "--out", str(run), *small, "--width", "8", "--codebook-size", "16"]) == 0
    assert main(["fit-prior", str(run), *small, "--width", "16", "--depth", "1", "--heads", "2"]) == 0
    capsys.readouterr()
    assert main(["judge", str(run), "-n", "4", "--steps", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["metrics"]
    assert figures["agreement"] is figures["real_accuracy"] is None
    assert figures["frechet"] > 0
    photographs = stages.load_data(recipes.photos().data).train
    assert hub.load(run / "classifier", Classifier).config.classes == len(photographs)
    assert main(["judge", str(run), "-n", "4", "--steps", "2"]) == 0
    assert "Fréchet distance" in capsys.readouterr().out


def test_images_without_labels_have_no_classes(run, tmp_path):
    data = stages.load_data(stages.read_run(run).data)
    data.train.labels = None
    with pytest.raises(ValueError, match="'data' must have labels for a judge"):
        stages.classifier_of(data, tmp_path / "classifier")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["judge", "RUN", "-n", "2"], "'number' must be an integer of at least 4"),
        (["sample", "RUN", "--label", "11"], "'labels' must lie in [0, 10)"),
        (["sample", "RUN", "-n", "0"], "'number' must be an integer of at least 1"),
        (["sample", "RUN", "--out", "x.jpg"], "are written as .png"),
        (["sample", "RUN", "--temperature", "-1"], "'temperature' must be a finite number of at least 0"),
        (["sample", "RUN", "--prior", "nowhere"], "gmvq fit-prior RUN"),
        (["complete", "RUN", "IMAGE", "out.png", "--mask", "nothing"], "'mask' must be one of lower"),
        (["complete", "RUN", "SMALL", "out.png"], "'IN' must have at least 8x8 samples"),
        (["complete", "RUN", "IMAGE", "out.png", "--mask", "SMALL"], "'mask' must have 8x8 pixels"),
        (["complete", "RUN", "IMAGE", "out.png", "--guidance", "2"], "'guidance' must be 1 without labels"),
        (["fit-prior", "RUN", "--steps", "0"], "'steps' must be an integer of at least 1"),
        (["fit-prior", "RUN", "--prior", "n-gram", "--steps", "7", "--width", "8"], "leave out --width, --steps"),
        (["fit-prior", "RUN", "--out", "RUN"], "'out' must be a folder of its own"),
    ],
)
def test_what_cannot_be_done_gets_a_reason(run, tmp_path, capsys, words, reason):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "small.png")
    places = {"RUN": str(run), "IMAGE": str(tmp_path / "image.png"), "SMALL": str(tmp_path / "small.png")}
    assert main([places.get(word, word) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err


def test_a_prior_of_another_tokenizer_is_refused(run, tmp_path, capsys):
    small = ["--steps", "2", "--batch-size", "8", "--width", "8", "--codebook-size", "16"]
    other = str(tmp_path / "other")
    assert main(["train", "digits", "--out", other, *small, "--seed", "5"]) == 0
    capsys.readouterr()
    assert main(["sample", other, "--prior", str(run / "prior")]) == 1
    assert "was fitted to the tokenizer" in capsys.readouterr().err
