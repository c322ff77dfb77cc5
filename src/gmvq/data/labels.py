"""Labels of files of any kind, from a table beside them or from the folders that they are in.

::

    root/cat/1.png  root/dog/2.png            --+
    root/train/cat/1.png  root/test/dog/2.png --+--labels_of--> values (0, 1), classes (cat, dog)
    root/1.png  root/2.png  root/labels.csv   --+
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

TRAIN_FOLDERS = ("train", "training")
HELD_OUT_FOLDERS = ("test", "testing", "val", "valid", "validation")
LABELS_TABLE, METADATA_TABLE = "labels.csv", "metadata.csv"
NAME_COLUMNS = ("name", "file", "file_name", "filename", "path")
LABEL_COLUMNS = ("label", "class")

_NAMED = 5
_INTEGER = re.compile(r"-?\d+")


class Labels(NamedTuple):
    """Labels of N files.

    Attributes:
        values: Class of each file, int64 ``(N,)``.
        classes: Name of each class. Names that are all integers are in the order of their values, others sorted.
    """

    values: Tensor
    classes: tuple[str, ...]


def labels_of(names: Sequence[str], root: Path, table: Path | None = None) -> Labels | None:
    """Finds the labels of files.

    A table has precedence: ``labels.csv`` in the root, or in each of its ``train`` and ``test`` (or ``val``) folders,
    or else ``metadata.csv`` likewise if it has labels. Its first line names a column ``name`` (or ``file``,
    ``file_name``, ``filename``, ``path``) and a column ``label`` (or ``class``), separated by commas, semicolons or
    tabs; other columns are ignored. Names of files are relative to its folder.

    Without a table, the folders in the root, or in its ``train`` and ``test`` folders, are the classes, if at least two
    of them hold files directly. Files deeper in them count, too. If a file is outside these folders, there are no
    labels, and a warning says so.

    Args:
        names: Names of the files relative to ``root``, with ``/``.
        root: Folder of the files.
        table: Table to read instead of those above; its names are relative to ``root``.

    Returns:
        The labels in the order of ``names``, or None without labels.

    Raises:
        ValueError: If a table is damaged, names a file twice with different labels, or lacks the label of a file.
        OSError: If a table cannot be read.
    """
    if not names:
        return None
    tables = _find_tables(names, root) if table is None else [("", table)]
    found: dict[str, str] = {}
    read: list[Path] = []
    for prefix, path in tables:
        entries = _read_table(path, required=table is not None or path.name == LABELS_TABLE)
        if entries is not None:
            read.append(path)
            found |= {normalized(prefix + name): label for name, label in entries.items()}
    words = _from_tables(names, root, found, read) if read else _from_folders(names, root)
    if words is None:
        return None
    classes = _ordered(words)
    index = {word: place for place, word in enumerate(classes)}
    return Labels(torch.tensor([index[word] for word in words], dtype=torch.int64), classes)


def split_folders(root: Path) -> tuple[Path, Path] | None:
    """Finds a training folder and a held-out folder directly in a folder.

    Returns:
        ``train`` or ``training`` and the first of ``test``, ``testing``, ``val``, ``valid`` and ``validation``, in any
        case; None unless there is one of each.

    Raises:
        OSError: If the folder cannot be listed.
    """
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if os.path.isdir(path)}
    train, held_out = ([below[name] for name in side if name in below] for side in (TRAIN_FOLDERS, HELD_OUT_FOLDERS))
    return (train[0], held_out[0]) if train and held_out else None


def normalized(name: str) -> str:
    r"""Normalizes the name of a file: ``/`` between folders, no ``./``, composed accents (Unicode's NFC).

    Example:
        >>> normalized(".\\cat//1.png")
        'cat/1.png'
    """
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).as_posix()


def printable(name: str | Path) -> str:
    r"""Escapes what is not printable in a name: line breaks, control characters, bytes that are not Unicode.

    Example:
        >>> print(printable("two\nlines.png"))
        two\nlines.png
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def _find_tables(names: Sequence[str], root: Path) -> list[tuple[str, Path]]:
    """Finds tables, each with the prefix of its names: the one in the root, or those in the folders of a split."""
    sides = sorted({name.split("/")[0] for name in names}) if _in_split_folders(names) else []
    for table in (LABELS_TABLE, METADATA_TABLE):
        if (root / table).is_file():
            return [("", root / table)]
        found = [(f"{side}/", root / side / table) for side in sides if (root / side / table).is_file()]
        if found:
            return found
    return []


def _in_split_folders(names: Sequence[str]) -> bool:
    """Returns whether all files are in folders that have the names of a split."""
    folders = {name.partition("/")[0].lower() if "/" in name else "" for name in names}
    return folders <= {*TRAIN_FOLDERS, *HELD_OUT_FOLDERS}


def _read_table(path: Path, *, required: bool) -> dict[str, str] | None:
    """Reads the label of each name; None without a column of labels, unless that is ``required``."""
    # names that are not Unicode are kept as Python keeps file names
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        try:
            columns = [column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])]
            name_at = next((columns.index(name) for name in NAME_COLUMNS if name in columns), None)
            label_at = next((columns.index(name) for name in LABEL_COLUMNS if name in columns), None)
            if name_at is None or label_at is None:
                if not required:
                    return None
                raise ValueError(
                    f"The first line of '{printable(path)}' must name a column {' or '.join(NAME_COLUMNS)} and one "
                    f"{' or '.join(LABEL_COLUMNS)}, got {header[:80]!r}. Write name,label."
                )
            return _entries(csv.reader(file, delimiter=delimiter), name_at, label_at, path)
        except csv.Error as error:
            raise ValueError(f"Cannot read the table '{printable(path)}': {error}. Save it as CSV again.") from error


