"""Evaluates the recipes on real audio, text, series and tables: distortion, codebook usage, and a prior.

Each tokenizer is an unchanged recipe, with GM-VQ and its defaults, followed by an autoregressive transformer of
width 128 and 4 blocks over its codes. Metrics are of held-out items; codebook usage is counted over
held-out and over training items, since a short or shifted held-out part lacks some codes.

    python benchmarks/modalities.py --data ../shared/data --out benchmarks/results/modalities.json

Runs and drawn items stay in ``--runs``; a finished run is not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gmvq import hub, recipes
from gmvq.commands import execute, parse
from gmvq.data.writing import write_json
from gmvq.evaluation import evaluate
from gmvq.stages import PriorRun, fit_prior, load_data
from gmvq.training.preparation import cpu_threads
from gmvq.training.provenance import commit, hardware, versions


class Case(NamedTuple):
    """A recipe and its data: the path below ``--data``, or data that come with a dependency."""

    title: str
    recipe: str
    source: str
    prior_steps: int = 500


class Steps(NamedTuple):
    """Optimizer steps of the three trainings; those of the recipe and of the case where there is no number."""

    tokenizer: int | None
    prior: int | None
    judge: int


CASES = {
    "digits": Case("Free Spoken Digits, 8 kHz", "speech", "fsdd/fsdd.tar.xz", 300),
    "multi30k": Case("Multi30k, English", "sentences", "text/multi30k/train.en.gz", 800),
    "etth1": Case("ETTh1", "series", "timeseries/ETTh1.csv.xz"),
    "ecg5000": Case("ECG5000", "series", "timeseries/ECG5000_TRAIN.txt.xz"),
    "breast-cancer": Case("Breast cancer, Wisconsin", "table", "bundled:breast-cancer"),
    "wine": Case("Wine", "table", "bundled:wine"),
    "iris": Case("Iris", "table", "bundled:iris"),
    "diabetes": Case("Diabetes", "table", "bundled:diabetes"),
}
PRIOR = {"width": 128, "depth": 4}
DRAWN = 20
JUDGED, GUIDANCE = 400, 3.0


def measured(name: str, root: Path, runs: Path, steps: Steps) -> dict[str, Any]:
    """Computes metrics of a tokenizer and of the prior over its codes."""
    case, out = CASES[name], runs / name
    source = case.source if case.source.startswith("bundled:") else str(root / case.source)
    run = recipes.changed(recipes.make(case.recipe, source), steps=steps.tokenizer)
    data = load_data(run.data)
    metrics = recipes.run(run, out, data=data, resume=True)
    training = evaluate(hub.load(out), data.train, likelihood_limit=0)
    prior = PriorRun(options=PRIOR, training=replace(PriorRun().training, steps=steps.prior or case.prior_steps))
    fitted = fit_prior(out, prior, data=data, report=True)
    drawn = out / f"drawn{data.modality.suffix if data.modality.several else ''}"
    execute("sample", parse("sample", [str(out), "-n", str(DRAWN), "--out", str(drawn)]), "")
    verdict = judged(out, steps.judge) if data.labelled else {}
    headline, measures = metrics["headline"], {one.key: one for one in data.modality.measures}
    tokens = sum(hub.load(out).grid(size)[0] if size else 1 for size in data.held_out.sizes)
    return {
        "name": name,
        "title": case.title,
        "modality": data.modality.kind,
        "recipe": case.recipe,
        "items": [len(data.train), len(data.held_out)],
        "held_out_tokens": tokens,
        "headline": headline,
        "metrics": {key: metrics[key] for key in measures if metrics.get(key) is not None},
        "codebook_size": hub.load(out).codebook_size,
        "usage": metrics["usage"],
        "training_usage": training.metrics["usage"],
        f"bits_per_{data.modality.sample}": metrics[f"bits_per_{data.modality.sample}"],
        "seconds": metrics["seconds"],
        "prior_steps": prior.training.steps,
        "bits_per_code": fitted["bits_per_code"],
        "frequencies_bits_per_code": fitted["frequencies_bits_per_code"],
        "prior_seconds": fitted["seconds"],
        **{key: verdict[key] for key in ("agreement", "real_accuracy") if verdict.get(key) is not None},
    }


def judged(out: Path, steps: int) -> dict[str, Any]:
    """Metrics of drawn items of each class, by a classifier of the real ones."""
    options = parse("judge", [str(out), "-n", str(JUDGED), "--steps", str(steps), "--guidance", str(GUIDANCE)])
    return execute("judge", options, "")["metrics"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--steps", type=int, help="of each tokenizer; by default those of its recipe")
    parser.add_argument("--prior-steps", type=int, help="by default those of each case, 300 to 800")
    parser.add_argument("--judge-steps", type=int, default=400)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/modalities"))
    parser.add_argument("--out", type=Path, default=Path("runs/modalities.json"))
    arguments = parser.parse_args(argv)
    rows, steps = [], Steps(arguments.steps, arguments.prior_steps, arguments.judge_steps)
    with cpu_threads(arguments.threads):
        for name in arguments.only:
            rows.append(measured(name, arguments.data, arguments.runs, steps))
            row = rows[-1]
            print(
                f"{row['title']}: {row['headline']} {row['metrics'][row['headline']]:.4g}, codes in use "
                f"{row['usage']:.1%} held out and {row['training_usage']:.1%} in training, {row['seconds']:.0f} s; "
                f"{row['bits_per_code']:.2f} bits a code (frequencies {row['frequencies_bits_per_code']:.2f})"
                + (f"; {row['agreement']:.1%} drawn as asked for" if "agreement" in row else ""),
                flush=True,
            )
        where = {"versions": versions(), "hardware": hardware(), "commit": commit(), "threads": arguments.threads}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    write_json(arguments.out, {"about": sentence, "steps": steps._asdict(), **where, "rows": rows})


if __name__ == "__main__":
    main()
