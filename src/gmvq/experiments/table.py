"""Tables of measured rows: one file format for recipes and for frozen protocols.

::

    {"format": "gmvq.experiment", "version": 1, "command": null, "protocols": {NAME: {...}},
     "rows": [{"protocol": NAME, "contender": ..., "seed": 0, "diverged": null, "metrics": {...}, "settings": {...},
               "parameters": ..., "course": {...}, "provenance": {...}}]}
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from gmvq.data.parsing import read_json
from gmvq.data.writing import write_atomically
from gmvq.metrics.base import Distortion
from gmvq.modalities import Modality, from_description

FORMAT = "gmvq.experiment"
VERSION = 1


class RowKey(NamedTuple):
    """Unique key of a row."""

    protocol: str
    contender: str
    seed: int


class Row(NamedTuple):
    """One run.

    Attributes:
        protocol: Name of the frozen protocol or of the recipe.
        contender: Name of the contender or of the quantizer.
        seed: Seed of the run.
        diverged: Error message if the loss became non-finite in training, or None.
        metrics: Content of the run's ``metrics.json``, the median training speed in items per second and the error
            of the last training batches; None if the run diverged.
        settings: Changes of the contender to the protocol's run.
        parameters: Number of parameters of the model.
        course: Metrics at some steps of training by name; ``step`` has the steps.
        provenance: Commit, versions, hardware and similar.
    """

    protocol: str
    contender: str
    seed: int
    diverged: str | None
    metrics: dict[str, Any] | None
    settings: dict[str, Any]
    parameters: int | None
    course: dict[str, list[float | None]]
    provenance: dict[str, Any]

    @property
    def key(self) -> RowKey:
        """Key of the row in a table."""
        return RowKey(self.protocol, self.contender, self.seed)


class Spread(NamedTuple):
    """One metric over seeds.

    Attributes:
        mean: Mean over the runs that have the metric.
        std: Standard deviation over them (n - 1); None for a single run.
    """

    mean: float
    std: float | None


class Entry(NamedTuple):
    """All runs of a contender under a protocol.

    Attributes:
        contender: Name of the contender.
        rows: Rows of the contender, by seed.
    """

    contender: str
    rows: tuple[Row, ...]

    @property
    def diverged(self) -> dict[int, str]:
        """Error messages by seed of the runs that diverged."""
        return {row.seed: row.diverged for row in self.rows if row.diverged is not None}

    def spread(self, metric: str) -> Spread | None:
        """Returns mean and standard deviation of a metric over the runs that have it; None if no run has it."""
        values = [row.metrics[metric] for row in self.rows if row.metrics and _is_number(row.metrics.get(metric))]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def mean(self, metric: str) -> float | None:
        """Returns the mean of a metric over the runs that have it; None if no run has it."""
        found = self.spread(metric)
        return None if found is None else found.mean


@dataclass
class Table:
    """Rows, and the settings that the rows of each protocol share.

    Args:
        protocols: Results of :meth:`Protocol.described` by name.
        rows: Rows by protocol, contender and seed.
        command: Command line, for the record.
    """

    protocols: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: dict[RowKey, Row] = field(default_factory=dict)
    command: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Creates the table from JSON content.

        Raises:
            ValueError: If it is not a table of this version, or contains a run twice.
        """
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"format {content.get('format')!r}, version {content.get('version')!r}")
        table = cls(dict(content["protocols"]), {}, content["command"])
        for row in (Row(**one) for one in content["rows"]):
            if row.key in table.rows:
                raise ValueError(f"{row.contender} with seed {row.seed} twice under {row.protocol}")
            table.add(row)
        return table

    def add(self, row: Row) -> None:
        """Adds a row, and replaces an earlier one with the same protocol, contender and seed."""
        self.rows[row.key] = row

    def entries(self, protocol: str, contenders: Iterable[str] | None = None) -> list[Entry]:
        """Returns the contenders that have rows under a protocol, in the order of their first rows.

        Args:
            protocol: Name of the protocol.
            contenders: Names to select; None for all.
        """
        wanted = None if contenders is None else set(contenders)
        found: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row.protocol == protocol and (wanted is None or row.contender in wanted):
                found.setdefault(row.contender, []).append(row)
        return [Entry(name, tuple(sorted(rows, key=lambda row: row.seed))) for name, rows in found.items()]

    def content(self) -> dict[str, Any]:
        """Returns the table as JSON content."""
        rows = [row._asdict() for row in self.rows.values()]
        head = {"format": FORMAT, "version": VERSION, "command": self.command, "protocols": dict(self.protocols)}
        return {**head, "rows": rows}

    def write(self, path: str | Path) -> None:
        """Writes all rows, atomically.

        Raises:
            OSError: If the file cannot be written.
        """
        head = self.content()
        # one line per row: a run adds one line to a diff, and a hundred rows stay small
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in head.pop("rows"))
        text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n]}}\n'
        write_atomically(Path(path), text.encode())


def read_table(path: str | Path) -> Table | None:
    """Reads a table; returns None if the file does not exist.

    Raises:
        ValueError: If the file is not a table of this version.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        return Table.of(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is not a table of this version of gmvq ({error}). Choose another --table, or remove it."
        ) from error


def modality_of(protocol: Mapping[str, Any]) -> Modality:
    """Returns the kind of the items of a protocol."""
    return from_description(protocol["run"]["model"]["modality"])


def judged_by(protocol: Mapping[str, Any]) -> Distortion:
    """Returns the distortion metrics that contenders under a protocol are judged by."""
    return modality_of(protocol).distortion(quick=True)


def best_first(entries: Iterable[Entry], protocol: Mapping[str, Any]) -> list[Entry]:
    """Sorts entries by headline metric, the best first and those without one last."""
    judge = judged_by(protocol)
    sign = -1 if judge.higher_is_better else 1

    def place(entry: Entry) -> tuple[float, str]:
        headline = entry.mean(judge.headline)
        return (math.inf if headline is None else sign * headline), entry.contender

    return sorted(entries, key=place)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
