"""Draw items and measure how real they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq.checks import at_least
from gmvq.commands.common import (
    Common,
    Drawer,
    Drawing,
    Number,
    RunFolder,
    Where,
    common,
    device_of,
    drawn_place,
    grid,
    metric_rows,
    say,
    write_drawn,
)
from gmvq.metrics import load_inception
from gmvq.stages import judge
from gmvq.stages.classifier import learned_classifier
from gmvq.stages.tiling import tiled
from gmvq.stages.tokenizer import read_run

SHOWN = 10
"""Drawn items in a row of the judge's sheet."""
_SHOWN = (
    ("agreement", "class seen in drawn items", "{:.1%}"),
    ("real_accuracy", "class seen in held-out items", "{:.1%}"),
    ("frechet", "Fréchet distance", "{:.3f}"),
    ("reconstructed_frechet", "of reconstructed items", "{:.3f}"),
    ("kernel", "kernel distance", "{:.4f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("fid", "FID", "{:.2f}"),
    ("reconstructed_fid", "of reconstructed images", "{:.2f}"),
    ("kid", "KID", "{:.4f}"),
)


@dataclass(frozen=True)
class Options:
    """Draw items and measure how real they are, by a classifier that is trained on the real items first.

    Does it recognize the requested class? How far are its features of drawn items from those of held-out items? FID and
    KID use another network; they are measured, too, if its weights are available. Without labels the classifier learns
    from which training item a part was cut. Drawn items are written, with the nearest training item below each.

    Args:
        run: Folder of the tokenizer's run.
        number: Items to draw.
        out: File or folder of drawn and nearest items; by default judged in the prior's folder.
        steps: Optimizer steps of the classifier.
        inception: File with the weights of torch-fidelity's Inception network, for FID and KID; by default in the
            download cache of torch, if it is there.
    """

    run: RunFolder
    number: Number = 1000
    out: Path | None = None
    steps: int = 1500
    inception: Path | None = None
    drawing: Drawing = Drawing()
    drawer: Drawer = Drawer()
    where: Where = Where()
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Draws and judges. The result has the metrics and the files."""
    at_least("number", options.number, judge.FEWEST, "Use 1000.")
    generator = options.drawer.generator(options.run, device_of(options.common.device))
    sampling, folder = options.drawing.sampling(generator), options.drawer.folder(options.run)
    modality = generator.tokenizer.modality
    out = options.out or drawn_place(modality, folder, "judged")
    whole = options.where.load(options.run)
    data = tiled(whole, read_run(options.run).data.size, generator.tokenizer.downsampling)
    judge.check_enough(data)  # before the classifier learns
    # exemplars are of whole items
    classifier = learned_classifier(data if data.labelled else whole, options.run / judge.CLASSIFIER, options.steps)
    classifier = classifier.to(generator.prior.device)
    inception = load_inception(options.inception) if data.signal.axes == 2 else None
    columns = min(SHOWN, options.number)
    verdict = judge.judge(generator, data, classifier, options.number, sampling, inception, keep=2 * columns)
    drawn = verdict.items[: 2 * columns if options.number >= 2 * columns else columns]
    nearest = judge.nearest_real(classifier, drawn, data.train)
    real = torch.stack([data.train[index] for index in nearest])
    real = generator.tokenizer.signal.checked(real)
    rows = [part for some in zip(drawn.split(columns), real.split(columns), strict=True) for part in some]
    files = write_drawn(modality, out, list(torch.cat(rows)), columns, "judged")
    found = {"run": str(options.run), "prior": str(folder), "out": str(out), "items": options.number}
    return {
        **found,
        "files": [str(file) for file in files],
        "sampling": asdict(sampling),
        "metrics": verdict.metrics,
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the metrics and the paths."""
    metrics = result["metrics"]
    console.print(grid(metric_rows(metrics, _SHOWN)))
    known = "; FID and KID by Inception" if "fid" in metrics else " (no FID and KID)"
    say(
        console,
        f"{metrics['drawn']:,} drawn and {metrics['real']:,} held-out items, by the features of a classifier of these "
        f"data{known}. Drawn items above the nearest ones of the training: {result['out']}",
    )
