"""Tables of a benchmark: one row per contestant, one column per shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from gmvq.experiments.printing import made_by, markdown_table, terminal_table
from gmvq.experiments.speed.contestants import KMEANS, LABELS, MIXTURE_STEP, NEAREST, OURS, PEER, VECTOR_STEP
from gmvq.experiments.speed.sections import GROWTH, MEMORY
from gmvq.experiments.speed.shapes import Shape

TITLES = {
    NEAREST: "Nearest code, evaluation",
    VECTOR_STEP: "VectorQuantizer, training step",
    MIXTURE_STEP: "GM-VQ, training step",
    KMEANS: "k-means",
}
SHORT = {NEAREST: "Nearest code", VECTOR_STEP: "VectorQuantizer step", MIXTURE_STEP: "GM-VQ step"}
RATIOS = "milliseconds (gmvq's time over it)"
NOT_MADE = "would take"


class Grid(NamedTuple):
    """A table of text.

    Attributes:
        section: Name of the section.
        title: Title with the unit.
        header: Names of the columns.
        rows: Cells; the first of each row is its name.
        notes: Further remarks.
    """

    section: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def grids(result: Mapping[str, Any]) -> list[Grid]:
    """Returns all tables of a benchmark, as far as it is finished."""
    sections: Mapping[str, Sequence[Mapping[str, Any]]] = result["sections"]
    made = []
    for name in TITLES:
        rows = sections.get(name) or []
        if rows:
            made.append(_times(name, f"{TITLES[name]}: {RATIOS}", rows))
    if rows := sections.get(NEAREST):
        made.append(_agreement(rows))
    if rows := sections.get(KMEANS):
        cells = _by_name(rows, lambda row, name: f"{row['inertia'][name]:.4f}" if name in row["inertia"] else "-")
        title = f"k-means: mean squared distance after {rows[0]['iterations']} iterations"
        made.append(Grid(KMEANS, title, ["", *_shapes(rows)], cells, []))
    if rows := sections.get(MEMORY):
        made += _memory(rows)
    if rows := sections.get(GROWTH):
        made += _growth(rows)
    return made


def markdown_grid(grid: Grid) -> str:
    """Formats a table in Markdown."""
    return "\n\n".join([f"**{grid.title}**", markdown_table(grid.header, grid.rows), *grid.notes])


def markdown(result: Mapping[str, Any]) -> str:
    """Formats all tables with their protocol in Markdown."""
    return "\n\n".join([*map(markdown_grid, grids(result)), footnote(result["protocol"])]) + "\n"


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Formats all tables for a terminal, four shapes in 80 columns."""
    made = []
    for grid in grids(result):
        rows = ([name.replace(LABELS[PEER], "vector-quantize- pytorch"), *cells] for name, *cells in grid.rows)
        made.append(terminal_table(grid.title, [_broken(name) for name in grid.header], rows, grid.notes))
    return made


def footnote(protocol: Mapping[str, Any]) -> str:
    """Describes how the values were measured, in a few sentences."""
    memory = f", {protocol['memory_bytes'] / 2**30:.0f} GiB" if protocol["memory_bytes"] else ""
    absent = f" Not installed: {', '.join(LABELS[name] for name in protocol['not_installed'])}."
    return (
        f"Medians of {protocol['rounds']} interleaved rounds in one process, float32, kernels {protocol['kernels']}. "
        f"{made_by([{**protocol, 'hardware': protocol['hardware'] + memory}])}."
        f"{absent if protocol['not_installed'] else ''}"
    )


def _times(section: str, title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Grid:
    def cell(row: Mapping[str, Any], name: str) -> str:
        if name not in row["median"]:
            return "-"
        time = _milliseconds(row["median"][name])
        return time if name == OURS or name not in row["ratio"] else f"{time} ({_factor(row['ratio'][name])})"

    reasons = {f"{LABELS[name]}: {reason}." for row in rows for name, reason in row["left_out"].items()}
    return Grid(section, title, ["", *(columns or _shapes(rows))], _by_name(rows, cell), sorted(reasons))


def _agreement(rows: Sequence[Mapping[str, Any]]) -> Grid:
    def cell(row: Mapping[str, Any], name: str) -> str:
        found = row["agreement"].get(name)
        if found is None:
            return "-"
        differing = "" if found["equal"] == 1 else ", rest ties" if found["ties"] else ", rest NOT ties"
        return f"{100 * found['equal']:.3f} %{differing}"

    names = [name for name in LABELS if any(name in row["agreement"] for row in rows)]
    cells = [[LABELS[name], *(cell(row, name) for row in rows)] for name in names]
    return Grid(NEAREST, "Nearest code: share of codes equal to gmvq's", ["", *_shapes(rows)], cells, [])


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    made = []
    for shape in dict.fromkeys(_shapes(rows)):
        mine = [row for row in rows if str(Shape(*row["shape"])) == shape]
        header = ["", *(SHORT[row["task"]] for row in mine)]
        made.append(Grid(MEMORY, f"Peak memory at {shape}", header, _peaks(mine), _reasons(mine)))
    return made


def _growth(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    made = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        columns = [f"K = {row['shape'][2]:,}" for row in mine]
        size = f"{mine[0]['shape'][0]:,} latents of {mine[0]['shape'][1]} features"
        times = _times(GROWTH, f"{TITLES[task]}, {size}: {RATIOS}", mine, columns)
        ours = [
            1e9 * row["median"][OURS] / (row["shape"][0] * row["shape"][2]) for row in mine if OURS in row["median"]
        ]
        linear = f"gmvq's nanoseconds for each latent and code: {', '.join(f'{value:.3g}' for value in ours)}."
        rounds = max((len(values) for row in mine for values in row["seconds"].values()), default=0)
        made.append(times._replace(notes=[f"Medians of {rounds} rounds. {linear}", *times.notes]))
        made.append(Grid(GROWTH, f"{TITLES[task]}, {size}: peak memory", ["", *columns], _peaks(mine), _reasons(mine)))
    return made


def _peaks(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def cell(row: Mapping[str, Any], name: str) -> str:
        found = row["memory"].get(name, {})
        if "bytes" not in found:
            return "-"
        return _bytes(found["bytes"]) if found["fits"] else f"{NOT_MADE} {_bytes(found['bytes'])}"

    names = [name for name in LABELS if any(name in row["memory"] for row in rows)]
    return [[LABELS[name], *(cell(row, name) for row in rows)] for name in names]


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {
        f"{LABELS[name]}: {entry.get('error') or 'not installed: ' + entry['absent']}."
        for row in rows
        for name, entry in row["memory"].items()
        if "bytes" not in entry
    }
    return sorted(found)


def _by_name(rows: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any], str], str]) -> list[list[str]]:
    """Returns a row of cells for each contestant that occurs in any of the rows."""
    names = [name for name in LABELS if any(name in row["median"] or name in row["left_out"] for row in rows)]
    return [[LABELS[name], *(cell(row, name) for row in rows)] for name in names]


def _shapes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(Shape(*row["shape"])) for row in rows]


def _broken(name: str) -> str:
    """Splits a shape into two lines; returns other names unchanged."""
    before, cross, codes = name.rpartition("x")
    return f"{before}\nx{codes}" if cross and codes.isdigit() else name


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _factor(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
