"""Write the codes of items to one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from gmvq import tokenization
from gmvq.commands.common import (
    Common,
    Output,
    RunFolder,
    common,
    device_of,
    foreign_data,
    load_model,
    part_of,
    say,
)
from gmvq.training.progress import counting


@dataclass(frozen=True)
class Options:
    """Write the codes of items to one safetensors file that is complete for decoding.

    Args:
        run: Folder of the run.
        data: A file or a folder of the modality of the run.
        out: The file to write.
        part: Side of the data's split.
        batch_size: Items in a batch.
    """

    run: RunFolder
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    out: Output
    part: Literal["all", "train", "held-out"] = "all"
    batch_size: int = 64
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Writes codes. The result has their number."""
    if options.out.is_dir():
        raise ValueError(f"'OUT' must be a file, and {options.out} is a folder. Write {options.out}/codes.safetensors.")
    model = load_model(options.run, device_of(options.common.device))
    data = foreign_data(options.data, model.modality, options.part)
    items = part_of(data, options.part)
    with counting("Tokenizing", len(items)) as advance:
        info = tokenization.tokenize(model, items, options.out, batch_size=options.batch_size, on_progress=advance)
    return {
        "run": str(options.run),
        "out": str(options.out),
        "items": len(items),
        "tokens": info.tokens,
        "codebook_sizes": info.codebook_sizes,
        "bytes": options.out.stat().st_size,
        "tokenizer": info.tokenizer,
        "skipped": [{"path": str(each.path), "reason": each.reason} for each in data.skipped],
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the number of items and tokens."""
    sizes = " x ".join(f"{size:,}" for size in result["codebook_sizes"])
    written = f"{result['out']}, {result['bytes']:,} bytes"
    say(console, f"{result['items']:,} item(s) as {result['tokens']:,} tokens of {sizes} codes: {written}")
    if result["skipped"]:
        say(console, f"{len(result['skipped'])} file(s) were skipped; --json lists them")
