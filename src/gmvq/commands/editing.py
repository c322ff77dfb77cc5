"""The verbs that make an image of two: by way of their latents, or of their codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from gmvq import generation
from gmvq.commands.loading import RunFolder, checked_png, load_model, read_inputs
from gmvq.commands.sheets import read_mask, write_sheet
from gmvq.models import Autoencoder

FirstImage = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
SecondImage = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True)
class InterpolateOptions:
    """Go from one image to another by way of their latents, each step through the codes.

    Args:
        run: Folder of the tokenizer's run.
        first: An image, or the number of a held-out image of the run.
        second: Another of the same size.
        out: The .png file: first, the steps, second.
        number: Steps, both ends among them.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    first: FirstImage
    second: SecondImage
    out: Out
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    json: bool = False


@dataclass(frozen=True)
class SwapOptions:
    """Put the codes of one image into another.

    Args:
        run: Folder of the tokenizer's run.
        first: The image that is changed, or the number of a held-out image of the run.
        second: The image of the same size that the codes are of.
        out: The .png file: first, second, and first with codes of second.
        mask: Where: lower, upper, left, right, middle, or a picture of that size that is white there.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    first: FirstImage
    second: SecondImage
    out: Out
    mask: str = "lower"
    json: bool = False


def interpolate(options: InterpolateOptions, command: str) -> dict[str, Any]:
    """Interpolates; the result has the file."""
    out = checked_png(options.out)
    if options.number < 2:
        raise ValueError(f"'number' must be at least 2, got {options.number}. Use 8.")
    model = load_model(options.run)
    first, second = _pair(options.run, model, options.first, options.second)
    between = generation.interpolate(model, first, second, options.number)[:, 0]
    write_sheet(out, torch.cat([first, between, second]), len(between) + 2)
    return {"run": str(options.run), "out": str(out), "images": len(between)}


def swap(options: SwapOptions, command: str) -> dict[str, Any]:
    """Swaps; the result has the file and how many codes are others than they were."""
    out = checked_png(options.out)
    model = load_model(options.run)
    first, second = _pair(options.run, model, options.first, options.second)
    mask = read_mask(options.mask, (first.shape[-2], first.shape[-1]))
    swapped = generation.swap(model, first, second, mask)
    write_sheet(out, torch.cat([first, second, swapped.images]), 3)
    differ = int((swapped.codes != model.encode(first)).sum())
    return {"run": str(options.run), "out": str(out), "images": 1, "changed_codes": differ}


def _pair(run: Path, model: Autoencoder, first: Path, second: Path) -> tuple[Tensor, Tensor]:
    """Two images of one size, each ``(1, C, H, W)``.

    Raises:
        ValueError: If they differ in size.
    """
    one, other = read_inputs((first, second), run, model)
    if one.shape != other.shape:
        raise ValueError(
            f"FIRST and SECOND must have one size, got {one.shape[-1]}x{one.shape[-2]} and "
            f"{other.shape[-1]}x{other.shape[-2]} pixels. Resize one."
        )
    return one, other
