"""What verbs do when a disk is full, a folder in use, or they run on several ranks."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest
from PIL import Image

from gmvq.__main__ import main
from gmvq.data.sealing import read_record, write_record

WRITING = {
    "tokenize": ["tokenize", "{run}", "{items}", "{out}/codes.safetensors"],
    "reconstruct": ["reconstruct", "{run}", "{items}/0.png", "{out}/0.png"],
    "interpolate": ["interpolate", "{run}", "0", "1", "{out}/between.png"],
    "swap": ["swap", "{run}", "0", "1", "{out}/swapped.png", "--mask", "left"],
    "fit-prior": ["fit-prior", "{run}", "--prior", "frequencies", "--out", "{out}/prior"],
    "fit-decoder": ["fit-decoder", "{run}", "--steps", "1", "--out", "{out}/decoder"],
    "train": ["train", "digits", "--steps", "1", "--out", "{out}"],
}


@pytest.fixture
def items(tmp_path):
    (tmp_path / "items").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "items/0.png")
    return tmp_path / "items"


@pytest.fixture
def called(capsys, run, items):
    """Calls a verb with a place to write; returns its exit status and what it said."""

    def call(verb, out, *more):
        capsys.readouterr()
        status = main([word.format(run=run, items=items, out=out) for word in WRITING[verb]] + list(more))
        return status, capsys.readouterr()

    return call


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_named_with_what_is_safe(called, tmp_path, monkeypatch, verb, number):
    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gmvq.data.writing.os.fsync", full)
    status, said = called(verb, tmp_path / "new")
    assert status == 1
    assert said.out == ""
    message = said.err.splitlines()[-1]
    assert os.strerror(number) in message
    assert str(tmp_path / "new") in message
    assert "ake room" in message
    assert not any(path.is_file() for path in (tmp_path / "new").rglob("*"))


@pytest.mark.parametrize("verb", WRITING)
def test_a_second_writer_is_refused(called, run, verb):
    lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # another open file is as good as another process
    os.write(lock, f"{os.getppid()}\n".encode())
    before = sorted(path.name for path in run.iterdir())
    try:
        status, said = called(verb, run)
    finally:
        os.close(lock)
    assert status == 1
    assert f"run is in use: process {os.getppid()} writes to it." in said.err.splitlines()[-1]
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_prints_the_result(called, capsys, tmp_path, run, monkeypatch, rank):
    monkeypatch.setenv("RANK", str(rank))
    for verb in ("interpolate", "swap"):
        assert called(verb, tmp_path / "new", "--json")[1].out.count("\n") == 1 - rank
        assert bool(called(verb, tmp_path / "new")[1].out) == (rank == 0)
    assert main(["info", str(run), "--json"]) == 0
    said = capsys.readouterr().out
    assert (said == "") if rank else json.loads(said)


@pytest.mark.filterwarnings("ignore:.*is damaged, or not of this version")
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("run.json", "data", [1]),
        ("run.json", "run", 3),
        ("run.json", "hardware", {"a": [1]}),
        ("metrics.json", "modality", "x"),
        ("metrics.json", "modality", None),
        ("metrics.json", "psnr", "high"),
        ("metrics.json", "usage", [1]),
    ],
)
def test_records_of_strangers_give_clean_errors(capsys, run, name, key, value):
    write_record(run / name, {**read_record(run / name), key: value})
    status = main(["info", str(run)])
    said = capsys.readouterr().err
    assert "GMVQ_DEBUG" not in said
    assert status == (name == "metrics.json")
    assert main(["evaluate", str(run), "--limit", "4"]) in (0, 1)
    assert "GMVQ_DEBUG" not in capsys.readouterr().err
