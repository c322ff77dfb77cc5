"""What only a person of images, of sound, of text knows: five verbs.

::

    files --load--> Items --window--> a part of an item       (training)
    items made, items real --distortion--> metrics            (evaluation)
    items made, items real, codes --exhibit--> Exhibit        (reports, the page)
    items made --write--> files                               (reconstruct, detokenize, sample)

A modality is a frozen dataclass of settings. Those that depend on data are None until :meth:`Modality.load` has seen
some; what it returns carries a modality with all of them known, which a model keeps and saves: the rate of its sound,
the vocabulary of its text. A modality that knows its settings loads other data by them.
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
    """A drawing of an exhibit.

    Attributes:
        data: The bytes of an image file.
        kind: ``png``, shown pixel by pixel, ``webp`` or ``svg``.
        text: What it shows, for who cannot see it.
        width: In pixels, as it should be shown at most.
    """

    data: bytes
    kind: str
    text: str
    width: int


class Sound(NamedTuple):
    """A recording of an exhibit.

    Attributes:
        data: The bytes of a WAV file.
        text: What it is.
    """

    data: bytes
    text: str


class Passage(NamedTuple):
    """A text of an exhibit.

    Attributes:
        runs: Pieces of the text, and whether each is marked: changed, or wrong.
        text: What it is.
    """

    runs: tuple[tuple[str, bool], ...]
    text: str


Part = Picture | Sound | Passage


class Exhibit(NamedTuple):
    """One item beside what codes keep of it.

    Attributes:
        name: Name of the item.
        note: How near they are, in a few words, as ``29.4 dB``.
        real: The item.
        made: What was made of it; empty for an item that was drawn from a prior.
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
        train: What to learn from.
        held_out: What to measure on.
        modality: What the items are, with all settings known.
        skipped: Files that could not be read.
        classes: Names of the classes that labels count, in their order; empty where they have none.
    """

    name: str
    train: Items
    held_out: Items
    modality: Modality
    skipped: tuple[Skipped, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def signal(self) -> Signal:
        """What the tensors of an item are."""
        return self.modality.signal

    @property
    def labelled(self) -> bool:
        """True if the items of both sides have labels."""
        return self.train.labels is not None and self.held_out.labels is not None


@dataclass(frozen=True)
class Modality(ABC):
    """A kind of data.

    Attributes:
        kind: Its name on the command line and in files.
        item: What one item is called, as ``image``.
        items: The plural.
        sample: What one place along its axes is called, as ``pixel``.
        wanted: What a path should lead to, as ``the path of a folder of images``.
        measures: The metrics of its distortion, explained.
        learned: Settings that only data give, and that nobody types.
        bundled: Data that come with gmvq's dependencies, by name: functions of the modality.
        several: True if one such file holds any number of items: lines of a text, rows of a table.
        lays_out: True if :meth:`write` lays several items out in one file to look at, as a sheet of images.
        window_size: Samples of a training window along each axis where nothing else is asked for; None for whole items.
        downsampling: Samples of a token along each axis where nothing else is asked for.
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
        """What the tensors of an item are.

        Raises:
            ValueError: If a setting that depends on data is not known yet.
        """

    def counted(self, number: int, kind: str = "") -> str:
        """A number of items in words: ``1 image``, ``2,000 held-out images``.

        Args:
            number: How many.
            kind: Words before the name of the items, as ``held-out``.
        """
        return " ".join(filter(None, (f"{number:,}", kind, self.item if number == 1 else self.items)))

    def load(self, source: str | Path, *, held_out_fraction: float = 0.1, memory_bytes: int = 1 << 30) -> Data:
        """Reads items from a path and splits them.

        Args:
            source: A file or a folder, where ``~`` is understood; or ``bundled:NAME`` for data that come with gmvq's
                dependencies.
            held_out_fraction: Share held out where the data have no split of their own; at least one item. 0 holds none
                out and cuts no item: the items to learn from then stand for both sides.
            memory_bytes: Budget in bytes for keeping files' items in memory.

        Returns:
            The data set. Files that could not be read are in ``skipped`` and named by one warning.

        Raises:
            FileNotFoundError: If nothing is at the path.
            ValueError: If nothing there can be read, or settings do not fit it.
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
        """What :meth:`load` does for a path where there is something."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """Ending of the names of files that :meth:`write` makes."""

    @property
    def holds_several(self) -> bool:
        """Whether :meth:`write` takes several items for one file."""
        return self.several or self.lays_out

    @abstractmethod
    def recognizes(self, source: Path) -> bool:
        """Whether a file, or what a folder mostly holds, looks like this kind of data, by names alone."""

    def suits(self, file: Path) -> bool:
        """Whether a file whose name other kinds recognize, too, holds this one: looked into as little as can be.

        Raises:
            ValueError: If it cannot be read.
        """
        return True

    @abstractmethod
    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts an item for training.

        It is a pure function of its arguments.

        Args:
            item: As it is stored.
            size: Samples along each axis; None for the whole item.
            chance: Three random numbers in [0, 1], two that say where, and one that mirrors below 1/2.
        """

    def padded(self, item: Tensor, length: int) -> Tensor:
        """Continues a sequence to some length: by zeros, as silence is."""
        return F.pad(item, (0, length - item.shape[-1])) if length > item.shape[-1] else item

    @abstractmethod
    def distortion(self, *, quick: bool = False) -> Distortion:
        """A new accumulator of distances between made and real items.

        Args:
            quick: Leave out what costs much: for measures during training, and of draws.
        """

    @abstractmethod
    def exhibit(self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None) -> Exhibit:
        """What a report shows of an item.

        Args:
            name: Name of the item.
            real: The item, or a drawn one, as a model takes or returns it.
            made: What a model made of it.
            codes: Its codes ``(*grid[, levels])``.
        """

    @abstractmethod
    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes items as a model returns them to one file, whole or not at all.

        Args:
            path: The file, whose name ends in ``suffix``.
            items: One, or where ``several`` or ``lays_out`` any number.
            columns: Items in a row, where they are laid out.

        Raises:
            ValueError: If the file cannot hold them.
            OSError: If it cannot be written.
        """


BUNDLED = "bundled:"
"""How sources begin that come with gmvq's dependencies: every other source is a path."""

Kind = TypeVar("Kind", bound=Modality)
MODALITIES: dict[str, type[Modality]] = {}
"""All modalities by kind: the one list."""


def register(modality: type[Kind]) -> type[Kind]:
    """Adds a modality to the list: a class decorator."""
    MODALITIES[modality.kind] = modality
    return modality


def described(modality: Modality) -> dict[str, Any]:
    """Kind and settings of a modality, as JSON has them."""
    return {"kind": modality.kind, **asdict(modality)}


def from_description(description: Mapping[str, Any]) -> Modality:
    """The modality that :func:`described` described.

    Raises:
        ValueError: If there is none of that kind, or it has no such settings.
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
    """Names and reasons on one line, at most ``limit`` of them."""
    items = list(skipped)
    text = "; ".join(f"{printable(item.path)} ({printable(item.reason)})" for item in items[:limit])
    return text + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def fingerprint(data: Data) -> str:
    """SHA-256 of names, labels, sizes and the values of up to 64 items of each side, for the record of a run.

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
