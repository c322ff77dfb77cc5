"""Locks of folders, so that two processes never write to one.

A writer holds ``FOLDER/.lock`` alone, and those of the runs around the folder together with other writers inside them:
a prior and a decoder can be fitted at the same time, but not while their tokenizer is trained again. The lock is that
of the operating system on the open file (flock): it ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gmvq.data import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
RECORD = "run.json"
"""File by which the folder of a run is known."""
_LEVELS = 3
"""Folders around a folder that may be those of runs: compare/protocol/run/prior is the deepest."""


class InUseError(BlockingIOError):
    """Error of a folder that another process writes to."""


@dataclass
class _Lock:
    descriptor: int
    alone: bool
    holders: int = 1


_locks: dict[Path, _Lock] = {}
"""The locks of this process."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Context manager in which no other process writes to a folder; files that killed processes left are removed.

    Only the first rank of a run holds the lock. One process may lock a folder several times. Where the filesystem has
    no locks, a warning says so.

    Args:
        folder: The folder; created if needed.

    Raises:
        InUseError: If another process writes to it, or to a folder around or inside it; the message has its number.
    """
    folder = Path(folder)
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    with contextlib.suppress(OSError):  # what is written into the folder tells why
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with within(folder.parent), _holding(folder, alone=True) as is_held:
            if is_held:
                sweep(folder)
            yield
    finally:
        with contextlib.suppress(OSError):  # from the first that is not empty
            for part in new:
                part.rmdir()


@contextmanager
def within(path: str | Path) -> Iterator[None]:
    """Context manager in which no process writes to the runs that contain a path, but into folders inside of them.

    Raises:
        InUseError: If a process does.
    """
    path = Path(os.path.abspath(path))
    with ExitStack() as stack:
        for folder in (path, *path.parents[:_LEVELS]):
            if (folder / RECORD).is_file():
                stack.enter_context(_holding(folder, alone=False))
        yield


def sweep(folder: Path) -> None:
    """Removes the temporary files of processes that have ended, from a folder and those inside it."""
    with contextlib.suppress(OSError):
        inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        for part in (folder, *(path for path in inside if not (path / LOCK).exists())):
            writing.sweep(part)


@contextmanager
def _holding(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Holds the lock of a folder, alone or with others; yields whether there is a lock."""
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield False
        return
    key = folder.resolve()
    lock = _locks.get(key)
    if lock is None:
        lock = _taken(folder, alone)
        if lock is None:
            yield False
            return
        _locks[key] = lock
    else:
        if alone and not lock.alone:
            _flock(lock.descriptor, folder, alone)
            lock.alone = True
        lock.holders += 1
    try:
        yield True
    finally:
        lock.holders -= 1
        if not lock.holders and _locks.pop(key, None) is not None:
            _release(lock.descriptor, folder / LOCK)


def _taken(folder: Path, alone: bool) -> _Lock | None:
    """Takes the lock of a folder; None if it has no lock, since it cannot be written or its filesystem has none."""
    path = folder / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            has_lock = _flock(descriptor, folder, alone)
            is_current = not has_lock or _is_same(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if is_current:
            break
        os.close(descriptor)  # its last holder has removed it meanwhile
    if not has_lock:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):  # on a full disk the lock holds without the number
        if alone:
            os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return _Lock(descriptor, alone)


def _flock(descriptor: int, folder: Path, alone: bool) -> bool:
    """Locks an open file; False if its filesystem has no locks.

    Raises:
        InUseError: If another process holds it.
    """
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUseError(
            f"{folder} is in use: {_holder(descriptor)} writes to it. Wait until it ends, or choose another folder."
        ) from None
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): start no second process that writes to it.", stacklevel=2
        )
        return False
    return True


def _holder(descriptor: int) -> str:
    """Names the process that holds a lock."""
    numbers = [int(line) for line in os.pread(descriptor, 1 << 16, 0).split() if line.isdigit()]
    alive = [number for number in numbers if writing.is_another(number)]
    return f"process {alive[-1]}" if alive else "a process of another machine"


def _release(descriptor: int, path: Path) -> None:
    """Removes the file of a lock, if no other process holds it, and lets it go."""
    assert fcntl is not None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _forget() -> None:
    """Lets a forked process start without the locks of its parent, which it would hold longer than that lives."""
    for lock in _locks.values():
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
