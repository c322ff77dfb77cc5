"""``benchmarks/speed.py``: contenders take turns, and their speeds are compared round by round."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gmvq import recipes
from gmvq.experiments import CONTENDERS, PROTOCOLS
from gmvq.stages import load_data

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import speed


@pytest.fixture(scope="module")
def protocol():
    run = recipes.changed(recipes.digits(), width=8, blocks=1, batch_size=8, codebook_size=16)
    run = replace(run, model=replace(run.model, network="sq-vae"))
    return replace(PROTOCOLS["cifar10-8x8-k1024-short"], name="tiny", data_hash=None, run=run)


def test_contenders_take_turns(protocol):
    data = load_data(protocol.run.data)
    names = ["gaussian-mixture", "vector", "finite-scalar"]
    subjects = speed.subjects_of(protocol, names, data)
    found = speed.take_turns(subjects, rounds=3, steps=2)
    for name, subject in subjects.items():
        assert subject.steps == speed.WARM_UP_STEPS + 3 * 2
        assert subject.model.config.quantizer == CONTENDERS[name].quantizer
        assert len(found[name]) == 3
        subject.batches.close()


def test_ratios_are_of_the_same_round(protocol):
    rows = speed.rows_of(protocol, {"vector": [100.0, 10.0, 50.0], "simvq": [50.0, 5.0, 100.0]})
    assert [(row["contender"], row["items_per_second"], row["relative"]) for row in rows] == [
        ("vector", 50.0, 1.0),
        ("simvq", 50.0, 0.5),
    ]


def test_it_writes_its_rows(protocol, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(speed.PROTOCOLS, "tiny", protocol)
    monkeypatch.setattr(speed, "data_of", lambda protocol, folder: load_data(protocol.run.data))
    out = tmp_path / "speed.json"
    words = ["--data", str(tmp_path), "--protocols", "tiny", "--rounds", "1", "--steps", "1", "--out", str(out)]
    speed.main([*words, "--contenders", "vector", "gaussian-mixture"])
    written = json.loads(out.read_text())
    assert written["format"] == speed.FORMAT
    assert [row["contender"] for row in written["rows"]] == ["vector", "gaussian-mixture"]
    assert written["hardware"]
    assert "tiny, vector:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        speed.main([*words, "--contenders", "gaussian-mixture"])


def test_only_the_data_of_a_protocol_will_do(tmp_path):
    with pytest.raises(ValueError, match="'protocols' must be of cifar10"):
        speed.data_of(replace(PROTOCOLS["cifar10-8x8-k1024-short"], name="voronoi"), tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)):
        speed.data_of(PROTOCOLS["cifar10-8x8-k1024-short"], tmp_path)
