"""Reads recordings from folders, files, archives and arrays, and splits them.

::

    folder | file ------+
    archive -> bytes ---+-- headers: common rate, channels --> FileItems ---+-- by folders, names or content --> sides
    .npy -----------------------------------------------------> ArrayItems -+
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.data import archives
from gmvq.data.finding import find_files, is_visible
from gmvq.data.items import ArrayItems, FileItems, Items, Skipped
from gmvq.data.labels import HELD_OUT_FOLDERS, TRAIN_FOLDERS, Labels, labels_of, split_folders
from gmvq.data.splitting import digest_of, held_out
from gmvq.modalities.audio.decoding import (
    COMMON_SUFFIXES,
    SUFFIXES,
    UNREADABLE,
    AudioError,
    Header,
    converted,
    read_audio,
    read_header,
)
from gmvq.modalities.base import listed

_SPOKEN_DIGIT = re.compile(r"(\d)_[a-z]+_(\d+)\.wav")
_OFFICIAL_TEST = 5
_RANGE_TOLERANCE = 1e-3

Item = TypeVar("Item")
Result = TypeVar("Result")


class Recordings(NamedTuple):
    """Recordings of a path.

    Attributes:
        name: Name of the data set.
        train: Recordings for training.
        held_out: Recordings for evaluation; the same as ``train`` if there is only one.
        rate: Sampling rate of all recordings, Hz.
        channels: Number of channels of all recordings.
        skipped: Files that could not be read.
        classes: Names of the labels, empty if there are no labels.
    """

    name: str
    train: Items
    held_out: Items
    rate: int
    channels: int
    skipped: tuple[Skipped, ...]
    classes: tuple[str, ...] = ()


class _Files(NamedTuple):
    """Files of recordings below a root, on one side or two; ``contents`` holds those of an archive."""

    root: Path
    sides: list[list[Path]]
    skipped: list[Skipped]
    contents: Mapping[Path, bytes] = {}

    def source(self, path: Path) -> Path | BytesIO:
        return BytesIO(self.contents[path]) if path in self.contents else path

    def header(self, path: Path) -> Header:
        return read_header(path, self.source(path))

    def size(self, rate: int, path: Path) -> tuple[int]:
        return (self.header(path).at(rate),)

    def read(self, rate: int, channels: int, path: Path) -> Tensor:
        return read_audio(path, rate, channels, self.source(path))

    def digest(self, path: Path) -> bytes:
        return digest_of(np.frombuffer(self.contents[path], np.uint8) if path in self.contents else path)

    def check(self, readable: Collection[Path]) -> None:
        """Raises ValueError if no file of a side can be read."""
        for side in self.sides:
            if not any(path in readable for path in side):
                place = os.path.commonpath(path.parent for path in side) if len(self.sides) > 1 else self.root
                raise ValueError(
                    f"No recording in '{place}' can be read. Skipped: {listed(self.skipped)}. Check the files."
                )


def read_source(
    path: Path, rate: int | None, channels: int | None, held_out_fraction: float, memory_bytes: int
) -> Recordings:
    """Reads recordings from a path and splits them.

    A folder whose recordings are all in one archive is read as that archive. Every file is decoded once to find
    damaged ones. The split is that of a ``train`` and a ``test`` (or ``val``, ``valid``) folder, or the official one of
    the Free Spoken Digit Dataset; otherwise recordings are held out by a hash of their content. Labels are those of
    folders or of a table, see :func:`gmvq.data.labels.labels_of`, or the digits of that data set; a table in an archive
    is not read.

    Args:
        path: An existing file or folder.
        rate: Sampling rate in Hz that all are resampled to; by default the most common one, the lowest of several.
        channels: Number of channels of all; by default that of the files if they agree, else 1.
        held_out_fraction: Fraction held out if the data have no split of their own.
        memory_bytes: Budget in bytes for decoded recordings, and for the files of an archive.

    Raises:
        ValueError: If there are no recordings, or no readable ones on one side.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, rate, channels, held_out_fraction)
    files = _find(path, memory_bytes)
    headers = dict(_attempt(files.header, [each for side in files.sides for each in side], files.skipped))
    files.check(headers)
    rate, channels = _common([headers[each] for each in files.sides[0] if each in headers], rate, channels)
    items = FileItems(
        list(headers),
        1,
        partial(files.read, rate, channels),
        measure=partial(files.size, rate),
        names=[each.relative_to(files.root).as_posix() for each in headers],
        memory_bytes=memory_bytes,
    )
    good = [index for index, _ in _attempt(partial(_decode, items), range(len(items)), files.skipped)]
    items = items.subset(good)
    files.check(items.paths)
    labels, tested = _split(files, items, held_out_fraction)
    items.labels = None if labels is None else labels.values
    classes = () if labels is None else labels.classes
    return Recordings(_name(path), *_cut(items, tested), rate, channels, tuple(sorted(files.skipped)), classes)