def _entries(rows: Iterable[list[str]], name_at: int, label_at: int, path: Path) -> dict[str, str]:
    entries: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        name, label = ((row[place].strip() if place < len(row) else "") for place in (name_at, label_at))
        name = normalized(name)
        if label and entries.setdefault(name, label) != label:
            raise ValueError(
                f"Row {number} of '{printable(path)}' must repeat the label {entries[name]!r} of '{printable(name)}', "
                f"got {label!r}. Give each file one label."
            )
    return entries


def _from_tables(names: Sequence[str], root: Path, found: Mapping[str, str], tables: Sequence[Path]) -> list[str]:
    known = [normalized(name) for name in names]
    lacking = [name for name, key in zip(names, known, strict=True) if key not in found]
    said = " and ".join(f"'{printable(path)}'" for path in tables)
    if lacking:
        raise ValueError(
            f"{said} must have a label for each file, but lacks {_some(lacking)}. Add them, with names relative to the "
            "table's folder, or remove the table to go without labels."
        )
    unknown = [name for name in set(found) - set(known) if not os.path.exists(root / name)]
    if unknown:
        warnings.warn(f"{said} has labels of files that do not exist: {_some(sorted(unknown))}.", stacklevel=2)
    return [found[key] for key in known]


def _from_folders(names: Sequence[str], root: Path) -> list[str] | None:
    """Returns the class folder of each file, None without classes."""
    places = [name.split("/")[:-1] for name in names]
    if _in_split_folders(names):
        places = [place[1:] for place in places]
    classes = {place[0] for place in places if len(place) == 1}
    if len(classes) < 2:
        return None
    outside = [name for name, place in zip(names, places, strict=True) if not place or place[0] not in classes]
    if outside:
        warnings.warn(
            f"The folders in '{printable(root)}' give no labels because of files outside them: {_some(outside)}. Move "
            f"each into a folder, or write {LABELS_TABLE}.",
            stacklevel=2,
        )
        return None
    return [place[0] for place in places]


def _ordered(words: Iterable[str]) -> tuple[str, ...]:
    distinct = sorted(set(words))
    if all(_INTEGER.fullmatch(word) for word in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


def _some(names: Sequence[str]) -> str:
    """Lists the first names, and how many more there are."""
    text = ", ".join(f"'{printable(name)}'" for name in names[:_NAMED])
    return text if len(names) <= _NAMED else f"{text} and {len(names) - _NAMED} more"
