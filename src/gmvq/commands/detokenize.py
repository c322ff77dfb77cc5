"""Decode a file of codes to items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from gmvq import tokenization
from gmvq.commands.common import Common, Output, RunFolder, common, device_of, load_model, say_files
from gmvq.training.progress import counting


@dataclass(frozen=True)
class Options:
    """Decode a file of codes to files under the items' names.

    Args:
        run: Folder of the run that made the codes.
        tokens: A file made by gmvq tokenize.
        out: Folder for the files; a file for texts and vectors, of which one file holds several.
        force: Decode codes of another tokenizer, too.
        batch_size: Items in a batch.
    """

    run: RunFolder
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    out: Output
    force: bool = False
    batch_size: int = 64
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Writes items. The result has their paths."""
    model = load_model(options.run, device_of(options.common.device))
    total = len(tokenization.TokenFile(options.tokens, verify=False))
    with counting("Decoding", total) as advance:
        paths = tokenization.detokenize(
            model,
            options.tokens,
            options.out,
            force=options.force,
            batch_size=options.batch_size,
            on_progress=advance,
        )
    files = [str(path) for path in paths]
    return {"run": str(options.run), "out": str(options.out), "items": total, "files": files}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the paths."""
    say_files(console, result["files"])
