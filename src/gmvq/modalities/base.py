"""The interface of a kind of data: five operations that differ between images, sound, text and tables.

::

    files --load--> Items --window--> a part of an item       (training)
    items made, items real --distortion--> metrics            (evaluation)
    items made, items real, codes --exhibit--> Exhibit        (reports, the page)
    items made --write--> files                               (reconstruct, detokenize, sample)

A modality is a frozen dataclass of settings. Settings that depend on data are None until :meth:`Modality.load` has
read some; the returned data set has a modality with all settings known, which a model keeps and saves: the sampling
rate of audio, the vocabulary of text. A modality whose settings are known loads other data with them.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import fraction, one_of
from gmvq.data.items import Items, Skipped
from gmvq.data.labels import printable
from gmvq.metrics.base import Distortion, Measure
from gmvq.types import Signal

_SAMPLED = 64


class Picture(NamedTuple):
    """A picture of an exhibit.

    Attributes:
        data: The bytes of an image file.
        kind: ``png``, shown pixel by pixel, ``webp`` or ``svg``.
        text: Alternative text: what the picture shows.
        width: Largest display width in pixels.
    """

    data: bytes
    kind: str
    text: str
    width: int


class Sound(NamedTuple):
    """A recording of an exhibit.

    Attributes:
        data: The bytes of a WAV file.
        text: Description of the recording.
    """

    data: bytes
    text: str


class Passage(NamedTuple):
    """A text of an exhibit.

    Attributes:
        runs: Pieces of the text, each with a flag: True if it is marked as changed or wrong.
        text: Description of the passage.
    """

    runs: tuple[tuple[str, bool], ...]
    text: str


Part = Picture | Sound | Passage


class Exhibit(NamedTuple):
    """An item and its reconstruction.

    Attributes:
        name: Name of the item.
        note: The distortion in a few words, as ``29.4 dB``.
        real: The original item.
        made: The reconstruction; empty for a sample of a prior.
        codes: The codes.
    """

    name: str
    note: str
    real: tuple[Part, ...]
    made: tuple[Part, ...] = ()
    codes: tuple[Part, ...] = ()


class Data(NamedTuple):
    """A data set with its split.

    Attributes:
        name: Name in reports.
        train: Items for training.
        held_out: Items for evaluation.
        modality: Kind of the items, with all settings known.
        skipped: Files that could not be read.
        classes: Names of the classes, indexed by the labels; empty if the classes have no names.
    """

    name: str
    train: Items
    held_out: Items
    modality: Modality
    skipped: tuple[Skipped, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def signal(self) -> Signal:
        """Type and shape of an item's tensor."""
        return self.modality.signal

    @property
    def labelled(self) -> bool:
        """True if the items for training and for evaluation have labels."""
        return self.train.labels is not None and self.held_out.labels is not None


