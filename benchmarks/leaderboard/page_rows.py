"""The tables at rest -> figures with their spread over seeds, one entry for each contender.

::

    results/PROTOCOL.json --read--> Experiment --entries--> [Entry: contender, seeds, mean and deviation of each figure]
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gmvq.experiments import read_table

GRADIENTS_FORMAT = "gmvq.gradients"
GRADIENTS = "gradients.json"
REFINEMENT_FORMAT = "gmvq.refinement"
REFINEMENT = "refinement.json"
SPEED_FORMAT = "gmvq.speed"
SPEED = "speed.json"
OURS = "gaussian-mixture"
"""GM-VQ at its defaults: whose place the page is about, and what studies compare with."""
PLAIN = "vector"
"""VQ-VAE as published: what speeds are compared with."""


SPEEDS = ("images_per_second", "relative")
"""What was measured beside each other alone: runs of a table were on different machines, and next to other runs."""


class Spread(NamedTuple):
    """One figure over seeds.

    Attributes:
        mean: Mean over the runs that have it.
        std: Standard deviation over them (n - 1); None for a single run.
        n: How many they are.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Entry:
    """All runs of one contender under one protocol.

    Attributes:
        contender: Its name on the command line.
        title: Its name on the page.
        rows: Its rows, by seed.
        figures: Mean and deviation by the name of the figure, of the runs that did not diverge.
    """

    contender: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    figures: Mapping[str, Spread]

    @property
    def diverged(self) -> dict[int, str]:
        """Why, by the seeds that diverged."""
        return {row["seed"]: row["diverged"] for row in self.rows if row["diverged"]}

    @property
    def finished(self) -> int:
        """Number of runs with figures."""
        return len(self.rows) - len(self.diverged)

    def mean(self, name: str) -> float | None:
        """Mean of a figure, None where there is none."""
        return self.figures[name].mean if name in self.figures else None

    def std(self, name: str) -> float | None:
        """Standard deviation of a figure over seeds, None where there is none."""
        return self.figures[name].std if name in self.figures else None


@dataclass(frozen=True)
class Experiment:
    """Everything that the page is made of.

    Attributes:
        contenders: ``gmvq.experiments.CONTENDERS`` or something of its shape.
        studies: ``gmvq.experiments.STUDIES``.
        protocols: ``gmvq.experiments.PROTOCOLS``, in the order of the page.
        tables: The tables that are there, by protocol.
        gradients: What the study of gradients found, if it is there.
        refinement: What refining codes at encoding gives and costs, if it is there.
        field: ``gmvq.experiments.GROUPS["all"]``: who is ranked; the others are points of studies only.
        speed: How fast contenders train beside each other, if it was measured.
    """

    contenders: Mapping[str, Any]
    studies: Mapping[str, Any]
    protocols: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]
    gradients: Mapping[str, Any] | None = None
    field: tuple[str, ...] = ()
    refinement: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None

    def named(self, ending: str) -> list[str]:
        """Names of the protocols with an ending, as ``-short``."""
        return [name for name in self.protocols if name.endswith(ending)]

    def title(self, protocol: str) -> str:
        """What a protocol is called on the page."""
        if protocol in self.tables:
            return self.tables[protocol]["protocol"]["title"]
        return getattr(self.protocols.get(protocol), "title", protocol)

    def data_title(self, protocol: str) -> str:
        """What its data are called."""
        return self.title(protocol).split(",")[0]

    def entries(self, protocol: str, names: Iterable[str] | None = None) -> list[Entry]:
        """The contenders of a table, the least error first and those without one last.

        Args:
            protocol: Name of the protocol.
            names: Which contenders; those of the field by default.
        """
        rows = self.tables[protocol]["rows"] if protocol in self.tables else []
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_name.setdefault(row["contender"], []).append(row)
        wanted = set(self.field if names is None else names)
        speeds = {row["contender"]: row for row in self.speeds(protocol)}
        made = [self._entry(name, found, speeds.get(name)) for name, found in by_name.items() if name in wanted]
        return sorted(made, key=lambda entry: (math.inf if (mse := entry.mean("mse")) is None else mse, entry.title))

    def speeds(self, protocol: str) -> list[Mapping[str, Any]]:
        """How fast contenders train under a protocol."""
        return [row for row in (self.speed or {"rows": []})["rows"] if row["protocol"] == protocol]

    def missing(self, protocol: str) -> list[str]:
        """Contenders of the field that have no row under a protocol."""
        there = {row["contender"] for row in self.tables[protocol]["rows"]}
        return [name for name in self.field if name not in there]

    def unknown(self, protocol: str) -> list[str]:
        """Contenders that have rows but are no longer known."""
        return sorted({row["contender"] for row in self.tables[protocol]["rows"]} - self.contenders.keys())

    def _entry(self, name: str, rows: Sequence[Mapping[str, Any]], speed: Mapping[str, Any] | None) -> Entry:
        ordered = tuple(sorted(rows, key=lambda row: row["seed"]))
        measured = [row["metrics"] for row in ordered if row["metrics"] is not None]
        keys = dict.fromkeys(key for metrics in measured for key in metrics)
        values = {key: [metrics[key] for metrics in measured if is_number(metrics.get(key))] for key in keys}
        figures = {key: spread(found) for key, found in values.items() if found and key not in SPEEDS}
        figures |= {key: spread([speed[key]]) for key in SPEEDS if speed is not None}
        title = getattr(self.contenders.get(name), "title", name)
        return Entry(name, title, ordered, figures)


def is_number(value: object) -> bool:
    """Tells a figure from text, null and what JSON cannot hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def read_tables(folder: Path, protocols: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The tables that are there, by protocol.

    Raises:
        ValueError: If a file is of another format or holds a run twice.
    """
    return {name: _read_table(path) for name in protocols if (path := folder / f"{name}.json").is_file()}


def read_gradients(folder: Path) -> dict[str, Any] | None:
    """The study of gradients, None if it is not there.

    Raises:
        ValueError: If the file is of another format.
    """
    return _read_study(folder / GRADIENTS, GRADIENTS_FORMAT)


def read_refinement(folder: Path) -> dict[str, Any] | None:
    """What refining codes gives, None if it was not measured.

    Raises:
        ValueError: If the file is of another format.
    """
    return _read_study(folder / REFINEMENT, REFINEMENT_FORMAT)


def read_speed(folder: Path) -> dict[str, Any] | None:
    """How fast contenders train, None if it was not measured.

    Raises:
        ValueError: If the file is of another format.
    """
    return _read_study(folder / SPEED, SPEED_FORMAT)


def _read_study(path: Path, form: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != form:
        raise ValueError(f"{path} must be of format {form!r}, got {found.get('format')!r}. Write it again.")
    return found


def _read_table(path: Path) -> dict[str, Any]:
    table = read_table(path)
    if table is None:
        raise FileNotFoundError(path)
    ((_, protocol),) = table.protocols.items()
    return {"protocol": protocol, "rows": [{**row._asdict(), **row.provenance} for row in table.rows.values()]}
