"""Writing of files, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces ``path`` at the end: a crash or a full disk leaves the old file.

    Raises:
        OSError: If it cannot be written; the error names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (None, str(temporary)) and error.errno is not None:
            raise type(error)(error.errno, error.strerror or "could not be written", str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: If it cannot be written; the error names ``path``.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def naming(what: str, remedy: str) -> Iterator[None]:
    """Rewords an error of writing, in one line: what could not be written, where, and what to do.

    Args:
        what: Name of what is written, as ``The log``.
        remedy: Sentences that say what is still valid, and what to do.

    Raises:
        OSError: In place of one that was raised inside, with its ``errno``; an error that is reworded already stays.
    """
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f" to {error.filename}"
        named = OSError(f"{what} could not be written{where} ({error.strerror}). {remedy}")
        named.errno = error.errno
        raise named from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Writes JSON atomically; NaN and infinity are refused, since JSON has neither.

    Raises:
        ValueError: If the value holds NaN or infinity.
        OSError: If the file cannot be written.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
