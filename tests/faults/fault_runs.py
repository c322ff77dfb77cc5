"""Small runs that write folders, and what of a folder must be the same, bit for bit."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fault_children import Loaded
from fault_kinds import QUIET, small_data, small_model
from PIL import Image as Picture

from gmvq import hub, recipes, tokenization
from gmvq.__main__ import main
from gmvq.data import ArrayItems
from gmvq.stages.prior import PriorRun, fit_prior
from gmvq.training import checkpoint as checkpoints
from gmvq.training.journal import read_log

TIMES = ("seconds", "items_per_second", "started", "finished", "place", "hardware", "commit", "command")
SMALL = {"steps": 4, "width": 8, "blocks": 1, "batch_size": 8, "codebook_size": 16}
WORDS = ["--steps", "3", "--batch-size", "8"]
SMALL_WORDS = [*WORDS, "--threads", "1", "--width", "8", "--blocks", "1", "--codebook-size", "16", "--evaluated", "16"]
Work = Callable[[Path, bool], None]


def train(folder: Path, resume: bool) -> None:
    """A tokenizer of small images, with checkpoints after 2 and 4 steps."""
    often = {"checkpoint_every": 2, "log_every": 1, "evaluate_every": 3, "threads": 1}
    run = recipes.changed(recipes.digits(), **SMALL, **often)
    recipes.run(run, folder, data=small_data(), console=QUIET, report=False, resume=resume)


def prior_of(tokenizer: Path) -> Work:
    """A prior over the codes of a tokenizer."""

    def work(folder: Path, resume: bool) -> None:
        training = replace(PriorRun().training, steps=4, batch_size=8, checkpoint_every=2, log_every=1, threads=1)
        run = PriorRun("autoregressive", {"width": 16, "depth": 1, "heads": 2}, training)
        fit_prior(tokenizer, run, folder, data=small_data(), console=QUIET, report=False, resume=resume)

    return work


def tokenize(folder: Path, resume: bool) -> None:
    """The codes of a few images, in one file."""
    images = (torch.arange(20 * 64).reshape(20, 1, 8, 8) * 7 % 251).to(torch.uint8)
    tokenization.tokenize(small_model(), ArrayItems(images, 2), folder / "codes.safetensors", batch_size=4)


def said_in_a_line(words: list[str], allowed: tuple[int, ...]) -> Loaded:
    """Runs a command; an AssertionError says if it ends otherwise than by an allowed status, an error in one line."""
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = main(words)
    text = said.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("gmvq: error:")]
    assert status in allowed, f"it ended with {status}: {text[-300:]}{shown.getvalue()[-300:]}"
    assert "Traceback" not in text, text[-900:]
    assert "GMVQ_DEBUG" not in text, f"a raw error: {text[-600:]}"
    assert len(lines) == (status != 0), text[-900:]
    assert not status or text.splitlines()[-1] == lines[0], text[-900:]
    assert all(len(line) < 1200 for line in lines), lines[0]
    return Loaded("in a line")


def content(folder: Path) -> dict[str, str]:
    """What the files of a folder hold, by name, without what depends on the time and the place."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = _digest(path, folder)
    return found


def _digest(path: Path, folder: Path) -> str:
    if path.suffix == ".html":
        return "a page"
    if path.suffix in (".json", ".jsonl") and path.name != hub.CONFIG:
        # of a log the last line may be cut off, which its reader leaves out
        lines = read_log(path.parent) if path.name == "log.jsonl" else [json.loads(path.read_text())]
        return json.dumps([_timeless(line) for line in lines], sort_keys=True)
    if path.parent.name == checkpoints.FOLDER:
        return _of_checkpoint(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_checkpoint(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state = _timeless(json.loads(file.metadata()["state"]))
        found = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not key.endswith(TIMES) and key != "digest"}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def write_digits(folder: Path, count: int = 6) -> Path:
    """Writes small gray pictures."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = (torch.arange(64).reshape(8, 8) * (3 + number) % 251).to(torch.uint8).numpy()
        Picture.fromarray(pixels).save(folder / f"{number}.png")
    return folder
