"""Writing of files, whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY = r"\..*\.(\d+)-\d+\.gmvq"
"""Pattern of the names of temporary files, with the number of their process."""
in_progress: set[str] = set()
"""Names of the temporary files that this process writes."""
_swept: set[Path] = set()
"""Folders from which this process has removed what killed ones left."""
_numbers = itertools.count()


@contextmanager
def replacing(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file that replaces ``path`` at the end: a crash or a full disk leaves the old file.

    Args:
        path: The file.
        former: Path of the old file from then on; by default it is removed.

    Raises:
        OSError: If it cannot be written; the error names ``path``.
    """
    # a name may have 255 bytes, and a letter four
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{next(_numbers)}.gmvq")
    in_progress.add(temporary.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            sweep(path.parent)
        with temporary.open("w+b") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a filesystem without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            _keep(path, former)
        temporary.replace(path)
        synchronize(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (None, str(temporary)) and error.errno is not None:
            raise type(error)(error.errno, error.strerror or "could not be written", str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        in_progress.discard(temporary.name)


def sweep(folder: Path) -> None:
    """Removes the temporary files of processes that have ended from a folder."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = re.fullmatch(TEMPORARY, path.name)
            if found and path.name not in in_progress and not is_another(int(found[1])) and _is_free(path):
                path.unlink(missing_ok=True)


def _is_free(path: Path) -> bool:
    """Returns whether no process writes to a temporary file, which may be one of another machine."""
    if fcntl is None:
        return True
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a filesystem without locks
            return True
    return True


def is_another(process: int) -> bool:
    """Returns whether another process of this number is running."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _keep(path: Path, former: Path) -> None:
    """Gives a file that is about to be replaced a second name; it loses the first where files can have but one."""
    former.unlink(missing_ok=True)
    try:
        former.hardlink_to(path)
    except OSError:
        path.replace(former)


def synchronize(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: If it cannot be written; the error names ``path``.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def naming(what: str, remedy: str | Callable[[], str]) -> Iterator[None]:
    """Rewords an error of writing, in one line: what could not be written, where, and what to do.

    Args:
        what: Name of what is written, as ``The log``.
        remedy: Sentences that say what is still valid, and what to do; or a function that finds out.

    Raises:
        OSError: In place of one that was raised inside, with its ``errno``; an error that is reworded already stays.
    """
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f" to {error.filename}"
        advice = remedy if isinstance(remedy, str) else remedy()
        named = OSError(f"{what} could not be written{where} ({error.strerror}). {advice}")
        named.errno = error.errno
        raise named from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Writes JSON atomically; NaN and infinity are refused, since JSON has neither.

    Raises:
        ValueError: If the value holds NaN or infinity.
        OSError: If the file cannot be written.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
