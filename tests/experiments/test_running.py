import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gmvq.experiments import CONTENDERS, PROTOCOLS, chosen, measure, read_table
from gmvq.experiments.rows import course
from gmvq.experiments.running import changed_fields, folder_of
from gmvq.modalities import fingerprint
from gmvq.stages.data import DataConfig, load_data

QUIET = Console(quiet=True)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    np.savez(path, x_train=images[:32], x_test=images[32:])
    return path


@pytest.fixture
def protocol(source):
    whole = PROTOCOLS["cifar10-8x8-k1024-short"]
    data = DataConfig("", train_limit=24)
    run = replace(
        whole.run,
        data=data,
        model=replace(whole.run.model, width=8, codebook_size=16, blocks=1),
        training=replace(whole.run.training, steps=4, batch_size=8, warmup_steps=1, log_every=1),
    )
    found = fingerprint(load_data(replace(data, source=str(source))))
    return replace(whole, name="tiny", title="tiny images", data_hash=found, tokens=(2, 2), run=run)


def go(protocol, source, tmp_path, names, seeds=1, **options):
    defaults = {"table": tmp_path / "tiny.json", "out": tmp_path / "runs", "jobs": 1, "threads": 1, "console": QUIET}
    return measure(protocol, chosen(names), seeds, source, **defaults | options)


RESULTS = Path(__file__).parents[2] / "benchmarks/leaderboard/results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*k1024*.json")), ids=lambda path: path.stem)
def test_the_rows_of_the_repository_are_of_the_protocols_as_they_are(path):
    table = read_table(path)
    assert table is not None
    (described,), protocol = table.protocols.values(), PROTOCOLS[path.stem]
    assert (described["name"], described["version"]) == (protocol.name, protocol.version)
    assert protocol.data_hash in (None, described["data"]["fingerprint"])
    now = {"run": json.loads(json.dumps(protocol.run.described()))}
    assert changed_fields(described, now) == []
    for row in table.rows.values():
        assert row.settings == CONTENDERS[row.contender].settings


@pytest.mark.parametrize("path", sorted(RESULTS.parents[1].rglob("results/*.json")), ids=lambda path: path.stem)
def test_no_result_of_the_repository_holds_a_path_of_the_machine_that_made_it(path):
    assert not re.search(r"(?<![\w.:/])/(work|tmp|root|home|Users|mnt)/", path.read_text())


def test_a_row_does_not_hold_what_was_typed(protocol, source, tmp_path):
    """Paths would be in it; contender, seed and protocol say the command."""
    table = go(protocol, source, tmp_path, ["gaussian-mixture"], command=f"gmvq compare --data {source}")
    assert str(tmp_path) not in json.dumps(table.content()["rows"])


def test_a_compiled_run_has_another_folder(protocol, tmp_path):
    (contender,) = chosen(["gaussian-mixture"])
    plain = contender.run(protocol.run, 0)
    compiled = replace(plain, training=replace(plain.training, compile=True))
    folders = [folder_of(tmp_path, protocol, contender, run) for run in (plain, compiled)]
    assert folders[0] != folders[1]


def test_a_row_of_other_data_is_not_taken(protocol, source, tmp_path):
    go(protocol, source, tmp_path, ["gaussian-mixture"])
    (tmp_path / "tiny.json").unlink()
    images = np.random.default_rng(1).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    np.savez(source, x_train=images[:32], x_test=images[32:])
    with pytest.raises(ValueError, match="fingerprint"):
        go(replace(protocol, data_hash=None), source, tmp_path, ["gaussian-mixture"])


def test_rows_are_added_and_not_run_twice(protocol, source, tmp_path):
    table = go(protocol, source, tmp_path, ["gaussian-mixture"])
    (row,) = table.rows.values()
    assert row.diverged is None
    assert row.metrics["mse"] > 0
    assert 0 < row.metrics["usage"] <= 1
    assert row.metrics["items"] == 16
    assert row.settings == CONTENDERS["gaussian-mixture"].settings
    assert row.course["step"] == [1, 2, 3, 4]
    assert all(len(values) == 4 for values in row.course.values())
    assert row.parameters > 0
    assert row.metrics["mse_train"] == pytest.approx(row.course["mse"][-1], rel=1e-4)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    speeds = [json.loads(line)["items_per_second"] for line in (folder / "log.jsonl").read_text().splitlines()[:4]]
    assert min(speeds) <= row.metrics["items_per_second"] <= max(speeds)

    again = go(protocol, source, tmp_path, ["gaussian-mixture", "finite-scalar"], seeds=2)
    assert [(key.contender, key.seed) for key in sorted(again.rows)] == [
        ("finite-scalar", 0),
        ("finite-scalar", 1),
        ("gaussian-mixture", 0),
        ("gaussian-mixture", 1),
    ]
    assert (
        again.rows["tiny", "gaussian-mixture", 0].provenance["finished"] == row.provenance["finished"]
    )  # left as it was
    assert again.rows["tiny", "gaussian-mixture", 1].metrics["mse"] != row.metrics["mse"]
    stored = read_table(tmp_path / "tiny.json")
    assert stored == again

    translated = go(protocol, source, tmp_path, ["gaussian-mixture"], compile=True)  # the same run, made in another way
    assert translated.rows == again.rows

    (tmp_path / "tiny.json").unlink()
    made = go(protocol, source, tmp_path, ["gaussian-mixture"])  # the run is there, its row only has to be taken
    assert made.rows["tiny", "gaussian-mixture", 0] == row
    stored.write(tmp_path / "tiny.json")

    forced = go(protocol, source, tmp_path, ["gaussian-mixture"], again=True)
    assert forced.rows["tiny", "gaussian-mixture", 0].metrics["mse"] == row.metrics["mse"]  # the same seed
    assert len(forced.rows) == 4


