import json
import math
import statistics

import pytest
import torch
from rich.console import Console

from gmvq import stages
from gmvq import comparison, recipes
from gmvq.comparison import compare, markdown, tables
from gmvq.training import NonFiniteLossError

QUIET = Console(quiet=True)


def tiny(**changes):
    settings = {"steps": 3, "batch_size": 8, "width": 8, "blocks": 1, "codebook_size": 16, "evaluated": 20}
    return recipes.changed(recipes.digits(), **{**settings, **changes})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return out, compare(
        [tiny()], ("gaussian-mixture", "vector"), 2, out, threads=1, command="gmvq compare", console=QUIET
    )


def test_each_run_has_its_folder_and_row(compared):
    out, result = compared
    folders = [f"digits-{quantizer}-{seed}" for quantizer in ("gaussian-mixture", "vector") for seed in (0, 1)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*folders, "compare.json", "compare.md"])
    assert [row["folder"] for row in result["runs"]] == [str(out / folder) for folder in folders]
    for row in result["runs"]:
        metrics = json.loads((out / f"digits-{row['quantizer']}-{row['seed']}" / "metrics.json").read_text())
        assert row["metrics"] == {name: metrics[name] for name in comparison.MEASURES}
        assert row["diverged"] is None


def test_only_quantizer_and_seed_differ(compared):
    _, result = compared
    runs = [stages.read_run(row["folder"]) for row in result["runs"]]
    assert {(run.model.quantizer, run.training.seed) for run in runs} == {
        ("gaussian-mixture", 0), ("gaussian-mixture", 1), ("vector", 0), ("vector", 1),
    }  # fmt: skip
    assert len({recipes.changed(run, seed=0).training for run in runs}) == 1
    assert len({run.data for run in runs}) == 1


def test_means_and_deviations(compared):
    _, result = compared
    for entry in result["table"]:
        values = [row["metrics"]["psnr"] for row in result["runs"] if row["quantizer"] == entry["quantizer"]]
        assert math.isclose(entry["psnr"]["mean"], statistics.mean(values))
        assert math.isclose(entry["psnr"]["std"], statistics.stdev(values))
        assert (entry["runs"], entry["diverged"]) == (2, 0)


def test_the_protocol_is_there(compared):
    out, result = compared
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(result))
    assert result["protocol"]["seeds"] == [0, 1]
    assert result["protocol"].keys() >= {"hardware", "versions", "commit", "command"}
    described = result["recipes"]["digits"]
    assert (described["codebook_size"], described["tokens"], described["steps"], described["batch_size"]) == (
        16,
        [4, 4],
        3,
        8,
    )
    assert described["data"]["held_out"] == 20
    assert len(described["data"]["fingerprint"]) == 64
    assert "quantizer" not in described["run"]["model"]
    assert "seed" not in described["run"]["training"]


def test_the_tables(compared):
    out, result = compared
    text = (out / "compare.md").read_text()
    assert text == markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.count("|") for line in rows} == {10}
    assert "K = 16, 4x4 tokens, 3 steps of 8 images" in text
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in tables(result):
            console.print(table)
    shown = console.export_text()
    assert f"{result['table'][0]['psnr']['mean']:.2f} ± " in shown
    assert "…" not in shown


def test_finished_rows_are_not_trained_again(compared, monkeypatch):
    out, result = compared
    monkeypatch.setattr(recipes, "run", None)
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        again = compare([tiny()], ("gaussian-mixture", "vector"), 2, out, command="gmvq compare", console=console)
    assert again["runs"] == result["runs"]
    assert console.export_text().count("finished before") == 4


def test_a_folder_with_another_run_is_refused(compared):
    out, _ = compared
    with pytest.raises(ValueError, match=r"training.steps \(3 there, 4 now\)"):
        compare([tiny(steps=4)], ("vector",), 1, out, console=QUIET)


def test_divergence_is_counted(tmp_path, monkeypatch):
    train = recipes.run

    def diverging(recipe, out, **options):
        if recipe.training.seed == 1:
            raise NonFiniteLossError(2, ("bottleneck",))
        return train(recipe, out, **options)

    monkeypatch.setattr(recipes, "run", diverging)
    for _ in range(2):  # the second time nothing is trained, and the count is the same
        result = compare([tiny()], ("vector",), 2, tmp_path, console=QUIET)
        entry = result["table"][0]
        assert (entry["runs"], entry["diverged"]) == (2, 1)
        assert entry["psnr"]["mean"] is not None
        assert entry["psnr"]["std"] is None
        assert "bottleneck" in result["runs"][1]["diverged"]
        monkeypatch.setattr(recipes, "run", None)
    assert "1 of 2 |" in markdown(result)
    assert "vector (1 of 2 diverged)" in str(next(iter(tables(result)[0].columns[0].cells)))
    everything = compare([tiny(evaluated=20)], ("vector",), 2, tmp_path, console=QUIET)
    assert everything["table"][0]["diverged"] == 1


def test_all_diverged_leaves_dashes(tmp_path, monkeypatch):
    def diverging(recipe, out, **options):
        raise NonFiniteLossError(1, ("loss",))

    monkeypatch.setattr(recipes, "run", diverging)
    result = compare([tiny()], ("vector",), 1, tmp_path, console=QUIET)
    assert "| vector | - | - |" in markdown(result)


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
    monkeypatch.setattr(comparison, "_row", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare([tiny()], ("vector",), 1, tmp_path, threads=before + 1, console=QUIET)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="'threads'"):
        compare([tiny()], ("vector",), 1, tmp_path, threads=0, console=QUIET)
