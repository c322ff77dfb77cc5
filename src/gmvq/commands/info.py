"""Show the content of a run's folder, or of a compressed file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gmvq import hub
from gmvq.codec import read
from gmvq.commands.common import Common, RunFolder, common, grid, metric_table, read_model
from gmvq.data.parsing import DamagedFileError
from gmvq.stages.layout import METRICS, RECORD, recorded


@dataclass(frozen=True)
class Options:
    """Show the content of a run's folder: the model, its data, its metrics; or that of a compressed file.

    Args:
        run: Folder of the run, or a file of gmvq compress.
    """

    run: RunFolder
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Reads the folder. The result has the model, and the record and metrics of the run if they exist."""
    if options.run.is_file():
        return _compressed(options.run)
    model = read_model(options.run)
    return {
        "run": str(options.run),
        "fingerprint": hub.fingerprint(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model": model.config.described(),
        "record": _read(options.run / RECORD),
        "metrics": _read(options.run / METRICS),
    }


def _compressed(path: Path) -> dict[str, Any]:
    """Reads the header of a compressed file.

    Raises:
        DamagedFileError: If it is damaged, or of another kind or version.
    """
    data = path.read_bytes()
    try:
        found = read(data)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path}: {error}") from error
    segments = [None if segment is None else len(segment.data) for segment in found.segments]
    return {"file": str(path), "bytes": len(data), **found.header._asdict(), "segments": segments}


def _read(path: Path) -> dict[str, Any] | None:
    """Reads a record; None if it is missing, or damaged, which a warning says."""
    found = recorded(path)
    if found is None and path.is_file():
        warnings.warn(f"{path} is damaged, or not of this version of gmvq: it is left out.", stacklevel=2)
    return found


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the model, the run and its metrics; or the header of a compressed file."""
    if "file" in result:
        damaged = sum(size is None for size in result["segments"])
        around = result["bytes"] - sum(filter(None, result["segments"]))
        rows = {
            "compressed": f"{result['bytes']:,} bytes, {around:,} of them around the codes",
            "size": " x ".join(map(str, result["size"])) or "one vector",
            "levels": str(result["levels"]),
            "rate": "" if result["rate"] is None else f"{result['rate']} Hz",
            "segments": f"{len(result['segments'])}" + (f", {damaged} damaged" if damaged else ""),
            "tokenizer": result["tokenizer"],
            "entropy model": result["model"],
        }
        console.print(grid([row for row in rows.items() if row[1]]), markup=False)
        return
    record = result["record"] or {}
    model = {**result["model"], "parameters": f"{result['parameters']:,}", "fingerprint": result["fingerprint"][:12]}
    modality = model.pop("modality")
    model |= {f"{modality['kind']}: {name}": _short(value) for name, value in modality.items() if name != "kind"}
    data = record.get("data") or {}
    run = {"data": data.get("name"), "hardware": record.get("hardware"), "command": record.get("command")}
    rows = (*model.items(), *((name, value) for name, value in run.items() if value))
    console.print(grid([(str(name).replace("_", " "), str(value)) for name, value in rows]), markup=False)
    if result["metrics"]:
        try:
            table = metric_table(result["metrics"])
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{METRICS} of {result['run']} is not of this version ({error!r}).") from error
        console.print(table)


def _short(value: object) -> str:
    """Shortens a setting to one line: a vocabulary has thousands of entries."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(text):,} letters)"
