"""The page of a prior: what it draws, beside real images and the training images that are nearest.

::

    prior, tokenizer --sample--> images --nearest, by pixels--> training images --> prior_template.html --> report.html
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmvq.data.images import Images
from gmvq.generation import Generator
from gmvq.priors import described
from gmvq.training import figures, glossary
from gmvq.training.report import (
    Card,
    Record,
    figure_groups,
    flat,
    making_section,
    read_record,
    steps_made,
    training_seconds,
    training_section,
    write_page,
)

SHOWN, SHOWN_LARGE = 24, 12
"""Images drawn for the page, when they are small and when they are not."""
AT_A_TIME = 1 << 24
"""Numbers of training images that are compared at a time: 64 MB."""


def write_prior_report(folder: str | Path, generator: Generator, train: Images, held_out: Images) -> Path:
    """Writes ``report.html`` into a prior's folder: one self-contained file, light and dark.

    Args:
        folder: The prior's; of ``run.json``, ``metrics.json`` and ``log.jsonl`` it shows what is there.
        generator: Prior and tokenizer.
        train: Training images, all of the size that is drawn.
        held_out: Held-out images of that size.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    record, small = read_record(folder), figures.is_small(*generator.size)
    number, classes = SHOWN if small else SHOWN_LARGE, generator.prior.shape.classes
    labels = torch.arange(number) % classes if classes else None
    drawn = generator.sample(number, labels).images.cpu()
    nearest, distances = nearest_by_pixels(drawn, train)
    pairs = []
    for index in range(number):
        told = "" if labels is None else f"asked for class {int(labels[index])}; "
        caption = f"{told}difference of {float(distances[index]):.3f}"
        views = [(drawn[index], "Drawn image"), (train[int(nearest[index])], "Its nearest training image")]
        pictures = [figures.picture(figures.pixels(view), text, lossless=small) for view, text in views]
        pairs.append({"drawn": pictures[0], "nearest": pictures[1], "caption": caption})
    seconds = training_seconds(record)
    return write_page(
        folder / "report.html",
        "prior_template.html",
        title=f"Images drawn from a prior over {_sizes(generator)} codes",
        run_name=folder.resolve().name,
        lede=_lede(generator),
        cards=_cards(record, seconds),
        transparent=generator.tokenizer.config.channels == 4,
        small=small,
        labelled=labels is not None,
        drawn_intro=(
            "Drawn as the prior says, without guidance, with the first seed. To the right of each stands the training "
            "image that differs least from it, by the root of the mean squared difference of the pixels: where the two "
            "are alike, the prior has learned the image by heart."
        ),
        pairs=pairs,
        real=_real(generator, held_out, labels, number, lossless=small),
        **training_section(_curves(record), None),
        groups=figure_groups({key: value for key, value in record.metrics.items() if key != "seconds"}, None),
        **making_section(record, _prior_rows(generator), folder),
    )


def nearest_by_pixels(drawn: Tensor, images: Images) -> tuple[Tensor, Tensor]:
    """The images that differ least from drawn ones.

    Args:
        drawn: Float in [0, 1], ``(B, C, H, W)``.
        images: Images of that size, at least one.

    Returns:
        Their indices ``(B,)``, and the roots of the mean squared differences ``(B,)``.
    """
    rows, size = drawn.flatten(1), drawn[0].numel()
    least, place = torch.full((len(rows),), math.inf), torch.zeros(len(rows), dtype=torch.int64)
    number = max(1, AT_A_TIME // size)
    for start in range(0, len(images), number):
        some = range(start, min(start + number, len(images)))
        real = torch.stack([images[index] for index in some]).flatten(1).float() / 255
        # by differences: for a copy, a product of large numbers would not come to 0
        found, where = torch.cdist(rows, real, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = found < least
        least, place = torch.where(closer, found, least), torch.where(closer, where + start, place)
    return place, least / math.sqrt(size)


def _curves(record: Record) -> dict[str, figures.Curve]:
    """What was logged; the loss is the bits of a code where there are such, and not in nats of an image's dimension."""
    curves = {key: curve for key, curve in record.curves.items() if key != "loss"}
    if "loss" in record.curves and "bits_per_code" not in curves:
        curves["prior_loss"] = record.curves["loss"]
    return curves


def _real(
    generator: Generator, held_out: Images, labels: Tensor | None, number: int, *, lossless: bool
) -> list[dict[str, Any]]:
    """Held-out images, of the same classes where there are any, and their reconstructions."""
    chosen = list(range(min(number, len(held_out))))
    if labels is not None and held_out.labels is not None:
        of_class = {int(label): (held_out.labels == label).nonzero().flatten().tolist() for label in labels.unique()}
        chosen = [places.pop(0) for label in labels.tolist() if (places := of_class[label])]
    pairs = []
    for index in chosen:
        image = held_out[index]
        again = generator.tokenizer.reconstruct(image[None].to(generator.prior.device))[0].cpu()
        views = ((image, "Held-out image"), (again, "The same through its codes"))
        pictures = [figures.picture(figures.pixels(view), text, lossless=lossless) for view, text in views]
        caption = held_out.names[index] if held_out.labels is None else f"class {int(held_out.labels[index])}"
        pairs.append({"original": pictures[0], "reconstruction": pictures[1], "caption": caption})
    return pairs


def _lede(generator: Generator) -> str:
    shape = generator.prior.shape
    grid = " × ".join(map(str, shape.grid))
    levels = f", each of {shape.levels} levels" if shape.levels > 1 else ""
    of = f" of {shape.classes} classes" if shape.classes else ""
    return f"A prior drew the {grid} tokens{levels} of images{of}, and the tokenizer's decoder made pixels of them."


def _sizes(generator: Generator) -> str:
    return " × ".join(f"{size:,}" for size in generator.prior.shape.codebook_sizes)


def _cards(record: Record, seconds: float | None) -> list[Card]:
    metrics, cards = record.metrics, []
    hints = {
        "bits_per_code": f"{metrics.get('n_gram_bits_per_code', math.nan):.2f} by n-grams, "
        f"{metrics.get('frequencies_bits_per_code', math.nan):.2f} by frequencies",
        "bits_per_dim": "codes and image given them, lower is better",
    }
    for key, hint in hints.items():
        if math.isfinite(metrics.get(key, math.nan)):
            measure = glossary.measure(key)
            cards.append(Card(measure.name, glossary.shown(measure, metrics[key]), measure.unit, hint))
    if seconds:
        cards.append(Card("Training time", *glossary.duration(seconds), steps_made(record)))
    return cards


def _prior_rows(generator: Generator) -> list[tuple[str, str]]:
    parameters = sum(parameter.numel() for parameter in generator.prior.parameters())
    return [*flat(described(generator.prior)), ("parameters", f"{parameters:,}")]
