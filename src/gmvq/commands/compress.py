"""Compress items to small files."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from torch import Tensor

from gmvq import tokenization
from gmvq.codec import Codec
from gmvq.commands.common import Common, Input, RunFolder, common, device_of, foreign_data, say, say_files
from gmvq.data import Items
from gmvq.data.writing import replacing
from gmvq.refinement import refine
from gmvq.training.progress import counting
from gmvq.types import Signal

SUFFIX = ".gmvq"
PIPE = "-"
MaybeOutput = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]")]
Codecs = Annotated[Path | None, tyro.conf.arg(help="Folder of the codec; by default RUN/codec if it exists.")]


@dataclass(frozen=True)
class Options:
    """Compress items to files of the suffix .gmvq, which gmvq decompress reads with the same run.

    Args:
        run: Folder of the run.
        source: A file, a folder of files, or - for a file from standard input.
        out: A file for one item, - for standard output, else a folder; by default beside a file.
        codec: Folder of the codec.
        levels: Levels of the codes to keep, if they have levels.
        bpp: Largest number of bits per sample (pixel): as many levels as it allows.
        kbps: The same in kilobits per second of sound.
        refine: Candidates of a search for better codes of an image; most of its gain comes with 4 to 16.
        verify: Read each file back before it replaces another.
        threads: Segments of an item at a time.
    """

    run: RunFolder
    source: Input
    out: MaybeOutput = None
    codec: Codecs = None
    levels: int | None = None
    bpp: float | None = None
    kbps: float | None = None
    refine: int = 0
    verify: bool = False
    threads: int = 1
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Writes files. The result has each with its bytes and bits per sample."""
    codec = Codec.load(options.run, options.codec, device=device_of(options.common.device), threads=options.threads)
    model = codec.tokenizer
    if sum(value is not None for value in (options.levels, options.bpp, options.kbps)) > 1:
        raise ValueError("'levels', 'bpp' and 'kbps' each choose the number of levels, got several. Leave out others.")
    if options.kbps is not None and model.signal.rate is None:
        raise ValueError(f"'kbps' must be left out for {model.modality.items}, which have no clock. Use --bpp.")
    if options.refine and (model.signal.axes != 2 or model.signal.values != "unit"):
        raise ValueError(f"'refine' must be 0 for {model.modality.items}, it is for images. Leave it out.")
    with _source(options.source, model.modality.suffix) as source:
        data = foreign_data(source, model.modality)
        items = tokenization.join(data)
        files = _targets(options, items)
        rows = []
        with counting("Compressing", len(items)) as advance:
            for index, file in enumerate(files):
                item = items[index]
                items.let_go(index)
                written = _compressed(codec, item, options)
                if file is None:
                    sys.stdout.buffer.write(written)
                    sys.stdout.buffer.flush()
                else:
                    with replacing(file) as stream:
                        stream.write(written)
                samples = math.prod(model.signal.size(item))
                row = {"name": items.names[index], "file": str(file or PIPE), "bytes": len(written)}
                rows.append({**row, "bits_per_sample": 8 * len(written) / samples})
                advance(index + 1)
    skipped = [{"path": str(each.path), "reason": each.reason} for each in data.skipped]
    found = {"run": str(options.run), "items": len(items), "bytes": sum(row["bytes"] for row in rows)}
    return {**found, "sample": model.modality.sample, "files": rows, "skipped": skipped}


def _compressed(codec: Codec, item: Tensor, options: Options) -> bytes:
    """Compresses an item by the options.

    Raises:
        RuntimeError: If ``verify`` is set and the codes do not come back.
    """
    codes, signal = codec.encode(item), codec.tokenizer.signal
    if options.refine:
        batch = item[None].to(codec.tokenizer.device)
        codes = refine(codec.tokenizer, batch, codes[None].to(batch.device), options.refine).codes[0].cpu()
    size = signal.size(item)
    written = codec.pack(codes, size, levels=options.levels)
    most = _most_bytes(options, signal, size)
    levels = codes.shape[-1] if codec.model.config.has_levels else 1
    while most is not None and len(written) > most and levels > 1:
        levels -= 1
        written = codec.pack(codes, size, levels=levels)
    if options.verify:
        back = codec.unpack(written).codes
        if not bool((back == (codes[..., : back.shape[-1]] if codec.model.config.has_levels else codes)).all()):
            raise RuntimeError("The codes do not come back, and nothing was written. Please report this.")
    return written


def _most_bytes(options: Options, signal: Signal, size: tuple[int, ...]) -> float | None:
    """Returns the bytes that the options allow an item."""
    if options.bpp is not None:
        return options.bpp * math.prod(size) / 8
    if options.kbps is not None and signal.rate is not None:
        return options.kbps * 1000 * math.prod(size) / signal.rate / 8
    return None


@contextmanager
def _source(path: Path, suffix: str) -> Iterator[Path]:
    """Yields the path of the data: of a temporary file with standard input for ``-``."""
    if str(path) != PIPE:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gmvq-") as folder:
        file = Path(folder) / f"input{suffix}"
        file.write_bytes(sys.stdin.buffer.read())
        yield file


def _targets(options: Options, items: Items) -> list[Path | None]:
    """Returns the file of each item; None for standard output.

    Raises:
        ValueError: If the output does not suit the number of items.
    """
    out, source = options.out, options.source
    if str(out) == PIPE or (out is None and str(source) == PIPE):
        if len(items) != 1:
            raise ValueError(f"'OUT' must be a folder for {len(items)} items, got -. Name one.")
        if options.common.json:
            raise ValueError("'json' must be left out where the file goes to standard output. Leave it out.")
        return [None]
    if out is None:
        if source.is_dir() or len(items) != 1:
            raise ValueError(f"'OUT' must be given for {len(items)} items. Name a folder.")
        return [source.with_suffix(SUFFIX)]
    if out.suffix == SUFFIX and not out.is_dir() and len(items) == 1:
        return [out]
    return [*tokenization.targets(out, items.names, SUFFIX)]


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the bytes of each file, and of all."""
    files = result["files"]
    if files[0]["file"] == PIPE:
        return
    unit = f"bits per {result['sample']}"
    say_files(
        console, [f"{row['bytes']:>9,} bytes  {row['bits_per_sample']:.4f} {unit}  {row['file']}" for row in files]
    )
    say(console, f"{result['bytes']:>9,} bytes of {result['items']} item(s)")
    if result["skipped"]:
        say(console, f"{len(result['skipped'])} file(s) were skipped; --json lists them")
