"""The C++ kernels: built once with the user's own compiler, kept in a cache, loaded by ctypes.

The sources are plain C++17 beside this file: functions on raw pointers, without torch's or Python's headers, so that a
build takes seconds and serves every version of torch. Where nothing can be built, callers compute the same in torch.

========================  ============================================================================================
``GMVQ_KERNELS=torch``    turns the compiled kernels off
``GMVQ_CACHE``            where builds are kept; by default ``$XDG_CACHE_HOME/gmvq`` or ``~/.cache/gmvq``
``CXX``                   the compiler, with options if need be; by default the first of ``c++``, ``g++``, ``clang++``
========================  ============================================================================================
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch  # noqa: F401  its OpenMP runtime must be there before a library that uses it is loaded

LOGGER = logging.getLogger("gmvq")
SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 300.0
"""After so long a compiler is given up."""

_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_NATIVE = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
_OPENMP = ("-Xclang", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)
_ATTEMPTS = ((*_FLAGS, _NATIVE, *_OPENMP), (*_FLAGS, _NATIVE), _FLAGS)
"""Options to try, best first: not every compiler has OpenMP, or one whose runtime is torch's; then one thread works."""
# Not -fopenmp here: it would load a second OpenMP runtime, whose threads would fight with torch's for the cores. What
# the kernels call of it is found in torch's own, which is there before.
_LINK = ("-shared", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built at the first call of all processes; None where they are off or cannot be built.

    The answer never changes within a process but by ``GMVQ_KERNELS``: equal inputs give equal bits, whatever came
    before.
    """
    return None if os.environ.get("GMVQ_KERNELS") == "torch" else _library()


@functools.cache
def has_triton() -> bool:
    """True if the kernels for GPUs can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _kept_or_built(_compiler())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        LOGGER.warning(
            "gmvq computes nearest codes and mixture steps on the CPU in torch, up to several times slower than "
            "compiled: %s Install g++ or clang++, name it in the environment variable CXX, or set GMVQ_KERNELS=torch "
            "to accept it.",
            error,
        )
        return None


def _compiler() -> list[str]:
    """The user's C++ compiler as the first words of a command.

    Raises:
        RuntimeError: If there is none.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX is no command: {error}.") from error
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler found among {', '.join(named[:1] or COMPILERS)}.")


def _kept_or_built(compiler: Sequence[str]) -> ctypes.CDLL:
    """The library of an earlier process, or a new one.

    Raises:
        OSError: If there is no folder for temporary files.
        RuntimeError: If the compiler fails.
    """
    key = _key(compiler)
    for path in _kept(key):
        loaded = _loaded(path)
        if loaded is not None:
            return loaded
    failure = ""
    LOGGER.info("gmvq builds its C++ kernels: a few seconds, once on this machine.")
    for flags in _ATTEMPTS:
        with tempfile.TemporaryDirectory(prefix="gmvq-", ignore_cleanup_errors=True) as scratch:
            try:
                built = _built(compiler, flags, Path(scratch))
            except RuntimeError as error:
                failure = failure or str(error)
                continue
            # once loaded, a library needs its file no more; a cache may forbid to run what it holds
            loaded = _loaded(_keep(built, key)) or _loaded(built)
            if loaded is not None:
                if "-fopenmp" not in flags:
                    LOGGER.warning(
                        "gmvq's C++ kernels use one thread: what %s makes of OpenMP does not fit torch's. Name g++ in "
                        "the environment variable CXX for all threads.",
                        shlex.join(compiler),
                    )
                return loaded
        failure = failure or f"what {shlex.join(compiler)} built with {shlex.join(flags)} does not load."
    raise RuntimeError(failure)


def _key(compiler: Sequence[str]) -> str:
    """Hash of all that a build depends on: sources, options, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=BUILD_SECONDS, check=False).stdout
    sources = [path.read_bytes() for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")))]
    options = repr((compiler, _ATTEMPTS, _LINK, platform.machine())).encode()
    return _hash(*sources, options, version, _processor())


def _processor() -> bytes:
    """What the compiler's "native" stands for: a home may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"model name", b"flags", b"CPU part", b"Features", b"isa")
    return b"".join(sorted({line for line in lines if line.startswith(names)}))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]


def cache_folder() -> Path:
    """Where builds are kept.

    Raises:
        RuntimeError: If the user has no home.
    """
    own, general = os.environ.get("GMVQ_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else (Path(general) if general else Path.home() / ".cache") / "gmvq") / "kernels"


def _kept(key: str) -> list[Path]:
    """Earlier builds, each a whole file: one that is torn would crash whom it is loaded by, and is thrown away."""
    whole = []
    try:
        folder = cache_folder()
        if not _is_own(folder):
            return []
        for path in sorted(folder.glob(f"{key}-*.so")):
            if not _is_own(path):
                continue
            if path.stem == f"{key}-{_hash(path.read_bytes())}":
                whole.append(path)
            else:
                path.unlink()
    except (OSError, RuntimeError):
        pass  # whom it cannot read, it builds for
    return whole


def _is_own(path: Path) -> bool:
    """True unless somebody else may have put there what would run as this user."""
    if not hasattr(os, "getuid") or not path.exists():
        return True
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _keep(built: Path, key: str) -> Path:
    """Copies a build to the cache; where that takes no files, leaves it where it is."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # what lies there runs as this user: nobody else may put it there
        kept = folder / f"{key}-{_hash(built.read_bytes())}.so"
        with tempfile.TemporaryDirectory(dir=folder, prefix="new-", ignore_cleanup_errors=True) as scratch:
            # of several processes that build at once, each puts a whole file in the place
            copy = Path(shutil.copy(built, scratch))
            copy.chmod(0o700)
            os.replace(copy, kept)
    except (OSError, RuntimeError) as error:
        LOGGER.warning(
            "gmvq could not keep its C++ kernels, so that each process builds them again: %s. Name a folder that you "
            "can write to in the environment variable GMVQ_CACHE.",
            error,
        )
        return built
    return kept


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _built(compiler: Sequence[str], flags: Sequence[str], scratch: Path) -> Path:
    """One shared library of all sources, each compiled by a process of its own.

    Raises:
        RuntimeError: If the compiler fails.
    """
    target, objects, running = scratch / "kernels.so", [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(str(scratch / f"{source.stem}.o"))
        running.append(_started([*compiler, *flags, "-c", str(source), "-o", objects[-1]]))
    errors = [_error_of(process) for process in running]
    error = next(filter(None, errors), "") or _error_of(_started([*compiler, *_LINK, *objects, "-o", str(target)]))
    if error:
        raise RuntimeError(f"{shlex.join(compiler)} failed with: {error}")
    return target


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def _error_of(process: subprocess.Popen[str]) -> str:
    """What a command that failed has said, the first lines; nothing if it worked."""
    with process:
        try:
            said = process.communicate(timeout=BUILD_SECONDS)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"no answer within {BUILD_SECONDS:.0f} seconds."
    return f"{said.strip()[:500] or f'exit status {process.returncode}'}." if process.returncode else ""
