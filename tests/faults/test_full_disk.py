"""A disk may be full at any write: the verb says so in one line, names the file, and leaves what was there before."""

import shutil
import subprocess

import pytest
from fault_children import in_child
from fault_disk import Disk
from fault_runs import SMALL_WORDS, WORDS, content
from fault_sizes import FULL, SEED, again

from gmvq.__main__ import main

VERBS = {
    "train": (["train", "digits", "--out", "OUT", *SMALL_WORDS], "run.json"),
    "fit-prior": (
        ["fit-prior", "RUN", "--out", "OUT", *WORDS, "--width", "16", "--depth", "1", "--heads", "2"],
        "run.json",
    ),
    "fit-decoder": (["fit-decoder", "RUN", "--out", "OUT", *WORDS, "--width", "8", "--blocks", "1"], "run.json"),
    "judge": (["judge", "RUN", "-n", "8", "--steps", "2", "--out", "OUT/judged.png"], None),
    "tokenize": (["tokenize", "RUN", "DATA", "OUT/codes.safetensors"], None),
    "detokenize": (["detokenize", "RUN", "CODES", "OUT"], None),
    "reconstruct": (["reconstruct", "RUN", "DATA", "OUT"], None),
    "sample": (["sample", "RUN", "-n", "4", "--out", "OUT/drawn.png", "--codes", "OUT/drawn.safetensors"], None),
    "complete": (["complete", "RUN", "DATA/0.png", "OUT/completed.png", "-n", "2"], None),
    "interpolate": (["interpolate", "RUN", "DATA/0.png", "DATA/1.png", "OUT/between.png", "-n", "3"], None),
    "swap": (["swap", "RUN", "DATA/0.png", "DATA/1.png", "OUT/swapped.png"], None),
    "compare": (
        ["compare", "digits", "--quantizers", "vector", "--seeds", "1", "--steps", "2", "--width", "8", "--out", "OUT"],
        None,
    ),
    "bench": (["bench", "--only", "nearest", "--shapes", "64x4x8", "--rounds", "1", "--against", "--out", "OUT"], None),
}
"""The words of each verb that writes, and the file that marks a stage, which can be resumed."""
FEW = ("train", "tokenize", "sample")
"""Verbs of the small size: the others take a child of seconds for each write."""


def words_of(verb, place, out):
    names = {"RUN": place / "run", "DATA": place / "data", "CODES": place / "codes.safetensors", "OUT": out}
    found = []
    for word in VERBS[verb][0]:
        first, _, rest = word.partition("/")
        found.append(str(names[first] / rest) if first in names else word)
    return found


def complaint(ended):
    """What is wrong with how a verb ended on a full disk; empty if it is as it should be."""
    errors = [line for line in ended.err.splitlines() if line.startswith("gmvq: error:")]
    if ended.status != 1:
        return f"it ended with {ended.status}: {ended.err[-300:]}"
    if "Traceback" in ended.err or len(errors) != 1 or ended.err.splitlines()[-1] != errors[0]:
        return f"it does not end with one line: {ended.err[-600:]}"
    said = errors[0]
    if "No space left" not in said and "File too large" not in said:
        return f"it does not say that the disk is full: {said}"
    if "ake room" not in said:
        return f"it does not say what to do: {said}"
    return ""


def problem_of(verb, words, out, when, expected):
    """Runs a verb on a disk that gets full, and says what is not as it should be; empty if all is."""
    ended = in_child(lambda: Disk(out, *when) and main(words))
    problem = complaint(ended)
    left = [name for name in (content(out) if out.exists() else {}) if name.rpartition("/")[2].startswith(".")]
    if left:
        problem = f"{problem}; it leaves {', '.join(left)}"
    if VERBS[verb][1] and not problem:
        resumed = in_child(lambda: main([*words, "--resume"]))
        if resumed.status or content(out) != expected:
            problem = f"with room again it does not go on to the same: {resumed.status} {resumed.err[-300:]}"
    shutil.rmtree(out, ignore_errors=True)
    return problem


@pytest.mark.parametrize("verb", [verb for verb in VERBS if FULL or verb in FEW])
def test_a_full_disk_is_said_in_a_line_and_spoils_nothing(verb, place, tmp_path):
    before, counted = content(place), tmp_path / "operations"
    whole = tmp_path / "whole"

    def count():
        disk = Disk(tmp_path / "whole", how="full")
        status = main(words_of(verb, place, whole))
        counted.write_text(str(len(disk.done)))
        return status

    ended = in_child(count)
    assert ended.status == 0, ended.err
    writes, expected = int(counted.read_text()), content(whole)
    stops = range(1, writes + 1) if FULL else [1 + (SEED + writes // 2) % writes]
    failed = []
    for stop in stops:
        for how in ("full", "limit") if FULL or verb != "train" else ("limit",):
            problem = problem_of(verb, words_of(verb, place, tmp_path / "out"), tmp_path / "out", (stop, how), expected)
            if problem:
                failed.append(f"write {stop} of {writes}, {how}: {problem}")
    # a judge leaves its classifier in the run
    assert before.items() <= content(place).items()
    assert not failed, "\n".join([again(f"{len(failed)} writes of {verb}"), *failed])


def test_a_small_disk_is_full_for_real(place, tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], capture_output=True)
    if done.returncode:
        pytest.skip("this process may not mount a tmpfs")
    try:
        ended = in_child(lambda: main(words_of("train", place, mounted / "run")))
        assert complaint(ended) == ""
        assert not [path for path in mounted.rglob(".*") if path.name != ".lock"]
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
