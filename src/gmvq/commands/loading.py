"""Models of runs for the verbs, where they work fastest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from gmvq import hub, recipes
from gmvq.data import Images, read_image
from gmvq.data.decoding import CHANNEL_CHOICES
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.recipes.tiling import cut, tile_side

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def read_model(folder: Path) -> Autoencoder:
    """The model of a run, on the CPU.

    Raises:
        FileNotFoundError: If there is none, or it is not finished.
    """
    if (folder / recipes.RECORD).is_file() and not (folder / hub.CONFIG).is_file():
        raise FileNotFoundError(
            f"The training of {folder} is not finished. Go on with 'gmvq train', its options and --resume."
        )
    return hub.load(folder)


def fast_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path) -> Autoencoder:
    """The model of a run, where it works fastest."""
    return read_model(folder).to(fast_device())


def read_inputs(sources: Sequence[Path], run: Path, model: Autoencoder) -> list[Tensor]:
    """Images as the model takes them, each ``(1, C, H, W)`` in [0, 1], where the model is.

    Args:
        sources: Images, or numbers of held-out images of the run, counted from 0; large ones are cut as they are for a
            prior.
        run: The folder of the tokenizer's run.
        model: The tokenizer.

    Raises:
        ValueError: If there is no held-out image of a number.
        OSError: If an image, or the run's data, cannot be read.
    """
    device = next(model.parameters()).device
    channels = model.config.channels if model.config.channels in CHANNEL_CHOICES else None
    numbered = [not source.exists() and str(source).isdecimal() for source in sources]
    held_out = _held_out(run, model) if any(numbered) else None
    images = []
    for source, is_number in zip(sources, numbered, strict=True):
        if not is_number or held_out is None:
            images.append(read_image(source, channels))
            continue
        if int(str(source)) >= len(held_out):
            raise ValueError(f"There are {len(held_out)} held-out images, got the number {source}. Use 0, or a file.")
        images.append(held_out[int(str(source))])
    return [image[None].to(device).float() / 255 for image in images]


def _held_out(run: Path, model: Autoencoder) -> Images:
    """Held-out images of a run, large ones cut into tiles."""
    config = recipes.read_run(run).data
    data = recipes.load_data(config)
    side = tile_side(data, config.crop, model)
    return data.held_out if side is None else cut(data.held_out, side)


def load_decoder(run: Path, folder: Path | None, model: Autoencoder) -> DiffusionDecoder | None:
    """The diffusion decoder in a folder, where it works fastest; None for None.

    Args:
        run: The folder of the tokenizer's run.
        folder: The decoder's.
        model: The tokenizer.

    Raises:
        ValueError: If the decoder is another tokenizer's.
    """
    if folder is None:
        return None
    stored, mark = hub.load_decoder(folder), hub.fingerprint(model)
    if stored.tokenizer != mark:
        raise ValueError(
            f"{folder} was fitted to the tokenizer {stored.tokenizer[:12]}, {run} is {mark[:12]}. Fit one with "
            f"'gmvq fit-decoder {run}'."
        )
    return stored.decoder.to(fast_device())


def checked_png(path: Path) -> Path:
    """A path that ends in .png.

    Raises:
        ValueError: If it does not.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"'OUT' must end in .png, since PNG loses nothing, got {path}. Use {path.with_suffix('.png')}."
        )
    return path
