"""Names of the files of items, which cannot lead out of their folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

LONGEST_PART = 240
"""Most bytes of a part of a name: file systems take 255, and a file that is being written has a longer name."""
LONGEST_NAME = 3000
"""Most bytes of a whole name."""


def file_names(names: Sequence[str], suffix: str) -> list[str]:
    """Makes a file name with a given ending for each item; it replaces an item's own ending unless two names clash.

    Args:
        names: Names of items, relative paths with ``/``.
        suffix: The ending, as ``.png``.

    Example:
        >>> file_names(["a/cat.jpg", "dog.jpg", "dog.png", "00007"], ".png")
        ['a/cat.png', 'dog.jpg.png', 'dog.png', '00007.png']
    """
    short = [str(PurePosixPath(name).with_suffix(suffix)) if _has_suffix(name) else f"{name}{suffix}" for name in names]
    counts: dict[str, int] = {}
    for name in short:
        counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
    chosen, taken = [], set()
    for name, brief in zip(names, short, strict=True):
        # compared without case: to some file systems Cat.png and cat.png are one
        stem = brief if counts[brief.casefold()] == 1 else name.removesuffix(suffix) + suffix
        candidate, number = stem, 2
        while candidate.casefold() in taken:
            candidate, number = f"{stem.removesuffix(suffix)}-{number}{suffix}", number + 1
        taken.add(candidate.casefold())
        chosen.append(candidate)
    return chosen


def targets(folder: Path, names: Sequence[str], suffix: str) -> list[Path]:
    """Returns the path of each item's file in a folder; all are checked before the first is written.

    Args:
        folder: Folder of the files.
        names: Names of items, relative paths with ``/``.
        suffix: Ending of the files' names.

    Raises:
        ValueError: If a name would lead out of the folder, is not valid for a file, or is that of another's folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'OUT' must be a folder, and {folder} is a file. Choose another.")
    chosen = file_names(names, suffix)
    folders = {str(parent).casefold() for name in chosen for parent in PurePosixPath(name).parents}
    for name in chosen:
        if name.casefold() in folders:
            raise ValueError(f"The name {name!r} is that of a file and of a folder. Rename the items.")
    return [inside(folder, name) for name in chosen]


def file_of_all(out: Path, name: str) -> Path:
    """Returns the path of the file of all items: ``out``, or if that is a folder, ``name`` in it."""
    return out if out.suffix and not out.is_dir() else out / name


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a named file in a folder.

    Raises:
        ValueError: If the name would lead out of the folder, or is not valid for a file.
    """
    path, root = PurePosixPath(name), folder.resolve()
    foreign = "\0\\:" if os.name == "nt" else "\0"
    if not path.name or path.is_absolute() or ".." in path.parts or set(name) & set(foreign):
        raise ValueError(f"The name {name!r} would lead out of the folder {folder}. Do not trust the file.")
    try:
        lengths = [len(os.fsencode(part)) + 1 for part in path.parts]
    except UnicodeEncodeError as error:
        raise ValueError(f"The name {name!r} is not valid Unicode. Rename the item.") from error
    if max(lengths) > LONGEST_PART or sum(lengths) > LONGEST_NAME:
        raise ValueError(f"The name {name[:40]!r}... is too long for a file. Rename the item.")
    target = root.joinpath(*path.parts)
    if not target.resolve().is_relative_to(root):  # through a link inside the folder
        raise ValueError(f"The name {name!r} leads out of the folder {folder} by a link. Choose an empty folder.")
    return folder.joinpath(*path.parts)


def _has_suffix(name: str) -> bool:
    """Returns whether a name ends like that of a file, unlike ``v1.2``, whose ending is a number."""
    suffix = PurePosixPath(name).suffix
    return 2 <= len(suffix) <= 6 and suffix[1:].isalnum() and not suffix[1:].isdecimal()
