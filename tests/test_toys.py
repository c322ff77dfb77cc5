"""A modality of one class, and a quantizer of one class and one entry: every verb finds them."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.__main__ import main
from gmvq.commands import VERBS
from gmvq.data.finding import find_files
from gmvq.data.items import ArrayItems, Skipped
from gmvq.data.labels import labels_of
from gmvq.data.splitting import digest_of, held_out
from gmvq.metrics.base import Measure
from gmvq.metrics.real import RealDistortion
from gmvq.modalities import MODALITIES, Data, Exhibit, Modality, Passage, register
from gmvq.quantizers import QUANTIZERS, AbstractQuantizer
from gmvq.quantizers.catalogue import Preset
from gmvq.types import Quantized, Signal


@dataclass(frozen=True)
class Pulse(Modality):
    """Brightness over time, of a lamp or a star: the bytes of a file.

    Args:
        gain: What all values are multiplied by.
    """

    kind: ClassVar[str] = "pulse"
    item: ClassVar[str] = "pulse"
    items: ClassVar[str] = "pulses"
    sample: ClassVar[str] = "flash"
    wanted: ClassVar[str] = "the path of a folder of pulses (.pulse)"
    measures: ClassVar[tuple[Measure, ...]] = RealDistortion.measures
    window_size: ClassVar[int | None] = 16

    gain: float = 1.0

    @property
    def signal(self) -> Signal:
        return Signal("pulse", 1, 1, "unit", 10.0)

    @property
    def suffix(self) -> str:
        return ".pulse"

    def recognizes(self, source: Path) -> bool:
        return source.suffix == ".pulse"

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        skipped = list[Skipped]()
        files = find_files(path, self.recognizes, skipped) if path.is_dir() else [path]
        array = torch.stack([torch.tensor(list(file.read_bytes()), dtype=torch.uint8)[None] for file in files])
        array = (array * self.gain).round().clamp(0, 255).byte()
        names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
        labels = labels_of(names, path) if path.is_dir() else None
        items = ArrayItems(array, 1, None if labels is None else labels.values, names)
        chosen = held_out([digest_of(item) for item in array], held_out_fraction)
        train = items.subset(sorted({*range(len(items))} - {*chosen})) if chosen else items
        classes = () if labels is None else labels.classes
        return Data(path.stem, train, items.subset(chosen) if chosen else items, self, tuple(skipped), classes)

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        length = item.shape[-1]
        if size is None or length <= size:
            return item
        start = min(int(chance[0] * (length - size + 1)), length - size)
        return item[..., start : start + size]

    def distortion(self, *, quick: bool = False) -> RealDistortion:
        return RealDistortion()

    def exhibit(self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None) -> Exhibit:
        def shown(values: Tensor, text: str) -> tuple[Passage, ...]:
            return (Passage(((" ".join(f"{value:.3g}" for value in values.flatten().tolist()), False),), text),)

        return Exhibit(
            name,
            "" if made is None else "made",
            shown(real, name),
            () if made is None else shown(made, f"{name}, reconstructed"),
            () if codes is None else shown(codes, f"Codes of {name}"),
        )

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        if len(items) != 1:
            raise ValueError(f"'items' must be one pulse for {path}, got {len(items)}. Give each a file of its own.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes((items[0][0] * 255).round().clamp(0, 255).int().tolist()))


class FixedPoints(AbstractQuantizer):
    """The nearest of some points that never move."""

    points: Tensor

    def __init__(self, dim: int, codebook_size: int, spread: float = 1.0) -> None:
        super().__init__(dim, codebook_size)
        generator = torch.Generator("cpu").manual_seed(0)
        self.register_buffer("points", spread * torch.randn(codebook_size, dim, generator=generator, device="cpu"))

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return torch.cdist(rows, self.points.to(rows.dtype)).argmin(1)

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.points[codes]

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        codes = self._encode_rows(rows)
        values = self._decode_rows(codes).to(rows.dtype)
        loss = ((rows - values).square().mean(1) * kept).sum() / kept.sum().clamp_min(1)
        return Quantized(rows + (values - rows).detach(), codes, loss, {})


@contextmanager
def registered():
    """The toys are in the two lists, and afterwards no longer."""
    register(Pulse)
    QUANTIZERS["toy"] = Preset(FixedPoints, "Points that never move")
    try:
        yield
    finally:
        del MODALITIES["pulse"], QUANTIZERS["toy"]


@pytest.fixture
def _toys():
    with registered():
        yield


@pytest.fixture
def call(capsys):
    """Runs a command and returns its result, or the line that it refuses with."""
    called = set[str]()

    def run(*words, status=0):
        called.add(words[0])
        capsys.readouterr()
        found = main([*map(str, words), "--json"])
        said = capsys.readouterr()
        assert found == status, said.err
        if not status:
            return json.loads(said.out, parse_constant=pytest.fail)
        (line,) = said.err.splitlines()
        return line

    run.called = called
    return run


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for place in range(24):
        path = tmp_path / "data" / ("fast", "slow")[place % 2] / f"{place:02d}.pulse"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.sin(np.arange(30) / (1 + place % 2) + generator.random())
        path.write_bytes(bytes((127 + 120 * wave).astype(np.uint8).tolist()))
    return tmp_path / "data"


@pytest.mark.usefixtures("_toys")
def test_every_verb_finds_the_toys(tmp_path, data, call):
    run, prior = tmp_path / "run", ["--prior", tmp_path / "prior"]
    train = ["train", "folder", "--data", data, "--quantizer", "toy", "--quantizer-options", '{"spread": 0.5}']
    train += ["--gain", 0.9, "--held-out-fraction", 0.3, "--width", 8, "--blocks", 1, "--codebook-size", 16]
    trained = call(*train, "--steps", 3, "--batch-size", 4, "--out", run)
    assert trained["metrics"]["modality"] == "pulse"
    assert {"mse", "bits_per_flash", "bits_per_second", "usage"} <= trained["metrics"].keys()
    page = (run / "report.html").read_text()
    assert "Points that never move" in page
    assert '<p class="passage"' in page

    model = call("info", run)["model"]
    assert model["quantizer"] == "toy"
    assert model["modality"] == {"kind": "pulse", "gain": 0.9}
    assert call("evaluate", run)["metrics"]["headline"] == "mse"
    assert call("evaluate", run, "--data", data)["metrics"]["items"] == 24

    assert call("reconstruct", run, data, tmp_path / "made")["items"] == 24
    assert call("tokenize", run, data, tmp_path / "codes.safetensors")["items"] == 24
    assert call("fit-codec", run)["metrics"]["bits_per_code"] > 0
    assert call("compress", run, data, tmp_path / "small", "--verify")["items"] == 24
    for file in map(Path, call("decompress", run, tmp_path / "small", tmp_path / "back")["files"]):
        other = tmp_path / "made" / file.relative_to(tmp_path / "back")
        assert np.abs(np.subtract(list(file.read_bytes()), list(other.read_bytes()), dtype=np.int64)).max() <= 1
    files = call("detokenize", run, tmp_path / "codes.safetensors", tmp_path / "decoded")["files"]
    for file in map(Path, files):
        other = tmp_path / "made" / file.relative_to(tmp_path / "decoded")
        difference = np.subtract(list(file.read_bytes()), list(other.read_bytes()), dtype=np.int64)
        assert (len(difference), np.abs(difference).max() <= 1) == (30, True)

    fitted = call("fit-prior", run, "--out", tmp_path / "prior", "--prior", "n-gram")
    assert fitted["metrics"]["bits_per_code"] > 0
    assert len(call("sample", run, *prior, "-n", 3, "--out", tmp_path / "drawn")["files"]) == 3
    assert len(call("complete", run, 0, tmp_path / "completed", *prior, "-n", 2)["files"]) == 4
    assert len(call("interpolate", run, 0, 1, tmp_path / "between", "-n", 3)["files"]) == 5
    assert len(call("swap", run, 0, 1, tmp_path / "swapped")["files"]) == 3
    assert call("judge", run, *prior, "-n", 4, "--steps", 2)["metrics"]["drawn"] == 4
    assert "a diffusion decoder is for images" in call("fit-decoder", run, status=1)

    words = ["compare", "folder", "--data", f"folder={data}", "--quantizers", "toy", "vector", "--seeds", 1]
    small = ["--steps", 1, "--batch-size", 4, "--width", 8, "--codebook-size", 16, "--out", tmp_path / "compare"]
    compared = call(*words, *small)
    assert {row["contender"] for row in compared["summary"]} == {"toy", "vector"}
    assert {*VERBS} - call.called == {"bench"}  # of no modality


@pytest.mark.usefixtures("_toys")
def test_help_and_errors_name_the_toys(tmp_path, data, call, capsys):
    assert main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--gain" in said
    assert "Of pulses: What all values are multiplied by." in said
    assert ",toy}" in said
    assert ", toy, got 'tyo'" in call("train", "folder", "--data", data, "--quantizer", "tyo", status=2)
    assert "--gain: images have no such setting" in call("train", "photos", "--gain", 2, status=1)
    (tmp_path / "notes.md").write_text("words")
    assert "(.pulse)" in call("train", "folder", "--data", tmp_path / "notes.md", status=1)


def test_the_toys_are_gone_afterwards():
    with registered():
        pass
    assert "pulse" not in MODALITIES
    assert "toy" not in QUANTIZERS
