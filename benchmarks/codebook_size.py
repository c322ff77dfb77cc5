"""Compares the number of codes that `--codebook-size auto` finds with a sweep of whole runs.

    python benchmarks/codebook_size.py --out benchmarks/results/codebook_size.json

Each recipe learns from its bundled data with every number of codes, and once with auto. Bits are those of held-out
items and their codes together, for each dimension (the negative ELBO), and seconds those of training; auto's trials
are apart from its training. The file keeps the rows of earlier calls; a run that is in its folder is not trained again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from gmvq import recipes
from gmvq.data.parsing import read_json
from gmvq.data.writing import write_json
from gmvq.stages.codebook_size import SIZES
from gmvq.stages.layout import METRICS
from gmvq.stages.tokenizer import FOUND
from gmvq.training.provenance import commit, hardware, versions

FORMAT = "gmvq.codebook-size"
RECIPES = ("digits", "series", "sentences")


def trained(name: str, size: int | str, out: Path, threads: int) -> dict[str, Any]:
    """Runs a recipe with a number of codes."""
    run = recipes.changed(recipes.make(name), codebook_size=size, threads=threads, evaluate_every=0)
    folder = out / f"{name}-{size}"
    is_there, start = (folder / METRICS).exists(), time.perf_counter()
    metrics = recipes.run(run, folder, console=Console(quiet=True), report=False)
    seconds = time.perf_counter() - start
    found = read_json(folder / FOUND) if size == "auto" else {"codebook_size": size}
    row = {"recipe": name, "asked": size, "codes": found["codebook_size"], "bits": metrics["elbo_bits_per_dim"]}
    row |= {"headline": metrics[metrics["headline"]], "metric": metrics["headline"], "seconds": metrics["seconds"]}
    trials = None if is_there or size != "auto" else seconds - metrics["seconds"] - metrics["coding_seconds"]
    return row | {"trials": found.get("elbo_bits_per_dim"), "trial_seconds": trials}


def main(argv: list[str] | None = None) -> None:
    """Runs the sweep and auto for each recipe, and writes the rows after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES[:-1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/codebook-size"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codebook_size.json"))
    arguments = parser.parse_args(argv)
    rows = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    for name in arguments.recipes:
        for size in (*arguments.sizes, "auto"):
            row = trained(name, size, arguments.runs, arguments.threads)
            rows = [one for one in rows if (one["recipe"], one["asked"]) != (name, size)] + [row]
            where = {"hardware": hardware(), "versions": versions(), "commit": commit()}
            write_json(arguments.out, {"format": FORMAT, "rows": rows, "threads": arguments.threads, **where})
            kept = f"{row['metric']} {row['headline']:.4g}"
            print(f"{name}, {size}: {row['codes']} codes, {row['bits']:.4f} bits, {kept}", flush=True)


if __name__ == "__main__":
    main()
