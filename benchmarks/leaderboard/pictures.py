"""Pictures of what several contenders make of the same held-out images, from the runs that ``gmvq compare`` left.

    python benchmarks/leaderboard/pictures.py cifar10-8x8-k1024-short --data PATH

Images are evenly spaced over the held-out part; runs are those of seed 0.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from page_pictures import reconstructions

from gmvq import recipes
from gmvq.data import evenly_spaced
from gmvq.experiments import CONTENDERS, PROTOCOLS
from gmvq.experiments.running import folder_of

ROOT = Path(__file__).parents[2]
SHOWN = ("gaussian-mixture", "vector-ema-4-light", "vector-affine", "finite-scalar", "vector")
IMAGES = 10


def main() -> None:
    """Writes the picture of one protocol."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/leaderboard")
    parser.add_argument("--contenders", nargs="+", default=SHOWN, choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/experiment")
    options = parser.parse_args()
    protocol = PROTOCOLS[options.protocol]
    data = recipes.load_data(replace(protocol.run.data, source=str(options.data)))
    protocol.check_data(data)
    folders = {}
    for name in options.contenders:
        contender = CONTENDERS[name]
        run = recipes.fitted(
            contender.run(replace(protocol.run, data=replace(protocol.run.data, source=str(options.data))), 0), data
        )
        folder = folder_of(options.runs, protocol, contender, run)
        if (folder / recipes.METRICS).is_file():
            folders[contender.title] = folder
    held_out = data.held_out
    images = [held_out[index] for index in evenly_spaced(len(held_out), IMAGES)]
    print(reconstructions(folders, images, options.out / f"reconstructions-{options.protocol}.jpg"))


if __name__ == "__main__":
    main()
