"""Access to the files in archives, without unpacking them to disk."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from gmvq.data.finding import is_visible
from gmvq.data.labels import printable

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""Endings of the names of archives, in lower case."""
DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""Errors that :func:`members` raises for a damaged archive."""
_PACKED: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
"""First bytes of a compressed archive, and the function that unpacks it."""
_BLOCK = 1 << 20
_LONGEST = 200
"""Largest number of letters of a reason: zipfile shows all bytes of a header that it cannot read."""
_END = b"PK\5\6"
_DIRECTORY_END = struct.Struct("<4s4H2LH")
"""End of a zip's directory: signature, two disks, entries on this one, entries, bytes, offset, comment's length."""
_LONGEST_END = _DIRECTORY_END.size + (1 << 16)
_IN_ZIP64 = 0xFFFF
"""Number of entries that stands for one in another place."""


def is_archive(path: Path) -> bool:
    """Returns whether a file is an archive, by its name."""
    return path.name.lower().endswith(ARCHIVES)


def members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yields name, size in bytes and content of each file of an archive; read the content before the next file.

    Checksums of the archive are verified: that of gzip, which stands at the end, after the last file.
    """
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            check_directory(file, archive)
            for entry in archive.infolist():
                if not entry.is_dir():
                    archive.open(entry).close()  # raises if its name differs where the file is
                    yield entry.filename, entry.file_size, partial(archive.read, entry)
        return
    with _unpacked(path) as file:
        # not mode "r|*", in which tarfile unpacks gzip without its checksum
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is not None:
                    yield member.name, member.size, stream.read
        while file.read(_BLOCK):  # tarfile stops before the checksum
            pass


def check_directory(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Compares the number of files in the directory of a zip with that at its end, which zipfile ignores.

    Raises:
        BadZipFile: If they differ: a wrong length in the directory hides the entries that follow.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_END))
    end = file.read()
    *_, count, _, _, _ = _DIRECTORY_END.unpack_from(end, end.rfind(_END))  # where zipfile found it
    found = len(archive.infolist())
    if count not in (found, _IN_ZIP64):
        raise zipfile.BadZipFile(f"its directory holds {found} of {count} files")


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file and unpacks it by its first bytes, since suffixes get lost."""
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        unpack = next((unpack for magic, unpack in _PACKED if start.startswith(magic)), None)
        if unpack is None:
            yield raw
            return
        with unpack(raw) as file:
            yield file


def reason_of(error: Exception) -> str:
    """Describes an error of :data:`DAMAGED` in one line; tarfile's have a line for each kind of compression."""
    return printable(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__


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
