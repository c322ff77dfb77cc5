"""Decompress files of gmvq compress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from gmvq import tokenization
from gmvq.codec import Codec
from gmvq.commands.common import Common, Input, RunFolder, common, device_of, say_files
from gmvq.commands.compress import PIPE, SUFFIX, Codecs, MaybeOutput
from gmvq.data.parsing import DamagedFileError
from gmvq.training.progress import counting


@dataclass(frozen=True)
class Options:
    """Decompress files of gmvq compress, with the run that made them.

    Args:
        run: Folder of the run.
        source: A file, a folder of files of the suffix .gmvq, or - for standard input.
        out: A file for one item, or for texts and vectors, of which one file holds several; else a folder; by default
            beside a file.
        codec: Folder of the codec.
        salvage: Decode what is left of a file of which segments are damaged.
        threads: Segments of an item at a time.
    """

    run: RunFolder
    source: Input
    out: MaybeOutput = None
    codec: Codecs = None
    salvage: bool = False
    threads: int = 1
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Writes items. The result has their paths."""
    codec = Codec.load(options.run, options.codec, device=device_of(options.common.device), threads=options.threads)
    modality = codec.tokenizer.modality
    sources = _sources(options.source)
    files = _targets(options, sources, modality.suffix, several=modality.several)
    made: list[Tensor] = []
    damaged: list[str] = []
    with counting("Decompressing", len(sources)) as advance:
        for index, source in enumerate(sources):
            data = sys.stdin.buffer.read() if source is None else source.read_bytes()
            try:
                item = codec.decompress(data, salvage=options.salvage)
            except ValueError as error:  # the other files are decompressed first
                damaged.append(f"{source or 'standard input'}: {error}")
                continue
            if modality.several:
                made.append(item)
            else:
                modality.write(files[index], [item])
            advance(index + 1)
    if made:
        modality.write(files[0], made)
    if damaged:
        others = f" The other {len(sources) - len(damaged)} are decompressed." if len(damaged) < len(sources) else ""
        raise DamagedFileError(f"{' '.join(damaged[:5])}{others}")
    written = sorted({str(file) for file in files})
    return {"run": str(options.run), "items": len(sources), "files": written}


def _sources(source: Path) -> list[Path | None]:
    """Returns the compressed files; None for standard input.

    Raises:
        FileNotFoundError: If there is none.
    """
    if str(source) == PIPE:
        return [None]
    found = sorted(source.rglob(f"*{SUFFIX}")) if source.is_dir() else [source] if source.is_file() else []
    if not found:
        raise FileNotFoundError(f"There is no compressed file at '{source}'. Make some with 'gmvq compress'.")
    return [*found]


def _targets(options: Options, sources: list[Path | None], suffix: str, *, several: bool) -> list[Path]:
    """Returns the file of each item, or one file for all.

    Raises:
        ValueError: If the output does not suit the number of items.
    """
    out, source = options.out, options.source
    if out is None:
        if source.is_dir() or sources[0] is None:
            raise ValueError("'OUT' must be given for a folder or standard input. Name one.")
        return [source.with_suffix(suffix)]
    if several:
        return [tokenization.file_of_all(out, f"items{suffix}")]
    if out.suffix and not out.is_dir() and len(sources) == 1:
        return [out]
    root = source if source.is_dir() else source.parent
    names = ["item" if one is None else one.relative_to(root).as_posix() for one in sources]
    return tokenization.targets(out, names, suffix)


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the paths."""
    say_files(console, result["files"])