def _find(path: Path, memory_bytes: int) -> _Files:
    """Finds the files of recordings at a path."""
    if path.is_dir():
        if (archive := _lone_archive(path)) is not None:
            return _unpacked(archive, memory_bytes)
        skipped: list[Skipped] = []
        sides: list[list[Path]] = []
        for side in split_folders(path) or (path,):
            found = find_files(side, lambda each: each.suffix.lower() in SUFFIXES.keys() | UNREADABLE, skipped)
            sides.append(_readable(found, skipped, side))
        return _Files(path, sides, skipped)
    if not path.is_file():
        raise ValueError(f"'{path}' is no regular file. Pass the path of a recording or of a folder of them.")
    if archives.is_archive(path):
        return _unpacked(path, memory_bytes)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        reason = UNREADABLE.get(suffix, f"recordings end in {COMMON_SUFFIXES} or another suffix that libsndfile knows")
        raise ValueError(f"Cannot read '{path}' as sound: {reason}. Pass another file, or a folder of recordings.")
    return _Files(path.parent, [[path]], [])


def _lone_archive(folder: Path) -> Path | None:
    """Returns the only archive of a folder that has no recordings beside it."""
    packed = [each for each in _others(folder) if archives.is_archive(each)]
    if len(packed) != 1 or find_files(folder, lambda each: each.suffix.lower() in SUFFIXES, []):
        return None
    return packed[0]


def _decode(items: FileItems, index: int) -> None:
    """Decodes a recording, so that it is known to be readable, and lets go of it unless it is kept."""
    items[index]


def _others(folder: Path) -> list[Path]:
    """Returns archives and arrays directly in a folder, which may hold recordings."""
    files = (each for each in folder.iterdir() if each.is_file() and is_visible(each.name))
    return [each for each in files if archives.is_archive(each) or each.suffix.lower() == ".npy"]


def _readable(found: Sequence[Path], skipped: list[Skipped], place: Path) -> list[Path]:
    """Selects the readable formats among audio files."""
    unread = [Skipped(each, UNREADABLE[each.suffix.lower()]) for each in found if each.suffix.lower() in UNREADABLE]
    skipped.extend(unread)
    if len(unread) < len(found):
        return [each for each in found if each.suffix.lower() in SUFFIXES]
    if skipped:
        raise ValueError(f"No recording in '{place}' can be read. Skipped: {listed(skipped)}. Check the files.")
    hint = ""
    if place.is_dir():
        others = sorted(each.name for each in _others(place))[:3]
        hint = f" It holds {', '.join(others)}: pass the path of one of these." if others else ""
    raise ValueError(
        f"No recordings in '{place}'. Looked, in nested folders too, for files that end in {COMMON_SUFFIXES} or "
        f"another suffix that libsndfile knows (any case). Check the path.{hint}"
    )


def _unpacked(path: Path, memory_bytes: int) -> _Files:
    """Reads the files of an archive into memory."""
    contents: dict[Path, bytes] = {}
    looked: list[Path] = []
    left = memory_bytes
    try:
        for name, size, content in archives.members(path):
            member = path / name.lstrip("/")
            if not archives.is_seen(name):
                continue
            if member.suffix.lower() in UNREADABLE:
                looked.append(member)
            if member.suffix.lower() not in SUFFIXES:
                continue
            left -= size
            if left < 0:
                raise ValueError(
                    f"The recordings in '{path}' must fit 'memory_bytes' = {memory_bytes}. Unpack it, and pass the "
                    "folder."
                )
            looked.append(member)
            contents[member] = content()
    except archives.DAMAGED as error:
        reason = archives.reason_of(error)
        raise ValueError(f"Cannot read the archive '{path}': {reason}. Unpack it, and pass the folder.") from error
    skipped: list[Skipped] = []
    found = sorted(_readable(looked, skipped, path))
    places = {each: each.relative_to(path).parts for each in found}
    while len(tops := {parts[0] for parts in places.values()}) == 1 and all(
        len(parts) > 2 for parts in places.values()
    ):
        path = path / tops.pop()  # a folder that holds all others
        places = {each: parts[1:] for each, parts in places.items()}
    sides = [
        [each for each in found if len(places[each]) > 1 and places[each][0].lower() in names]
        for names in (TRAIN_FOLDERS, HELD_OUT_FOLDERS)
    ]
    return _Files(path, sides if all(sides) else [found], skipped, contents)


def _common(headers: Sequence[Header], rate: int | None, channels: int | None) -> tuple[int, int]:
    """Returns the given rate and number of channels, or those derived from the data."""
    rates = Counter(header.rate for header in headers)
    kinds = {header.channels for header in headers}
    return (
        rate or min(rates, key=lambda each: (-rates[each], each)),
        channels or (kinds.pop() if len(kinds) == 1 else 1),
    )


