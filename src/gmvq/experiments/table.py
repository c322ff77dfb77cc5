"""Measured rows at rest: one form for recipes and for frozen protocols.

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

from gmvq.data.writing import write_atomically
from gmvq.metrics.base import Distortion
from gmvq.modalities import Modality, from_description

FORMAT = "gmvq.experiment"
VERSION = 1


class RowKey(NamedTuple):
    """What there is one row of."""

    protocol: str
    contender: str
    seed: int


class Row(NamedTuple):
    """One run.

    Attributes:
        protocol: Name of the frozen protocol or of the recipe.
        contender: Name of the contender or of the quantizer.
        seed: Seed of the run.
        diverged: Why training stopped on a loss that was not finite, or None.
        metrics: What ``metrics.json`` of the run holds, the median speed of training in items per second and the error
            of the last training batches; None if the run diverged.
        settings: What of the protocol's run the contender changes.
        parameters: Number of parameters of the model.
        course: Values at some steps of training by the name of the quantity; ``step`` has the steps.
        provenance: Commit, versions, hardware and the like.
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
        """Its place in the table."""
        return RowKey(self.protocol, self.contender, self.seed)


class Spread(NamedTuple):
    """One metric over seeds.

    Attributes:
        mean: Mean over the runs that have it.
        std: Standard deviation over them (n - 1); None for a single run.
    """

    mean: float
    std: float | None


class Entry(NamedTuple):
    """All runs of a contender under a protocol.

    Attributes:
        contender: Its name.
        rows: Its rows, by seed.
    """

    contender: str
    rows: tuple[Row, ...]

    @property
    def diverged(self) -> dict[int, str]:
        """The reasons by the seeds that diverged."""
        return {row.seed: row.diverged for row in self.rows if row.diverged is not None}

    def spread(self, metric: str) -> Spread | None:
        """Mean and standard deviation of a metric over the runs that have it; None if no run has."""
        values = [row.metrics[metric] for row in self.rows if row.metrics and _is_number(row.metrics.get(metric))]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def mean(self, metric: str) -> float | None:
        """Mean of a metric over the runs that have it; None if no run has."""
        found = self.spread(metric)
        return None if found is None else found.mean


@dataclass
class Table:
    """Rows, and what those of each protocol share.

    Args:
        protocols: What :meth:`Protocol.described` said, by name.
        rows: Rows by protocol, contender and seed.
        command: What was typed, for the record.
    """

    protocols: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: dict[RowKey, Row] = field(default_factory=dict)
    command: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The table that JSON holds.

        Raises:
            ValueError: If it is no table of this version, or holds a run twice.
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
        """Adds a row, in the place of a former one of the same protocol, contender and seed."""
        self.rows[row.key] = row

    def entries(self, protocol: str, contenders: Iterable[str] | None = None) -> list[Entry]:
        """The contenders that have rows under a protocol, in the order of their first rows.

        Args:
            protocol: Name of the protocol.
            contenders: Which of them; None for all.
        """
        wanted = None if contenders is None else set(contenders)
        found: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row.protocol == protocol and (wanted is None or row.contender in wanted):
                found.setdefault(row.contender, []).append(row)
        return [Entry(name, tuple(sorted(rows, key=lambda row: row.seed))) for name, rows in found.items()]

    def content(self) -> dict[str, Any]:
        """What JSON holds of it."""
        rows = [row._asdict() for row in self.rows.values()]
        head = {"format": FORMAT, "version": VERSION, "command": self.command, "protocols": dict(self.protocols)}
        return {**head, "rows": rows}

    def write(self, path: str | Path) -> None:
        """Writes all rows, whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        head = self.content()
        # a line for each row: what a run adds is one line of a difference, and a hundred rows stay small
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in head.pop("rows"))
        text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n]}}\n'
        write_atomically(Path(path), text.encode())


def read_table(path: str | Path) -> Table | None:
    """Reads a table; None if there is no such file.

    Raises:
        ValueError: If the file is no table of this version.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        return Table.of(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is no table of this gmvq ({error}). Choose another --table, or remove it."
        ) from error


def modality_of(protocol: Mapping[str, Any]) -> Modality:
    """What the items of a protocol are."""
    return from_description(protocol["run"]["model"]["modality"])


def judged_by(protocol: Mapping[str, Any]) -> Distortion:
    """The distances that contenders under a protocol are judged by."""
    return modality_of(protocol).distortion(quick=True)


def best_first(entries: Iterable[Entry], protocol: Mapping[str, Any]) -> list[Entry]:
    """Entries with the best headline first, and those without one last."""
    judge = judged_by(protocol)
    sign = -1 if judge.higher_is_better else 1

    def place(entry: Entry) -> tuple[float, str]:
        headline = entry.mean(judge.headline)
        return (math.inf if headline is None else sign * headline), entry.contender

    return sorted(entries, key=place)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
