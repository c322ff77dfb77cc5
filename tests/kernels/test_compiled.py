import logging
import os
import subprocess
import sys

import pytest
import torch

from gmvq.kernels import compiled, nearest_code

needs_compiler = pytest.mark.skipif(
    compiled._library() is None,  # whatever GMVQ_KERNELS says
    reason="no C++ compiler",
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache without builds, and a process that has loaded nothing."""
    monkeypatch.delenv("GMVQ_KERNELS", raising=False)
    monkeypatch.setenv("GMVQ_CACHE", str(tmp_path))
    compiled._library.cache_clear()
    yield tmp_path / "kernels"
    compiled._library.cache_clear()


def works(kernels):
    return kernels is not None and hasattr(kernels, "gmvq_nearest_code")


@needs_compiler
def test_it_builds_once_and_loads_what_it_has_kept(fresh, monkeypatch):
    assert works(compiled.library())
    (kept,) = fresh.iterdir()
    compiled._library.cache_clear()
    monkeypatch.setattr(compiled, "_built", None)  # would raise
    assert works(compiled.library())
    assert list(fresh.iterdir()) == [kept]


@needs_compiler
def test_a_torn_file_is_built_anew(fresh):
    compiled.library()
    (kept,) = fresh.iterdir()
    whole = kept.read_bytes()
    other = kept.with_name("torn.so")  # the loaded file itself is in use
    other.write_bytes(whole[: len(whole) // 2])
    os.replace(other, kept)
    compiled._library.cache_clear()
    assert works(compiled.library())
    assert kept.read_bytes()[: len(whole)] == whole[: kept.stat().st_size]
    assert kept.stat().st_size == len(whole)


@needs_compiler
def test_a_kept_file_that_does_not_load_is_built_anew(fresh):
    fresh.mkdir(parents=True)
    key, content = compiled._key(compiled._compiler()), b"no library"
    (fresh / f"{key}-{compiled._hash(content)}.so").write_bytes(content)
    assert works(compiled.library())


@needs_compiler
def test_a_change_of_the_sources_is_built(fresh, monkeypatch, tmp_path):
    compiled.library()
    for source in compiled.SOURCES.glob("*.[ch]pp"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "more.cpp").write_text('extern "C" int gmvq_more() { return 3; }')
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    compiled._library.cache_clear()
    kernels = compiled.library()
    assert works(kernels)
    assert kernels.gmvq_more() == 3
    assert len(list(fresh.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file in its place", "no home"])
def test_a_cache_that_takes_no_files_does_without(fresh, monkeypatch, tmp_path, obstacle):
    if obstacle == "no home":
        for name in ("GMVQ_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(compiled.Path, "home", lambda: raising(RuntimeError("no home")))
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("GMVQ_CACHE", str(tmp_path / "file"))
    assert works(compiled.library())
    assert not fresh.exists()


def raising(error):
    raise error


@needs_compiler
def test_without_openmp_one_thread_computes_the_same(fresh, monkeypatch):
    latents, codebook = torch.randn(100, 4), torch.randn(70, 4)
    expected = nearest_code(latents, codebook)
    assert any("-fopenmp" in flags for flags in compiled._ATTEMPTS)
    broken = [(*flags, "-fno-such-option") if "-fopenmp" in flags else flags for flags in compiled._ATTEMPTS]
    monkeypatch.setattr(compiled, "_ATTEMPTS", broken)
    compiled._library.cache_clear()
    assert works(compiled.library())
    assert torch.equal(nearest_code(latents, codebook), expected)


@pytest.mark.parametrize("reason", ["none found", "not the one named", "no command", "broken"])
def test_without_a_compiler_it_says_so_once_and_torch_computes(fresh, monkeypatch, caplog, tmp_path, reason):
    compilers = tmp_path / "bin"
    compilers.mkdir()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(compilers))
    if reason == "not the one named":
        monkeypatch.setenv("CXX", "no-such-compiler -m64")
    elif reason == "no command":
        monkeypatch.setenv("CXX", 'g++ "-O2')
    elif reason == "broken":
        (compilers / "g++").write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
        (compilers / "g++").chmod(0o755)
    with caplog.at_level(logging.WARNING, logger="gmvq"):
        assert compiled.library() is None
        assert nearest_code(torch.eye(3), torch.eye(3)).tolist() == [0, 1, 2]
        assert compiled.library() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Install g++" in record.message
    expected = {
        "none found": "c++, g++, clang++",
        "not the one named": "no-such-compiler",
        "no command": "No closing quotation",
        "broken": "it is broken",
    }
    assert expected[reason] in record.message


def test_it_can_be_turned_off(fresh, monkeypatch, caplog):
    monkeypatch.setenv("GMVQ_KERNELS", "torch")
    with caplog.at_level(logging.WARNING, logger="gmvq"):
        assert compiled.library() is None
        assert nearest_code(torch.eye(3), torch.eye(3)).tolist() == [0, 1, 2]
    assert not caplog.records
    assert not fresh.exists()


@needs_compiler
def test_processes_that_start_at_once_share_one_build(fresh):
    program = "from gmvq.kernels.compiled import library; assert library() is not None"
    started = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1] for process in started]
    assert errors == [b"", b""]
    # each leaves a whole file; those of one compiler are equal, and so is their name
    assert 1 <= len(list(fresh.iterdir())) <= 2
    assert works(compiled.library())


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_is_not_run(fresh, what):
    assert compiled.library() is not None
    (kept,) = fresh.glob("*.so")
    assert kept.stat().st_mode & 0o777 == fresh.stat().st_mode & 0o777 == 0o700
    before = kept.stat().st_mtime_ns
    (kept if what == "file" else fresh).chmod(0o777)
    compiled._library.cache_clear()
    assert compiled.library() is not None
    assert kept.stat().st_mtime_ns != before  # built again
