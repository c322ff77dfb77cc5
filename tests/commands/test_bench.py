"""``gmvq bench`` from its words to its files."""

import json

import pytest

from gmvq.__main__ import main
from gmvq.commands import parse
from gmvq.experiments import speed

TINY = ["--shapes", "64x4x16", "128x4x16", "--growth-shapes", "64x4x16", "--rounds", "1"]


def test_from_words_to_files(capsys, tmp_path):
    # not "memory", whose fresh processes are those of "growth"
    sections = ["nearest", "vector-step", "mixture-step", "k-means", "growth"]
    words = ["bench", *TINY, "--only", *sections, "--against", "product", "--out", str(tmp_path / "b"), "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out, parse_constant=pytest.fail)
    assert result == json.loads((tmp_path / "b" / "bench.json").read_text())
    assert result["protocol"]["command"].startswith("gmvq bench --shapes 64x4x16")
    assert {name: len(rows) for name, rows in result["sections"].items()} == {
        "nearest": 2, "vector-step": 2, "mixture-step": 2, "k-means": 2, "growth": 2,
    }  # fmt: skip
    assert all("bytes" in row["memory"]["gmvq"] for row in result["sections"]["growth"])
    assert "growth of mixture-step, 64x4x16" in captured.err
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["bench.json", "bench.md", "bench.png"]


def test_a_table_for_a_reader(capsys, tmp_path):
    words = ["bench", *TINY, "--only", "nearest", "mixture-step", "--against", "cdist", "--out", str(tmp_path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "torch.cdist + argmin" in shown
    assert "GM-VQ, training step" in shown
    assert "Medians of 1 interleaved rounds" in shown
    assert "bench.md" in shown


def test_the_defaults_are_those_of_the_function():
    options = parse("bench", [])
    assert options.shapes == tuple(map(str, speed.SHAPES))
    assert options.only == tuple(speed.SECTIONS)
    assert options.against == speed.PEERS


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--shapes", "64x4"], 1, "latents x features x codes"),
        (["--rounds", "0"], 1, "'rounds'"),
        (["--only", "speed"], 2, "Expected one of"),
        (["--against", "numpy"], 2, "Expected one of"),
    ],
)
def test_wrong_words(capsys, tmp_path, words, status, said):
    assert main(["bench", *words, "--out", str(tmp_path / "b")]) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
