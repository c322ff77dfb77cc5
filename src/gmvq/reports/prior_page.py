"""The report of a prior: generated items next to real items and to the most similar training items.

::

    prior, tokenizer --sample--> items --nearest, by samples--> training items --> prior_page.html --> report.html
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmvq.data import Items
from gmvq.generation import Generator
from gmvq.modalities import Exhibit
from gmvq.priors import described
from gmvq.reports import glossary
from gmvq.reports.page import (
    Card,
    Record,
    flat,
    is_finite,
    is_wide,
    making_section,
    metric_groups,
    read_record,
    steps_made,
    training_seconds,
    training_section,
    write_page,
)
from gmvq.reports.plots import Curve
from gmvq.training.progress import duration

SHOWN, SHOWN_LARGE = 24, 12
"""Number of items drawn for the page, for small and for large items."""
SMALL = 1 << 12
"""Largest number of samples of a small item."""
AT_A_TIME = 1 << 24
"""Values of training items compared at a time: 64 MB."""


def write_prior_report(folder: str | Path, generator: Generator, train: Items, held_out: Items) -> Path:
    """Writes ``report.html`` into a prior's folder: one self-contained file, light and dark.

    Args:
        folder: The prior's folder; ``run.json``, ``metrics.json`` and ``log.jsonl`` are optional.
        generator: Prior and tokenizer.
        train: Training items, all of the size of the drawn ones.
        held_out: Held-out items of that size.

    Returns:
        The path of the page.
    """
    folder, modality = Path(folder), generator.tokenizer.modality
    record = read_record(folder)
    number = SHOWN if math.prod(generator.size) <= SMALL else SHOWN_LARGE
    classes = generator.prior.shape.classes
    labels = torch.arange(number) % classes if classes else None
    drawn = generator.sample(number, labels).items.cpu()
    nearest, distances = nearest_items(generator, drawn, train)
    pairs = []
    for index in range(number):
        of = "" if labels is None else f"asked for class {int(labels[index])}; "
        near = modality.exhibit("nearest", train[int(nearest[index])])
        note = f"{of}difference of {float(distances[index]):.3f}"
        pairs.append(modality.exhibit(f"drawn {index}", drawn[index])._replace(made=near.real, note=note))
    return write_page(
        folder / "report.html",
        "prior_page.html",
        title=f"{modality.items.capitalize()} drawn from a prior over {_sizes(generator)} codes",
        run_name=folder.resolve().name,
        lede=_lede(generator),
        cards=_cards(record, training_seconds(record)),
        items=modality.items,
        item=modality.item,
        labelled=labels is not None,
        wide=is_wide(pairs),
        drawn=pairs,
        real=_real(generator, held_out, labels, number),
        **training_section(_curves(record), None),
        groups=metric_groups({key: value for key, value in record.metrics.items() if key != "seconds"}, None),
        **making_section(record, _prior_rows(generator), folder),
    )


def nearest_items(generator: Generator, drawn: Tensor, items: Items) -> tuple[Tensor, Tensor]:
    """Finds the most similar items for drawn ones.

    Args:
        generator: Prior and tokenizer that drew them.
        drawn: Drawn items as the tokenizer decodes them, ``(B, C, *S)``.
        items: Items of that size, at least one.

    Returns:
        Their indices ``(B,)``, and the root mean squared differences ``(B,)``; for symbols the root of the fraction
        that differs.
    """
    signal = generator.tokenizer.signal
    symbols = signal.values == "symbols"
    rows, size = drawn.flatten(1), drawn[0].numel()
    least, place = torch.full((len(rows),), math.inf), torch.zeros(len(rows), dtype=torch.int64)
    number = max(1, AT_A_TIME // size)
    for start in range(0, len(items), number):
        some = range(start, min(start + number, len(items)))
        real = signal.checked(torch.stack([items[index] for index in some])).flatten(1)
        if symbols:
            found = torch.stack([(row != real).sum(1) for row in rows]).float().sqrt()
        else:  # by differences: with matrix products the distance of a copy would not be exactly 0
            found = torch.cdist(rows.float(), real.float(), compute_mode="donot_use_mm_for_euclid_dist")
        found, where = found.min(1)
        closer = found < least
        least, place = torch.where(closer, found, least), torch.where(closer, where + start, place)
    return place, least / math.sqrt(size)


def _curves(record: Record) -> dict[str, Curve]:
    """Returns the logged curves; the loss is shown in bits per code if these are logged."""
    curves = {key: curve for key, curve in record.curves.items() if key != "loss"}
    if "loss" in record.curves and "bits_per_code" not in curves:
        curves["prior_loss"] = record.curves["loss"]
    return curves


def _real(generator: Generator, held_out: Items, labels: Tensor | None, number: int) -> list[Exhibit]:
    """Builds exhibits of held-out items, of the same classes if there are any, with reconstructions."""
    chosen = list(range(min(number, len(held_out))))
    if labels is not None and held_out.labels is not None:
        of_class = {int(label): (held_out.labels == label).nonzero().flatten().tolist() for label in labels.unique()}
        chosen = [places.pop(0) for label in labels.tolist() if (places := of_class[label])]
    tokenizer, found = generator.tokenizer, []
    for index in chosen:
        item = held_out[index]
        again = tokenizer.reconstruct(item[None].to(tokenizer.device))[0].cpu()
        name = held_out.names[index] if held_out.labels is None else f"class {int(held_out.labels[index])}"
        found.append(tokenizer.modality.exhibit(name, item, again))
    return found


def _lede(generator: Generator) -> str:
    shape, items = generator.prior.shape, generator.tokenizer.modality.items
    grid = f"{' × '.join(map(str, shape.grid))} tokens" if shape.places > 1 else "1 token"
    levels = f" of {shape.levels} levels" if shape.levels > 1 else ""
    of = f" of {shape.classes} classes" if shape.classes else ""
    return f"The prior drew codes for {grid}{levels}; the tokenizer decoded them to {items}{of}."


def _sizes(generator: Generator) -> str:
    return " × ".join(f"{size:,}" for size in generator.prior.shape.codebook_sizes)


def _cards(record: Record, seconds: float | None) -> list[Card]:
    metrics, cards = record.metrics, []
    hints = {
        "bits_per_code": f"{metrics.get('n_gram_bits_per_code', math.nan):.2f} by n-grams, "
        f"{metrics.get('frequencies_bits_per_code', math.nan):.2f} by frequencies",
        "bits_per_dim": "codes and item given them, lower is better",
    }
    for key, hint in hints.items():
        if is_finite(metrics.get(key)):
            measure = glossary.measure(key)
            cards.append(Card(measure.name, measure.shown(metrics[key]), measure.unit, hint))
    if seconds:
        cards.append(Card("Training time", *duration(seconds), steps_made(record)))
    return cards


def _prior_rows(generator: Generator) -> list[tuple[str, str]]:
    parameters = sum(parameter.numel() for parameter in generator.prior.parameters())
    rows: list[tuple[str, Any]] = [*flat(described(generator.prior)), ("parameters", f"{parameters:,}")]
    return rows
