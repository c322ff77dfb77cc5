"""``benchmarks/modalities.py``, small."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import tables

import modalities


def test_recipes_become_rows_and_rows_a_table(tmp_path, capsys):
    small = ["--steps", "3", "--prior-steps", "2", "--judge-steps", "2", "--runs", str(tmp_path / "runs")]
    out = tmp_path / "modalities.json"
    words = ["--data", str(tmp_path), "--only", "iris", "diabetes", *small, "--out", str(out)]
    modalities.main(words)
    result = json.loads(out.read_text())
    iris, diabetes = result["rows"]
    assert iris["items"] == [127, 23]
    assert iris["held_out_tokens"] == 23
    assert iris["usage"] <= 23 / 32
    assert 0 <= iris["agreement"] <= 1
    assert "agreement" not in diabetes  # has no classes
    assert result["steps"] == {"tokenizer": 3, "prior": 2, "judge": 2}
    assert len(list((tmp_path / "runs/iris").glob("drawn.csv"))) == 1
    assert "Iris: mse" in capsys.readouterr().out
    modalities.main(words)  # is not trained again
    again = json.loads(out.read_text())["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in result["rows"]]
    written = tables.modality_table(result)
    assert "| Iris | 127, 23 |" in written
    assert f"| {100 * iris['training_usage']:.1f}, {100 * iris['usage']:.1f} |" in written
    assert "(2 steps)" in written


def test_an_unknown_case_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        modalities.main(["--data", str(tmp_path), "--only", "tulips"])
