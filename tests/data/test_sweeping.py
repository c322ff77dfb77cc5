"""Temporary files of killed processes go with the next write into their folder, those of living ones stay."""

import fcntl
import os
import subprocess
import sys

import pytest

from gmvq.data import writing
from gmvq.data.writing import replacing, write_atomically


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_write_removes_what_a_killed_process_left_beside_it(tmp_path, dead):
    left = tmp_path / f".codes.safetensors.{dead}-0.gmvq"
    left.write_bytes(b"half")
    foreign = tmp_path / ".codes.safetensors.backup"
    foreign.write_bytes(b"kept")
    write_atomically(tmp_path / "codes.safetensors", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name, "codes.safetensors"]


def test_a_file_that_is_being_written_stays(tmp_path, dead):
    with replacing(tmp_path / "a") as file:
        file.write(b"whole")
        writing.sweep(tmp_path)
        of_parent = tmp_path / f".b.{os.getppid()}-0.gmvq"
        of_parent.touch()
        on_another_machine = tmp_path / f".c.{dead}-0.gmvq"
        with on_another_machine.open("wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            writing.sweep(tmp_path)
            assert of_parent.exists()
            assert on_another_machine.exists()
    assert (tmp_path / "a").read_bytes() == b"whole"
    writing.sweep(tmp_path)
    assert not on_another_machine.exists()
