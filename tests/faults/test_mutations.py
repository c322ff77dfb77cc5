"""Mutated files: a load gives what was written, or one line that says what is wrong with which file."""

import shutil
import warnings
from collections import Counter

import pytest
from fault_children import Loaded, attempt, trials
from fault_kinds import KINDS
from fault_mutations import mutation
from fault_runs import SMALL_WORDS, WORDS, said_in_a_line
from fault_sizes import SEED, again, size

ALLOWED = {"same", "clean", "other"}
TRIES = size(5, 1000)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder of each kind, and the bytes of its file."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("kind") / "folder"
            path = KINDS[name].make(folder)
            made[name] = (folder, path.relative_to(folder), path.read_bytes())
        return made[name]

    return of


@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_loads_the_same_or_is_refused_in_a_line(name, originals, tmp_path, record_property):
    kind = KINDS[name]
    original, place, data = originals(name)
    others = [originals(other)[2] for other in ("PNG", "CSV of vectors", "npz", "weights") if other != name]
    folder = shutil.copytree(original, tmp_path / "copy")
    path = folder / place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data of one item
        expected: Loaded = kind.load(path)
    names = (path.name, str(folder), *kind.beside)

    def one(number):
        how, mutated = mutation(data, f"{SEED}/{name}/{number}", others)
        path.write_bytes(mutated)
        sealed = kind.sealed and (kind.own or how != "foreign")
        return attempt(lambda: kind.load(path), expected, names, sealed=sealed)

    counts: Counter[str] = Counter()
    failed, seconds, megabytes = [], 0.0, 0.0
    for number, trial in trials(range(TRIES), one):
        counts[trial.outcome] += 1
        seconds, megabytes = max(seconds, trial.seconds), max(megabytes, trial.megabytes)
        if trial.outcome not in ALLOWED:
            how = mutation(data, f"{SEED}/{name}/{number}", others)[0]
            cost = f"{trial.seconds:.1f} s, {trial.megabytes:.0f} MB"
            failed.append(f"{number} ({how}): {trial.outcome}, {cost}: {trial.said}")
    for key, value in (("kind", name), ("outcomes", dict(counts)), ("seconds", seconds), ("megabytes", megabytes)):
        record_property(key, value)
    assert not failed, "\n".join([again(f"{len(failed)} of {TRIES} mutations of {name}"), *failed[:20]])


COMMANDS = {
    "run/model.safetensors": ["info", "run"],
    "run/config.json": ["evaluate", "run", "--limit", "1", "--samples", "1"],
    "run/run.json": ["evaluate", "run", "--limit", "1", "--samples", "1"],
    "run/metrics.json": ["info", "run"],
    "run/log.jsonl": ["train", "digits", "--out", "run", *SMALL_WORDS, "--resume"],
    "run/checkpoint/state.safetensors": ["train", "digits", "--out", "run", *SMALL_WORDS, "--resume"],
    "run/prior/model.safetensors": ["sample", "run", "-n", "2"],
    "run/prior/config.json": ["sample", "run", "-n", "2"],
    "run/prior/run.json": ["fit-prior", "run", *WORDS, "--width", "16", "--depth", "1", "--heads", "2", "--resume"],
    "codes.safetensors": ["detokenize", "run", "codes.safetensors", "out"],
    "data/0.png": ["tokenize", "run", "data", "out.safetensors"],
}
"""A command that reads a file, for each kind of file that the command line reads back."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_in_a_line_what_is_wrong_with_a_mutated_file(name, place, tmp_path):
    data = (place / name).read_bytes()
    words = [str(tmp_path / word) if (place / word).exists() or word[:3] == "out" else word for word in COMMANDS[name]]
    tries = size(2, 100)

    def one(number):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        if "train" in words:
            (tmp_path / "run/metrics.json").unlink()  # it is not finished, so that the checkpoint is read
        (tmp_path / name).write_bytes(mutation(data, f"{SEED}/{name}/{number}")[1])
        return attempt(lambda: said_in_a_line(words, (0, 1)), Loaded("in a line"), ("",), sealed=True)

    # a training takes its time
    failed = [
        f"{number}: {trial}" for number, trial in trials(range(tries), one) if trial.outcome not in ("same", "slow")
    ]
    assert not failed, "\n".join([again(f"{len(failed)} of {tries} mutations of {name}"), *failed[:20]])
