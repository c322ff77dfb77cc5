"""Hide a part of an item and draw it anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gmvq.checks import at_least
from gmvq.commands.common import (
    Common,
    Drawer,
    Drawing,
    Input,
    Number,
    Output,
    RunFolder,
    Where,
    common,
    device_of,
    read_inputs,
    say_files,
    write_drawn,
)
from gmvq.commands.masks import read_mask
from gmvq.data import central
from gmvq.models import Autoencoder


@dataclass(frozen=True)
class Options:
    """Hide a part of an item and draw it anew, several times.

    Args:
        run: Folder of the tokenizer's run.
        source: A file, or the number of a held-out item of the run; of a larger item the middle is completed.
        out: A file or folder for the item, the item with its hidden part blank, and the completions.
        mask: Hidden part: lower, upper, left, right, middle, or a picture of that size that is white there.
        number: Completions to draw.
        label: Class of the item; none by default.
    """

    run: RunFolder
    source: Input
    out: Output
    mask: str = "lower"
    number: Number = 7
    label: int | None = None
    drawing: Drawing = Drawing()
    drawer: Drawer = Drawer()
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Completes. The result has the files."""
    at_least("number", options.number, 1, "Use 7.")
    generator = options.drawer.generator(options.run, device_of(options.common.device))
    tokenizer = generator.tokenizer
    whole = read_inputs([options.source], options.run, tokenizer, options.where)[0].cpu()
    item = _fitting(whole, generator.size, tokenizer)
    mask = read_mask(options.mask, generator.size)
    sampling = options.drawing.sampling(generator)
    labels = None if options.label is None else torch.full((options.number,), options.label)
    many = item.expand(options.number, *item.shape[1:])
    drawn = generator.complete(many, mask, labels, sampling)
    made = [item[0], torch.where(mask, _blank(item[0], mask, tokenizer), item[0]), *drawn.items.cpu()]
    files = write_drawn(tokenizer.modality, options.out, made, options.number + 2, "completed")
    found = {"run": str(options.run), "prior": str(options.drawer.folder(options.run)), "out": str(options.out)}
    return {
        **found,
        "items": options.number,
        "files": [str(file) for file in files],
        "hidden": float(mask.float().mean()),
        "cut": whole.shape != item.shape,
    }


def _blank(item: Tensor, mask: Tensor, tokenizer: Autoencoder) -> Tensor:
    """Returns the filler of a hidden part: gray, silence, the end of a text, the mean of the rest of a series."""
    if tokenizer.signal.values == "real":
        axes = tuple(range(1, item.ndim))
        return (item * ~mask).sum(axes, keepdim=True) / (~mask).sum().clamp_min(1)
    return torch.tensor(0.5 if tokenizer.signal.values == "unit" else 0, dtype=item.dtype)


def _fitting(item: Tensor, size: tuple[int, ...], tokenizer: Autoencoder) -> Tensor:
    """Cuts the middle of an item, in the size that the prior draws.

    Raises:
        ValueError: If the item is smaller.
    """
    if size and len(size) == 1:
        item = tokenizer.modality.padded(item[0], size[0])[None]
    lengths = tokenizer.signal.size(item)
    if any(length < wanted for length, wanted in zip(lengths, size, strict=True)):
        raise ValueError(
            f"'IN' must have at least {'x'.join(map(str, size[::-1]))} samples, as the prior draws them, got "
            f"{'x'.join(map(str, lengths[::-1]))}. Resize it."
        )
    for axis, wanted in enumerate(size):
        other = item.movedim(item.ndim - len(size) + axis, -1)
        item = central(other, 1, wanted).movedim(-1, item.ndim - len(size) + axis)
    return item.contiguous()


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the paths."""
    of = ", of the middle of the item" if result["cut"] else ""
    say_files(console, [f"{result['items']} completion(s){of}: {result['out']}"])
