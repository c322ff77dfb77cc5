"""The log of a run, ``log.jsonl``: one JSON object per line, and optionally the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gmvq.data.parsing import parse_json
from gmvq.data.writing import naming, write_atomically

FILE = "log.jsonl"
_REMEDY = "The last checkpoint is still valid; make room there and continue with --resume."


class Journal:
    """Writes the log of a run, line by line, without buffering.

    ``{"kind": "train", "step": 20, "loss": ..., ...}`` is the mean over the steps since the last such line,
    ``{"kind": "evaluation", "step": 250, "psnr": ..., ...}`` is measured on held-out images.

    Args:
        run: The run's folder.
        step: Number of finished steps; lines of later steps, left by a killed run, are removed. 0 starts a new log.
        tensorboard: Also write for TensorBoard.

    Raises:
        ModuleNotFoundError: If ``tensorboard`` is set and TensorBoard is not installed.
        OSError: If the log cannot be written.
    """

    def __init__(self, run: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        self.path = run / FILE
        with naming("The log", "Make room there, or choose another --out."):
            run.mkdir(parents=True, exist_ok=True)
            self.writer = _tensorboard_writer(run, step) if tensorboard else None
            _truncate(self.path, step)
            self._file: TextIO = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, metrics: dict[str, float | None]) -> None:
        """Adds a line; a metric that is not finite becomes null, since JSON cannot represent it."""
        known = {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
        entry: dict[str, Any] = {"kind": kind, "step": step, **known}
        with naming(f"The line of step {step} of {self.path}", _REMEDY):
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
            if self.writer is not None:
                for name, value in known.items():
                    if value is not None:
                        self.writer.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Waits until all lines are on the disk: a checkpoint must not be newer than the log."""
        with naming(str(self.path), _REMEDY):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the log; errors of a full disk were raised by earlier writes."""
        for part in (self._file, self.writer):
            with suppress(OSError):
                if part is not None:
                    part.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Reads the lines of a run's log; none if there is no log, and without lines cut off by a kill.

    Their kind is a word and all else numbers, or None, as the log writes them: other values are left out.
    """
    try:
        text = (run / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = parse_json(line.encode())
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append({name: value for name, value in entry.items() if _is_of_a_log(name, value)})
    return found


def _is_of_a_log(name: str, value: object) -> bool:
    return type(value) is str if name == "kind" else value is None or type(value) in (int, float)


def _truncate(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if 0 < _step_of(line) <= step]
    write_atomically(path, b"".join(kept))


def _step_of(line: bytes) -> int:
    """Returns the step of a line of the log, -1 if a kill cut it off."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return -1
    return step if isinstance(step, int) and line.endswith(b"\n") else -1


def _tensorboard_writer(run: Path, step: int) -> Any:  # noqa: ANN401
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "'tensorboard' is set, but TensorBoard is not installed. Install it with: pip install gmvq[tensorboard]"
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
