"""What runs learn from, and the data of a run that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gmvq.checks import at_least, fraction
from gmvq.modalities import Data, Image, Modality, described, fingerprint, from_description
from gmvq.modalities.base import BUNDLED
from gmvq.stages.layout import RECORD, place_of, read_json


@dataclass(frozen=True)
class DataConfig:
    """What to learn from.

    Args:
        source: A path, or ``bundled:NAME`` for data that come with gmvq's dependencies.
        modality: What the items are; settings that are None become those of the data.
        size: Samples of the random windows for training along each axis; at most the median of the items' shorter
            sides. None for whole items.
        mirror: Mirror half of the training items, where the modality has a mirror.
        held_out_fraction: Share of items held out where the data have no split of their own.
        evaluated: Most held-out items to measure; None for all.
        train_limit: Learn from the first training items alone, this many; the others are left as a validation part.
            None for all.

    Raises:
        ValueError: If a number is out of range.
    """

    source: str
    modality: Modality = Image()
    size: int | None = None
    mirror: bool = False
    held_out_fraction: float = 0.1
    evaluated: int | None = None
    train_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "evaluated", "train_limit"):
            if getattr(self, name) is not None:
                at_least(f"data.{name}", getattr(self, name), 1, "Leave it out for all.")
        fraction("data.held_out_fraction", self.held_out_fraction, "The default is 0.1.", closed=False)

    @property
    def is_bundled(self) -> bool:
        """True for data that come with gmvq's dependencies."""
        return self.source.startswith(BUNDLED)

    def described(self) -> dict[str, Any]:
        """The configuration as JSON has it."""
        return {**self.__dict__, "modality": described(self.modality)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """The configuration that :meth:`described` described.

        Raises:
            ValueError: If a field is out of range.
            TypeError: If there is no such field.
        """
        return cls(**{**description, "modality": from_description(description["modality"])})


def load_data(config: DataConfig) -> Data:
    """Loads what a run learns from.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there are no items, or the limit exceeds those for training.
    """
    data = config.modality.load(config.source, held_out_fraction=config.held_out_fraction)
    if config.train_limit is None:
        return data
    if config.train_limit > len(data.train):
        raise ValueError(
            f"'data.train_limit' must be at most the {len(data.train):,} training {data.modality.items} of "
            f"{data.name}, got {config.train_limit:,}. Leave it out for all."
        )
    return data._replace(train=data.train.subset(range(config.train_limit)))


def data_of_run(folder: str | Path, config: DataConfig, source: str | Path | None = None) -> Data:
    """The data that a run learned from, with the split that it had.

    Args:
        folder: The run's folder.
        config: What its record says of its data.
        source: Where they are, in place of where the record says.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the record names a path and was not written where the folder is, or the data are others than the
            run learned from.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD) or {}
    if source is not None:
        config = replace(config, source=str(source))
    elif not config.is_bundled and record.get("place") != place_of(folder):
        raise ValueError(
            f"{folder} was copied or moved to here, so the path of its data in it is not trusted: give the data with "
            "--data PATH."
        )
    data = load_data(config)
    known = (record.get("data") or {}).get("fingerprint")
    if known != fingerprint(data):
        raise ValueError(
            f"The data at {config.source!r} are others than {folder} learned from: {len(data.train):,} for training "
            f"and {len(data.held_out):,} held out now. Measure them as foreign data with 'gmvq evaluate {folder} "
            f"--data {config.source}', or train again."
        )
    return data
