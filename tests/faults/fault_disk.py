"""A disk that stops at one operation: the process dies there, or the disk is full from there on."""

import builtins
import errno
import io
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

CRASHED = 77
WRITES = ("write",)
OPERATIONS = ("write", "sync", "replace", "remove", "make")


class Watched:
    """A file whose writes are counted; all else is the file's own."""

    def __init__(self, file: Any, disk: "Disk") -> None:
        self.__dict__.update(_file=file, _disk=disk)

    def write(self, data: Any) -> int:
        """Writes all of the data, or at the operation at which the disk stops, half of it."""
        self._disk.before("write", lambda: self._half(data), lambda: self._middle(data))
        return self._file.write(data)

    def _middle(self, data: Any) -> int:
        return (self._file.tell() if self._file.seekable() else 0) + len(data) // 2

    def _half(self, data: Any) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Watched":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


class Disk:
    """Counts what this process does to files below a folder, and stops at one of these operations.

    It replaces functions of ``os`` and ``io`` for good: for a forked child.

    Args:
        folder: The folder.
        stop: Number of the operation at which it stops, from 1; None never stops.
        how: ``crash``: the process ends, in a write after half of the data. ``full``: this write and all later ones
            fail, in the first after half of the data. ``limit``: no file may be longer than where the middle of this
            write would be, by the system's own limit.
    """

    def __init__(self, folder: Path, stop: int | None = None, how: str = "crash") -> None:
        self.folder, self.stop, self.how = str(folder), stop, how
        self.counted = OPERATIONS if how == "crash" else WRITES
        self.done: list[str] = []
        self.is_full = False
        self._open, self._write = io.open, os.write
        self._hook()

    def before(self, what: str, half: Callable[[], None] = lambda: None, middle: Callable[[], int] = lambda: 0) -> None:
        """Counts an operation, and stops if it is the one.

        Args:
            what: The operation.
            half: Function that does half of it.
            middle: Function that gives the length of the file in the middle of it.
        """
        if self.is_full and what in WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if what not in self.counted:
            return
        self.done.append(what)
        if len(self.done) != self.stop:
            return
        if self.how == "crash":
            half()
            os._exit(CRASHED)
        if self.how == "full":
            self.is_full = True
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        resource.setrlimit(resource.RLIMIT_FSIZE, (middle(), resource.RLIM_INFINITY))

    def _hook(self) -> None:
        io.open = builtins.open = self._opened
        for name, what in (
            *(("fsync", "sync"), ("fdatasync", "sync"), ("replace", "replace"), ("rename", "replace")),
            *(("unlink", "remove"), ("remove", "remove"), ("mkdir", "make"), ("rmdir", "remove")),
        ):
            setattr(os, name, self._counted(getattr(os, name), what))
        os.write = self._written

    def _counted(self, call: Callable[..., Any], what: str) -> Callable[..., Any]:
        def counted(path: Any, *others: Any, **named: Any) -> Any:
            if self._is_inside(path):
                self.before(what)
            return call(path, *others, **named)

        return counted

    def _written(self, number: int, data: bytes) -> int:
        if self._is_inside(number):
            self.before("write", lambda: self._write(number, data[: len(data) // 2]) and None)
        return self._write(number, data)

    def _opened(self, file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
        opened = self._open(file, mode, *others, **named)
        writes = any(letter in mode for letter in "wax+")
        return Watched(opened, self) if writes and self._is_inside(file) else opened

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return os.path.abspath(os.fspath(path)).startswith(self.folder)
