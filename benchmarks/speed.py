"""Measures the training speed of each contender of the leaderboard, in turns on one machine.

Contenders take turns of some steps, on the network, the batch size and the images of a protocol; each round begins with
another contender. A step is a whole one: loader, forward, backward, optimizer, averaged weights and the quantizer's
own updates. Images per second are medians over rounds, and so are the ratios to the VQ-VAE as published (`vector`) in
the same round.

    python benchmarks/speed.py --data ../shared/data --out benchmarks/leaderboard/results/speed.json

The rows of the leaderboard's tables were made at different times, on different machines, next to other runs: they show
the quality of a contender, and these rows its cost.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profile_step import Subject

from gmvq.data.writing import write_json
from gmvq.experiments import CONTENDERS, GROUPS, PROTOCOLS, Protocol
from gmvq.experiments.speed.clock import interleaved, ratio
from gmvq.modalities import Data
from gmvq.stages import fitted, load_data
from gmvq.training.preparation import cpu_threads, keep_freed_memory
from gmvq.training.provenance import commit, hardware, versions

FORMAT = "gmvq.speed"
VERSION = 1
PLAIN = "vector"
WARM_UP_STEPS = 3
FOLDERS = {"cifar10": "cifar10", "fashion-mnist": "fashion_mnist", "celeba64": "celeba"}
"""Folders of the protocols' data in the folder of all data, by the first words of the protocol's name."""


def subjects_of(protocol: Protocol, names: Sequence[str], data: Data) -> dict[str, Subject]:
    """Creates the contenders in training under a protocol."""
    runs = {name: fitted(CONTENDERS[name].run(protocol.run, 0), data) for name in names}
    return {name: Subject(run, data) for name, run in runs.items()}


def take_turns(subjects: dict[str, Subject], rounds: int, steps: int) -> dict[str, list[float]]:
    """Measures images per second of each subject in each round."""
    for subject in subjects.values():
        for _ in range(WARM_UP_STEPS):
            subject.step()
    turns = {name: lambda subject=subject: [subject.step() for _ in range(steps)] for name, subject in subjects.items()}
    return {
        name: [steps * subjects[name].training.batch_size / one for one in seconds]
        for name, seconds in interleaved(turns, rounds).items()
    }


def rows_of(protocol: Protocol, speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Returns one row per contender, with its speed relative to the plain VQ-VAE."""
    return [
        {
            "protocol": protocol.name,
            "contender": name,
            "items_per_second": statistics.median(own),
            "relative": ratio(own, speeds[PLAIN]),
            "rounds": [round(speed, 1) for speed in own],
        }
        for name, own in speeds.items()
    ]


def data_of(protocol: Protocol, folder: Path) -> Data:
    """Loads the data of a protocol from the folder of all data.

    Raises:
        ValueError: If the data differ from the protocol's, or the protocol's folder is not known.
    """
    name = next((place for start, place in FOLDERS.items() if protocol.name.startswith(f"{start}-")), None)
    if name is None:
        raise ValueError(f"'protocols' must be of {', '.join(FOLDERS)}, got {protocol.name!r}. Leave it out.")
    data = load_data(protocol.at(str(folder / name)).run.data)
    protocol.check_data(data)
    return data


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    short = [name for name in PROTOCOLS if name.endswith("-short")]
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10, fashion_mnist and celeba")
    parser.add_argument("--protocols", nargs="+", default=short, choices=list(PROTOCOLS))
    parser.add_argument("--contenders", nargs="+", default=list(GROUPS["all"]), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/leaderboard/results/speed.json"))
    arguments = parser.parse_args(argv)
    if PLAIN not in arguments.contenders:
        parser.error(f"--contenders must have {PLAIN}, which the others are compared with")
    if min(arguments.rounds, arguments.steps, arguments.threads) < 1:
        parser.error("--rounds, --steps and --threads must be at least 1")
    keep_freed_memory()  # as in training
    rows = []
    with cpu_threads(arguments.threads):
        for name in arguments.protocols:
            protocol = PROTOCOLS[name]
            subjects = subjects_of(protocol, arguments.contenders, data_of(protocol, arguments.data))
            found = rows_of(protocol, take_turns(subjects, arguments.rounds, arguments.steps))
            for subject in subjects.values():
                subject.batches.close()
            for row in found:
                words = f"{row['items_per_second']:.0f} images a second, {row['relative']:.2f} of {PLAIN}"
                print(f"{name}, {row['contender']}: {words}", flush=True)
            rows += found
        where = {"hardware": hardware(), "versions": versions(), "commit": commit()}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    size = {"rounds": arguments.rounds, "steps": arguments.steps}
    protocol_said = {"sentence": sentence, **size}
    write_json(arguments.out, {"format": FORMAT, "version": VERSION, "protocol": protocol_said, "rows": rows, **where})


if __name__ == "__main__":
    main()
