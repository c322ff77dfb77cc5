"""Each modality from files to files, by the commands: learned, measured, encoded, drawn, judged, compared."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from modality_members import MEMBERS, worsened

from gmvq.__main__ import main
from gmvq.data.sealing import read_record
from gmvq.modalities import Modality
from gmvq.priors import PRIORS
from gmvq.tokenization import join
from gmvq.training.loop import Loop

RECIPES = {"image": "photos", "audio": "speech", "series": "series", "text": "sentences", "vectors": "table"}
EXHIBITS = {
    "image": '<img src="data:image/png;base64,',
    "audio": '<audio controls preload="none" src="data:audio/wav;base64,',
    "series": '<img src="data:image/png;base64,',
    "text": '<p class="passage"',
    "vectors": '<img src="data:image/png;base64,',
}
"""What a page has of an exhibit of each kind."""
pytestmark = pytest.mark.filterwarnings("ignore:Windows have")  # those of recipes are larger than these items

LENGTHS = {"image": 16, "audio": 1000, "series": 32, "text": 30}
TINY = ["--width", "8", "--blocks", "1", "--batch-size", "4", "--codebook-size", "16"]
TINY_PRIOR = ["--steps", "2", "--batch-size", "4", "--width", "16", "--depth", "1", "--heads", "2"]


class Killed(BaseException):
    """Ends a run within a step, as a power cut does."""


class Trained(NamedTuple):
    """A modality whose settings are known, a folder of data, how it was learned from, and the run."""

    modality: Modality
    data: Path
    train: list[str]
    run: Path


@pytest.fixture(scope="module", autouse=True)
def _few_exhibits():
    """Pages of few items: to draw them would be most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("exhibits.SHOWN", "exhibits.DECODED", "prior_page.SHOWN", "prior_page.SHOWN_LARGE"):
            patch.setattr(f"gmvq.reports.{name}", 2)
        yield


@pytest.fixture(scope="module", params=MEMBERS)
def trained(request, tmp_path_factory):
    """A tokenizer of each modality, by the command."""
    name, folder = request.param, tmp_path_factory.mktemp("end-to-end")
    modality, data = MEMBERS[name]().modality, write_data(folder / "data", name)
    train = ["train", RECIPES[name], "--data", str(data), *TINY, "--held-out-fraction", "0.4", "--steps", "4"]
    train += ["--checkpoint-every", "2", *(["--size", str(LENGTHS[name])] if name in ("image", "series") else [])]
    assert main([*train, "--out", str(folder / "run")]) == 0
    return Trained(modality, data, train, folder / "run")


@pytest.fixture
def call(capsys):
    """Runs a command and returns its result; what goes wrong is said in one line of words."""

    def run(*words, status=0):
        capsys.readouterr()
        found = main([*map(str, words), "--json"])
        said = capsys.readouterr()
        assert found == status, said.err
        assert "Traceback" not in said.err
        if not status:
            return json.loads(said.out, parse_constant=pytest.fail)
        assert said.out == ""
        complaints = [line for line in said.err.splitlines() if line.startswith("gmvq: error: ")]
        assert len(complaints) == 1
        assert "GMVQ_DEBUG" not in complaints[0]  # it is named where nobody thought of an error
        return complaints[0]

    return run


def write_data(folder, name):
    """A folder of 16 small files of two classes."""
    modality, item, _ = MEMBERS[name]()
    real = modality.signal.checked(item[None])[0]
    real = real[(..., *[slice(LENGTHS.get(name))] * modality.signal.axes)]
    for place in range(16):
        path = folder / "ab"[place % 2] / f"{place}{modality.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        modality.write(path, [worsened(real, 0.2 + 0.4 * (place % 2), seed=place)])
    return folder


