"""Fit a prior to a tokenizer's codes, to draw new items from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from gmvq import stages
from gmvq.commands.common import Common, RunFolder, Where, common, grid, metric_rows, read_model, say
from gmvq.priors import PRIORS
from gmvq.stages.prior import PRIOR, PriorRun

_SHOWN = (
    ("bits_per_code", "bits of a held-out code", "{:.3f}"),
    ("unconditional_bits_per_code", "the same without its class", "{:.3f}"),
    ("n_gram_bits_per_code", "by n-grams", "{:.3f}"),
    ("frequencies_bits_per_code", "by frequencies", "{:.3f}"),
    ("bits_per_dim", "codes and item given them", "{:.3f} bits/dim"),
    ("items", "held-out items", "{:,}"),
    ("seconds", "training", "{:.1f} s"),
)

_HELP = "; ".join(f"{name}: {kind.title}" for name, kind in PRIORS.items())


@dataclass(frozen=True)
class Options:
    """Fit a prior to the codes of a trained tokenizer, to draw new items from.

    The training items of the tokenizer are tokenized once; the prior learns from their codes, and from their labels if
    they have labels.

    Args:
        run: Folder of the tokenizer's run.
        out: Folder of the prior; by default RUN/prior.
        steps: Optimizer steps.
        batch_size: Items in a batch.
        learning_rate: Highest learning rate of Adam.
        width: Features of the transformer.
        depth: Layers of the transformer.
        heads: Heads of its attention.
        seed: Seed of weights, order and dropout.
        unlabelled: Ignore the labels.
        resume: Go on from the last checkpoint in the prior's folder.
        overwrite: Replace a prior that is finished, or one with other settings.
    """

    run: RunFolder
    prior: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PRIORS) + "}", help=_HELP)] = "autoregressive"
    out: Path | None = None
    steps: int = PriorRun().training.steps
    batch_size: int = PriorRun().training.batch_size
    learning_rate: float = PriorRun().training.learning_rate
    width: int = 256
    depth: int = 6
    heads: int = 4
    seed: int = 0
    unlabelled: bool = False
    resume: bool = False
    overwrite: bool = False
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Fits. The result has the prior's folder and its metrics."""
    out = options.run / PRIOR if options.out is None else options.out
    sizes = {name: getattr(options, name) for name in ("width", "depth", "heads")}
    trained = {name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    training = replace(PriorRun().training, **trained, device=options.common.device)
    made = PriorRun(options.prior, sizes, training, classes=not options.unlabelled)
    if made.counts:
        given = [name for name in (*sizes, *trained) if getattr(options, name) != getattr(Options, name)]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"A prior that counts is not trained: leave out {named}, or take another --prior.")
        made = replace(made, options={})
    read_model(options.run)
    how = {"resume": options.resume, "overwrite": options.overwrite, "command": command}
    metrics = stages.fit_prior(options.run, made, out, source=options.where.data, **how)
    return {"run": str(options.run), "prior": str(out), "metrics": metrics, "report": str(out / "report.html")}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints bits of held-out codes, and the next command."""
    console.print(grid(metric_rows(result["metrics"], _SHOWN)))
    run, prior = Path(result["run"]), Path(result["prior"])
    elsewhere = "" if prior == run / PRIOR else f" --prior {prior}"
    say(console, f"Prior: {prior}. Draw with: gmvq sample {run} -n 64{elsewhere}")
    say(console, f"Drawn items beside real ones: {result['report']}")
