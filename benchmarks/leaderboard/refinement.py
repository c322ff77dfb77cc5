"""Measures how much a few steps of semi-amortized inference reduce the error of trained models, and at what cost.

The encoder's codes of each held-out image are refined by the decoder's gradient (gmvq.refinement). MSE and PSNR
are means over images, of float reconstructions in [0, 1] from hard codes; usage and perplexity
are those of all tokens of these images. 0 steps are the encoder's codes. A decoder pass takes a batch through the
decoder once, forward or backward. Milliseconds are those of encoding and refining, without the final decoding, in
the fastest batch: other load of the machine makes the others slower.

    python benchmarks/leaderboard/refinement.py runs/leaderboard/PROTOCOL/* --data PATH

The table keeps its rows of other runs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq import hub
from gmvq.data import held_out_batches
from gmvq.data.writing import write_json
from gmvq.evaluation import levels_counted, use_of
from gmvq.metrics import CompositeStatistics, ImageDistortion, countable
from gmvq.modalities import Data, fingerprint
from gmvq.models import Autoencoder
from gmvq.refinement import refine
from gmvq.stages import DataConfig, Run, load_data, read_run
from gmvq.stages.layout import RECORD, read_json
from gmvq.training.provenance import commit, hardware, versions

FORMAT = "gmvq.refinement"
VERSION = 1


class Coded(NamedTuple):
    """A batch's codes ``(B, h, w)``, the seconds to compute them, and the decoder passes in that time."""

    codes: Tensor
    seconds: float
    decoder_passes: int


def coded(model: Autoencoder, images: Tensor, steps: int) -> Coded:
    """Encodes a batch of images ``(B, C, H, W)`` and refines the codes for the given number of steps."""
    start = time.perf_counter()
    codes, passes = model.encode(images), 0
    if steps:
        refined = refine(model, images, codes, steps)
        codes, passes = refined.codes, refined.decoder_passes
    return Coded(codes, time.perf_counter() - start, passes)


def measured(model: Autoencoder, batches: list[Tensor], steps: int) -> dict[str, Any]:
    """Computes the metrics of all batches for one number of steps.

    Raises:
        ValueError: If the model has no codes.
    """
    if model.codebook_size is None:
        raise ValueError("'RUN' must be of a model with codes, got a VAE. Leave its folder out.")
    distortion, statistics = ImageDistortion(structure=False), CompositeStatistics(countable(model.level_sizes))
    coded(model, batches[0], steps)  # warm-up
    fastest, passes = float("inf"), 0
    for images in batches:
        codes, seconds, passes = coded(model, images, steps)
        fastest = min(fastest, seconds / len(images))
        distortion.update(model.decode(codes, (images.shape[2], images.shape[3])), images)
        statistics.update(levels_counted(model, codes))
    use = use_of(statistics)
    return {
        "steps": steps,
        "mse": distortion.mse,
        "psnr": distortion.psnr,
        "usage": use["usage"],
        "perplexity": use["perplexity"],
        "milliseconds_per_image": fastest * 1e3,
        "decoder_passes": passes,
        "images": distortion.images,
    }


def data_of(folder: Path, run: Run, source: str, loaded: dict[DataConfig, Data]) -> Data:
    """Loads the training data of a run from another path; each data set is read once.

    Raises:
        ValueError: If the data differ from the run's.
    """
    config = replace(run.data, source=source)
    if config not in loaded:
        loaded[config] = load_data(config)
    wanted = ((read_json(folder / RECORD) or {}).get("data") or {}).get("fingerprint")
    found = fingerprint(loaded[config])
    if wanted not in (None, found):
        raise ValueError(
            f"'--data' must be the training data of {folder}, {wanted[:12]}, got {found[:12]}. Check the path."
        )
    return loaded[config]


def rows_of(folder: Path, data: Data, run: Run, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Computes the rows of one run.

    Raises:
        ValueError: If the run does not follow a protocol.
    """
    protocol, _, contender = run.name.partition("/")
    if not contender:
        raise ValueError(
            f"'RUN' must be a run under a protocol, got {run.name!r} in {folder}. See gmvq compare --help."
        )
    model = hub.load(folder)
    images = data.held_out.subset(range(min(arguments.images, len(data.held_out))))
    batches = [data.signal.checked(batch.items) for batch in held_out_batches(images, arguments.batch_size)]
    key = {"protocol": protocol, "contender": contender, "seed": run.training.seed}
    rows = []
    for steps in sorted({0, *arguments.steps}):
        rows.append({**key, **measured(model, batches, steps), "threads": torch.get_num_threads()})
        gain = 1 - rows[-1]["mse"] / rows[0]["mse"] if rows[0]["mse"] else 0.0
        print(
            f"{run.name}, seed {key['seed']}, {steps} steps: MSE {rows[-1]['mse'] * 1e3:.3f}e-3 ({gain:.1%} less), "
            f"perplexity {rows[-1]['perplexity']:.0f}, {rows[-1]['milliseconds_per_image']:.2f} ms an image",
            flush=True,
        )
    return rows


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """Returns the fields that all rows of a run share."""
    return row["protocol"], row["contender"], row["seed"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds the rows of a run to the table, and replaces earlier ones.

    Raises:
        ValueError: If the file is not such a table.
    """
    former = read_json(path)
    if path.exists() and (former is None or (former.get("format"), former.get("version")) != (FORMAT, VERSION)):
        raise ValueError(f"'--out' must be a table of {FORMAT}, version {VERSION}, got {path}. Choose another.")
    kept = [row for row in (former or {"rows": []})["rows"] if key_of(row) != key_of(rows[0])]
    merged = sorted([*kept, *rows], key=lambda row: (*key_of(row), row["steps"]))
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    where = {"hardware": hardware(), "versions": versions(), "commit": commit()}
    protocol = {"sentence": sentence}
    write_json(path, {"format": FORMAT, "version": VERSION, "protocol": protocol, "rows": merged, **where})


def main(argv: list[str] | None = None) -> None:
    """Measures each run and writes its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a trained contender")
    parser.add_argument("--data", required=True, help="path of the protocol's data")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=1000, help="held-out images, the first ones")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/leaderboard/results/refinement.json"))
    arguments = parser.parse_args(argv)
    if arguments.images < 1 or min(arguments.steps) < 0:
        parser.error("--images must be at least 1 and --steps at least 0")
    torch.set_num_threads(arguments.threads)
    loaded: dict[DataConfig, Data] = {}
    for folder in arguments.runs:
        if not (folder / hub.CONFIG).is_file():
            print(f"{folder} holds no model: left out.")  # a diverged run
            continue
        run = read_run(folder)
        write(arguments.out, rows_of(folder, data_of(folder, run, arguments.data, loaded), run, arguments))


if __name__ == "__main__":
    main()
