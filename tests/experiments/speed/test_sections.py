import pytest
import torch

from gmvq.experiments.speed import memory, sections
from gmvq.experiments.speed.contestants import CDIST, KMEANS, NAIVE, NEAREST, OURS, PRODUCT, TASKS
from gmvq.experiments.speed.sections import SECTIONS, Plan, agreement, timed
from gmvq.experiments.speed.shapes import Shape

SHAPE = Shape(64, 4, 16)


def rows_of(section, *shapes, against=(PRODUCT, CDIST, NAIVE), rounds=2):
    return list(SECTIONS[section](Plan(shapes or (SHAPE,), against, rounds), lambda text: None))


def test_a_row_has_times_medians_and_ratios():
    (row,) = rows_of(NEAREST)
    assert row["shape"] == [64, 4, 16]
    assert row["seconds"].keys() == row["median"].keys() == row["ratio"].keys() == {OURS, PRODUCT, CDIST}
    assert all(len(values) == 2 for values in row["seconds"].values())
    assert row["ratio"][OURS] == 1
    assert row["product_block"] == [64, 16]
    assert row["agreement"][CDIST] == {"equal": 1.0, "largest_gap": 0.0, "ties": True}
    assert row["left_out"] == {}


def test_equal_codes_ties_and_other_codes():
    codebook = torch.tensor([[0.0, 1.0], [0.0, -1.0], [5.0, 0.0]])
    latents = torch.zeros(4, 2)
    codes = {
        OURS: torch.tensor([0, 0, 0, 0]),
        "same": torch.tensor([0, 0, 0, 0]),
        "tie": torch.tensor([0, 1, 0, 0]),
        "wrong": torch.tensor([0, 0, 2, 2]),
    }
    found = agreement(codes, latents, codebook)
    assert found["same"] == {"equal": 1.0, "largest_gap": 0.0, "ties": True}
    assert found["tie"] == {"equal": 0.75, "largest_gap": 0.0, "ties": True}
    assert found["wrong"] == {"equal": 0.5, "largest_gap": 24 / 25, "ties": False}
    assert agreement({"same": codes["same"]}, latents, codebook) == {}


def test_who_fails_is_left_out_and_the_others_go_on(monkeypatch):
    def fail(shape):
        raise RuntimeError("out of\nluck")

    def missing(shape):
        raise ImportError("No module named 'x'")

    monkeypatch.setitem(TASKS[NEAREST], CDIST, fail)
    monkeypatch.setitem(TASKS[NEAREST], "faiss", missing)
    row, _ = timed(NEAREST, SHAPE, Plan((SHAPE,), (CDIST, "faiss"), 1))
    assert row["left_out"] == {CDIST: "RuntimeError: out of luck", "faiss": "not installed: No module named 'x'"}
    assert list(row["median"]) == [OURS]
    monkeypatch.setitem(TASKS[NEAREST], OURS, fail)
    (row,) = rows_of(NEAREST)
    assert row["ratio"] == {}
    assert list(row["median"]) == [PRODUCT]


def test_what_does_not_fit_is_not_called(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    (row,) = rows_of("mixture-step")
    assert list(row["median"]) == [OURS]
    assert row["left_out"][NAIVE].startswith("does not fit")


def test_k_means_has_enough_rows_and_one_measure():
    (row,) = rows_of(KMEANS, Shape(8, 4, 16))
    assert row["shape"] == [64, 4, 16]
    assert row["inertia"][OURS] > 0
    assert row["iterations"] == sections.ITERATIONS


def test_memory_and_growth_ask_fresh_processes(monkeypatch):
    asked = []

    def measure(task, name, shape, threads):
        asked.append((task, name, str(shape)))
        return {"bytes": 1, "fits": True, "method": "VmHWM"}

    monkeypatch.setattr(memory, "measure", measure)
    rows = rows_of("memory")
    assert [row["task"] for row in rows] == ["nearest", "vector-step", "mixture-step"]
    assert (NEAREST, CDIST, "64x4x16") in asked
    assert ("mixture-step", NAIVE, "64x4x16") in asked
    assert all(name != PRODUCT for _, name, _ in asked)
    rows = rows_of("growth", SHAPE, Shape(64, 4, 32), rounds=5)
    assert [(row["task"], row["shape"][2]) for row in rows] == [
        ("nearest", 16), ("mixture-step", 16), ("nearest", 32), ("mixture-step", 32),
    ]  # fmt: skip
    assert all(len(values) == sections.GROWTH_ROUNDS for row in rows for values in row["seconds"].values())


@pytest.mark.parametrize("section", ["vector-step", "mixture-step"])
def test_steps_can_be_measured_alone(section):
    (row,) = rows_of(section, against=())
    assert list(row["median"]) == [OURS]
