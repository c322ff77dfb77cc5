"""Access to the files in archives, without unpacking them to disk."""

from __future__ import annotations

import itertools
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from gmvq.data.finding import is_visible

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""Endings of the names of archives, in lower case."""
DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""Errors that :func:`members` raises for a damaged archive."""


def is_archive(path: Path) -> bool:
    """Returns whether a file is an archive, by its name."""
    return path.name.lower().endswith(ARCHIVES)


def members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yields name, size in bytes and content of each file of an archive; read the content before the next file."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(archive.read, entry)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, member.size, stream.read


def first_names(path: Path, most: int) -> list[str]:
    """Returns the names of the first files of an archive, without hidden ones; empty if it is damaged."""
    try:
        names = [name for name, _, _ in itertools.islice(members(path), most)]
    except DAMAGED:
        return []
    return [name for name in names if is_seen(name)]


def is_seen(name: str) -> bool:
    """Returns whether neither a file of an archive nor any of its folders is hidden."""
    return all(is_visible(part) for part in PurePosixPath(name).parts if part not in (".", "..", "/"))
