"""Models of runs for the verbs, where they work fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro

from gmvq import hub, recipes
from gmvq.models import Autoencoder, DiffusionDecoder

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
