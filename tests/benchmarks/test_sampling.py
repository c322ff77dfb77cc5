"""``benchmarks/sampling.py``: with and without a cache the same codes are drawn."""

import json
import sys
from pathlib import Path

import pytest
import torch

from gmvq.priors import AutoregressiveConfig, AutoregressivePrior, CodeShape

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sampling

SMALL = ["--batch", "2", "3", "--side", "2", "--width", "16", "--depth", "1", "--heads", "2", "--rounds", "2"]


def test_recomputing_draws_what_the_cache_draws():
    torch.manual_seed(0)
    prior = AutoregressivePrior(CodeShape((3, 3), (50,)), AutoregressiveConfig(16, 2, heads=2, order="spiral")).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(4)
    assert torch.equal(sampling.recomputed(prior, 5), prior.sample(5))


@pytest.mark.parametrize("has_peer", [True, False])
def test_it_writes_its_rows(tmp_path, monkeypatch, capsys, has_peer):
    monkeypatch.setattr(sampling, "peer", lambda batch, *_: (lambda: None) if has_peer else None)
    sampling.main([*SMALL, "--out", str(tmp_path / "sampling.json")])
    written = json.loads((tmp_path / "sampling.json").read_text())
    assert [row["batch"] for row in written["rows"]] == [2, 3]
    for row in written["rows"]:
        assert set(row["cached_over"]) == {"recomputed", *([sampling.PEER] if has_peer else [])}
        assert row["codes"] == 4
        assert all(len(seconds) == 2 for seconds in row["seconds"].values())
    assert "batch 3: codes a second" in capsys.readouterr().out