def _split(files: _Files, items: FileItems, fraction: float) -> tuple[Labels | None, set[int]]:
    """Returns the labels of the items and the indices of held-out ones."""
    labels = labels_of(items.names, files.root)
    if len(files.sides) == 2:
        second = set(files.sides[1])
        return labels, {index for index, path in enumerate(items.paths) if path in second}
    labels, tested = _as_spoken_digits(items.names, labels)
    if not tested:
        with ThreadPoolExecutor(_threads()) as pool:  # hashlib releases the interpreter's lock
            tested = set(held_out(list(pool.map(files.digest, items.paths)), fraction))
    return labels, tested


def _as_spoken_digits(names: Sequence[str], labels: Labels | None) -> tuple[Labels | None, set[int]]:
    """Returns digits and the official test part if all files are named as in the Free Spoken Digit Dataset."""
    matches = [_SPOKEN_DIGIT.fullmatch(PurePosixPath(name).name) for name in names]
    known = [match for match in matches if match is not None]
    if len(known) < len(names):
        return labels, set()
    digits = [int(match[1]) for match in known]
    classes = sorted(set(digits))
    tested = {index for index, match in enumerate(known) if int(match[2]) < _OFFICIAL_TEST}
    if labels is None and len(classes) > 1:
        values = torch.tensor([classes.index(digit) for digit in digits])
        labels = Labels(values, tuple(str(digit) for digit in classes))
    return labels, tested if len(tested) < len(names) else set()


def _read_array(path: Path, rate: int | None, channels: int | None, fraction: float) -> Recordings:
    """Reads equally long recordings ``(N, T)`` or ``(N, C, T)``, floats in [-1, 1] or int16."""
    if rate is None:
        raise ValueError(
            f"'rate' must be set for arrays, which do not say theirs, got None for '{path}'. Give it in Hz."
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    except Exception as error:  # a damaged header can make numpy raise nearly any exception
        reason = archives.reason_of(error)
        raise ValueError(f"Cannot read '{path}': {reason}. Save it again with numpy.save(file, recordings).") from error
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"Recordings in an array must have shape (N, T) or (N, C, T), got {array.shape} in '{path}'. Add an axis "
            "for one recording with [None]."
        )
    if array.dtype != np.int16 and array.dtype.kind != "f":
        raise ValueError(
            f"Recordings in an array must be floats in [-1, 1] or int16, got {array.dtype} in '{path}'. Convert them."
        )
    rows = array[:, None] if array.ndim == 2 else array
    wanted = int(channels or rows.shape[1])
    scale = np.float32(1 if array.dtype.kind == "f" else 1 << 15)
    kept, skipped = [], list[Skipped]()
    for index, row in enumerate(rows):
        with np.errstate(over="ignore", invalid="ignore"):  # of NaN with a payload
            samples = np.asarray(row, np.float32).T / scale
        if np.isfinite(samples).all():
            kept.append((f"{index:05d}", _in_range(samples, wanted, path, index)))
        else:
            skipped.append(Skipped(path, f"recording {index} has NaN or infinity among its samples"))
    if not kept:
        raise ValueError(f"No recording in '{path}' can be read: {skipped[0].reason}. Check the file.")
    items = ArrayItems(torch.from_numpy(np.stack([row for _, row in kept])), 1, names=[name for name, _ in kept])
    tested = set(held_out([digest_of(row) for _, row in kept], fraction))
    return Recordings(path.stem, *_cut(items, tested), rate, wanted, tuple(skipped))


def _in_range(samples: NDArray[np.float32], channels: int, path: Path, index: int) -> NDArray[np.float32]:
    """Converts one recording ``(T, C')`` to ``(channels, T)`` in [-1, 1]."""
    loudest = float(np.abs(samples).max())
    if loudest > 1 + _RANGE_TOLERANCE:
        raise ValueError(
            f"Recordings in an array must lie in [-1, 1], got {loudest:g} in recording {index} of '{path}'. Divide "
            "16-bit samples by 32768, or save them as int16."
        )
    try:
        return np.ascontiguousarray(converted(samples, channels).clip(-1, 1).T)
    except ValueError as error:
        raise ValueError(f"Cannot read recording {index} of '{path}': {error}. Set 'channels' to fit.") from error


def _cut(items: Items, tested: set[int]) -> tuple[Items, Items]:
    if not tested:
        return items, items
    return items.subset(i for i in range(len(items)) if i not in tested), items.subset(sorted(tested))


def _name(path: Path) -> str:
    name = path.resolve().name
    return name if path.is_dir() else name.split(".")[0]


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _attempt(
    function: Callable[[Item], Result], items: Iterable[Item], skipped: list[Skipped]
) -> list[tuple[Item, Result]]:
    """Applies a reader to all items in threads, in order: libsndfile releases the interpreter's lock."""

    def one(item: Item) -> tuple[Item, Result] | Skipped:
        try:
            return item, function(item)
        except AudioError as error:
            return Skipped(error.path, error.reason)

    with ThreadPoolExecutor(_threads()) as pool:
        results = list(pool.map(one, items))
    skipped.extend(result for result in results if isinstance(result, Skipped))
    return [result for result in results if not isinstance(result, Skipped)]
