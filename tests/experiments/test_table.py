import io
import json
import math

import pytest
from rich.console import Console

from gmvq.experiments import Row, Table, read_table
from gmvq.experiments.printing import columns_of, made_by, markdown_table, tables
from gmvq.experiments.table import Spread

PROTOCOL = {
    "name": "tiny", "title": "tiny images", "tokens": [2, 2], "codebook_size": 16,
    "data": {"name": "images", "fingerprint": "f" * 64, "train": 24, "held_out": 16},
    "run": {"training": {"steps": 4, "batch_size": 8}, "model": {"modality": {"kind": "image", "channels": 3}}},
}  # fmt: skip


def row(contender, seed, mse):
    metrics = (
        None
        if mse is None
        else {
            "mse": mse,
            "psnr": -10 * math.log10(mse),
            "ssim": 1 - mse,
            "usage": 0.5,
            "perplexity": 3.0,
            "protocol": "words",
        }
    )
    return Row("tiny", contender, seed, "why" if mse is None else None, metrics, {}, None, {}, {"commit": "c" * 40})


@pytest.fixture
def table():
    made = Table({"tiny": PROTOCOL})
    for one in (row("a", 1, 0.006), row("a", 0, 0.004), row("b", 0, 0.003), row("c", 0, None)):
        made.add(one)
    return made


def test_what_is_written_is_read_again(table, tmp_path):
    table.write(tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == table
    assert read_table(tmp_path / "nothing.json") is None
    text = (tmp_path / "table.json").read_text()
    assert [line[:22] for line in text.splitlines() if line.startswith('{"protocol"')] == ['{"protocol": "tiny", "'] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "another"}, "format 'another'"),
        ({"version": 2}, "version 2"),
        ({"rows": "twice"}, "a with seed 1 twice under tiny"),
        ({"rows": [{"contender": "a"}]}, "missing"),
        ({"rows": None}, "not a table"),
    ],
)
def test_other_files_are_refused(table, tmp_path, change, said):
    content = table.content()
    change = {"rows": content["rows"] * 2} if change.get("rows") == "twice" else change
    (tmp_path / "table.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=said):
        read_table(tmp_path / "table.json")


def test_spreads_are_over_the_seeds_that_did_not_diverge(table):
    first, second, third = table.entries("tiny")
    assert [found.seed for found in first.rows] == [0, 1]
    assert first.spread("mse") == pytest.approx((0.005, math.sqrt(2) * 1e-3))
    assert second.spread("mse") == Spread(0.003, None)
    assert third.spread("mse") is None
    assert third.diverged == {0: "why"}
    assert first.spread("protocol") is None  # words are no figure
    assert table.entries("another") == []


def test_a_figure_is_written_with_its_spread():
    column = columns_of(PROTOCOL)["mse"]
    assert column.written(Spread(0.005, 0.001)) == "5.000 ± 1.000"
    assert column.written(Spread(0.005, 0.001), spread=False) == column.written(Spread(0.005, None)) == "5.000"
    assert column.written(None) == ""


def test_a_cell_may_hold_a_bar_and_cannot_begin_a_tag():
    said = markdown_table(["KL(q || p)", "x"], [["a|b", "<b>"]])
    assert said.splitlines() == [r"| KL(q \|\| p) | x |", "| --- | ---: |", r"| a\|b | &lt;b> |"]


def test_the_least_error_comes_first_in_a_terminal(table):
    console = Console(width=100, record=True, file=io.StringIO())
    for one in tables(table):
        console.print(one)
    lines = [line.strip() for line in console.export_text().splitlines()]
    rows = [line for line in lines if line[:2] in ("a ", "b ", "c ")]
    assert [line[0] for line in rows] == ["b", "a", "c"]
    assert "23.10 ± 1.25" in rows[1]
    assert "1 of 1 diverged" in rows[2]


def test_where_figures_come_from():
    one = {"hardware": "a machine", "jobs": 2, "versions": {"torch": "2"}, "commit": "0123456789abcdef"}
    assert made_by([one, one]) == "a machine, 2 at a time; torch 2; commit 0123456789ab"
    said = made_by([one, one, {"device": "a card", "commit": None}])
    assert said.startswith("a machine (2 runs); a card (1 run), 2 at a time; ")
    assert said.endswith("commit 0123456789ab (2 runs); not recorded (1 run)")
