"""The C++ kernels: built once with the user's compiler, stored in a cache, loaded with ctypes.

The sources are plain C++17 beside this file: functions on raw pointers, without torch's or Python's headers, so that a
build takes seconds and works with every version of torch. If no build is possible, callers compute the same in torch.

========================  ============================================================================================
``GMVQ_KERNELS=torch``    turns the compiled kernels off
``GMVQ_CACHE``            folder of the builds; by default ``$XDG_CACHE_HOME/gmvq`` or ``~/.cache/gmvq``
``CXX``                   the compiler, with options if needed; by default the first of ``c++``, ``g++``, ``clang++``
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
"""Seconds after which a compiler is stopped."""

_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_NATIVE = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
_OPENMP = ("-Xclang", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)
_ATTEMPTS = ((*_FLAGS, _NATIVE, *_OPENMP), (*_FLAGS, _NATIVE), _FLAGS)
"""Options to try, best first: a compiler may lack OpenMP, or have one with another runtime; then one thread is used."""
# Linking without -fopenmp: it would load a second OpenMP runtime, whose threads would compete with torch's for the
# cores. The functions that the kernels call are found in torch's runtime, which is loaded before.
_LINK = ("-shared", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built once for all processes; None if they are off or cannot be built.

    Within a process the answer only changes with ``GMVQ_KERNELS``: equal inputs always give equal bits.
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
            "compiled: %s Install g++ or clang++, set the environment variable CXX to one, or set GMVQ_KERNELS=torch "
            "to accept it.",
            error,
        )
        return None


def _compiler() -> list[str]:
    """Command of the user's C++ compiler.

    Raises:
        RuntimeError: If there is no compiler.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX is not a command: {error}.") from error
    for command in [named] if named else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler found among {', '.join(named[:1] or COMPILERS)}.")


def _kept_or_built(compiler: Sequence[str]) -> ctypes.CDLL:
    """Loads the library of an earlier process, or builds one.

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
            # a loaded library no longer needs its file; a cache may forbid execution of its files
            loaded = _loaded(_keep(built, key)) or _loaded(built)
            if loaded is not None:
                if "-fopenmp" not in flags:
                    LOGGER.warning(
                        "gmvq's C++ kernels use one thread: OpenMP as compiled by %s does not work with torch's. Set "
                        "the environment variable CXX to g++ to use all threads.",
                        shlex.join(compiler),
                    )
                return loaded
        failure = failure or f"the library that {shlex.join(compiler)} built with {shlex.join(flags)} does not load."
    raise RuntimeError(failure)


def _key(compiler: Sequence[str]) -> str:
    """Hash of everything that a build depends on: sources, options, compiler and processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=BUILD_SECONDS, check=False).stdout
    sources = [path.read_bytes() for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")))]
    options = repr((compiler, _ATTEMPTS, _LINK, platform.machine())).encode()
    return _hash(*sources, options, version, _processor())


def _processor() -> bytes:
    """Description of the processor, which the option "native" depends on: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"model name", b"flags", b"CPU part", b"Features", b"isa")
    return b"".join(sorted({line for line in lines if line.startswith(names)}))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]


def cache_folder() -> Path:
    """Folder of the builds.

    Raises:
        RuntimeError: If the user has no home folder.
    """
    own, general = os.environ.get("GMVQ_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else (Path(general) if general else Path.home() / ".cache") / "gmvq") / "kernels"


def _kept(key: str) -> list[Path]:
    """Earlier builds that are complete; incomplete files, which would crash the process, are deleted."""
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
        pass  # a cache that cannot be read is as good as an empty one
    return whole


def _is_own(path: Path) -> bool:
    """True if only this user can have written there: its files are executed."""
    if not hasattr(os, "getuid") or not path.exists():
        return True
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _keep(built: Path, key: str) -> Path:
    """Copies a build to the cache; if that fails, leaves it where it is."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # files in it are executed as this user, so only this user may write there
        kept = folder / f"{key}-{_hash(built.read_bytes())}.so"
        with tempfile.TemporaryDirectory(dir=folder, prefix="new-", ignore_cleanup_errors=True) as scratch:
            # several processes may build at once: each replaces the file as a whole
            copy = Path(shutil.copy(built, scratch))
            copy.chmod(0o700)
            os.replace(copy, kept)
    except (OSError, RuntimeError) as error:
        LOGGER.warning(
            "gmvq could not store its C++ kernels, so that each process builds them again: %s. Set the environment "
            "variable GMVQ_CACHE to a folder that you can write to.",
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
    """Builds one shared library from all sources, each compiled in its own process.

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
    """The first lines of output of a command that failed; empty if it succeeded."""
    with process:
        try:
            said = process.communicate(timeout=BUILD_SECONDS)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"no answer within {BUILD_SECONDS:.0f} seconds."
    return f"{said.strip()[:500] or f'exit status {process.returncode}'}." if process.returncode else ""
