"""Search for files below a folder, which may be nested, mixed, linked or partly unreadable."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from gmvq.data.items import Skipped


def find_files(folder: Path, wanted: Callable[[Path], bool], skipped: list[Skipped]) -> list[Path]:
    """Finds files below a folder.

    Nested folders are searched, links to folders followed, hidden files and folders ignored.

    Args:
        folder: Folder to search.
        wanted: Function that returns whether a file counts, by its name alone.
        skipped: List to extend by wanted files that are not regular files, and by unreadable folders.

    Returns:
        The files, sorted by their path within the folder.
    """
    found: list[Path] = []
    visited: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename or folder), error.strerror or type(error).__name__))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if is_visible(name))
        for path in (Path(place, name) for name in names if is_visible(name)):
            if not wanted(path):
                continue
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
                skipped.append(Skipped(path, "it is no regular file"))
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def is_visible(name: str) -> bool:
    """Returns whether a name is neither that of a hidden file or folder nor of one that macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"
