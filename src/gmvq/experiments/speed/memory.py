"""Peak memory of one call in a process of its own, above that of inputs, modules and a small warm-up.

::

    measure(task, name, shape) --a fresh process--> main --> {"bytes", "fits", "method"}

A call that would not fit in memory is not made: its memory is extrapolated from two calls on fewer latents.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gmvq.experiments.speed.contestants import FLOATS, TASKS
from gmvq.experiments.speed.shapes import Shape

SAFE_SHARE = 0.8
"""Largest share of the free memory that a call may use."""

WARM_UP_SHARE = 64
"""Factor by which a warm-up has fewer latents."""

LEAST_ROWS = 64
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_COMMAND = "from gmvq.experiments.speed.memory import main; main()"


def available() -> int | None:
    """Returns the bytes available without swapping, or None if unknown."""
    found = []
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # the limit of a container; "max" means no limit
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        found.append(int((group / "memory.max").read_text()) - used)
    return min(found, default=None)


def installed() -> int | None:
    """Returns the bytes of memory of the machine."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def too_large(task: str, name: str, shape: Shape) -> int | None:
    """Returns the estimated bytes of a call if they exceed the limit; None if it fits."""
    needed, free = int(4 * FLOATS.get((task, name), 0.0) * shape.rows * shape.codes), available()
    return needed if free is not None and needed > SAFE_SHARE * free else None


def measure(task: str, name: str, shape: Shape, threads: int) -> dict[str, Any]:
    """Measures the peak memory of one call.

    Returns:
        ``bytes`` above the start, ``fits`` (False if they are extrapolated without the call) and ``method``; or
        ``absent`` or ``error`` with a reason.
    """
    sources = str(Path(__file__).parents[3])  # this gmvq, not an installed one
    path = os.pathsep.join([sources, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", _COMMAND, task, name, str(shape), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()
    return {"error": said[-1] if said else f"it ended with status {done.returncode}, as when memory runs out."}


def main() -> None:
    """Runs in the fresh process; prints one line of JSON on standard output."""
    task, name, shape = sys.argv[1], sys.argv[2], Shape.parse(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    with contextlib.suppress(OSError):  # if memory runs out, the system should kill this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        found = peak_of(lambda rows: TASKS[task][name](shape._replace(rows=rows)), shape.rows)
    except ImportError as error:
        found = {"absent": str(error)}
    print(json.dumps(found))


def peak_of(prepare: Callable[[int], Callable[[], Any]], rows: int) -> dict[str, Any]:
    """Measures the peak memory of ``prepare(rows)()``, or extrapolates it if it would not fit."""
    few = min(rows, max(LEAST_ROWS, rows // WARM_UP_SHARE))
    prepare(few)()  # warms up threads, library buffers, compiled kernels
    method = "VmHWM" if _reset() else "ru_maxrss"
    if 2 * few < rows:
        small, double = peak(prepare(few)), peak(prepare(2 * few))
        expected, free = double + max(0, double - small) * (rows / few - 2), available()
        if free is not None and expected > SAFE_SHARE * free:
            return {"bytes": round(expected), "fits": False, "method": f"extrapolated from {few} and {2 * few} latents"}
    return {"bytes": peak(prepare(rows)), "fits": True, "method": method}


def peak(call: Callable[[], Any]) -> int:
    """Returns the bytes that a call uses at its peak, above those used before it."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would hide what the call uses
    before = _field("VmRSS") if _reset() else _highest()
    result = call()
    after = _field("VmHWM") if _reset_is_possible() else _highest()
    del result
    return max(0, after - before)


def _reset_is_possible() -> bool:
    return os.access(_CLEAR, os.W_OK) and _STATUS.exists()


def _reset() -> bool:
    """Resets the peak resident size; returns False if the system cannot."""
    try:
        _CLEAR.write_text("5")
        return _STATUS.exists()
    except OSError:
        return False


def _field(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _highest() -> int:
    import resource  # not on every system

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
