"""Runs contenders under a protocol, seed by seed; rows that exist already are not computed again.

::

    Protocol x Contender x seed --recipes.run--> OUT/PROTOCOL/CONTENDER-SEED-DIGEST/row.json --> Table

Parallel runs have processes of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq.data.writing import write_atomically
from gmvq.experiments.contenders import Contender
from gmvq.experiments.printing import columns_of, markdown, narrow_columns_of
from gmvq.experiments.protocols import Protocol
from gmvq.experiments.rows import Stopped, Task, attempt, stored_row
from gmvq.experiments.table import Entry, Row, RowKey, Table, read_table
from gmvq.modalities import Data
from gmvq.quantizers import catalogue
from gmvq.stages.data import load_data
from gmvq.stages.layout import leaves
from gmvq.stages.tokenizer import Run, TokenizerStage, fitted
from gmvq.training.preparation import cpu_threads

QUANTIZERS: tuple[str, ...] = ("gaussian-mixture", "vector", "vector-ema")
"""Default quantizers of a comparison of recipes."""
TABLE, MARKDOWN = "compare.json", "compare.md"
JOBS_ON_A_GPU = 8


def compare(
    runs: Sequence[Run],
    quantizers: Sequence[str] = QUANTIZERS,
    seeds: int = 3,
    out: str | Path = "runs/compare",
    *,
    threads: int | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> Table:
    """Trains every quantizer on every recipe with every seed and tabulates held-out metrics of hard codes.

    A finished run is not trained again, an interrupted one is resumed.

    Args:
        runs: Recipes; only the quantizer and the seed are varied.
        quantizers: Names of the quantizers.
        seeds: Number of runs per quantizer and recipe, with the seeds 0, 1, ...
        out: Folder of the runs and of the table, ``compare.json`` and ``compare.md``, which are replaced.
        threads: CPU threads during the comparison; None keeps the current number.
        command: Command line, for the record.
        console: Output of progress; by default standard error.

    Returns:
        The table, also written to ``compare.json``.

    Raises:
        ValueError: If there is nothing to compare, a name is repeated, or a folder holds another run.
        RuntimeError: If a run failed for another reason than a non-finite loss; the others are finished.
    """
    _check(seeds=seeds, threads=threads)
    _check_names(runs, quantizers)
    table = Table(command=command)
    contenders = [Contender(name, name, name) for name in quantizers]
    harness = _Harness(Path(out), seeds, 1, threads, command=command, console=console)
    for recipe in runs:
        data = load_data(recipe.data)
        protocol = Protocol.of(recipe, data)
        table.protocols[protocol.name] = protocol.described(data)
        harness.run(protocol, contenders, data, table, table.add)
    table.write(Path(out) / TABLE)
    write_atomically(Path(out) / MARKDOWN, markdown(table).encode())
    return table


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
    """Adds the rows of contenders to the table of a frozen protocol.

    An existing row with the same settings is not computed again; an interrupted run is resumed. Settings do not include
    the code: after a change of a quantizer's code, set ``again``.

    Args:
        protocol: The common settings.
        contenders: The quantizers to compare.
        seeds: Number of runs per contender, with the seeds 0, 1, ...
        source: Path of the protocol's data.
        table: Path of the JSON file, which is written after each run.
        out: Folder of the runs.
        jobs: Number of parallel runs; by default one per CPU core, or 8 on a GPU.
        threads: CPU threads of each run; by default its share of the cores.
        again: Also compute rows that the table already has.
        compile: Compile each run's model with ``torch.compile`` first. The settings of a row do not include this.
        command: Command line, for the record of each run.
        console: Output of progress; by default standard error.

    Returns:
        The table, including all earlier rows.

    Raises:
        ValueError: If an argument is out of range, or data or table are not the protocol's.
        FileNotFoundError: If the path of the data does not exist.
        OSError: If a file cannot be written.
        KeyboardInterrupt: After Ctrl-C; the state of unfinished runs is saved.
        RuntimeError: If a run failed for another reason than a non-finite loss; the others are in the table.
    """
    _check(seeds=seeds, jobs=jobs, threads=threads)
    if not contenders:
        raise ValueError("'contenders' must be at least one, got none. Use all.")
    # the cores available to this process: more threads would wait for each other
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or (JOBS_ON_A_GPU if torch.cuda.is_available() else cores)
    protocol = protocol.at(str(source))
    data = load_data(protocol.run.data)
    protocol.check_data(data)
    path, rows = Path(table), _table_of(protocol, data, Path(table))

    def add(row: Row) -> None:
        merged = read_table(path) or rows  # another command may have added rows since then
        merged.add(row)
        rows.rows = dict(sorted({**rows.rows, **merged.rows}.items()))
        rows.write(path)

    threads = threads or max(1, cores // jobs)
    harness = _Harness(Path(out), seeds, jobs, threads, again=again, compile=compile, command=command, console=console)
    harness.run(protocol, contenders, data, rows, add)
    rows.write(path)
    return rows


def folder_of(out: Path, protocol: Protocol, contender: Contender, run: Run) -> Path:
    """Returns the folder of a run; different settings of model or training give different folders."""
    parts = run.described()
    settings = json.dumps({part: parts[part] for part in ("model", "training")}, sort_keys=True, default=dict)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    return out / protocol.name / f"{contender.name.replace(':', '_')}-{run.training.seed}-{digest}"


@dataclass(frozen=True)
class _Harness:
    """Settings of running contenders, see :func:`measure`."""

    out: Path
    seeds: int
    jobs: int
    threads: int | None
    again: bool = False
    compile: bool = False
    command: str | None = None
    console: Console | None = None

    def run(
        self, protocol: Protocol, contenders: Sequence[Contender], data: Data, table: Table, add: Callable[[Row], None]
    ) -> None:
        """Runs tasks that the table lacks, and passes each row to ``add``.

        Raises:
            ValueError: If a folder holds another run.
            RuntimeError: If a run failed; the others were finished.
        """
        console = self.console or Console(file=sys.stderr)
        tasks = list(self._tasks(protocol, contenders, data, table, add))
        wanted = len(contenders) * self.seeds
        workers = max(1, min(self.jobs, len(tasks)))
        there = f"{wanted - len(tasks)} of {wanted} rows exist"
        _say(console, f"{protocol.name}: {there}, {len(tasks)} to run, {workers} at a time.")
        failures = []
        outcomes = self._here(tasks, data, console) if workers == 1 else self._beside(tasks, workers)
        with contextlib.closing(outcomes):  # if a row cannot be written, unfinished runs are stopped
            for number, (task, outcome) in enumerate(outcomes, 1):
                if isinstance(outcome, Row):
                    add(outcome)
                    _say(console, f"{number} of {len(tasks)}: {_sentence(outcome, table.protocols[protocol.name])}")
                else:
                    failures.append(f"{task.folder.name}: {outcome.reason}")
                    _say(console, failures[-1])
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(tasks)} runs failed: {'; '.join(failures)}")

    def _tasks(
        self, protocol: Protocol, contenders: Sequence[Contender], data: Data, table: Table, add: Callable[[Row], None]
    ) -> Iterator[Task]:
        """Yields the necessary runs; an existing row that the table lacks is added."""
        for seed, contender in itertools.product(range(self.seeds), contenders):
            run = fitted(contender.run(protocol.run, seed), data)
            there = table.rows.get(RowKey(protocol.name, contender.name, seed))
            if not self.again and there is not None and there.settings == contender.settings:
                continue
            run = replace(run, training=replace(run.training, compile=run.training.compile or self.compile))
            folder = folder_of(self.out, protocol, contender, run)
            TokenizerStage(run, folder, data=data).done(overwrite=self.again)  # raises before hours of other runs
            made = None if self.again else stored_row(folder)
            if made is None:
                yield Task(protocol.name, contender, run, folder, self.jobs, self.again, self.command)
            else:
                add(made)

    def _here(self, tasks: Sequence[Task], data: Data, console: Console) -> Generator[tuple[Task, Row | Stopped]]:
        """Runs tasks one after another in this process, with their progress."""
        for task in tasks:
            _say(console, f"{task.contender.name}, seed {task.run.training.seed}: training")
            with cpu_threads(self.threads):
                outcome = attempt(task, data, console)
            yield task, outcome

    def _beside(self, tasks: Sequence[Task], workers: int) -> Generator[tuple[Task, Row | Stopped]]:
        """Runs several tasks in parallel, each in a process of its own."""
        context = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
        start = tasks[0].run, self.threads or 1
        with ProcessPoolExecutor(workers, context, _start_worker, start) as pool:
            pending: dict[Future[Row | Stopped], Task] = {pool.submit(_work, task): task for task in tasks}
            try:
                for future in as_completed(pending):
                    outcome = future.result()
                    if isinstance(outcome, Stopped) and outcome.interrupted:
                        raise KeyboardInterrupt(outcome.reason)
                    yield pending[future], outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_shared: dict[str, Data] = {}
"""The data of a worker, loaded once."""


def _start_worker(run: Run, threads: int) -> None:
    torch.set_num_threads(threads)
    _shared["data"] = load_data(run.data)


def _work(task: Task) -> Row | Stopped:
    try:
        return attempt(task, _shared["data"], Console(file=sys.stderr, quiet=True))
    except KeyboardInterrupt as error:
        return Stopped(str(error), interrupted=True)


def _table_of(protocol: Protocol, data: Data, path: Path) -> Table:
    """Reads the table at a path, or creates a new one.

    Raises:
        ValueError: If the table has another protocol, version or data, or the protocol has changed.
    """
    described = protocol.described(data)
    table = read_table(path)
    if table is None:
        return Table({protocol.name: described})
    there = [_mark(one) for one in table.protocols.values()]
    if there != [_mark(described)]:
        raise ValueError(
            f"'{path}' is the table of {'; '.join(there)}, not of {_mark(described)}. Choose another --table."
        )
    changed = changed_fields(table.protocols[protocol.name], described)
    if changed:
        raise ValueError(
            f"'{path}' was measured with other {', '.join(changed)}. A changed protocol needs a new version."
        )
    return table


def changed_fields(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the common fields in which a protocol's run differs from that of a table."""
    here = leaves({part: now["run"][part] for part in ("data", "model", "training")})
    known = leaves(there["run"])
    return [name for name, value in here.items() if known.get(name, value) != value]


