"""Selection of the files of a path, and of training and held-out files by their names.

::

    a/train/*.csv, a/test/*.csv             folders
    a/train.csv, a/test.csv                 files
    a/Gun_TRAIN.ts, a/Gun_TEST.ts           files of one data set; the path of one stands for both
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gmvq.data.items import Skipped
from gmvq.data.labels import HELD_OUT_FOLDERS, LABELS_TABLE, METADATA_TABLE, TRAIN_FOLDERS, split_folders
from gmvq.modalities.base import listed
from gmvq.modalities.tables import stem_of, suffix_of

_SIDED = ".txt"
"""Suffix of files that hold data only if the name says training or test; otherwise they hold prose."""
_SIDE = re.compile(rf"(?:(?P<set>.*)[_\-. ])?(?P<side>{'|'.join(TRAIN_FOLDERS + HELD_OUT_FOLDERS)})", re.I)


class Files(NamedTuple):
    """Files to read.

    Attributes:
        name: Name of the data set.
        root: Folder that names of items are relative to.
        train: Files for training, or all files.
        held_out: Files for evaluation, or None if the data have no split of their own.
        skipped: Files and folders that could not be accessed.
    """

    name: str
    root: Path
    train: list[Path]
    held_out: list[Path] | None
    skipped: list[Skipped]


def gather(path: Path, suffixes: Collection[str]) -> Files:
    """Finds the files of a path.

    Searches nested folders, follows links to folders, and ignores hidden files and folders. If there are a ``train``
    and a ``test`` (or ``val``, ``valid``) folder, or files whose names end so, only these two sides are read.

    Args:
        path: A folder, or a file of any name.
        suffixes: Lower-case suffixes of the files to find in a folder, the preferred ones first.

    Raises:
        ValueError: If no such file exists, one side is empty, or a folder holds more than one data set with sides.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"'{path}' is no regular file. Pass the path of a file or of a folder.")
        beside = sorted(file for file in path.parent.iterdir() if suffix_of(file) == suffix_of(path) and file.is_file())
        for place, pair in _pairs(beside).items():
            if path in pair:
                return Files(place.resolve().name, path.parent, pair[:1], pair[1:], [])
        return Files(stem_of(path), path.parent, [path], None, [])
    name, skipped = path.resolve().name, list[Skipped]()
    sides = split_folders(path)
    if sides is not None:
        train, held_out = (_found(side, suffixes, skipped) for side in sides)
        return Files(name, path, train, held_out, skipped)
    files = _found(path, suffixes, skipped)
    pairs = _pairs(sorted(files, key=lambda file: (*suffixes, _SIDED).index(suffix_of(file))))
    if len(pairs) > 1:
        raise ValueError(
            f"'{path}' must hold one data set, got {', '.join(sorted(place.name for place in pairs))} with sides of "
            f"their own. Pass the path of one, as '{min(pairs.values())[0]}'."
        )
    for place, pair in pairs.items():
        return Files(place.resolve().name, path, pair[:1], pair[1:], skipped)
    return Files(name, path, files, None, skipped)


def has_side(path: Path) -> bool:
    """Returns whether a file's name says that it is for training or for testing."""
    return _SIDE.fullmatch(stem_of(path)) is not None


def _pairs(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Maps the place of each data set to its files for training and for evaluation, the first of several per side."""
    sets: dict[Path, dict[str, Path]] = {}
    for file in files:
        match = _SIDE.fullmatch(stem_of(file))
        if match is not None:
            sets.setdefault(file.parent / (match["set"] or ""), {}).setdefault(match["side"].lower(), file)
    pairs = {
        place: [
            next((sides[name] for name in names if name in sides), None) for names in (TRAIN_FOLDERS, HELD_OUT_FOLDERS)
        ]
        for place, sides in sets.items()
    }
    return {place: [file for file in pair if file] for place, pair in pairs.items() if None not in pair}


def _found(folder: Path, suffixes: Collection[str], skipped: list[Skipped]) -> list[Path]:
    """Finds files below a folder, sorted by name.

    Raises:
        ValueError: If no file is found.
    """
    found = sorted(_walk(folder, suffixes, skipped), key=lambda file: file.as_posix())
    if not found:
        seen = f" Skipped: {listed(skipped)}." if skipped else ""
        raise ValueError(
            f"No data in '{folder}'. Looked, in nested folders too, for files that end in {' '.join(suffixes)} (any "
            f"case), also packed as .gz or .xz.{seen} Check the path."
        )
    return found


def _walk(folder: Path, suffixes: Collection[str], skipped: list[Skipped]) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename or folder), error.strerror or type(error).__name__))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.name.lower() in (LABELS_TABLE, METADATA_TABLE):
                continue
            if suffix_of(path) not in suffixes and not (suffix_of(path) == _SIDED and has_side(path)):
                continue
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
                skipped.append(Skipped(path, "it is no regular file"))
            else:
                yield path
