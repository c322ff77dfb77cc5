"""Layout of a run's folder: records, and checks before writing to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gmvq import hub
from gmvq.data import parsing
from gmvq.data.locking import RECORD as RECORD
from gmvq.data.sealing import read_record
from gmvq.training import provenance
from gmvq.training.preparation import CHANGEABLE

METRICS = "metrics.json"
REPORT = "report.html"
LOG = "log.jsonl"
VERSION = 1
"""Version of all records."""


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads the JSON object in a file; None if there is no readable one."""
    try:
        value = parsing.read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def recorded(path: Path) -> dict[str, Any] | None:
    """Reads a sealed JSON object, see :func:`gmvq.data.sealing.write_record`; None if it is missing or damaged."""
    try:
        value = read_record(path)
    except (OSError, ValueError):
        return None
    return value if all(isinstance(value.get(part) or {}, dict) for part in ("data", "run")) else None


def circumstances(command: str | None) -> dict[str, Any]:
    """Returns command, versions, hardware and time for a record."""
    return {
        "command": command,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commit": provenance.commit(),
        "started": now(),
    }


def now() -> str:
    """Returns the time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def place_of(folder: Path) -> list[int]:
    """Identifies a folder by device and inode numbers, which copies do not share and strangers cannot know."""
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def check_folder(out: Path, form: str, part: str, what: str) -> None:
    """Refuses a folder that holds anything but a certain part of a run, which would be overwritten.

    Args:
        out: The folder.
        form: Format of the records that the folder may hold.
        part: Format of the models that the folder may hold.
        what: Name of the part, for the error.

    Raises:
        ValueError: If there are files and no record or model of these formats, or ``out`` is a file.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"'out' must be a folder, and {out} is a file. Choose another --out.")
    for name, wanted in ((hub.CONFIG, part), (RECORD, form)):
        found = (read_json(out / name) or {}).get("format")
        if (out / name).exists() and found != wanted:
            raise ValueError(
                f"'out' must be a folder of its own for the {what}, and {out / name} is {json.dumps(found)}. Choose "
                "another --out."
            )
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if others and not (out / RECORD).exists() and not (out / hub.CONFIG).exists():
        raise ValueError(
            f"'out' must be a new folder, or that of a {what}, and {out} holds {', '.join(others[:3])}. Choose another "
            "--out."
        )


def recorded_of(out: Path, settings: Mapping[str, Any]) -> list[str]:
    """Describes how settings differ from those recorded in a folder, one phrase per field; empty if they agree."""
    record = recorded(out / RECORD) or {}
    there, here = leaves(record.get("run") or {}), leaves(json.loads(json.dumps(settings)))
    # the results do not depend on these, so that a resumed run may change them
    free = {f"training.{name}" for name in CHANGEABLE}
    different = [name for name in sorted({*there, *here} - free) if there.get(name) != here.get(name)]
    return [f"{name} ({there.get(name)!r} there, {here.get(name)!r} now)" for name in different]


def finished(folder: str | Path, settings: Mapping[str, Any], tokenizer: str | None = None) -> dict[str, Any] | None:
    """Returns the metrics of a finished stage with these settings in a folder, or None.

    Args:
        folder: The folder.
        settings: Settings of the stage, as JSON types.
        tokenizer: Fingerprint of the tokenizer that the prior or decoder belongs to.
    """
    folder = Path(folder)
    record, metrics, model = (recorded(folder / name) for name in (RECORD, METRICS, hub.CONFIG))
    if record is None or metrics is None or model is None:
        return None
    if tokenizer is not None and model.get("tokenizer") != tokenizer:
        return None
    return None if recorded_of(folder, settings) else metrics
