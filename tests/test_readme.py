"""The README's code blocks run, with fewer steps and a smaller network."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import gmvq
from gmvq.__main__ import main

README = (Path(__file__).parent.parent / "README.md").read_text()
QUICK = {
    "train": "--steps 2 --model.width 8 --batch-size 4 --data.evaluated 1",
    "compare": "--seeds 1 --steps 2 --width 8 --batch-size 4",
    "fit-prior": "--steps 2 --batch-size 4 --width 16 --depth 1 --heads 2",
    "fit-decoder": "--steps 2 --batch-size 4 --width 8 --blocks 1",
    "bench": "--only nearest --against product --shapes 64x4x16 --rounds 1",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("pictures/one.jpg", "pictures/two.png", "cat.jpg"):
        Image.fromarray(torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator).numpy()).save(name)
    return tmp_path


def test_the_python_runs(folder):
    gmvq.save(gmvq.Autoencoder(gmvq.AutoencoderConfig(width=8)), "runs/photos")
    (block,) = blocks("python")
    names: dict = {}
    exec(block, names)
    assert names["codes"].shape == (8, 256)
    assert names["entropy"].shape == (8, 256)
    assert names["images"].shape == (1, 3, 512, 512)
    assert names["feature_maps"].shape == (2, 64, 16, 16)


def test_the_commands_run(folder, capsys):
    (block,) = blocks("console")
    commands = [line.removeprefix("$ gmvq ") for line in block.strip().splitlines()]
    assert {command.split()[0] for command in commands} == {
        "train", "evaluate", "reconstruct", "tokenize", "detokenize", "fit-prior", "sample", "info", "compare", "bench",
        "complete", "interpolate", "swap", "fit-decoder",
    }  # fmt: skip
    for command in commands:
        words = shlex.split(f"{command} {QUICK.get(command.split()[0], '')}")
        assert main(words) == 0, (command, capsys.readouterr().err)
    assert (folder / "runs/photos/report.html").is_file()
    assert len(list((folder / "decoded").iterdir())) == 2


def test_links_and_pictures_are_there():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (root / target).exists(), target
