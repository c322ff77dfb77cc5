"""The README's code blocks run, with fewer steps and a smaller network, and its lists are those of the code."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import gmvq
from gmvq.__main__ import main
from gmvq.commands import VERBS
from gmvq.modalities import MODALITIES
from gmvq.priors import PRIORS
from gmvq.quantizers import QUANTIZERS, AbstractEstimator, AbstractQuantizer, ChannelFirst
from gmvq.recipes import RECIPES

README = (Path(__file__).parent.parent / "README.md").read_text()
QUICK = {
    "train": "--steps 2 --width 8 --batch-size 4 --evaluated 1",
    "compare": "--seeds 1 --steps 2 --width 8 --batch-size 4",
    "fit-prior": "--steps 2 --batch-size 4 --width 16 --depth 1 --heads 2",
    "fit-decoder": "--steps 2 --batch-size 4 --width 8 --blocks 1",
    "judge": "--steps 2 -n 4",
    "bench": "--only nearest --against product --shapes 64x4x16 --rounds 1",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def listed(what: str) -> list[str]:
    """The names of a list of the README, in its order."""
    (item,) = re.findall(rf"^- {what}: (.*?)\.$", README, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([\w-]+)`", item)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "recordings"):
        (tmp_path / name).mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("pictures/one.jpg", "pictures/two.png", "cat.jpg"):
        Image.fromarray(torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator).numpy()).save(name)
    for name in ("one.wav", "two.flac"):
        noise = torch.rand(2000, generator=generator).numpy()
        soundfile.write(tmp_path / "recordings" / name, (noise - 0.5).astype(np.float32), 8000)
    return tmp_path


def test_the_python_runs(folder):
    gmvq.save(gmvq.Autoencoder(gmvq.AutoencoderConfig(width=8)), "runs/photos")
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["entropy"].shape == (8, 256)
    assert names["codes"].shape == (1, 128, 128)
    assert names["images"].shape == (1, 3, 512, 512)
    assert names["feature_maps"].shape == (2, 64, 16, 16)


def test_the_commands_run(folder, capsys):
    (block,) = blocks("console")
    commands = [line.removeprefix("$ gmvq ") for line in block.strip().splitlines()]
    assert {command.split()[0] for command in commands} == set(VERBS)
    for command in commands:
        words = shlex.split(f"{command} {QUICK.get(command.split()[0], '')}")
        assert main(words) == 0, (command, capsys.readouterr().err)
    assert (folder / "runs/photos/report.html").is_file()
    assert len(list((folder / "decoded").iterdir())) == 2


@pytest.mark.parametrize(
    ("what", "names"),
    [("Modalities", MODALITIES), ("Recipes", RECIPES), ("Quantizers", QUANTIZERS), ("Priors", PRIORS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_lists_are_those_of_the_code(what, names):
    assert sorted(listed(what)) == sorted(names)


def test_every_quantizer_and_estimator_is_named():
    public = [getattr(gmvq, name) for name in gmvq.__all__]
    kinds = AbstractQuantizer, AbstractEstimator, ChannelFirst
    wanted = [found.__name__ for found in public if isinstance(found, type) and issubclass(found, kinds)]
    assert [name for name in wanted if f"`{name}`" not in README] == []


@pytest.mark.parametrize("page", ["README.md", "docs/gm-vq.md"])
def test_what_is_said_of_the_papers_form_is_what_its_row_says(page):
    text = (Path(__file__).parent.parent / page).read_text()
    (said,) = re.findall(r"keep (\d+ to \d+) % of their codes", " ".join(text.split()))
    (row,) = re.findall(r"^\| GM-VQ in the paper's form.*$", README, flags=re.MULTILINE)
    assert f"| {said} |" in row


def test_links_and_pictures_are_there():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert target.startswith("https://") or (root / path).exists(), target
        if anchor and not target.startswith("https://"):
            assert f"# {anchor.replace('-', ' ')}\n" in (root / path).read_text().lower(), target
