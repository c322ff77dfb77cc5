import errno
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from gmvq.data import locking
from gmvq.data.locking import InUseError, locked, within
from gmvq.data.writing import replacing, write_atomically

SOURCE = str(Path(locking.__file__).parents[2])


@contextmanager
def another(code):
    """Runs code in another process, until it prints a line and then until the end of the context."""
    text = f"from gmvq.data.locking import locked, within\n{textwrap.dedent(code)}"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", text], env=environment, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def holding(call):
    return f"with {call}:\n    print('ready', flush=True)\n    input()"


@pytest.fixture
def run(tmp_path):
    """A folder of a run with a prior."""
    (tmp_path / "run/prior").mkdir(parents=True)
    (tmp_path / "run/run.json").touch()
    return tmp_path / "run"


def test_a_second_writer_is_refused_with_the_number_of_the_first(run):
    with another(holding(f"locked({str(run)!r})")) as process:
        for attempt in (locked(run), locked(run / "prior"), within(run / "x.png"), within(run / "a/b/x.png")):
            with pytest.raises(InUseError, match=rf"run is in use: process {process.pid} writes"), attempt:
                pass
        with locked(run.parent / "other"), within(run.parent / "x.png"):
            pass
    with locked(run):  # it was killed
        pass
    assert [path.name for path in run.parent.rglob("*.lock")] == []


def test_writers_inside_a_run_exclude_those_of_the_run_alone(run):
    with another(holding(f"locked({str(run / 'prior')!r})")) as process:
        with locked(run / "decoder"), within(run / "x.png"):
            pass
        for attempt in (locked(run), locked(run / "prior")):
            with pytest.raises(InUseError, match=rf"process {process.pid} "), attempt:
                pass
    with locked(run):
        pass


def test_one_process_may_lock_a_folder_again(run):
    with locked(run), locked(run), locked(run / "prior"), within(run / "prior/x"):
        assert (run / ".lock").read_text() == f"{os.getpid()}\n"
        with locked(run / "prior"):
            pass
        assert (run / ".lock").exists()
    with within(run / "x"), locked(run):  # alone from then on
        pass
    assert sorted(path.name for path in run.iterdir()) == ["prior", "run.json"]


def test_what_a_refused_or_empty_write_made_is_removed(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a/b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/b/x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "x"]
    with locked(tmp_path / "a/b/x"):  # it is a file, which its writer finds out
        pass


def test_a_forked_process_does_not_hold_the_lock(run):
    with locked(run):
        child = os.fork()
        if not child:
            os._exit(len(locking._locks))
        assert os.waitpid(child, 0)[1] == 0
        assert (run / ".lock").exists()


def test_only_the_first_rank_holds_the_lock(run, monkeypatch):
    with another(holding(f"locked({str(run)!r})")):
        monkeypatch.setenv("RANK", "1")
        with locked(run):
            pass


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_filesystem_without_locks_is_named(run, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"run cannot be locked .*: start no second process"), locked(run):
        assert not (run / ".lock").exists()


def test_a_folder_that_cannot_be_written_is_left_to_its_writer(run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(locking.os, "open", refuse)
    with locked(run):
        pass


def test_temporary_files_of_ended_processes_are_removed(run):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (run / "checkpoint").mkdir()
    (run / "elsewhere").symlink_to(run.parent)
    gone = [
        f".x.{ended.pid}-0.gmvq",
        f"checkpoint/.state.safetensors.{ended.pid}-12.gmvq",
        f".y.{os.getpid()}-999.gmvq",
    ]
    kept = [
        ".x.gmvq",
        f".x.{ended.pid}",
        f"x.{ended.pid}-0.gmvq",
        f".x.{os.getppid()}-0.gmvq",
        f"../.x.{ended.pid}-0.gmvq",
    ]
    for name in (*gone, *kept):
        (run / name).touch()
    with replacing(run / "new") as file:
        file.write(b"new")
        with locked(run):
            pass
    assert not any((run / name).exists() for name in gone)
    assert all((run / name).exists() for name in kept)
    assert (run / "new").read_bytes() == b"new"


def test_long_names_can_be_written(tmp_path):
    for letter, count in (("x", 255), ("é", 127)):
        write_atomically(tmp_path / (letter * count), b"1")
        assert (tmp_path / (letter * count)).read_bytes() == b"1"
