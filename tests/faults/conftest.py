"""Prints the seed of the suite of faults, by which a failure is seen again."""

import pytest
import torch
from fault_sizes import FULL, SEED


def pytest_report_header():
    return f"faults: {'full' if FULL else 'small'} size, GMVQ_FAULTS_SEED={SEED}"


@pytest.fixture(autouse=True)
def _one_thread():
    """Children are forked, and a forked process has no threads of its parent."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
