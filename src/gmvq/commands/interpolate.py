"""Go from one item to another through their latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from gmvq import generation
from gmvq.checks import at_least
from gmvq.commands.common import (
    Common,
    Number,
    Output,
    RunFolder,
    Where,
    common,
    device_of,
    load_model,
    say_files,
    write_drawn,
)
from gmvq.commands.pairs import First, Second, read_pair


@dataclass(frozen=True)
class Options:
    """Go from one item to another through their latents; each step is quantized.

    Args:
        run: Folder of the tokenizer's run.
        first: A file, or the number of a held-out item of the run.
        second: Another item of the same size.
        out: A file or folder for the first item, the steps and the second item.
        number: Number of steps, with both ends.
    """

    run: RunFolder
    first: First
    second: Second
    out: Output
    number: Number = 8
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Interpolates. The result has the files."""
    at_least("number", options.number, 2, "Use 8.")
    model = load_model(options.run, device_of(options.common.device))
    first, second = read_pair(options.run, model, options.first, options.second, options.where)
    between = generation.interpolate(model, first, second, options.number)[:, 0]
    made = [first[0].cpu(), *between.cpu(), second[0].cpu()]
    files = write_drawn(model.modality, options.out, made, len(made), "between")
    found = {"run": str(options.run), "out": str(options.out), "items": len(between)}
    return {**found, "files": [str(file) for file in files]}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the paths."""
    say_files(console, [f"{result['items']} step(s): {result['out']}"])
