"""Draw new items from a prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gmvq import tokenization
from gmvq.checks import at_least
from gmvq.commands.common import (
    Common,
    Drawer,
    Drawing,
    Number,
    RunFolder,
    common,
    device_of,
    drawn_place,
    say_files,
    write_drawn,
)
from gmvq.generation import Generator


@dataclass(frozen=True)
class Options:
    """Draw new items from a prior and write them.

    Images become one sheet, texts the lines of one file, vectors the rows of one table; recordings and series get a
    file each.

    Args:
        run: Folder of the tokenizer's run.
        number: Items to draw.
        out: The file or folder; by default samples in the prior's folder.
        label: Classes to draw in turn; by default all classes, if the prior has learned classes.
        columns: Images in a row of the sheet.
        codes: File for the codes, too, in the format of gmvq tokenize.
    """

    run: RunFolder
    number: Number = 64
    out: Path | None = None
    label: tuple[int, ...] = ()
    columns: int = 8
    codes: Path | None = None
    drawing: Drawing = Drawing()
    drawer: Drawer = Drawer()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Draws. The result has the files and the classes."""
    at_least("number", options.number, 1, "Use 8.")
    at_least("columns", options.columns, 1, "Use 8.")
    generator = options.drawer.generator(options.run, device_of(options.common.device))
    sampling, folder = options.drawing.sampling(generator), options.drawer.folder(options.run)
    labels = _labels(options.label, options.number, generator.prior.shape.classes)
    modality = generator.tokenizer.modality
    out = options.out or drawn_place(modality, folder, "samples")
    drawn = generator.sample(options.number, labels, sampling)
    files = write_drawn(modality, out, list(drawn.items.cpu()), options.columns, "samples")
    if options.codes is not None:
        write_codes(options.codes, generator, drawn.codes)
    found = {"run": str(options.run), "prior": str(folder), "out": str(out), "items": options.number}
    return {**found, "files": [str(file) for file in files], "labels": None if labels is None else labels.tolist()}


def write_codes(path: Path, generator: Generator, codes: Tensor) -> None:
    """Writes drawn codes to a file that gmvq detokenize reads."""
    number = len(codes)
    names = [f"{index:05d}" for index in range(number)]
    info = tokenization.info_of(generator.tokenizer, names, [generator.size] * number)
    tokenization.write_tokens(path, info, [(list(range(number)), codes)])


def _labels(asked: tuple[int, ...], number: int, classes: int) -> Tensor | None:
    """Returns the class of each item."""
    if asked and not classes:
        raise ValueError(f"'label' must be left out for a prior without classes, got {asked}. Fit one with labels.")
    wanted = asked or tuple(range(classes))
    if not wanted:
        return None
    return torch.tensor(wanted).repeat(math.ceil(number / len(wanted)))[:number]


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the paths."""
    say_files(console, [f"{result['items']} item(s): {result['out']}"])
