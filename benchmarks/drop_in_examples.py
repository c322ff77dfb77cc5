"""Runs the example scripts of vector-quantize-pytorch with the package itself, and with gmvq's classes in its place.

Each script trains a small autoencoder of Fashion-MNIST and says its losses and the share of codes in use at every step.
Each library gets a fresh process, in which both start from the same weights, those of the package, and see the same
batches in the same order; torch's random numbers begin alike after the model is made. ``torchvision`` and ``tqdm`` are
replaced by stand-ins that read the data and record what a script says. Metrics are means over the last 50 steps. None
of the scripts is in this repository.

    git clone https://github.com/lucidrains/vector-quantize-pytorch CHECKOUT
    python benchmarks/drop_in_examples.py CHECKOUT FASHION-MNIST --out benchmarks/results/drop_in_examples.json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import tqdm.auto
from drop_in_tests import PEER, take_the_place_of_the_peer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from gmvq.data.writing import write_json
from gmvq.modalities import Image
from gmvq.training.provenance import commit, hardware, versions

AVERAGED = 50
"""Number of last steps that metrics are means over."""


class Steps:
    """Stands in for ``tqdm``'s bar and records what a script says of each step."""

    rows: list[dict[str, float]]

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows = []

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.number))

    def set_description(self, text: str) -> None:
        """Takes note of numbers, written as ``name: number | name: number``."""
        pairs = (part.rpartition(":") for part in text.split("|"))
        self.rows.append({name.strip(): float(value) for name, _, value in pairs})


def module_of(name: str, **parts: Any) -> ModuleType:  # noqa: ANN401
    """Makes a module that can be imported by this name, with some parts."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # which other packages ask for
    vars(module).update(parts)
    sys.modules[name] = module
    return module


def stand_ins(images: Tensor, recorded: list[Steps]) -> None:
    """Replaces the packages that the scripts import beside the quantizers."""

    def fashion_mnist(**_: object) -> TensorDataset:
        return TensorDataset(images, torch.zeros(len(images), dtype=torch.long))

    def ignored(*_: object, **__: object) -> None:
        return None

    def trange(number: int) -> Steps:
        recorded.append(Steps(number))
        return recorded[-1]

    datasets = module_of("torchvision.datasets", FashionMNIST=fashion_mnist)
    transforms = module_of("torchvision.transforms", Compose=ignored, ToTensor=ignored, Normalize=ignored)
    module_of("torchvision", datasets=datasets, transforms=transforms)
    module_of("fire", Fire=ignored)
    tqdm.auto.trange = trange


def start_alike(library: ModuleType, weights: Path, is_first: bool) -> None:
    """Makes both libraries' models start from the weights of the first, and random numbers begin alike after it."""
    original = library.Sequential

    def sequential(*modules: nn.Module) -> nn.Module:
        model = original(*modules)
        if is_first:
            torch.save(model.state_dict(), weights)
        else:
            model.load_state_dict(torch.load(weights))
        torch.manual_seed(0)
        return model

    library.Sequential = sequential


def run_here(arguments: argparse.Namespace) -> None:
    """Runs a script in this process and writes what it says."""
    if arguments.library == "ours":
        take_the_place_of_the_peer(arguments.checkout)
    recorded: list[Steps] = []
    stand_ins(torch.load(arguments.data), recorded)
    weights = arguments.out.with_name("weights.pt")
    start_alike(importlib.import_module(PEER), weights, arguments.library == "theirs")
    script = runpy.run_path(str(arguments.checkout / "examples" / f"{arguments.script}.py"), run_name="script")
    script["train"](train_iter=arguments.steps, seed=arguments.seed)
    arguments.out.write_text(json.dumps(recorded[0].rows))


def save_images(source: Path, out: Path) -> None:
    """Reads the images of the training split and writes them as floats in [-1, 1]."""
    data = Image().load(str(source))
    torch.save(torch.stack([torch.as_tensor(item) for item in data.train]).float() / 127.5 - 1, out)


def run_apart(arguments: argparse.Namespace, script: str, library: str, folder: Path) -> list[dict[str, float]] | str:
    """Runs a script in a fresh process: what it says of each step, or the last line of its error."""
    out = folder / f"{library}.json"
    options = {"script": script, "library": library, "steps": arguments.steps, "seed": arguments.seed, "out": out}
    command = [sys.executable, __file__, str(arguments.checkout), str(folder / "images.pt")]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
    return json.loads(out.read_text())


def compared(theirs: list[dict[str, float]] | str, ours: list[dict[str, float]] | str) -> dict[str, Any]:
    """Metrics of both, and their largest difference at a step."""
    row: dict[str, Any] = {}
    for library, rows in (("theirs", theirs), ("ours", ours)):
        last = rows[-AVERAGED:]
        row[library] = (
            last
            if isinstance(rows, str)
            else {name: round(sum(step[name] for step in last) / len(last), 4) for name in last[0]}
        )
    if not isinstance(theirs, str) and not isinstance(ours, str):
        pairs = list(zip(theirs, ours, strict=True))
        row["largest_difference"] = {
            name: round(max(abs(one[name] - other[name]) for one, other in pairs), 4) for name in theirs[0]
        }
    return row


def main() -> None:
    """Runs all scripts on both, prints and writes the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of the peer's repository")
    parser.add_argument("data", type=Path, help="folder with the files of Fashion-MNIST")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--script", help="name of one script, without its ending")
    parser.add_argument("--library", choices=["theirs", "ours"], help="run on one alone, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/drop_in_examples.json"))
    arguments = parser.parse_args()
    arguments.checkout, arguments.data = arguments.checkout.resolve(), arguments.data.resolve()
    if arguments.library is not None:
        run_here(arguments)
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        save_images(arguments.data, Path(folder) / "images.pt")
        for path in sorted((arguments.checkout / "examples").glob("*.py")):
            if arguments.script in (None, path.stem):
                both = [run_apart(arguments, path.stem, library, Path(folder)) for library in ("theirs", "ours")]
                rows[path.stem] = compared(*both)
                print(path.stem, rows[path.stem], flush=True)
    where = {
        "peer": importlib.metadata.version(PEER.replace("_", "-")),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }
    protocol = {"protocol": (__doc__ or "").strip(), "steps": arguments.steps, "seed": arguments.seed}
    write_json(arguments.out, {**protocol, **where, "rows": rows})


if __name__ == "__main__":
    main()
