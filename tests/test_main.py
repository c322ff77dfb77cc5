import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gmvq
from gmvq import commands, recipes
from gmvq.__main__ import main
from gmvq.commands import VERBS
from gmvq.commands import train as train_verb
from gmvq.data.sealing import read_record
from gmvq.models.tiles import Part
from gmvq.training import Interrupted

TINY = ["--width", "8", "--blocks", "1", "--steps", "3", "--batch-size", "8", "--codebook-size", "16",
        "--evaluated", "20"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A finished run without codes."""
    out = tmp_path_factory.mktemp("runs") / "vae"
    assert main(["train", "digits", "--quantizer", "none", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def pictures(tmp_path):
    """Gray, coloured and nested images of several sizes."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, shape in {"a.jpg": (9, 12), "b.png": (16, 7, 3), "sub/a.png": (8, 8)}.items():
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


def call(capsys, *words, status=0):
    """What a command printed, after a look at its exit status."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    return capsys.readouterr()


def result_of(capsys, *words):
    """The one JSON object on standard output."""
    out = call(capsys, *words, "--json").out
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def reason(capsys, *words, status=1):
    """The one line on standard error, nothing being on standard output."""
    captured = call(capsys, *words, status=status)
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gmvq: error: ")
    return lines[0].removeprefix("gmvq: error: ")


def test_every_verb_is_whole():
    for verb in VERBS:
        module = commands.module_of(verb)
        assert commands.help_line(verb).endswith(".")
        assert callable(module.run)
        assert callable(module.show)
    files = {path.stem.replace("_", "-") for path in Path(commands.__file__).parent.glob("*.py")}
    assert files - set(VERBS) == {"--init--", "common", "masks", "pairs"}


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(capsys, words):
    out = call(capsys, *words).out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_verbs_has_no_markup(capsys, verb):
    out = call(capsys, verb, "--help").out
    assert "``" not in out
    assert "(default: )" not in out
    frames = {len(line) for line in out.splitlines() if line.startswith(("│", "╭", "╰"))}
    assert len(frames) == 1


def test_help_without_box_characters(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert main(["info", "--help"]) == 0
    assert b"+- positional arguments -" in buffer.getvalue()


def test_version(capsys):
    assert call(capsys, "--version").out == f"gmvq {gmvq.__version__}\n"


def test_no_verb_and_a_wrong_one(capsys):
    captured = call(capsys, status=2)
    assert "usage" in captured.err
    assert "Did you mean train?" in reason(capsys, "trian", status=2)
    assert "gmvq --help" in reason(capsys, "xyzzy", status=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits", "--stpes", "3"], "Unrecognized options: --stpes, 3. Did you mean --steps?"),
        (["train"], "Missing from gmvq train: {photos,"),
        (["train", "digits", "--steps", "x"], "--steps: invalid literal"),
        (["train", "digits", "--width", "0"], "'width' must be an integer of at least 1"),
        (["train", "digits", "--quantizer", "k"], "'quantizer' must be one of gaussian-mixture"),
        (["compare"], "one or more of photos"),
        (["tokenize", "a"], "Missing from gmvq tokenize: DATA OUT."),
    ],
)
def test_wrong_usage_is_2_with_one_line(capsys, words, said):
    message = reason(capsys, *words, status=2)
    assert said in message
    assert message.endswith(f"See gmvq {words[0]} --help.")


def test_train_prints_figures_and_the_report(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captured = call(capsys, "train", "digits", *TINY)
    assert re.search(r"PSNR +\d+\.\d\d dB", captured.out)
    assert "runs/digits/report.html" in captured.out
    assert "step 3 of 3" in captured.err
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_a_finished_run_is_not_trained_again_unless_asked(capsys, run):
    result = result_of(capsys, "train", "digits", "--out", run, *TINY)
    assert result["run"] == str(run)
    assert result["metrics"] == read_record(run / "metrics.json")
    again = result_of(capsys, "train", "digits", "--out", run, *TINY, "--overwrite")
    assert again["metrics"]["mse"] == result["metrics"]["mse"]
    record = json.loads((run / "run.json").read_text())
    assert record["command"].startswith("gmvq train digits --out")
    assert record["command"].endswith("--overwrite --json")


def test_train_into_another_run_is_refused(capsys, run):
    assert "model.width (8 there, 64 now)" in reason(capsys, "train", "digits", "--out", run)


def test_evaluate(capsys, run):
    result = result_of(capsys, "evaluate", run, "--limit", 20)
    metrics = read_record(run / "metrics.json")
    assert result["data"] == "bundled:digits"
    assert result["metrics"]["mse"] == pytest.approx(metrics["mse"])
    assert "coding_seconds" in result["metrics"]
    shown = call(capsys, "evaluate", run, "--limit", 20, "--part", "train").out
    assert "(train). 20 images." in shown


def test_evaluate_on_other_data_takes_all_of_them_and_says_so(capsys, run, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8))
    result = result_of(capsys, "evaluate", run, "--data", tmp_path / "x.npy")
    assert (result["metrics"]["items"], result["part"], result["foreign"]) == (20, "all", True)
    some = result_of(capsys, "evaluate", run, "--data", tmp_path / "x.npy", "--part", "held-out")
    assert 1 <= some["metrics"]["items"] < 20
    assert "foreign data" in call(capsys, "evaluate", run, "--data", tmp_path / "x.npy").out


def test_evaluate_a_vae(capsys, vae):
    result = result_of(capsys, "evaluate", vae, "--limit", 20)
    assert result["metrics"]["usage"] is None
    assert "codes in use" not in call(capsys, "evaluate", vae, "--limit", 20).out


def test_reconstruct_one_image(capsys, run, pictures, tmp_path):
    result = result_of(capsys, "reconstruct", run, pictures / "b.png", tmp_path / "out.png")
    assert result["files"][0]["file"] == str(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image, Image.open(pictures / "b.png") as original:
        assert image.size == original.size
        error = np.square(np.asarray(image, float) - np.asarray(original.convert("L"), float)).mean()
    assert result["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)  # measured before it is rounded
    # into a folder it keeps its name
    assert call(capsys, "reconstruct", run, pictures / "a.jpg", tmp_path / "new").out.count("\n") == 2
    assert (tmp_path / "new" / "a.png").is_file()


def test_reconstruct_a_folder(capsys, run, pictures, tmp_path):
    result = result_of(capsys, "reconstruct", run, pictures, tmp_path / "out")
    assert [file["name"] for file in result["files"]] == ["a.jpg", "b.png", "sub/a.png"]
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["a.png", "b.png", "sub/a.png"]


def test_reconstruct_does_not_replace_its_input(capsys, run, pictures, tmp_path):
    assert "must not be 'IN'" in reason(capsys, "reconstruct", run, pictures, pictures)
    assert "must not be 'IN'" in reason(capsys, "reconstruct", run, pictures / "b.png", pictures / "b.png")
    assert "must not be 'IN'" in reason(capsys, "reconstruct", run, pictures / "b.png", pictures)
    assert "out.png" in reason(capsys, "reconstruct", run, pictures / "b.png", tmp_path / "out.jpg")


def test_an_exact_reconstruction_is_json_too(capsys, run, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    parts = [Part(..., torch.zeros(1, 1, 8, 8))]
    monkeypatch.setattr(gmvq.Autoencoder, "decode_parts", lambda self, codes, size: iter(parts))
    result = result_of(capsys, "reconstruct", run, tmp_path / "x.npy", tmp_path / "out")
    assert result["psnr"] == 100
    assert "100" in call(capsys, "reconstruct", run, tmp_path / "x.npy", tmp_path / "out").out


def test_tokens_there_and_back(capsys, run, pictures, tmp_path):
    tokens = tmp_path / "codes.safetensors"
    result = result_of(capsys, "tokenize", run, pictures, tokens)
    assert (result["items"], result["codebook_sizes"], result["bytes"]) == (3, [16], tokens.stat().st_size)
    assert "3 item(s) as" in call(capsys, "tokenize", run, pictures, tokens).out
    decoded = result_of(capsys, "detokenize", run, tokens, tmp_path / "decoded")
    assert decoded["items"] == 3
    call(capsys, "reconstruct", run, pictures, tmp_path / "direct")
    for name in ("a.png", "b.png", "sub/a.png"):
        with Image.open(tmp_path / "decoded" / name) as one, Image.open(tmp_path / "direct" / name) as other:
            # a batch may round otherwise than a single image
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_parts_and_bundled_data(capsys, run, tmp_path):
    counts = [
        result_of(capsys, "tokenize", run, "bundled:digits", tmp_path / "t", "--part", part)["items"]
        for part in ("all", "train", "held-out")
    ]
    assert counts == [1797, 1438, 359]
    shown = call(capsys, "detokenize", run, tmp_path / "t", tmp_path / "out").out
    assert "... and 339 more" in shown


def test_one_image_needs_no_warning(capsys, run, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    assert result_of(capsys, "tokenize", run, tmp_path / "x.png", tmp_path / "t")["items"] == 1


def test_tokens_of_another_run(capsys, run, pictures, tmp_path):
    call(capsys, "tokenize", run, pictures, tmp_path / "t")
    call(capsys, "train", "digits", "--seed", 1, "--out", tmp_path / "other", *TINY)
    assert "--force" in reason(capsys, "detokenize", tmp_path / "other", tmp_path / "t", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    call(capsys, "detokenize", tmp_path / "other", tmp_path / "t", tmp_path / "out", "--force")


def test_a_vae_has_no_tokens(capsys, vae, pictures, tmp_path):
    assert "VAE" in reason(capsys, "tokenize", vae, pictures, tmp_path / "t")


def test_info(capsys, run):
    result = result_of(capsys, "info", run)
    assert result["model"]["codebook_size"] == 16
    assert result["record"]["run"]["name"] == "digits"
    assert result["metrics"]["usage"] > 0
    shown = call(capsys, "info", run).out
    assert result["fingerprint"][:12] in shown
    assert "PSNR" in shown


def test_info_of_a_model_without_a_run(capsys, run, tmp_path):
    gmvq.save(gmvq.load(run), tmp_path)
    result = result_of(capsys, "info", tmp_path)
    assert result["record"] is None
    assert result["metrics"] is None
    call(capsys, "info", tmp_path)
    assert "gmvq train" in reason(capsys, "evaluate", tmp_path)


def test_a_run_that_is_not_finished(capsys, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert "--resume" in reason(capsys, "info", tmp_path)


def test_compare(capsys, tmp_path):
    words = ["compare", "digits", "--quantizers", "vector", "vector-ema", "--seeds", 1, "--steps", 3, "--width", 8,
             "--codebook-size", 16, "--batch-size", 8, "--out", tmp_path / "c", "--threads", 1]  # fmt: skip
    result = result_of(capsys, *words)
    assert [entry["contender"] for entry in result["summary"]] == ["vector", "vector-ema"]
    written = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert result == {**result, **written}
    shown = call(capsys, *words).out
    assert "vector-ema" in shown
    assert "compare.md" in shown
    assert "RECIPE=PATH" in reason(capsys, *words, "--data", "nowhere")


@pytest.mark.parametrize("recipe", ["cifar10", "fashion-mnist", "celeba", "folder"])
def test_recipes_that_need_a_path(capsys, recipe):
    message = reason(capsys, "train", recipe)
    assert "--data PATH" in message
    assert recipe == "folder" or "https://" in message


def test_names_from_files_do_not_reach_the_terminal_as_they_are(capsys, run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a\x1b[2Jb.png")
    out = call(capsys, "reconstruct", run, folder, tmp_path / "out").out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out
    (tmp_path / "bad\x1b[2J").mkdir()
    assert "\x1b" not in reason(capsys, "info", tmp_path / "bad\x1b[2J")


def test_a_value_has_one_flag(capsys):
    assert "Unrecognized options: --training.steps" in reason(
        capsys, "train", "digits", "--training.steps", "3", status=2
    )
    made = train_verb.run_of(commands.parse("train", ["digits", "--steps", "1000", "--seed", "0"]))
    assert made.training == recipes.digits().training


def test_things_that_are_not_there(capsys, run, tmp_path):
    missing = tmp_path / "missing"
    out = tmp_path / "o"
    for words in (["info", missing], ["evaluate", missing], ["train", "folder", "--data", missing, "--out", out],
                  ["tokenize", run, missing, out], ["detokenize", run, missing, out],
                  ["reconstruct", run, missing, out]):  # fmt: skip
        assert str(missing) in reason(capsys, *words)
    assert str(tmp_path) in reason(capsys, "info", tmp_path)
    assert not (tmp_path / "o").exists()


def test_out_that_cannot_be_written(capsys, run, pictures, tmp_path):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out"
    for words in (["train", "digits", "--out", out, *TINY], ["tokenize", run, pictures, out],
                  ["reconstruct", run, pictures, out], ["compare", "digits", "--out", out, "--steps", 1]):  # fmt: skip
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("gmvq: error: ")
        assert "file" in last


def test_unexpected_errors_are_one_line_and_a_traceback_on_demand(capsys, run, monkeypatch):
    def fail(verb, options, command):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(commands, "execute", fail)
    assert reason(capsys, "info", run) == "RuntimeError: first second (GMVQ_DEBUG=1 shows where.)"
    monkeypatch.setenv("GMVQ_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["info", str(run)])


def test_interrupts_say_how_to_go_on(capsys, monkeypatch, tmp_path):
    def interrupt(error):
        def stop(*_, **__):
            raise error

        return stop

    monkeypatch.setattr(recipes, "run", interrupt(Interrupted(2, 3, tmp_path)))
    message = reason(capsys, "train", "digits", "--out", "my run", status=130)
    assert message.endswith(
        "Stopped after step 2 of 3; the state is saved. Go on with: gmvq train digits --out 'my run' --resume"
    )
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")
        assert "Go on under the same launcher with: gmvq train" in reason(capsys, "train", "digits", status=130)
    monkeypatch.setattr(recipes, "run", interrupt(Interrupted(0, 3, tmp_path)))
    assert "nothing was saved" in reason(capsys, "train", "digits", status=130)
    monkeypatch.setattr(recipes, "run", interrupt(KeyboardInterrupt()))
    assert reason(capsys, "train", "digits", status=130) == "Interrupted."


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(gmvq.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def test_as_a_process_with_a_warning(run, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "gmvq", "tokenize", run, pictures, tmp_path / "t", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert json.loads(done.stdout)["items"] == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("gmvq: warning: Skipped 1 file")
    assert "broken.png" in line


def test_a_reader_that_leaves(run):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "gmvq", "info", run],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_the_tokenizer_of_the_readme(run):
    tokenizer = gmvq.load(run)
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = tokenizer.encode(images)
    assert codes.shape == (1, 4, 4)
    assert tokenizer.decode(codes).shape == images.shape


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_info_says_which_record_is_damaged(run, name, capsys, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes().replace(b'"digest": "', b'"digest": "0', 1))
    with pytest.warns(UserWarning, match=rf"{name} is damaged, .* left out"):
        assert main(["info", str(run)]) == 0
    assert "quantizer" in capsys.readouterr().out
