"""Measure a trained tokenizer on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from gmvq import evaluation
from gmvq.codec import Codec
from gmvq.codec import measured as measured_files
from gmvq.commands.common import (
    Common,
    RunFolder,
    common,
    device_of,
    foreign_data,
    grid,
    load_model,
    metric_rows,
    metric_table,
    part_of,
    say,
)
from gmvq.commands.fit_codec import SHOWN
from gmvq.stages.data import data_of_run
from gmvq.stages.tokenizer import metrics_of, read_run
from gmvq.training.progress import counting


@dataclass(frozen=True)
class Options:
    """Measure a trained tokenizer, by default on the items that its run held out.

    Args:
        run: Folder of the run.
        data: Measure on all of these data in place of the run's own.
        part: Side of the data's split; by default all of other data, and the held-out items of the run's own.
        limit: Measure the first items only.
        samples: Draws of z for each item in the bounds of the likelihood.
        batch_size: Items in a batch.
        seed: Seed of all draws.
        codec: Compress the items, too, and measure the files.
    """

    run: RunFolder
    data: Path | None = None
    part: Literal["all", "train", "held-out"] | None = None
    limit: int | None = None
    samples: int = 16
    batch_size: int = 64
    seed: int = 0
    codec: bool = False
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Measures. The result has the metrics and their protocol."""
    model = load_model(options.run, device_of(options.common.device))
    if options.data is not None:
        source, part = str(options.data), options.part or "all"
        data = foreign_data(options.data, model.modality, part)
    else:
        config = read_run(options.run).data
        data, source, part = data_of_run(options.run, config), config.source, options.part or "held-out"
    items = part_of(data, part)
    with counting("Measuring", len(items)) as advance:
        measured = evaluation.evaluate(
            model,
            items,
            samples=options.samples,
            batch_size=options.batch_size,
            limit=options.limit,
            seed=options.seed,
            on_progress=advance,
        )
    metrics = metrics_of(measured)
    if options.codec:
        chosen = items if options.limit is None else items.subset(range(min(options.limit, len(items))))
        metrics["codec"] = measured_files(Codec.load(options.run, tokenizer=model), chosen)
    found = {"run": str(options.run), "data": source, "part": part, "foreign": options.data is not None}
    skipped = [{"path": str(each.path), "reason": each.reason} for each in data.skipped]
    return {**found, "metrics": metrics, "skipped": skipped}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the metrics with their protocol: never a bare number."""
    console.print(metric_table(result["metrics"]))
    if "codec" in result["metrics"]:
        console.print(grid(metric_rows(result["metrics"]["codec"], SHOWN[:-1])))
    of = "foreign data, " if result["foreign"] else ""
    say(console, f"{result['run']} on {result['data']} ({of}{result['part']}). {result['metrics']['protocol']}")
