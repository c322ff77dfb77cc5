"""``compare``: recipes x quantizers x seeds."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from gmvq import recipes
from gmvq.data.sealing import read_record
from gmvq.experiments import compare, read_table, rows
from gmvq.experiments.printing import columns_of, markdown, summary, tables
from gmvq.stages import tokenizer
from gmvq.stages.tokenizer import read_run
from gmvq.training import NonFiniteLossError

QUIET = Console(quiet=True)
QUANTIZERS = ("gaussian-mixture", "vector")


def tiny(**changes):
    settings = {"steps": 3, "batch_size": 8, "width": 8, "blocks": 1, "codebook_size": 16, "evaluated": 20}
    return recipes.changed(recipes.digits(), **{**settings, **changes})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return out, compare([tiny()], QUANTIZERS, 2, out, threads=1, command="gmvq compare", console=QUIET)


def folders(out):
    """The folder of each run by quantizer and seed."""
    return {tuple(path.name.rsplit("-", 2)[:2]): path for path in (out / "digits").iterdir()}


def test_each_run_has_its_folder_and_row(compared):
    out, table = compared
    assert {path.name for path in out.iterdir()} == {"digits", "compare.json", "compare.md"}
    assert list(table.rows) == [("digits", name, seed) for seed in (0, 1) for name in QUANTIZERS]
    for row in table.rows.values():
        folder = folders(out)[row.contender, str(row.seed)]
        metrics = read_record(folder / "metrics.json")
        assert row.metrics == {**metrics, **{name: row.metrics[name] for name in ("items_per_second", "mse_train")}}
        assert read_record(folder / "row.json") == row._asdict()
        assert row.diverged is None


def test_only_quantizer_and_seed_differ(compared):
    out, table = compared
    runs = [read_run(folder) for folder in folders(out).values()]
    assert {(run.model.quantizer, run.training.seed) for run in runs} == {
        (name, seed) for name in QUANTIZERS for seed in (0, 1)
    }
    assert all(replace(run.training, seed=0) == replace(runs[0].training, seed=0) for run in runs)
    assert all(run.data == runs[0].data for run in runs)
    assert {row.settings["quantizer"] for row in table.rows.values()} == set(QUANTIZERS)


def test_means_and_deviations(compared):
    _, table = compared
    for entry in summary(table):
        values = [row.metrics["psnr"] for row in table.rows.values() if row.contender == entry["contender"]]
        assert math.isclose(entry["psnr"]["mean"], statistics.mean(values))
        assert math.isclose(entry["psnr"]["std"], statistics.stdev(values))
        assert (entry["runs"], entry["diverged"]) == (2, 0)


def test_the_protocol_is_there(compared):
    out, table = compared
    assert read_table(out / "compare.json") == table
    assert table.command == "gmvq compare"
    protocol = table.protocols["digits"]
    assert (protocol["codebook_size"], protocol["tokens"]) == (16, [4, 4])
    assert (protocol["data"]["name"], protocol["data"]["held_out"]) == ("digits", 20)
    assert len(protocol["data"]["fingerprint"]) == 64
    assert "quantizer" not in protocol["run"]["model"]
    assert "seed" not in protocol["run"]["training"]
    for row in table.rows.values():
        assert row.provenance.keys() >= {"hardware", "versions", "commit", "device", "jobs", "threads", "finished"}


def test_the_tables(compared):
    out, table = compared
    text = (out / "compare.md").read_text()
    assert text == markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {10}
    assert "K = 16, 4x4 tokens, 3 steps of 8 images" in text
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for one in tables(table):
            console.print(one)
    shown = console.export_text()
    assert f"{summary(table)[0]['psnr']['mean']:.2f} ± " in shown
    assert "…" not in shown


def test_finished_rows_are_not_trained_again(compared, monkeypatch):
    out, table = compared
    monkeypatch.setattr(recipes, "run", None)
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        again = compare([tiny()], QUANTIZERS, 2, out, command="gmvq compare", console=console)
    assert again == table
    assert "digits: 4 of 4 rows exist, 0 to run" in console.export_text()


def test_a_folder_with_a_run_on_other_data_is_refused(compared):
    out, _ = compared
    with pytest.raises(ValueError, match=r"data.evaluated \(20 there, 10 now\)"):
        compare([tiny(evaluated=10)], ("vector",), 1, out, console=QUIET)


def test_divergence_is_counted(tmp_path, monkeypatch):
    train = tokenizer.train

    def diverging(model, data, training, *others, **options):
        if training.seed == 1:
            raise NonFiniteLossError(2, ("bottleneck",))
        return train(model, data, training, *others, **options)

    monkeypatch.setattr(tokenizer, "train", diverging)
    for _ in range(2):  # the second time nothing is trained, and the count is the same
        table = compare([tiny()], ("vector",), 2, tmp_path, console=QUIET)
        (entry,) = summary(table)
        assert (entry["runs"], entry["diverged"]) == (2, 1)
        assert entry["psnr"]["mean"] is not None
        assert entry["psnr"]["std"] is None
        assert "bottleneck" in table.rows["digits", "vector", 1].diverged
        monkeypatch.setattr(tokenizer, "train", None)
    assert "1 of 2 |" in markdown(table)
    assert "vector (1 of 2 diverged)" in str(next(iter(tables(table)[0].columns[0].cells)))


def test_all_diverged_leaves_dashes(tmp_path, monkeypatch):
    def diverging(recipe, out, **options):
        raise NonFiniteLossError(1, ("loss",))

    monkeypatch.setattr(recipes, "run", diverging)
    table = compare([tiny()], ("vector",), 1, tmp_path, console=QUIET)
    assert f"| vector |{' - |' * len(columns_of(table.protocols['digits']))} 1 of 1 |" in markdown(table)
    assert summary(table)[0]["psnr"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], ("vector",), 1), "'recipes'"),
        (([tiny(), tiny()], ("vector",), 1), "'recipes'"),
        (([tiny()], (), 1), "'quantizers'"),
        (([tiny()], ("vector", "vector"), 1), "'quantizers'"),
        (([tiny()], ("kmeans",), 1), "kmeans"),
        (([tiny()], ("vector",), 0), "'seeds'"),
    ],
)
def test_nothing_to_compare(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(*arguments, tmp_path)


def test_threads_come_back(tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(rows, "_made", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(RuntimeError, match=r"1 of 1 runs failed: vector-0-.*ZeroDivisionError"):
        compare([tiny()], ("vector",), 1, tmp_path, threads=before + 1, console=QUIET)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="'threads'"):
        compare([tiny()], ("vector",), 1, tmp_path, threads=0, console=QUIET)
