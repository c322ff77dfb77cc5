"""The data of runs: their configuration and loading, also for existing runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gmvq.checks import at_least, fraction
from gmvq.modalities import Data, Image, Modality, described, fingerprint, from_description
from gmvq.modalities.base import BUNDLED
from gmvq.stages.layout import RECORD, place_of, recorded


@dataclass(frozen=True)
class DataConfig:
    """Configuration of a run's data.

    Args:
        source: A path, or ``bundled:NAME`` for data that come with gmvq's dependencies.
        modality: Kind of the items; settings that are None are derived from the data.
        size: Samples of the random windows for training along each axis; at most the median of the items' shorter
            sides. None for whole items.
        mirror: Mirror half of the training items, if the modality supports it.
        held_out_fraction: Fraction of items held out if the data have no split of their own.
        evaluated: Largest number of held-out items to evaluate; None for all.
        train_limit: Number of training items, the first ones; the others remain as a validation part. None for all.

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
        """True if the data come with gmvq's dependencies."""
        return self.source.startswith(BUNDLED)

    def described(self) -> dict[str, Any]:
        """Returns the configuration as JSON types."""
        return {**self.__dict__, "modality": described(self.modality)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Creates the configuration from the result of :meth:`described`.

        Raises:
            ValueError: If a field is out of range.
            TypeError: If a field is unknown.
        """
        return cls(**{**description, "modality": from_description(description["modality"])})


def load_data(config: DataConfig) -> Data:
    """Loads the data of a run.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If there are no items, or fewer for training than the limit.
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
    """Loads the training data of an existing run, with the same split.

    Args:
        folder: The run's folder.
        config: Configuration of the data from the run's record.
        source: Path of the data; by default that of the record.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the record names a path and the folder was moved after it was written, or the data differ from
            those of the run.
    """
    folder = Path(folder)
    record = recorded(folder / RECORD) or {}
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
            f"The data at {config.source!r} differ from those of {folder}: {len(data.train):,} for training "
            f"and {len(data.held_out):,} held out now. Measure them as foreign data with 'gmvq evaluate {folder} "
            f"--data {config.source}', or train again."
        )
    return data
