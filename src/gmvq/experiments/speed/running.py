"""Runs the sections of the benchmark and writes its files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq.data.locking import locked
from gmvq.data.writing import write_atomically, write_json
from gmvq.experiments.speed import memory
from gmvq.experiments.speed.contestants import FAISS, LABELS, OURS, PEER
from gmvq.experiments.speed.plotting import plot_growth
from gmvq.experiments.speed.sections import GROWTH, MEMORY, SECTIONS, Plan
from gmvq.experiments.speed.shapes import Shape
from gmvq.experiments.speed.tables import markdown
from gmvq.kernels import compiled
from gmvq.training import provenance
from gmvq.training.preparation import cpu_threads

FORMAT = "gmvq.bench"
VERSION = 1
TABLE, MARKDOWN, PLOT = "bench.json", "bench.md", "bench.png"

SHAPES = tuple(map(Shape.parse, ("8192x64x1024", "8192x256x1024", "8192x32x16384", "65536x64x1024")))
MEMORY_SHAPES = (Shape(65536, 32, 16384),)
GROWTH_SHAPES = tuple(Shape(4096, 32, 1 << power) for power in range(10, 19, 2))
PEERS = tuple(name for name in LABELS if name != OURS)
_PACKAGES = {PEER: "vector-quantize-pytorch", FAISS: "faiss-cpu"}


def bench(
    shapes: Sequence[Shape] = SHAPES,
    *,
    sections: Collection[str] = tuple(SECTIONS),
    against: Collection[str] = PEERS,
    rounds: int = 7,
    threads: int | None = None,
    memory_shapes: Sequence[Shape] = MEMORY_SHAPES,
    growth_shapes: Sequence[Shape] = GROWTH_SHAPES,
    out: str | Path = "runs/bench",
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures gmvq's kernels and steps and those of other libraries, in one process and with the same threads.

    The files are written after each row, so that an interruption loses nothing.

    Args:
        shapes: Latents x features x codes of the tables of times.
        sections: Names of the ``SECTIONS`` to measure.
        against: Names of the ``PEERS``; those that are not installed are left out, and listed in the result.
        rounds: Interleaved rounds; values are medians over them.
        threads: CPU threads of all contestants; None keeps the current number.
        memory_shapes: Sizes for peak memory.
        growth_shapes: Sizes for the growth of time and memory.
        out: Folder of ``bench.json``, ``bench.md`` and ``bench.png``; those of a former benchmark are replaced.
        command: Command line, for the record.
        console: Output of progress; by default standard error.

    Returns:
        ``{"protocol": ..., "sections": {name: rows}}``, also written to ``bench.json``.

    Raises:
        ValueError: If there is nothing to measure, or a name is unknown.
    """
    _check(sections, against, rounds, threads)
    out, console = Path(out), Console(file=sys.stderr) if console is None else console
    sizes = {MEMORY: memory_shapes, GROWTH: growth_shapes}
    with locked(out), cpu_threads(threads):
        result: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "protocol": _protocol(rounds, command),
            "sections": {},
            "json": str(out / TABLE),
            "markdown": str(out / MARKDOWN),
            "plot": None,
        }
        try:
            for name in (name for name in SECTIONS if name in sections):
                rows = result["sections"].setdefault(name, [])
                plan = Plan(sizes.get(name, shapes), against, rounds)
                for row in SECTIONS[name](plan, lambda text: console.print(text, highlight=False, markup=False)):
                    rows.append(row)
                    _write(result, out)
        except KeyboardInterrupt:
            if any(result["sections"].values()):
                console.print(f"The finished rows are in {out / TABLE}.", highlight=False, markup=False)
            raise
    return result


def _write(result: dict[str, Any], out: Path) -> None:
    rows = result["sections"].get(GROWTH)
    if rows:
        write_atomically(out / PLOT, plot_growth(rows))
        result["plot"] = str(out / PLOT)
    write_json(out / TABLE, result)
    write_atomically(out / MARKDOWN, markdown(result).encode())


def _protocol(rounds: int, command: str | None) -> dict[str, Any]:
    versions, absent = dict(provenance.versions()), []
    for name, package in _PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
        if package not in versions:
            absent.append(name)
    return {
        "metrics": "seconds of wall time, in one process, in interleaved rounds; ratios are medians over rounds of "
        "gmvq's time over the other's; memory is the peak resident size of a fresh process above that before the call",
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "hardware": provenance.hardware(),
        "memory_bytes": memory.installed(),
        "kernels": "torch" if compiled.library() is None else "compiled",
        "versions": versions,
        "not_installed": absent,
        "commit": provenance.commit(),
        "command": command,
    }


def _check(sections: Collection[str], against: Collection[str], rounds: int, threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"'threads' must be at least 1, got {threads}. Leave it out for PyTorch's choice.")
    if rounds < 1:
        raise ValueError(f"'rounds' must be at least 1, got {rounds}. Seven give a stable median.")
    known: Mapping[str, Collection[str]] = {"sections": SECTIONS, "against": PEERS}
    for name, values in (("sections", sections), ("against", against)):
        unknown = sorted(set(values) - set(known[name]))
        if unknown or (name == "sections" and not values):
            raise ValueError(
                f"'{name}' must be of {', '.join(known[name])}, got {', '.join(unknown) or 'none'}. Check the spelling."
            )
