"""Runs an experiment and writes its row of a table.

::

    Task --recipes.run--> FOLDER/{metrics.json, log.jsonl, ...} --> FOLDER/row.json
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from gmvq import hub, recipes
from gmvq.data.sealing import write_record
from gmvq.data.writing import naming
from gmvq.experiments.contenders import Contender
from gmvq.experiments.table import Row
from gmvq.modalities import Data
from gmvq.stages.layout import RECORD, recorded
from gmvq.stages.tokenizer import Run
from gmvq.training import NonFiniteLossError
from gmvq.training.journal import read_log

ROW = "row.json"
_COURSE_POINTS = 40
_COURSE_DIGITS = 5
_COURSE = ("mse", "perplexity", "used_codes", "posterior_entropy", "sigma", "aggregated_divergence", "gradient_norm")
"""Metrics logged in training that a row keeps; the run's log has all of them."""


class Task(NamedTuple):
    """Arguments of a worker for one run.

    Attributes:
        protocol: Name of the protocol.
        contender: The contender.
        run: Its run under the protocol.
        folder: The run's folder.
        jobs: Number of parallel runs, for the record.
        again: Train again even if the folder holds a finished run.
        command: Command line, for the record.
    """

    protocol: str
    contender: Contender
    run: Run
    folder: Path
    jobs: int
    again: bool
    command: str | None


class Stopped(NamedTuple):
    """The reason why a run has no row, as text: not all errors can be sent between processes.

    Attributes:
        reason: Description of the error.
        interrupted: True if it was Ctrl-C.
    """

    reason: str
    interrupted: bool = False


def attempt(task: Task, data: Data, console: Console) -> Row | Stopped:
    """Returns the row of one run, or the reason why there is none."""
    try:
        return _made(task, data, console)
    except Exception as error:
        return Stopped(f"{type(error).__name__}: {error}")


def _made(task: Task, data: Data, console: Console) -> Row:
    folder = task.folder
    (folder / ROW).unlink(missing_ok=True)
    metrics, diverged = None, None
    try:
        metrics = recipes.run(
            task.run,
            folder,
            data=data,
            console=console,
            resume=not task.again,
            overwrite=task.again,
            command=task.command,
            report=False,
        )
    except NonFiniteLossError as error:
        diverged = str(error)
    record = recorded(folder / RECORD) or {}
    entries = _training(folder)
    if metrics is not None:
        # from the last lines of the log: training batches, as the decoder received them
        last = entries[-1] if entries else {}
        metrics = {**metrics, "items_per_second": _speed(entries), "mse_train": last.get("mse")}
    row = Row(
        protocol=task.protocol,
        contender=task.contender.name,
        seed=task.run.training.seed,
        diverged=diverged,
        metrics=metrics,
        settings=task.contender.settings,
        parameters=sum(parameter.numel() for parameter in hub.load(folder).parameters()) if metrics else None,
        course=course(entries),
        provenance={
            **{name: record.get(name) for name in ("commit", "versions", "hardware")},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "jobs": task.jobs,
            "threads": torch.get_num_threads(),
            "compiled": task.run.training.compile,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    with naming("The row", "Its run is finished and valid: make room there and give the same command again."):
        write_record(folder / ROW, row._asdict())
    return row


def stored_row(folder: Path) -> Row | None:
    """Reads the row of a finished run; None if the folder has no row in this format."""
    content = recorded(folder / ROW)
    return Row(**content) if content is not None and content.keys() == set(Row._fields) else None


def _training(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log about training."""
    return [entry for entry in read_log(run) if entry.get("kind") == "train"]


def _speed(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns training items per second, the median over the log, so that a pause of the machine has no effect."""
    return statistics.median(entry["items_per_second"] for entry in entries) if entries else None


def course(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Returns logged training metrics at up to forty steps."""
    every = -(-len(entries) // _COURSE_POINTS) or 1
    kept = entries[::-1][::every][::-1]  # the last step is always included
    names = [name for name in _COURSE if any(name in entry for entry in kept)]
    return {name: [_short(entry.get(name)) for entry in kept] for name in ("step", *names)}


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.{_COURSE_DIGITS}g}")