def test_several_runs_at_a_time_give_the_rows_of_one_at_a_time(protocol, source, tmp_path):
    names = ["vector-ema", "finite-scalar", "gaussian-mixture"]
    one = go(protocol, source, tmp_path / "a", names, jobs=1, threads=1)
    two = go(protocol, source, tmp_path / "b", names, jobs=2, threads=1)
    for key in one.rows:
        assert one.rows[key].metrics["mse"] == two.rows[key].metrics["mse"]


def test_a_contender_with_other_settings_is_run_anew_and_a_protocol_that_changed_is_refused(protocol, source, tmp_path):
    before = go(protocol, source, tmp_path, ["vector-ema"])
    (contender,) = chosen(["vector-ema"])
    options = {"table": tmp_path / "tiny.json", "out": tmp_path / "runs", "jobs": 1, "console": QUIET}
    after = measure(protocol, [replace(contender, changes={"batch_size": 4})], 1, source, **options)
    assert after.rows.keys() == before.rows.keys()
    assert after.rows["tiny", "vector-ema", 0].settings["changes"] == {"batch_size": 4}
    assert after.rows["tiny", "vector-ema", 0].metrics != before.rows["tiny", "vector-ema", 0].metrics
    longer = replace(protocol, run=replace(protocol.run, training=replace(protocol.run.training, steps=6)))
    with pytest.raises(ValueError, match=r"measured with other training\.steps"):
        go(longer, source, tmp_path, ["vector-ema"])


def test_a_diverged_run_has_a_row_and_one_that_fails_stops_no_other(protocol, source, tmp_path):
    wild = replace(protocol, run=replace(protocol.run, training=replace(protocol.run.training, learning_rate=1e30)))
    table = go(wild, source, tmp_path / "wild", ["vector"])
    row = table.rows["tiny", "vector", 0]
    assert row.metrics is None
    assert "not finite" in row.diverged
    assert table.entries("tiny", ["vector"])[0].spread("mse") is None

    prime = replace(protocol, run=replace(protocol.run, model=replace(protocol.run.model, codebook_size=17)))
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed: finite-scalar-0.*'codebook_size'"):
        go(prime, source, tmp_path / "prime", ["finite-scalar", "vector-ema"])
    left = read_table(tmp_path / "prime" / "tiny.json")
    assert left is not None
    assert list(left.rows) == [("tiny", "vector-ema", 0)]


def test_other_data_and_other_tables_are_refused(protocol, source, tmp_path):
    with pytest.raises(ValueError, match=r"'--data' must be the data of tiny, fingerprint 0000.*got images"):
        go(replace(protocol, data_hash="0" * 64), source, tmp_path, ["vector-ema"])
    go(protocol, source, tmp_path, ["vector-ema"])
    with pytest.raises(ValueError, match=r"is the table of tiny, version 1.*not of tiny, version 2"):
        go(replace(protocol, version=2), source, tmp_path, ["vector-ema"])
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="not a table of this version of gmvq"):
        go(protocol, source, tmp_path, ["vector-ema"], table=broken)
    assert broken.read_text() == "{"
    for name in ("seeds", "jobs", "threads"):
        with pytest.raises(ValueError, match=f"'{name}' must be at least 1, got 0"):
            go(protocol, source, tmp_path, ["vector-ema"], **{name: 0})
    with pytest.raises(FileNotFoundError):
        go(protocol, tmp_path / "nothing", tmp_path, ["vector-ema"])


def test_a_course_is_thinned_and_keeps_the_last_step():
    found = course([{"kind": "train", "step": step, "mse": 1 / step} for step in range(1, 351)])
    assert 30 <= len(found["step"]) <= 40
    assert found["step"][-1] == 350
    assert found["mse"][-1] == pytest.approx(1 / 350, rel=1e-4)
    assert course([]) == {"step": []}
