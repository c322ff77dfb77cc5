"""``benchmarks/codebook_size.py``: a sweep of codebook sizes beside what auto finds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from gmvq import recipes

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import codebook_size
import tables


def test_a_sweep_and_auto_stand_in_one_table(tmp_path, monkeypatch):
    tiny = recipes.changed(recipes.digits(), steps=3, batch_size=8, width=8, blocks=1, evaluated=20)
    monkeypatch.setattr(recipes, "make", lambda name: replace(tiny, name=name))
    out = tmp_path / "sizes.json"
    arguments = ["--recipes", "digits", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    codebook_size.main([*arguments, "--sizes", "4", "64"])
    rows = {row["asked"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() == {4, 64, "auto"}
    # with as few steps a trial is the whole run
    found = rows["auto"]
    assert found["trials"][str(found["codes"])] == found["bits"] == min(found["trials"].values())
    assert found["trial_seconds"] > 0
    # another call keeps the rows, and says for which it has no time
    codebook_size.main([*arguments, "--sizes", "16"])
    rows = {row["asked"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() == {4, 16, 64, "auto"}
    assert rows["auto"]["trial_seconds"] is None
    line = tables.sizes_table(json.loads(out.read_text())).splitlines()[2]
    least = min(rows[size]["bits"] for size in (4, 16, 64))
    assert f"**{least:.3f}**" in line
    assert line.endswith(f"| {rows['auto']['codes']} | {rows['auto']['bits'] - least:+.3f} |")
