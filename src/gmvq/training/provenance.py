"""Provenance of a run's metrics: versions, hardware and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_GIT_SECONDS = 10


def versions() -> dict[str, str]:
    """Returns the versions of Python, PyTorch and gmvq."""
    return {"python": platform.python_version(), "torch": torch.__version__, "gmvq": metadata.version("gmvq")}


def hardware() -> str:
    """Describes processor, available cores, threads of PyTorch, and graphics cards in one line.

    Example:
        ``AMD EPYC 7B13, 2 cores, 2 threads, Linux x86_64``
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} cores", f"{torch.get_num_threads()} threads"]
    parts += [f"{platform.system()} {platform.machine()}"]
    parts += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(parts)


def commit(folder: Path | None = None) -> str | None:
    """Returns the commit of gmvq's checkout, with ``+`` if files were changed since; None outside a checkout.

    Args:
        folder: Folder to search; by default that of the imported gmvq.
    """
    folder = folder or Path(__file__).parent
    try:
        # the repository around a virtual environment is not ours
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
