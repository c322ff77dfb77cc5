"""``benchmarks/drop_in_tests.py`` and ``benchmarks/drop_in_examples.py``, on a checkout of our own making."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TESTS = """
import pytest, torch
from vector_quantize_pytorch import FSQ
from vector_quantize_pytorch.scalars import FSQ as SAME

def test_shapes():
    assert FSQ is SAME
    assert FSQ([5, 5])(torch.randn(2, 3, 2))[1].shape == (2, 3)

def test_whose_it_is():
    assert FSQ.__module__ == "gmvq.compat.scalar"

@pytest.mark.parametrize("scale", [None, 2.0])
def test_options(scale):
    FSQ([5, 5], scale=scale)
"""

SCRIPT = """
import fire, torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from tqdm.auto import trange
from vector_quantize_pytorch import FSQ, Sequential

def train(train_iter=10, seed=0):
    torch.manual_seed(seed)
    model = Sequential(nn.Conv2d(1, 2, 4, 4), FSQ([5, 5]), nn.ConvTranspose2d(2, 1, 4, 4))
    data = datasets.FashionMNIST(root="", train=True, transform=transforms.Compose([transforms.ToTensor()]))
    batches = iter(DataLoader(data, 4, shuffle=True))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    bar = trange(train_iter)
    for _ in bar:
        x, _ = next(batches)
        out, codes = model(x)
        loss = (out - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_description(f"rec loss: {loss.item():.3f} | active %: {100 * codes.unique().numel() / 25:.1f}")

if __name__ == "__main__":
    fire.Fire(train)
"""


@pytest.fixture
def checkout(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    for folder, name, text in (
        ("tests", "test_scalars.py", TESTS),
        ("examples", "small.py", SCRIPT),
        ("vector_quantize_pytorch", "scalars.py", ""),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def run(script, *arguments):
    subprocess.run([sys.executable, BENCHMARKS / script, *map(str, arguments)], check=True, capture_output=True)


def test_tests_run_on_ours(checkout):
    out = checkout / "ours.json"
    run("drop_in_tests.py", checkout, "--library", "ours", "--out", out)
    found = json.loads(out.read_text())
    assert [name.rpartition("::")[2] for name in found["passed"]] == [
        "test_shapes",
        "test_whose_it_is",
        "test_options[None]",
    ]
    ((name, reason),) = found["failed"].items()
    assert name.endswith("test_scalars.py::test_options[2.0]")
    assert reason.startswith("ValueError: 'scale' must be None here, got 2.0.")
    assert not list(checkout.rglob("*.pyc"))


@pytest.mark.slow
def test_a_file_that_cannot_be_imported_is_a_failure(checkout):
    out = checkout / "theirs.json"
    run("drop_in_tests.py", checkout, "--library", "theirs", "--out", out)
    found = json.loads(out.read_text())
    assert not found["passed"]
    assert "No module named 'vector_quantize_pytorch.scalars'" in "".join(found["failed"].values())


@pytest.mark.slow
def test_examples_start_alike(checkout):
    torch.manual_seed(0)
    torch.save(torch.rand(60, 1, 8, 8) * 2 - 1, checkout / "images.pt")
    rows = []
    for library in ("theirs", "ours"):
        out = checkout / f"{library}.json"
        options = ("--script", "small", "--library", library, "--steps", 6, "--seed", 1, "--out", out)
        run("drop_in_examples.py", checkout, checkout / "images.pt", *options)
        rows.append(json.loads(out.read_text()))
    assert len(rows[1]) == 6
    assert rows[1][0].keys() == {"rec loss", "active %"}
    assert rows[0] == rows[1]
