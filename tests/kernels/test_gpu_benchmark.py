"""The script that measures a GPU runs on a machine without one; the tests do not check what it measures."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    specification = importlib.util.spec_from_file_location("gpu_benchmark", PATH)
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    del sys.modules["gpu_benchmark"]
    torch.set_float32_matmul_precision("highest")


def test_all_is_measured_and_agrees(gpu):
    shape = gpu.Shape(48, 8, 32)
    found = gpu.measure(shape, peer_rows=16, slice_rows=8, rounds=1, device=torch.device("cpu"))
    assert [row["name"] for row in found["kernels"]] == ["nearest code, bfloat16"] + ["GM-VQ step"] * 3
    assert all(row["share_of_product_rate"] > 0 for row in found["kernels"])
    assert len(found["beside"]) == 15
    assert all("milliseconds" in row for row in found["beside"])
    for row in found["agreement"]:
        assert set(row["share_of_equal_codes"].values()) == {1.0}
        assert all(error < 1e-4 for error in row["relative_errors"].values())


def test_what_does_not_fit_is_noted(gpu):
    def make():
        raise torch.OutOfMemoryError

    row = gpu.measured("large", make, 1, torch.device("cpu"), precision="high")
    assert row == {"name": "large", "precision": "high", "note": "does not fit into the memory of this GPU"}
    assert gpu.with_rates(row, 1, 1.0) == row


def test_rates_are_of_the_operations_that_count(gpu):
    shape = gpu.Shape(1 << 20, 256, 16384)
    assert shape.operations == 2 * 2**20 * 2**8 * 2**14
    row = gpu.with_rates({"milliseconds": 10.0}, shape.operations, 1000.0)
    assert row["teraflops"] == pytest.approx(shape.operations / 10e-3 / 1e12)
    assert row["share_of_product_rate"] == pytest.approx(row["teraflops"] / 1000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, capsys):
    assert gpu.main(["--rows", "8"]) == 2
    assert "torch.cuda.is_available() is False" in capsys.readouterr().err
