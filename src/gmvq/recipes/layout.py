"""What lies in a run's folder, and who may write there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RECORD = "run.json"
METRICS = "metrics.json"
CHECKPOINT = "checkpoint/state.safetensors"
REPORT = "report.html"
LOG = "log.jsonl"
PICTURE = "reconstructions.png"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_main() -> bool:
    """False for all but the first process under torchrun or accelerate launch."""
    return os.environ.get("RANK", "0") == "0"
