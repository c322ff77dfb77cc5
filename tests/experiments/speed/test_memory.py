import torch

from gmvq.experiments.speed import memory
from gmvq.experiments.speed.contestants import CDIST, MIXTURE_STEP, NAIVE, NEAREST, OURS
from gmvq.experiments.speed.shapes import Shape

MEGABYTE = 1 << 20


def test_the_peak_of_a_call_that_takes_64_megabytes_for_a_while():
    def call():
        held = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
        return held[:1].clone()

    call()
    found = memory.peak(call)
    assert memory._reset_is_possible()
    assert 60 * MEGABYTE < found < 80 * MEGABYTE  # the counters of Linux are a few pages behind, on each core
    assert memory.peak(lambda: None) < 4 * MEGABYTE


def test_what_does_not_fit_is_extrapolated_and_not_called(monkeypatch):
    called = []

    def prepare(rows):
        return lambda: (called.append(rows), torch.ones(rows * MEGABYTE // 4, dtype=torch.uint8))

    monkeypatch.setattr(memory, "LEAST_ROWS", 1)
    monkeypatch.setattr(memory, "available", lambda: 1000 * MEGABYTE)
    found = memory.peak_of(prepare, 6400)  # 1600 MB
    assert called == [100, 100, 200]
    assert not found["fits"]
    assert 0.8 * 1600 * MEGABYTE < found["bytes"] < 1.2 * 1600 * MEGABYTE
    assert "100 and 200 latents" in found["method"]
    found = memory.peak_of(prepare, 640)
    assert called[-1] == 640
    assert found["fits"]
    assert 0.8 * 160 * MEGABYTE < found["bytes"] < 1.2 * 160 * MEGABYTE


def test_a_fresh_process_measures():
    # 4096 x 1024 distances in float32 are 16 MB
    found = memory.measure(NEAREST, CDIST, Shape(4096, 8, 1024), 1)
    assert found["fits"]
    assert 15 * MEGABYTE < found["bytes"] < 40 * MEGABYTE
    assert found["method"] in ("VmHWM", "ru_maxrss")


def test_a_process_that_fails_gives_a_reason():
    assert "nobody" in memory.measure(NEAREST, "nobody", Shape(8, 4, 4), 1)["error"]


def test_what_is_absent_is_named(monkeypatch, capsys):
    def missing(shape):
        raise ImportError("No module named 'faiss'")

    monkeypatch.setitem(memory.TASKS[NEAREST], "faiss", missing)
    monkeypatch.setattr(memory.sys, "argv", ["-c", NEAREST, "faiss", "8x4x4", str(torch.get_num_threads())])
    memory.main()
    assert capsys.readouterr().out == '{"absent": "No module named \'faiss\'"}\n'


def test_calls_that_would_end_the_machine_are_known(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    assert memory.too_large(MIXTURE_STEP, NAIVE, Shape(65536, 32, 16384)) > 10**9
    assert memory.too_large(MIXTURE_STEP, NAIVE, Shape(64, 32, 64)) is None
    assert memory.too_large(MIXTURE_STEP, OURS, Shape(65536, 32, 16384)) is None
    monkeypatch.setattr(memory, "available", lambda: None)
    assert memory.too_large(MIXTURE_STEP, NAIVE, Shape(65536, 32, 16384)) is None