def _mark(described: Mapping[str, Any]) -> str:
    return f"{described['name']}, version {described['version']}, data {described['data']['fingerprint'][:12]}"


def _check(**counts: int | None) -> None:
    """Checks that numbers are at least 1."""
    remedies = {"seeds": "Three show the spread", "jobs": "Leave it out for one for each core"}
    for name, value in counts.items():
        if value is not None and value < 1:
            remedy = remedies.get(name, "Leave it out for the default")
            raise ValueError(f"'{name}' must be at least 1, got {value}. {remedy}.")


def _check_names(runs: Sequence[Run], quantizers: Sequence[str]) -> None:
    """Checks that a comparison is not empty, names are unique and quantizers known."""
    for name, values in (("recipes", [run.name for run in runs]), ("quantizers", quantizers)):
        if not values or len(set(values)) != len(values):
            raise ValueError(
                f"'{name}' must be at least one, each once, got {', '.join(values) or 'none'}. Name others."
            )
    known = tuple(catalogue.QUANTIZERS)
    unknown = sorted(set(quantizers) - set(known))
    if unknown:
        raise ValueError(f"'quantizers' must be of {', '.join(known)}, got {', '.join(unknown)}. Check the spelling.")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _sentence(row: Row, protocol: Mapping[str, Any]) -> str:
    name = f"{row.contender}, seed {row.seed}"
    if row.metrics is None:
        return f"{name}: diverged, {row.diverged}"
    entry = Entry(row.contender, (row,))
    columns = {**narrow_columns_of(protocol), "seconds": columns_of(protocol)["seconds"]}
    values = {column.header: column.written(entry.spread(key)) for key, column in columns.items()}
    return f"{name}: {', '.join(f'{header} {value}' for header, value in values.items() if value)}"
