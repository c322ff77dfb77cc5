"""Prints the seed of the suite of faults, by which a failure is seen again."""

import pytest
import torch
from fault_runs import SMALL_WORDS, WORDS, write_digits
from fault_sizes import FULL, SEED

from gmvq.__main__ import main


def pytest_report_header():
    return f"faults: {'full' if FULL else 'small'} size, GMVQ_FAULTS_SEED={SEED}"


def pytest_terminal_summary(terminalreporter):
    """Counts the outcomes of all mutations, by kind of file."""
    reports = [each for part in ("passed", "failed") for each in terminalreporter.getreports(part)]
    rows = [dict(each.user_properties) for each in reports if each.when == "call"]
    rows = [row for row in rows if "outcomes" in row]
    if not rows:
        return
    terminalreporter.write_sep("=", f"mutations by outcome, GMVQ_FAULTS_SEED={SEED}")
    columns = ("same", "clean", "other", "wrong", "raw", "slow", "large")
    terminalreporter.write_line(f"{'':<26}{''.join(f'{name:>8}' for name in columns)}   seconds    MB")
    for row in rows:
        counts = "".join(f"{row['outcomes'].get(name, 0):>8,}" for name in columns)
        terminalreporter.write_line(f"{row['kind']:<26}{counts}{row['seconds']:>10.2f}{row['megabytes']:>6.0f}")


def pytest_collection_modifyitems(items):
    """Tests that need the run of ``place`` go to one process."""
    for item in items:
        if "place" in getattr(item, "fixturenames", ()) and item.path.parent.name == "faults":
            item.add_marker(pytest.mark.xdist_group("faults"))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A run with a prior, some data and some codes, by the commands.

    They run in this process, so that its children need not import again what they take.
    """
    folder = tmp_path_factory.mktemp("place")
    write_digits(folder / "data")
    run = str(folder / "run")
    assert main(["train", "digits", "--out", run, *SMALL_WORDS]) == 0
    assert main(["fit-prior", run, *WORDS, "--width", "16", "--depth", "1", "--heads", "2"]) == 0
    assert main(["tokenize", run, str(folder / "data"), str(folder / "codes.safetensors")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Children are forked, and a forked process has no threads of its parent."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
