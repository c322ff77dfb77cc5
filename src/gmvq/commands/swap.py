"""Put the codes of one item into another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from gmvq import generation
from gmvq.commands.common import (
    Common,
    Output,
    RunFolder,
    Where,
    common,
    device_of,
    load_model,
    say_files,
    write_drawn,
)
from gmvq.commands.masks import read_mask
from gmvq.commands.pairs import First, Second, read_pair


@dataclass(frozen=True)
class Options:
    """Put the codes of one item into another.

    Args:
        run: Folder of the tokenizer's run.
        first: The item to change, or the number of a held-out item of the run.
        second: An item of the same size, whose codes are taken.
        out: A file or folder for the first item, the second, and the first with codes of the second.
        mask: Part that is replaced: lower, upper, left, right, middle, or a picture of that size that is white there.
    """

    run: RunFolder
    first: First
    second: Second
    out: Output
    mask: str = "lower"
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Swaps. The result has the files and the number of changed codes."""
    model = load_model(options.run, device_of(options.common.device))
    first, second = read_pair(options.run, model, options.first, options.second, options.where)
    swapped = generation.swap(model, first, second, read_mask(options.mask, model.signal.size(first)))
    made = [part[0].cpu() for part in (first, second, swapped.items)]
    files = write_drawn(model.modality, options.out, made, 3, "swapped")
    differ = int((swapped.codes != model.encode(first)).sum())
    found = {"run": str(options.run), "out": str(options.out), "items": 1, "changed_codes": differ}
    return {**found, "files": [str(file) for file in files]}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the path."""
    say_files(console, [f"{result['changed_codes']} code(s) swapped: {result['out']}"])
