"""Encode items to codes, decode them, and write the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gmvq import tokenization
from gmvq.commands.common import (
    Common,
    Input,
    Output,
    RunFolder,
    common,
    device_of,
    foreign_data,
    load_decoder,
    load_model,
    say,
    say_files,
)
from gmvq.data import Items
from gmvq.metrics.base import Distortion
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.models.tiles import Assembly, Part
from gmvq.training.progress import counting


@dataclass(frozen=True)
class Options:
    """Encode items to codes, decode them, and write the result to files of the same names.

    Args:
        run: Folder of the run.
        source: A file, a folder of files, or other data.
        out: A file for one item, or for texts and vectors, of which one file holds several; else a folder.
        decoder: Folder of a diffusion decoder, as RUN/decoder; by default the tokenizer's decoder is used.
        seed: Seed of that decoder's noise.
    """

    run: RunFolder
    source: Input
    out: Output
    decoder: Path | None = None
    seed: int = 0
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Writes reconstructions. The result has each file with its headline metric, and the mean."""
    if options.decoder is None and options.seed:
        raise ValueError(f"'seed' must be left out without 'decoder', got {options.seed}: nothing is drawn.")
    model = load_model(options.run, device_of(options.common.device))
    decoder = load_decoder(options.run, options.decoder, model)
    data = foreign_data(options.source, model.modality)
    items = tokenization.join(data)
    files = _targets(options, model, items)
    made: list[Tensor] = []
    rows: list[dict[str, Any]] = []
    distortion = model.modality.distortion(quick=True)
    with counting("Reconstructing", len(items)) as advance:
        for index, name in enumerate(items.names):
            own = model.modality.distortion(quick=True)
            one = _reconstructed(model, decoder, items[index], own, options.seed, index)
            items.let_go(index)
            distortion.add(own)
            if model.modality.several:
                made.append(one)
            else:
                model.modality.write(files[index], [one])
            value = own.metrics().get(own.headline)
            # the PSNR of an image that came back exactly is infinite, which JSON cannot hold
            value = value if value is not None and math.isfinite(value) else None
            rows.append({"name": name, "file": str(files[0 if model.modality.several else index]), own.headline: value})
            advance(index + 1)
    if made:
        model.modality.write(files[0], made)
    found = {"run": str(options.run), "out": str(options.out), "items": len(items), "headline": distortion.headline}
    skipped = [{"path": str(each.path), "reason": each.reason} for each in data.skipped]
    return {**found, distortion.headline: distortion.metrics()[distortion.headline], "files": rows, "skipped": skipped}


@torch.no_grad()
def _reconstructed(
    model: Autoencoder, decoder: DiffusionDecoder | None, item: Tensor, distortion: Distortion, seed: int, number: int
) -> Tensor:
    """Reconstructs an item as it would be stored, and measures it; of a large one no copy in floats is made."""
    batch, size = item[None].to(model.device), model.signal.size(item)
    codes = model.encode(batch)
    made = Assembly(1, size)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        if decoder is None:
            found = model.decode_parts(codes, size)
        else:
            found = iter([Part(..., decoder.decode(model, codes, size, seed=seed, first=number))])
        for places, part in found:
            made.put(Part(places, model.signal.stored(part)))
            yield part.cpu(), model.signal.checked(batch[places]).cpu()

    distortion.update_in_parts(parts())
    return made.items[0].cpu()


def _targets(options: Options, model: Autoencoder, items: Items) -> list[Path]:
    """Returns the file of each item, or one file for all."""
    source, out, modality = options.source, options.out, model.modality
    if modality.several:
        files = [tokenization.file_of_all(out, f"items{modality.suffix}")]
    elif out.suffix and not out.is_dir() and len(items) == 1:
        files = [out]
    else:
        files = tokenization.targets(out, items.names, modality.suffix)
    if out.resolve() == source.resolve() or any(file.resolve() == source.resolve() for file in files):
        raise ValueError(f"'OUT' must not be 'IN', whose items it would replace, got {out}. Choose another.")
    return files


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the headline metric of each item, and the mean."""
    key, files = result["headline"], {row["file"] for row in result["files"]}
    in_one = len(files) == 1 and result["items"] > 1
    say_files(console, [f"{_written(row[key])}  {row['name' if in_one else 'file']}" for row in result["files"]])
    where = f": {files.pop()}" if in_one else ""
    say(console, f"{_written(result[key])}  mean {key.replace('_', ' ')} of {result['items']}{where}")


def _written(value: float | None) -> str:
    return "   exact" if value is None else f"{value:8.4g}"
