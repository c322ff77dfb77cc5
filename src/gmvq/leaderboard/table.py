"""A table at rest: JSON with one row for each contender and seed.

::

    {"format": "gmvq.leaderboard", "version": 1, "protocol": {...},
     "rows": [{"contender": ..., "seed": ..., "diverged": null, "metrics": {...}, "run": {...}, "course": {...},
               "parameters": ..., "commit": ..., "versions": {...}, "hardware": ..., "device": ..., "jobs": ...}]}
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as Printed

from gmvq import hub

FORMAT = "gmvq.leaderboard"
VERSION = 1


class RowKey(NamedTuple):
    """What there is one row of."""

    contender: str
    seed: int


@dataclass
class Table:
    """The rows of one protocol.

    Args:
        protocol: What :meth:`Protocol.described` said.
        rows: Rows by contender and seed.
    """

    protocol: Mapping[str, Any]
    rows: dict[RowKey, dict[str, Any]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row, in the place of a former one of the same contender and seed."""
        self.rows[RowKey(row["contender"], row["seed"])] = dict(row)

    def of(self, contender: str) -> list[dict[str, Any]]:
        """The rows of a contender, by seed."""
        return [self.rows[key] for key in sorted(self.rows) if key.contender == contender]

    def write(self, path: str | Path) -> None:
        """Writes all rows, by contender and seed, whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        head = {"format": FORMAT, "version": VERSION, "protocol": self.protocol}
        # a line for each row: what a run adds is one line of a difference, and a hundred rows stay small
        rows = ",\n".join(json.dumps(self.rows[key], allow_nan=False) for key in sorted(self.rows))
        text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n]}}\n'
        hub.write_atomically(Path(path), text.encode())


def read_table(path: str | Path) -> Table | None:
    """Reads a table; None if there is no such file.

    Raises:
        ValueError: If the file is no table of this version.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {content['format']!r} version {content['version']!r}")
        table = Table(content["protocol"])
        for row in content["rows"]:
            table.add(row)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is no table of this gmvq ({error}). Choose another --table, or remove it."
        ) from error
    return table


def summary(rows: Iterable[Mapping[str, Any]], measure: str) -> tuple[float, float | None] | None:
    """Mean and standard deviation (n - 1) of a measure over the runs that did not diverge; None without any."""
    values = [row["metrics"][measure] for row in rows if row["metrics"] and row["metrics"].get(measure) is not None]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


_COLUMNS = (
    ("mse", "MSE (1e-3)", 1e3, ".3f"),
    ("psnr", "PSNR (dB)", 1.0, ".2f"),
    ("usage", "Usage (%)", 100.0, ".1f"),
    ("perplexity", "Perplexity", 1.0, ".0f"),
)


def printed(table: Table, contenders: Sequence[str]) -> Printed:
    """The lines of some contenders for a terminal, least error first."""
    made = Printed(title=str(table.protocol["title"]), box=box.SIMPLE, title_justify="left", title_style="")
    made.add_column("Contender", no_wrap=True)
    for _, heading, _, _ in _COLUMNS:
        made.add_column(heading, justify="right", no_wrap=True)
    ordered = sorted(contenders, key=lambda name: (summary(table.of(name), "mse") or (math.inf, None))[0])
    for name in ordered:
        rows = table.of(name)
        lost = sum(row["diverged"] is not None for row in rows)
        note = f" ({lost} of {len(rows)} diverged)" if lost else ""
        made.add_row(name + note, *(_cell(rows, measure, scale, form) for measure, _, scale, form in _COLUMNS))
    return made


def _cell(rows: Sequence[Mapping[str, Any]], measure: str, scale: float, form: str) -> str:
    found = summary(rows, measure)
    if found is None:
        return "-"
    mean, deviation = found
    spread = "" if deviation is None else f" ± {deviation * scale:{form}}"
    return f"{mean * scale:{form}}{spread}"
