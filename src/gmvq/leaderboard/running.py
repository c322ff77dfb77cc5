"""Contenders under a protocol, several at a time, each in a process of its own; what is there already is not run again.

::

    Protocol x Contender x seed --recipes.run--> OUT/PROTOCOL/CONTENDER-SEED/row.json --> the table
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from gmvq import hub, recipes
from gmvq.modalities import Data, fingerprint
from gmvq.leaderboard.contenders import Contender
from gmvq.leaderboard.protocols import Protocol
from gmvq.leaderboard.table import RowKey, Table, read_table
from gmvq.recipes import Run
from gmvq.training import NonFiniteLossError

ROW = "row.json"
JOBS_ON_A_GPU = 8
_COURSE_POINTS = 40
_COURSE_DIGITS = 5
_COURSE = ("mse", "perplexity", "used_codes", "posterior_entropy", "sigma", "aggregated_divergence", "gradient_norm")
"""What a row keeps of the course of training; its run's log has all of it."""


class _Task(NamedTuple):
    """What a worker needs to know of one run."""

    contender: str
    run: Run
    folder: Path
    jobs: int
    threads: int
    again: bool
    command: str | None


def measure(
    protocol: Protocol,
    contenders: Sequence[Contender],
    seeds: int,
    source: str | Path,
    *,
    table: str | Path,
    out: str | Path = "runs/leaderboard",
    jobs: int | None = None,
    threads: int | None = None,
    again: bool = False,
    compile: bool = False,
    command: str | None = None,
    console: Console | None = None,
) -> Table:
    """Adds the rows of contenders to the table of a protocol.

    A row that the table has already, of the same run, is left as it is; a run that was interrupted goes on. What a run
    is called by are its settings, not the code: after a change of a quantizer itself, ask for it ``again``.

    Args:
        protocol: What all share.
        contenders: Who takes part.
        seeds: Runs of each, with the seeds 0, 1, ...
        source: Path of the protocol's data.
        table: The JSON file; it is written after each run.
        out: Folder of the runs.
        jobs: Runs at a time; by default one for each CPU core, or 8 on a GPU.
        threads: CPU threads of each run; by default the cores that fall to it.
        again: Run also what the table has.
        compile: Translate each run's model by ``torch.compile`` first. A row is of the same run either way.
        command: What was typed, for the record.
        console: Where progress goes; by default standard error.

    Returns:
        The table, with all rows that it had before.

    Raises:
        ValueError: If an argument is out of range, or data or table are not the protocol's.
        FileNotFoundError: If there is nothing at the path of the data.
        OSError: If a file cannot be written.
        KeyboardInterrupt: After Ctrl-C; runs that were going on are saved.
        RuntimeError: If a run failed for another reason than a loss that was not finite; the others are in the table.
    """
    if seeds < 1:
        raise ValueError(f"'seeds' must be at least 1, got {seeds}. Three show the spread.")
    cores = os.cpu_count() or 1
    jobs = (JOBS_ON_A_GPU if torch.cuda.is_available() else cores) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"'jobs' must be at least 1, got {jobs}. Leave it out for one for each core.")
    console = Console(file=sys.stderr) if console is None else console
    threads = max(1, cores // jobs) if threads is None else threads
    if threads < 1:
        raise ValueError(f"'threads' must be at least 1, got {threads}. Leave it out for its share of the cores.")
    if not contenders:
        raise ValueError("'contenders' must be at least one, got none. Use all.")
    template = replace(protocol.run, data=replace(protocol.run.data, source=str(source)))
    data = recipes.load_data(template.data)
    protocol.check_data(data)
    rows = _table(protocol, data, Path(table))
    tasks = []
    for seed in range(seeds):
        for contender in contenders:
            run = recipes.fitted(contender.run(template, seed), data)
            if not again and _is_there(rows, contender.name, run):
                continue
            run = replace(run, training=replace(run.training, compile=compile))
            place = folder_of(Path(out), protocol, contender, run)
            tasks.append(_Task(contender.name, run, place, jobs, threads, again, command))
    wanted = len(contenders) * seeds
    console.print(
        f"{protocol.name}: {wanted - len(tasks)} of {wanted} rows are there, {len(tasks)} to run, {jobs} at a time."
    )
    _run_all(tasks, rows, Path(table), console)
    return rows


def folder_of(out: Path, protocol: Protocol, contender: Contender, run: Run) -> Path:
    """Where a run goes; a contender that was changed gets another folder."""
    settings = _run_of(run) | ({"compile": True} if run.training.compile else {})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    name = contender.name.replace(":", "_")
    return out / protocol.name / f"{name}-{run.training.seed}-{digest}"


def _run_all(tasks: Sequence[_Task], rows: Table, path: Path, console: Console) -> None:
    """Runs tasks and writes each row as it comes; a failure does not stop the others."""
    if not tasks:
        rows.write(path)
        return
    failures: list[str] = []
    context = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
    workers = min(tasks[0].jobs, len(tasks))
    with ProcessPoolExecutor(workers, context, _start_worker, (tasks[0].run, tasks[0].threads)) as pool:
        pending: dict[Future[dict[str, Any]], _Task] = {pool.submit(_row, task): task for task in tasks}
        try:
            for number, future in enumerate(as_completed(pending), 1):
                task = pending[future]
                row = future.result()
                if "interrupted" in row:
                    raise KeyboardInterrupt(row["interrupted"])
                if "failed" in row:
                    failures.append(f"{task.folder.name}: {row['failed']}")
                    console.print(failures[-1], highlight=False, markup=False)
                    continue
                merged = read_table(path) or rows  # another command may have added rows in the meantime
                merged.add(row)
                for one in merged.rows.values():
                    rows.add(one)
                merged.write(path)
                console.print(f"{number} of {len(tasks)}: {_sentence(row)}", highlight=False, markup=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(tasks)} runs failed: {'; '.join(failures)}")


_shared: dict[str, Data] = {}
"""The data of a worker, loaded once."""


def _start_worker(run: Run, threads: int) -> None:
    torch.set_num_threads(threads)
    _shared["data"] = recipes.load_data(run.data)


def _row(task: _Task) -> dict[str, Any]:
    """The row of one run, or why there is none, in words: not all errors travel between processes."""
    try:
        return _made(task)
    except KeyboardInterrupt as error:
        return {"interrupted": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def _made(task: _Task) -> dict[str, Any]:
    data, folder = _shared["data"], task.folder
    before = recipes.read_json(folder / ROW)
    if before is not None and not task.again:  # it was made, but did not come into the table
        recipes.check_folder(folder, task.run, data)
        return before
    quiet = Console(file=sys.stderr, quiet=True)
    metrics, diverged = None, None
    try:
        metrics = recipes.run(
            task.run, folder, resume=not task.again, data=data, command=task.command, report=False, console=quiet
        )
    except NonFiniteLossError as error:
        diverged = str(error)
    record = recipes.read_json(folder / recipes.RECORD) or {}
    entries = _training(folder / "log.jsonl")
    if metrics is not None:
        # of the last lines of the log: training batches, as the decoder saw them
        metrics = {**metrics, "images_per_second": _speed(entries), "mse_train": entries[-1]["mse"]}
    row = {
        "contender": task.contender,
        "seed": task.run.training.seed,
        "diverged": diverged,
        "metrics": metrics,
        "run": _run_of(task.run),
        "parameters": _parameters(folder) if metrics else None,
        "course": course(entries),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "jobs": task.jobs,
        "threads": task.threads,
        "compiled": task.run.training.compile,
        **{name: record.get(name) for name in ("commit", "versions", "hardware")},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    hub.write_json(folder / ROW, row)
    return row


def _training(journal: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that are of training."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]


def _speed(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Training images a second, the median over the log: a pause of the machine does not count."""
    return statistics.median(entry["images_per_second"] for entry in entries) if entries else None


def course(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """What the log says of training, at no more than forty steps."""
    every = -(-len(entries) // _COURSE_POINTS) or 1
    kept = entries[::-1][::every][::-1]  # the last step is always there
    names = [name for name in _COURSE if any(name in entry for entry in kept)]
    return {name: [_short(entry.get(name)) for entry in kept] for name in ("step", *names)}


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.{_COURSE_DIGITS}g}")


def _parameters(folder: Path) -> int:
    return sum(parameter.numel() for parameter in hub.load(folder).parameters())


def _run_of(run: Run) -> dict[str, Any]:
    """What of a run a contender can change, as JSON has it; the protocol's table says the rest."""
    training = {name: value for name, value in run.training.identity().items() if name != "compile"}
    return json.loads(json.dumps({"model": asdict(run.model), "training": training}))


def _is_there(rows: Table, contender: str, run: Run) -> bool:
    row = rows.rows.get(RowKey(contender, run.training.seed))
    return row is not None and row["run"] == _run_of(run)


def _table(protocol: Protocol, data: Data, path: Path) -> Table:
    """The table at a path, or a new one."""
    described = json.loads(json.dumps(protocol.described(data)))
    table = read_table(path)
    if table is None:
        return Table(described)
    same = ("name", "version")
    if [table.protocol[name] for name in same] != [described[name] for name in same] or (
        table.protocol["data"]["fingerprint"] != fingerprint(data)
    ):
        raise ValueError(
            f"'{path}' is the table of {table.protocol['name']}, version {table.protocol['version']}, data "
            f"{table.protocol['data']['fingerprint'][:12]}, not of {protocol.name}, version {protocol.version}, data "
            f"{fingerprint(data)[:12]}. Choose another --table."
        )
    return table


def _sentence(row: dict[str, Any]) -> str:
    name = f"{row['contender']}, seed {row['seed']}"
    if row["metrics"] is None:
        return f"{name}: diverged, {row['diverged']}"
    found = row["metrics"]
    return (
        f"{name}: MSE {found['mse'] * 1e3:.3f}e-3, {found['usage']:.1%} of the codes, perplexity "
        f"{found['perplexity']:.0f}, {found['seconds']:.0f} s"
    )