def items_of(modality, path):
    """All items at a path, in the order of their names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds one ")  # as of a sheet, or of bad reconstructions
        every = join(modality.load(path))
    return [every[index] for index in range(len(every))]


def check_same(modality, *paths):
    """The same items are at both paths, but for the rounding of batches of other sizes."""
    for one, other in zip(*(items_of(modality, path) for path in paths), strict=True):
        tolerance = {"atol": 1, "rtol": 0} if one.dtype == torch.uint8 else {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(one, other, **tolerance)


def test_a_run_that_was_killed_goes_on_bit_for_bit(trained, tmp_path, call, monkeypatch):
    _, _, train, whole = trained
    step = Loop._step

    def die(running, batches):
        if running.step == 3:
            raise Killed
        step(running, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", die)
        with pytest.raises(Killed):
            main([*train, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = call(*train, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    times = {name for name in resumed["metrics"] if "second" in name and not name.startswith("bits")}
    former = read_record(whole / "metrics.json")
    assert all(resumed["metrics"][name] == former[name] for name in former if name not in times)


def test_measured_and_shown(trained, call):
    modality, data, _, run = trained
    kind = modality.kind
    found = call("info", run)
    assert found["model"]["modality"]["kind"] == kind
    assert found["metrics"]["warnings"] is not None
    page = (run / "report.html").read_text()
    assert EXHIBITS[kind] in page
    assert modality.items in page
    metrics = call("evaluate", run)["metrics"]
    assert metrics["modality"] == kind
    assert metrics[metrics["headline"]] == pytest.approx(found["metrics"][metrics["headline"]])
    assert call("evaluate", run, "--data", data)["metrics"]["items"] == 16


def test_encoded_and_decoded(trained, tmp_path, call):
    modality, data, _, run = trained
    tokens = tmp_path / "tokens.safetensors"
    assert call("tokenize", run, data, tokens)["items"] == 16
    assert call("reconstruct", run, data, tmp_path / "reconstructed")["items"] == 16
    assert call("detokenize", run, tokens, tmp_path / "decoded")["items"] == 16
    files = [sorted(path.name for path in (tmp_path / name).rglob("*.*")) for name in ("reconstructed", "decoded")]
    assert files[0] == files[1]
    assert len(files[0]) == (1 if modality.several else 16)
    check_same(modality, tmp_path / "reconstructed", tmp_path / "decoded")
    one = next(path for path in data.rglob("*") if path.is_file())
    out = tmp_path / f"one{modality.suffix}"
    assert call("reconstruct", run, one, out)["files"][0]["file"] == str(out)
    assert out.is_file()


@pytest.mark.parametrize("prior", PRIORS)
def test_drawn_from_every_prior(trained, prior, tmp_path, call):
    modality, _, _, run = trained
    fitted, codes = ["--prior", tmp_path / "prior"], tmp_path / "codes.safetensors"
    how = [] if PRIORS[prior].config is None else TINY_PRIOR
    metrics = call("fit-prior", run, "--prior", prior, "--out", tmp_path / "prior", *how)["metrics"]
    assert metrics["items"] >= 4
    assert EXHIBITS[modality.kind] in (tmp_path / "prior" / "report.html").read_text()

    drawn = call("sample", run, *fitted, "-n", 5, "--codes", codes, "--out", tmp_path / "drawn")
    assert drawn["labels"] == [0, 1, 0, 1, 0]
    assert len(drawn["files"]) == (1 if modality.holds_several else 5)
    call("detokenize", run, codes, tmp_path / "decoded")
    assert len(items_of(modality, tmp_path / "decoded")) == 5
    if not modality.lays_out:
        check_same(modality, tmp_path / "drawn", tmp_path / "decoded")
    single = tmp_path / f"single{modality.suffix}"
    assert call("sample", run, *fitted, "-n", 1, "--out", single)["files"] == [str(single)]

    several = tmp_path / f"several{modality.suffix}"
    if modality.holds_several:
        assert call("sample", run, *fitted, "-n", 3, "--out", several)["files"] == [str(several)]
    else:
        said = call("sample", run, *fitted, "-n", 3, "--out", several, status=1)
        assert f"a file holds one {modality.item}" in said

    complete = ["complete", run, 0, tmp_path / "completed", "-n", 2, *fitted]
    if modality.signal.axes:
        assert call(*complete)["hidden"] == pytest.approx(0.5, abs=0.05)
        middle = call(*complete, "--mask", "middle", "--seed", 1)
        assert middle["hidden"] == pytest.approx(0.5**modality.signal.axes, abs=0.05)
        assert len(middle["files"]) == (1 if modality.holds_several else 4)
    else:
        assert "'mask' needs items with axes" in call(*complete, status=1)


def test_judged_and_mixed(trained, tmp_path, call):
    modality, _, _, run = trained
    call("fit-prior", run, "--prior", "frequencies", "--out", tmp_path / "prior")
    judged = call("judge", run, "-n", 4, "--steps", 2, "--prior", tmp_path / "prior")
    assert judged["metrics"]["drawn"] == 4
    assert judged["metrics"]["real"] >= 4
    assert len(judged["files"]) == (1 if modality.holds_several else 8)
    between = call("interpolate", run, 0, 1, tmp_path / "between", "-n", 3)
    assert len(between["files"]) == (1 if modality.holds_several else 5)
    swap = ["swap", run, 0, 1, tmp_path / "swapped"]
    if modality.signal.axes:
        call(*swap)
    else:
        assert "'mask' needs items with axes" in call(*swap, status=1)
    decoder = ["fit-decoder", run, "--out", tmp_path / "decoder", "--steps", 1, "--width", 8, "--blocks", 1]
    if modality.signal.axes == 2:
        call(*decoder)
    else:
        assert "a diffusion decoder is for images" in call(*decoder, status=1)


def test_compared(trained, tmp_path, call):
    modality, data, train, _ = trained
    recipe = train[1]
    words = ["compare", recipe, "--data", f"{recipe}={data}", "--quantizers", "vector-ema", "finite-scalar"]
    small = ["--seeds", 1, "--steps", 1, "--batch-size", 4, "--width", 8, "--codebook-size", 16]
    found = call(*words, *small, "--out", tmp_path / "compare")
    assert {row["contender"] for row in found["summary"]} == {"vector-ema", "finite-scalar"}
    assert all(row["runs"] == 1 and row["diverged"] == 0 for row in found["summary"])
    assert modality.items in Path(found["markdown"]).read_text()
