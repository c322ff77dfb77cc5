"""A process may die at any operation on a file: it goes on from there to the same bits, and nothing is left over."""

import shutil

import fault_runs
import pytest
from fault_children import in_child
from fault_disk import CRASHED, Disk
from fault_runs import content
from fault_sizes import SEED, again, size


def spread(count, most):
    """At most that many of the numbers from 1 to ``count``: the seed shifts them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + (place * count // most + SEED) % count for place in range(most)})


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    """What writes a folder, by name."""

    def of(name):
        if name != "prior":
            return {"train": fault_runs.train, "tokenize": fault_runs.tokenize}[name]
        tokenizer = tmp_path_factory.mktemp("tokenizer") / "run"
        fault_runs.train(tokenizer, False)
        return fault_runs.prior_of(tokenizer)

    return of


def problem_of(work, folder, stop, expected):
    """Dies at an operation, goes on, and says what is not as it would have been; empty if all is the same."""
    died = in_child(lambda: Disk(folder, stop) and work(folder, False))
    resumed = in_child(lambda: work(folder, True))
    found = content(folder)
    shutil.rmtree(folder)
    if died.status != CRASHED:
        return f"the process ended with {died.status}: {died.err[-500:]}"
    if resumed.status:
        return f"it did not go on: {resumed.err[-500:]}"
    differing = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    return f"{', '.join(differing)} differ" if differing else ""


@pytest.mark.parametrize(("name", "few"), [("train", 3), ("prior", 2), ("tokenize", 4)])
def test_a_run_that_dies_anywhere_goes_on_to_the_same_bits(name, few, works, tmp_path):
    work = works(name)
    work(tmp_path / "warm", False)  # what it imports need not be imported again in each child
    whole, counted = tmp_path / "whole", tmp_path / "operations"

    def count():
        disk = Disk(whole)
        work(whole, False)
        counted.write_text("\n".join(disk.done))

    ended = in_child(count)
    assert ended.status == 0, ended.err
    operations = counted.read_text().splitlines()
    expected = content(whole)
    failed = []
    for stop in spread(len(operations), size(few, 10_000)):
        problem = problem_of(work, tmp_path / f"stopped-{stop}", stop, expected)
        if problem:
            failed.append(f"operation {stop} of {len(operations)} ({operations[stop - 1]}): {problem}")
    assert not failed, "\n".join([again(f"{len(failed)} crash points of {name}"), *failed])
