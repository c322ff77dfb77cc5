"""Runs of 20 steps against what they did when they were recorded: see tests/golden/runs.py."""

import importlib.util
import json
from pathlib import Path

import pytest

RUNS = Path(__file__).parent / "golden/runs.py"


def test_runs_do_what_they_did():
    spec = importlib.util.spec_from_file_location("golden_runs", RUNS)
    runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runs)
    stored, found = json.loads(runs.STORED.read_text()), runs.measure()
    assert stored.keys() == found.keys()
    same_machine = stored["machine"] == found["machine"]
    for name in stored.keys() - {"machine"}:
        if same_machine:
            assert found[name] == stored[name], name
        # another processor rounds otherwise, and twenty steps carry that a little further
        losses = [[float.fromhex(loss) for loss in each[name]["losses"]] for each in (found, stored)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.02), name
