"""Mutated files: a load gives what was written, or one line that says what is wrong with which file."""

import shutil
import warnings
from collections import Counter

import pytest
from fault_children import Loaded, attempt, trials
from fault_kinds import KINDS
from fault_mutations import mutation
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
