"""Two processes never write to one run: the second is refused at once, with the number of the first."""

import os
import shutil
import signal
import time

import pytest
from fault_children import in_child, started
from fault_disk import Disk
from fault_runs import SMALL_WORDS, WORDS, content

from gmvq.__main__ import main
from gmvq.training.loop import Loop


@pytest.fixture
def words(place, tmp_path):
    """The words of a training that is finished."""
    shutil.copytree(place / "run", tmp_path / "run")
    return ["train", "digits", "--out", str(tmp_path / "run"), *SMALL_WORDS]


@pytest.fixture
def busy(words):
    """Number of a process that is training over the same run, and has just saved a step."""
    ready, tell = os.pipe()

    def work():
        def wait(loop):
            os.write(tell, b"saved")
            time.sleep(600)

        Loop._save = wait
        return main([*words, "--overwrite"])

    child, ends = started(work)
    assert os.read(ready, 5) == b"saved"
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (*ends, ready, tell):
        os.close(end)


def test_a_second_writer_is_refused_within_a_second_of_work(words, busy):
    run = words[3]
    seconds = {}
    for how in (
        [*words, "--resume"],
        [*words, "--overwrite"],
        ["fit-prior", run, *WORDS],
        ["fit-decoder", run, *WORDS],
    ):

        def second(how=how):
            start = time.process_time()
            status = main(how)
            print(time.process_time() - start)
            return status

        ended = in_child(second, limit_s=60)  # it does not wait for the first
        assert ended.status == 1, ended.err
        assert ended.err.splitlines()[-1].startswith("gmvq: error:")
        assert f"process {busy} " in ended.err.splitlines()[-1]
        seconds[how[0], how[-1]] = float(ended.out.splitlines()[-1])
    assert max(seconds.values()) < 1, seconds


def test_the_lock_of_a_killed_process_holds_nobody_up(place, tmp_path):
    folder = tmp_path / "run"
    again = ["train", "digits", "--out", str(folder), *SMALL_WORDS]
    died = in_child(lambda: Disk(folder, 20) and main(again))
    assert died.status == 77, died.err
    ended = in_child(lambda: main([*again, "--resume"]))
    assert ended.status == 0, ended.err
    assert not [name for name in content(folder) if name.rpartition("/")[2].startswith(".")]
