"""Pairs of items of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from gmvq.commands.common import Where, read_inputs
from gmvq.models import Autoencoder

First = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
Second = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]


def read_pair(run: Path, model: Autoencoder, first: Path, second: Path, where: Where) -> tuple[Tensor, Tensor]:
    """Reads two items of one size as batches of one; the shorter of two sequences is continued.

    Raises:
        ValueError: If they differ in size.
    """
    one, other = read_inputs((first, second), run, model, where)
    if model.signal.axes == 1:
        length = max(one.shape[-1], other.shape[-1])
        one, other = (model.modality.padded(each[0], length)[None] for each in (one, other))
    if one.shape != other.shape:
        sizes = ["x".join(map(str, model.signal.size(each)[::-1])) for each in (one, other)]
        raise ValueError(f"FIRST and SECOND must have one size, got {sizes[0]} and {sizes[1]} samples. Resize one.")
    return one, other
