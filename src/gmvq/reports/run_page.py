"""The report of a run: ``report.html``, one file with items, curves and metrics.

::

    run.json, metrics.json, log.jsonl --+
    model ------------------------------+--> exhibits, plots, a table --> run_page.html --> report.html
    held-out items ---------------------+
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gmvq.data import Items
from gmvq.metrics import CompositeStatistics
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.quantizers import QUANTIZERS
from gmvq.reports import exhibits, glossary
from gmvq.reports.page import (
    Card,
    Record,
    flat,
    is_finite,
    is_wide,
    making_section,
    metric_groups,
    part_of,
    read_object,
    read_record,
    steps_made,
    training_seconds,
    training_section,
    write_page,
)
from gmvq.training.progress import duration

DISTANCES = 2
"""Number of the modality's distortion metrics among the headlines."""


def write_report(
    run: str | Path,
    model: Autoencoder,
    items: Items,
    *,
    statistics: CompositeStatistics | None = None,
    title: str | None = None,
) -> Path:
    """Writes ``report.html`` into a run's folder: one self-contained file, light and dark.

    Args:
        run: The run's folder; ``run.json``, ``metrics.json`` and ``log.jsonl`` are optional.
        model: The trained autoencoder; its mode and weights are not changed.
        items: Held-out items; a few of them, evenly spaced, are shown.
        statistics: Counts of the codes of held-out tokens from an evaluation; by default counted over up to 4 million
            samples.
        title: Heading of the page; by default it names the codes and the data.

    Returns:
        The path of the page.
    """
    run = Path(run)
    record = read_record(run)
    size = model.codebook_size
    with evaluating(model):
        shown = exhibits.show_items(model, items)
        usage, reach = None, 1.0
        if model.has_code_maps and len(items):
            statistics = exhibits.count_codes(model, items) if statistics is None else statistics
            usage, reach = exhibits.codebook_section(model, statistics), exhibits.reach_of(statistics)
    return write_page(
        run / "report.html",
        "run_page.html",
        **_heading(record, model, run.resolve().name, title),
        items=model.modality.items,
        shown=[each.exhibit for each in shown],
        wide=is_wide([each.exhibit for each in shown]),
        strips=model.signal.axes == 1,
        **exhibits.map_section(shown),
        usage=usage,
        **training_section(record.curves, size, model.modality.measures),
        groups=metric_groups(record.metrics, size, model.modality.measures, reach),
        **making_section(record, _model_rows(model, record, run), run),
    )


def _heading(record: Record, model: Autoencoder, folder: str, title: str | None) -> dict[str, Any]:
    name = str(part_of(record.run, "data").get("name") or part_of(record.run, "run").get("name") or folder)
    signal, modality, side = model.signal, model.modality, model.downsampling
    place = " × ".join([str(side)] * signal.axes)
    item = _article(modality.item)
    samples = f"every {place} {modality.sample}s of {item}" if signal.axes else item
    lede = f"This tokenizer ({_title(model.config.quantizer)}) encodes"
    if model.codebook_size is None:
        heading = f"Continuous latents learned from {name}"
        lede += f" {samples} as {model.bottleneck.dim} real numbers."
    elif not model.has_code_maps:
        heading = f"{model.codebook_size:,} codes learned from {name}"
        lede += f" {item} at several scales, each token as one of {model.codebook_size:,} codes."
    else:
        sizes = " × ".join(f"{size:,}" for size in model.level_sizes)
        heading = f"{sizes} codes learned from {name}"
        bits = sum(math.log2(size) for size in model.level_sizes)
        lede += f" {samples} as one of {sizes} codes ({bits:.3g} bits)."
    return {
        "title": title or heading,
        "run_name": folder,
        "lede": f"{lede} What follows was measured on held-out {modality.items}.",
        "cards": _cards(record, model),
        "codebook_size": model.codebook_size,
    }


def _title(quantizer: str) -> str:
    """Returns the title of a quantizer, or its name if it has none."""
    return QUANTIZERS[quantizer].title if quantizer in QUANTIZERS else quantizer


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _cards(record: Record, model: Autoencoder) -> list[Card]:
    """Builds the cards of the modality's first distortion metrics, the codebook usage, and the time."""
    metrics, cards = record.metrics, []
    distortion = model.modality.distortion(quick=True)
    better = "higher is better" if distortion.higher_is_better else "lower is better"
    distances = [distortion.headline, *(each.key for each in model.modality.measures)]
    hints = {key: "" for key in list(dict.fromkeys(distances))[:DISTANCES]} | {distortion.headline: better}
    meters: dict[str, float] = {}
    if model.codebook_size is not None and model.has_code_maps:
        size = math.prod(model.level_sizes)
        hints |= {"usage": f"of {size:,} codes", "perplexity": f"of at most {size:,}"}
        meters = {"usage": metrics.get("usage", 0.0), "perplexity": metrics.get("perplexity", 0.0) / size}
        hints[f"bits_per_{model.modality.sample}"] = "without entropy coding"
    else:
        hints |= dict.fromkeys(("elbo_bits_per_dim", "iwae_bits_per_dim"), "lower is better")
    for key, hint in hints.items():
        if is_finite(metrics.get(key)):
            measure = glossary.measure(key, model.modality.measures)
            cards.append(Card(measure.name, measure.shown(metrics[key]), measure.unit, hint, meters.get(key)))
    seconds = training_seconds(record)
    if seconds is not None:
        cards.append(Card("Training time", *duration(seconds), steps_made(record)))
    return cards


def _model_rows(model: Autoencoder, record: Record, run: Path) -> list[tuple[str, str]]:
    described = model.config.described()
    rows = [(name, value if len(value) < 200 else f"{value[:200]} ...") for name, value in flat(described)]
    rows.append(("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"))
    fingerprint = read_object(run / "config.json").get("fingerprint") or record.run.get("fingerprint")
    return [*rows, ("fingerprint", str(fingerprint))] if fingerprint else rows
