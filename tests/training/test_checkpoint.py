import errno
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gmvq import hub
from gmvq.data.parsing import DamagedFileError
from gmvq.training import checkpoint as checkpoints
from gmvq.training.checkpoint import (
    Checkpoint,
    check_same,
    has_checkpoint,
    progress_of,
    promote,
    read_checkpoint,
    set_aside,
    write_checkpoint,
)

CPU = torch.device("cpu")


def make_checkpoint(step=3, steps=9):
    tensors = {"model.weight": torch.full((2, 3), float(step)), "model.flag": torch.tensor(True)}
    configuration = {"training": {"steps": steps}}
    return Checkpoint(step, 1.5, configuration, tensors, [checkpoints.random_state(CPU)], {"scale": 2.0})


@pytest.fixture
def run(tmp_path):
    write_checkpoint(tmp_path, make_checkpoint())
    return tmp_path


def path_of(run):
    return run / checkpoints.FOLDER / checkpoints.FILE


def test_reads_what_was_written(run):
    written, read = make_checkpoint(), read_checkpoint(run)
    assert read._replace(tensors={}, random=[]) == written._replace(tensors={}, random=[])
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())
    assert progress_of(run) == (3, 9)


def test_random_numbers_go_on_where_they_were(run):
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    draw()
    write_checkpoint(run, make_checkpoint())
    expected = draw()
    draw()
    checkpoints.set_random_state(read_checkpoint(run).random[0], CPU)
    assert draw() == expected


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint in .*without --resume"):
        read_checkpoint(tmp_path)
    assert progress_of(tmp_path) is None


@pytest.mark.parametrize("length", [0, 5, 100, -8])
def test_a_damaged_file_is_named(run, length):
    path_of(run).write_bytes(path_of(run).read_bytes()[:length])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        read_checkpoint(run)


def test_any_changed_byte_is_noticed(run):
    whole = path_of(run).read_bytes()
    generator = random.Random(0)
    for place in generator.sample(range(len(whole)), 300):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << generator.randrange(8)
        path_of(run).write_bytes(spoilt)
        with pytest.raises(DamagedFileError):
            read_checkpoint(run)


def test_another_format_is_refused(run, make_model):
    hub.save(make_model(), run / "model")
    (run / "model" / hub.WEIGHTS).replace(path_of(run))
    with pytest.raises(ValueError, match=r"is of format 'gmvq\.autoencoder'"):
        read_checkpoint(run)
    assert progress_of(run) is None


@pytest.mark.parametrize("operation", ["open", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint(run, monkeypatch, operation):
    original = getattr(Path, operation)

    def fail(self, *arguments, **keywords):
        if self.name.startswith(".state"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Path, operation, fail)
    with pytest.raises(OSError, match=r"checkpoint of step 4 .*No space left.* step 3 is still valid") as caught:
        write_checkpoint(run, make_checkpoint(step=4))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert read_checkpoint(run).step == 3
    names = {path.name for path in path_of(run).parent.iterdir()}
    assert names <= {checkpoints.FILE, checkpoints.PREVIOUS}


def test_a_full_disk_before_the_first_checkpoint(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_sealed", fail)
    with pytest.raises(OSError, match="There is none before"):
        write_checkpoint(tmp_path, make_checkpoint())


def test_the_checkpoint_before_is_kept(run):
    for step in (4, 5):
        write_checkpoint(run, make_checkpoint(step))
        assert sorted(path.name for path in path_of(run).parent.iterdir()) == [checkpoints.PREVIOUS, checkpoints.FILE]
    said = []
    assert read_checkpoint(run, said.append).step == 5
    assert said == []
    path_of(run).write_bytes(path_of(run).read_bytes()[:-1])
    assert read_checkpoint(run, said.append).step == 4
    path_of(run).unlink()
    assert has_checkpoint(run)
    assert read_checkpoint(run, said.append).step == 4
    assert progress_of(run) == (4, 9)
    end = "Continuing from the checkpoint before it, of step 4."
    assert re.fullmatch(rf".*state\.safetensors is damaged \(.*\)\. {end}", said[0])
    assert re.fullmatch(rf".*state\.safetensors is not there\. {end}", said[1])
    with pytest.warns(UserWarning, match=end):
        read_checkpoint(run)
    promote(run)
    assert read_checkpoint(run, said.append).step == 4
    assert len(said) == 2


def test_two_damaged_checkpoints_are_an_error(run):
    write_checkpoint(run, make_checkpoint(4))
    for name in (checkpoints.FILE, checkpoints.PREVIOUS):
        (path_of(run).parent / name).write_bytes(b"no checkpoint")
    with pytest.raises(DamagedFileError, match=r"state\.safetensors is damaged"):
        read_checkpoint(run)
    assert progress_of(run) is None
    assert set_aside(run) is None
    assert list(path_of(run).parent.iterdir()) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_an_unfinished_run_is_set_aside_and_a_finished_one_removed(run, damaged):
    write_checkpoint(run, make_checkpoint(4))
    if damaged:
        path_of(run).write_bytes(b"no checkpoint")
    kept = set_aside(run)
    assert kept is not None
    assert [path.name for path in path_of(run).parent.iterdir()] == [checkpoints.REPLACED]
    assert not has_checkpoint(run)
    write_checkpoint(run, make_checkpoint(step=9))
    assert set_aside(run) is None
    assert not has_checkpoint(run)
    assert set_aside(run) is None


def test_names_each_field_that_differs():
    saved = {"training": {"steps": 10, "betas": [0.9, 0.99]}, "crop": 32}
    check_same(saved, {"training": {"steps": 10, "betas": (0.9, 0.99)}, "crop": 32})
    with pytest.raises(ValueError, match=r"'crop' \(32 there, None now\), 'training.steps' \(10 there, 12 now\)"):
        check_same(saved, {"training": {"steps": 12, "betas": (0.9, 0.99)}, "crop": None})
    with pytest.raises(ValueError, match=r"'new' \(None there, 1 now\)"):
        check_same(saved, {**saved, "new": 1})
