"""The files below a folder, as people have them: nested, mixed, linked, partly unreadable."""

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
        folder: Where to look.
        wanted: Whether a file counts, by its name alone.
        skipped: Takes wanted files that are no regular files, and folders that cannot be looked into.

    Returns:
        The files in order of their path within the folder.
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
    """Whether a file or folder is one of its owner's, and not of the system's."""
    return not name.startswith(".") and name != "__MACOSX"
