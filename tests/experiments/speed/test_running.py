import json
from typing import get_args

import pytest
from rich.console import Console

from gmvq.commands.bench import Peer, Section
from gmvq.experiments import speed
from gmvq.experiments.speed import SECTIONS, Shape, bench, grids, markdown, memory, plot_growth, running, tables
from gmvq.experiments.speed.contestants import LABELS

QUIET = Console(quiet=True)
SMALL = {"memory_shapes": [Shape(64, 4, 16)], "growth_shapes": [Shape(64, 4, 16), Shape(64, 4, 64)], "console": QUIET}


def measured(task, name, shape, threads):
    """The memory of a peer, which would not fit at the largest shape."""
    if name == "faiss":
        return {"absent": "No module named 'faiss'"}
    needed = 4 * shape.rows * shape.codes
    return {"bytes": needed * 10**6, "fits": name == "gmvq" or shape.codes < 64, "method": "VmHWM"}


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "measure", measured)
        yield out, bench([Shape(64, 4, 16), Shape(65536, 1, 8)], rounds=1, out=out, command="gmvq bench", **SMALL)


def test_the_command_line_knows_all_sections_and_peers():
    assert get_args(Section) == tuple(SECTIONS)
    assert get_args(Peer) == speed.PEERS


def test_the_files_hold_the_result(benched):
    out, result = benched
    assert json.loads((out / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "bench.md").read_text() == markdown(result)
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["sections"]) == list(SECTIONS)
    assert result["protocol"].keys() >= {
        "hardware",
        "memory_bytes",
        "threads",
        "versions",
        "commit",
        "command",
        "rounds",
    }
    assert result["protocol"]["kernels"] in ("compiled", "torch")


def test_the_tables_are_whole(benched):
    _, result = benched
    text = markdown(result)
    assert "| faiss |" in text or "faiss: not installed" in text
    assert "would take" in text
    assert "gmvq's nanoseconds for each latent and code" in text
    for grid in grids(result):
        assert {len(row) for row in grid.rows} == {len(grid.header)}
        assert {row[0] for row in grid.rows} <= set(LABELS.values())
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in tables(result):
            console.print(table)
    assert "…" not in console.export_text()


def test_the_plot_is_small_and_the_same_again(benched):
    _, result = benched
    rows = result["sections"]["growth"]
    picture = plot_growth(rows)
    assert picture == plot_growth(rows)
    assert len(picture) < 200_000
    # without the product there is nothing to divide by
    bare = [{**row, "median": {name: t for name, t in row["median"].items() if name != "product"}} for row in rows]
    assert plot_growth(bare).startswith(b"\x89PNG")


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    def interrupted(plan, say):
        yield {"shape": [1, 1, 1], "seconds": {}, "median": {}, "ratio": {}, "left_out": {}, "agreement": {}}
        raise KeyboardInterrupt

    monkeypatch.setitem(SECTIONS, "nearest", interrupted)
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, pytest.raises(KeyboardInterrupt):
        bench([Shape(8, 2, 4)], rounds=1, out=tmp_path, console=console)
    assert "The finished rows are in" in console.export_text()
    assert json.loads((tmp_path / "bench.json").read_text())["sections"] == {"nearest": [
        {"shape": [1, 1, 1], "seconds": {}, "median": {}, "ratio": {}, "left_out": {}, "agreement": {}}
    ]}  # fmt: skip


def test_libraries_that_are_not_installed_are_named(tmp_path, monkeypatch):
    def version(package):
        raise running.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(running.metadata, "version", version)
    monkeypatch.setattr(running.provenance, "versions", lambda: {"gmvq": "0"})
    result = bench([Shape(8, 2, 4)], sections=["nearest"], against=[], rounds=1, out=tmp_path, console=QUIET)
    assert result["protocol"]["not_installed"] == ["vector-quantize-pytorch", "faiss"]
    assert "Not installed: vector-quantize-pytorch, faiss." in markdown(result)
    assert result["plot"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 0}, "'rounds'"),
        ({"threads": 0}, "'threads'"),
        ({"sections": ["speed"]}, "speed"),
        ({"sections": []}, "'sections'"),
        ({"against": ["numpy"]}, "numpy"),
    ],
)
def test_bad_options_get_a_reason(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        bench([Shape(8, 2, 4)], out=tmp_path, console=QUIET, **options)
    assert list(tmp_path.iterdir()) == []