@dataclass(frozen=True)
class Modality(ABC):
    """A kind of data.

    Attributes:
        kind: Name on the command line and in files.
        item: Noun for one item, as ``image``.
        items: Plural of ``item``.
        sample: Noun for one sample of an item, as ``pixel``.
        wanted: Description of a valid path, as ``the path of a folder of images``.
        measures: Explanations of the distortion metrics.
        learned: Settings that are derived from data, not set by users.
        bundled: Data sets that come with gmvq's dependencies: name -> function of the modality.
        several: True if one file of :meth:`write` can hold several items, as lines of a text or rows of a table.
        lays_out: True if :meth:`write` can arrange several items in one file for viewing, as a sheet of images.
        window_size: Default number of samples of a training window along each axis; None for whole items.
        downsampling: Default number of samples per token along each axis.
    """

    kind: ClassVar[str]
    item: ClassVar[str]
    items: ClassVar[str]
    sample: ClassVar[str]
    wanted: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]] = ()
    learned: ClassVar[tuple[str, ...]] = ()
    several: ClassVar[bool] = False
    lays_out: ClassVar[bool] = False
    bundled: ClassVar[Mapping[str, Callable[[Any], Data]]] = {}
    window_size: ClassVar[int | None] = None
    downsampling: ClassVar[int] = 4

    @property
    @abstractmethod
    def signal(self) -> Signal:
        """Type and shape of an item's tensor.

        Raises:
            ValueError: If a setting that depends on data is not known yet.
        """

    def counted(self, number: int, kind: str = "") -> str:
        """Formats a number of items: ``1 image``, ``2,000 held-out images``.

        Args:
            number: Number of items.
            kind: Words before the name of the items, as ``held-out``.
        """
        return " ".join(filter(None, (f"{number:,}", kind, self.item if number == 1 else self.items)))

    def load(self, source: str | Path, *, held_out_fraction: float = 0.1, memory_bytes: int = 1 << 30) -> Data:
        """Reads items from a path and splits them.

        Args:
            source: A file or a folder, where ``~`` is expanded; or ``bundled:NAME`` for data that come with gmvq's
                dependencies.
            held_out_fraction: Fraction held out if the data have no split of their own; at least one item. 0 holds
                nothing out and cuts no item: the same items are then used for training and for evaluation.
            memory_bytes: Budget in bytes for keeping items of files in memory.

        Returns:
            The data set. Files that could not be read are in ``skipped`` and named by one warning.

        Raises:
            FileNotFoundError: If the path does not exist.
            ValueError: If no file there can be read, or settings do not fit the data.
        """
        if held_out_fraction:
            fraction("held_out_fraction", held_out_fraction, "The default is 0.1.", closed=False)
        path, name = Path(source).expanduser(), str(source).removeprefix(BUNDLED)
        if name != str(source) and not path.exists():
            if name not in self.bundled:
                known = ", ".join(BUNDLED + known for known in self.bundled) or "none"
                raise ValueError(f"Bundled data of {self.items} are {known}, got {str(source)!r}. Give a path.")
            return self.bundled[name](self)
        if not path.exists():
            raise FileNotFoundError(f"There is nothing at '{path}' (looked from '{Path.cwd()}'). Pass {self.wanted}.")
        data = self.read(path, held_out_fraction, memory_bytes)
        if data.skipped:
            warnings.warn(f"Skipped {len(data.skipped)} file(s) of '{path}': {listed(data.skipped)}.", stacklevel=2)
        if held_out_fraction and data.train is data.held_out:
            repeated = "" if len(data.train) == 1 else ", repeated"
            warnings.warn(
                f"'{path}' holds one {self.item}{repeated}, used for training and for evaluation: the metrics say "
                f"nothing about other {self.items}. Add more.",
                stacklevel=2,
            )
        return data

    @abstractmethod
    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        """Reads items from an existing path and splits them: the part of :meth:`load` that depends on the kind."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """File name suffix of the files that :meth:`write` makes."""

    @property
    def holds_several(self) -> bool:
        """True if :meth:`write` accepts several items for one file."""
        return self.several or self.lays_out

    @abstractmethod
    def recognizes(self, source: Path) -> bool:
        """Returns whether a file, or most files of a folder, are of this kind, judged by their names alone."""

    def suits(self, file: Path) -> bool:
        """Returns whether a file whose name fits several kinds is of this kind, reading as little of it as possible.

        Raises:
            ValueError: If it cannot be read.
        """
        return True

    @abstractmethod
    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts an item for training.

        The result depends on the arguments alone.

        Args:
            item: The item as stored.
            size: Samples along each axis; None for the whole item.
            chance: Three random numbers in [0, 1]: two for the position, and one that mirrors the window if below 1/2.
        """

    def padded(self, item: Tensor, length: int) -> Tensor:
        """Pads a sequence with zeros to the given length, as with silence."""
        return F.pad(item, (0, length - item.shape[-1])) if length > item.shape[-1] else item

    @abstractmethod
    def distortion(self, *, quick: bool = False) -> Distortion:
        """Creates an accumulator of distortion metrics between reconstructed and real items.

        Args:
            quick: Leave out expensive metrics: for validation during training, and for samples.
        """

    @abstractmethod
    def exhibit(self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None) -> Exhibit:
        """Builds the exhibit of an item for reports.

        Args:
            name: Name of the item.
            real: The item or a sample, in the form that a model takes and returns.
            made: The reconstruction of a model.
            codes: Its codes ``(*grid[, levels])``.
        """

    @abstractmethod
    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes items to one file, atomically: in the form that a model returns, or as they are stored.

        Args:
            path: The file, whose name ends in ``suffix``.
            items: One item, or any number if ``several`` or ``lays_out`` is True.
            columns: Items in a row of the layout.

        Raises:
            ValueError: If the file cannot hold them.
            OSError: If it cannot be written.
        """


BUNDLED = "bundled:"
"""Prefix of sources that come with gmvq's dependencies: every other source is a path."""

Kind = TypeVar("Kind", bound=Modality)
MODALITIES: dict[str, type[Modality]] = {}
"""All modalities by kind."""


def register(modality: type[Kind]) -> type[Kind]:
    """Adds a modality to the list: a class decorator."""
    MODALITIES[modality.kind] = modality
    return modality


def described(modality: Modality) -> dict[str, Any]:
    """Returns the kind and settings of a modality as JSON types."""
    return {"kind": modality.kind, **asdict(modality)}


def from_description(description: Mapping[str, Any]) -> Modality:
    """Creates the modality from the result of :func:`described`.

    Raises:
        ValueError: If the kind is unknown, or it has no such settings.
    """
    kind = one_of("kind", str(description.get("kind")), MODALITIES)
    made: Callable[..., Modality] = MODALITIES[kind]
    known = {field.name for field in fields(MODALITIES[kind])}
    settings = {name: value for name, value in description.items() if name != "kind"}
    if not settings.keys() <= known:
        raise ValueError(
            f"The settings of {kind} must be among {', '.join(sorted(known))}, got {sorted(settings.keys() - known)}."
        )
    return made(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def listed(skipped: Iterable[Skipped], limit: int = 10) -> str:
    """Joins names and reasons into one line, at most ``limit`` of them."""
    items = list(skipped)
    text = "; ".join(f"{printable(item.path)} ({printable(item.reason)})" for item in items[:limit])
    return text + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def fingerprint(data: Data) -> str:
    """Computes a SHA-256 of names, labels, sizes and values of up to 64 items of each side, for the record of a run.

    Returns:
        64 hexadecimal digits. The same files give the same digits on every machine whose decoders agree.
    """
    digest = hashlib.sha256(f"gmvq.data 2 {data.signal}".encode())
    for side, items in (("train", data.train), ("held_out", data.held_out)):
        digest.update(f"\n{side} {len(items)}\n".encode() + "\0".join(items.names).encode("utf8", "surrogateescape"))
        if items.labels is not None:
            digest.update(items.labels.numpy().astype("<i8").tobytes())
        step = max(1, len(items) // _SAMPLED)
        for index in range(0, len(items), step)[:_SAMPLED]:
            item = items[index]
            digest.update(f"\n{index} {tuple(item.shape)}\n".encode() + item.contiguous().numpy().tobytes())
    return digest.hexdigest()
