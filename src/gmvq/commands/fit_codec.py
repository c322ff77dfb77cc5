"""Fit the probabilities of a tokenizer's codes, for smaller files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gmvq import stages
from gmvq.codec import CODEC
from gmvq.commands.common import Common, RunFolder, Where, common, grid, metric_rows, read_model, say
from gmvq.stages.codec import CodecRun

SHOWN = (
    ("bits_per_code", "bits of a code in files", "{:.3f}"),
    ("estimated_bits_per_code", "by the probabilities", "{:.3f}"),
    ("packed_bits_per_code", "packed", "{:.3f}"),
    ("least_saved", "saved by the worst file", "{:.1%}"),
    ("items", "held-out items", "{:,}"),
)


@dataclass(frozen=True)
class Options:
    """Fit the probabilities of a tokenizer's codes to its training items, for smaller files of gmvq compress.

    Files that were compressed before need the former codec: keep its folder.

    Args:
        run: Folder of the tokenizer's run.
        out: Folder of the codec; by default RUN/codec.
        most: Largest number of codes to fit to.
        overwrite: Replace a codec that is finished, or one with other settings.
    """

    run: RunFolder
    out: Path | None = None
    most: int = CodecRun().most
    overwrite: bool = False
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Fits. The result has the codec's folder and its metrics."""
    out = options.run / CODEC if options.out is None else options.out
    made = CodecRun(options.most, options.common.device)
    read_model(options.run)
    how = {"overwrite": options.overwrite, "command": command}
    metrics = stages.fit_codec(options.run, made, out, source=options.where.data, **how)
    return {"run": str(options.run), "codec": str(out), "metrics": metrics}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints bits of held-out codes, and the next command."""
    console.print(grid(metric_rows(result["metrics"], SHOWN)))
    run, codec = Path(result["run"]), Path(result["codec"])
    elsewhere = "" if codec == run / CODEC else f" --codec {codec}"
    say(console, f"Codec: {codec}. Compress with: gmvq compress {run} IN OUT{elsewhere}")
