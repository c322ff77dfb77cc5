"""Trials in forked processes: a crash, a hang or a lack of memory ends the child and is an outcome."""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import gmvq

SECONDS, MEGABYTES, HANGS = 2.0, 300.0, 20.0
SOURCE = str(Path(gmvq.__file__).parent)
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RAW_ERRORS = (UnicodeError, json.JSONDecodeError)


class Loaded(NamedTuple):
    """What a load made: equal digests are equal contents; notes are files that it said it left out."""

    digest: str
    notes: tuple[str, ...] = ()


class Trial(NamedTuple):
    """What a load of a mutated file came to."""

    outcome: str
    said: str
    seconds: float
    megabytes: float


def fork() -> int:
    """Forks without the warning that threads of the parent are not in the child: trials need none of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def reason_raw(error: BaseException, names: tuple[str, ...]) -> str | None:
    """Says why an error is none of gmvq's: its kind, where it was raised, and its message; None for a clean one."""
    kind, message = type(error), str(error)
    if not isinstance(error, ValueError | OSError) or isinstance(error, RAW_ERRORS):
        return f"{kind.__name__} is no error of gmvq"
    if not (kind.__module__ == "builtins" or kind.__module__.startswith("gmvq")):
        return f"{kind.__module__}.{kind.__name__} is another library's"
    frames = traceback.extract_tb(error.__traceback__)
    of_system = isinstance(error, OSError) and error.filename is not None and error.strerror
    if not of_system and not frames[-1].filename.startswith(SOURCE):
        return f"raised in {frames[-1].filename}:{frames[-1].lineno}"
    if not message or "\n" in message or len(message) > 800:
        return "its message is not one readable line"
    if not any(name in message for name in names):
        return f"its message names none of {', '.join(names)}"
    return None


def peak_memory() -> int | None:
    """Bytes of the highest resident size since the last reset; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def attempt(load: Callable[[], Loaded], expected: Loaded, names: tuple[str, ...], *, sealed: bool) -> Trial:
    """Loads once, and says what came of it.

    ``same``: the content that was written. ``clean``: an error of gmvq, or the file is named as left out. ``other``:
    another valid content of a format that has no checksum. ``wrong``: another content of one that has. ``raw``: an
    error that is none of gmvq's. ``slow`` and ``large``: over the limits.
    """
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    before, start = peak_memory(), time.process_time()  # others may use the machine; a hang is noticed by its own limit
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = load()
            outcome, said = _compared(found, expected, sealed=sealed)
        except Exception as error:
            why = reason_raw(error, names)
            said = f"{type(error).__name__}: {error}"
            outcome = "clean" if why is None else "raw"
            if why is not None:
                said = f"{why}: {said}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    seconds, after = time.process_time() - start, peak_memory()
    used = (after - before) / 1e6 if before is not None and after is not None else 0.0
    strange = [each for each in warned if each.category is not UserWarning]
    if outcome not in ("raw", "wrong") and strange:
        outcome, said = "raw", f"warned {strange[0].category.__name__}: {strange[0].message}"
    if outcome not in ("raw", "wrong"):
        outcome = "slow" if seconds > SECONDS else "large" if used > MEGABYTES else outcome
    return Trial(outcome, said, seconds, used)


def _compared(found: Loaded, expected: Loaded, *, sealed: bool) -> tuple[str, str]:
    if found.digest == expected.digest:
        return "same", ""
    if found.notes:
        return "clean", "; ".join(found.notes)
    return "wrong" if sealed else "other", ""


def trials(numbers: Iterable[int], one: Callable[[int], Trial]) -> Iterator[tuple[int, Trial]]:
    """Runs ``one`` for each number in a forked child; a child that dies or hangs is replaced after that number."""
    left = list(numbers)
    while left:
        read, write = os.pipe()
        child = fork()
        if not child:
            _serve(left, one, write)
        os.close(write)
        done, died = 0, ""
        with os.fdopen(read) as lines:
            for _ in left:
                if not select.select([lines], [], [], HANGS)[0]:
                    os.kill(child, signal.SIGKILL)
                    died = "slow"
                    break
                line = lines.readline()
                if not line:
                    died = "raw"
                    break
                yield left[done], Trial(*json.loads(line))
                done += 1
        status = os.waitpid(child, 0)[1]
        if died:
            yield left[done], Trial(died, f"the process ended with status {status}", HANGS, 0.0)
            done += 1
        left = left[done:]


def _serve(numbers: list[int], one: Callable[[int], Trial], write: int) -> None:
    status = 1
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 30), resource.RLIM_INFINITY))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        gc.freeze()  # what torch made is not looked through each time
        for number in numbers:
            os.write(write, (json.dumps(one(number)) + "\n").encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Ended(NamedTuple):
    """How a forked child ended: its exit status (negative: the signal), and what it printed."""

    status: int
    out: str
    err: str
    pid: int


def in_child(work: Callable[[], int | None], limit_s: float = 120.0) -> Ended:
    """Runs a function in a forked child, whose exit status is its result, and keeps what it prints.

    Args:
        work: The function; what it raises is printed, with status 99.
        limit_s: Seconds until the child is killed.
    """
    child, ends = started(work)
    said = {end: b"" for end in ends}
    deadline = time.monotonic() + limit_s
    left = list(ends)
    while left:
        ready = select.select(left, [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            deadline += 5
        for end in ready:
            block = os.read(end, 1 << 16)
            said[end] += block
            if not block:
                left.remove(end)
                os.close(end)
    out, err = (said[end].decode(errors="replace") for end in ends)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), out, err, child)


def started(work: Callable[[], int | None]) -> tuple[int, tuple[int, int]]:
    """Starts a function in a forked child; returns its number and the ends of pipes from which its output is read.

    Pipes, not files: a limit on the size of files does not keep the child from saying so.
    """
    pipes = os.pipe(), os.pipe()
    child = fork()
    if not child:
        _run(work, [write for _, write in pipes])
    for _, write in pipes:
        os.close(write)
    return child, (pipes[0][0], pipes[1][0])


def _run(work: Callable[[], int | None], ends: list[int]) -> None:
    status = 99
    try:
        for number, end in enumerate(ends, 1):
            os.dup2(end, number)
            os.close(end)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        warnings.resetwarnings()
        warnings.simplefilter("default")
        status = work() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
