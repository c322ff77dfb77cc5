"""Evaluation of generated items by a judge: a classifier trained on the real ones, and its features.

::

    real items --learn--> classifier --> does it recognize the requested class?
    real and drawn items --its features--> Fréchet and kernel distance, precision and recall, nearest neighbors
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.data import Items, held_out_batches
from gmvq.generation import Generator
from gmvq.metrics import measure_realism
from gmvq.metrics.inception import Features
from gmvq.metrics.realism import nearest_neighbors
from gmvq.modalities import Data
from gmvq.networks import Classifier
from gmvq.priors import Sampling
from gmvq.training.tasks import accuracy_of

CLASSIFIER = "classifier"
"""Name of the judge's folder in the run's folder."""
BATCH = 64
"""Items per batch."""
FEWEST = 4
"""Smallest number of drawn and of held-out items: precision and recall use the three nearest neighbors of each."""
REAL = 2000
"""Number of held-out items that drawn ones are compared with."""


@dataclass(frozen=True)
class Verdict:
    """Result of the judge.

    Args:
        metrics: Agreement and realism, as JSON types.
        items: The first drawn items, on the CPU.
    """

    metrics: dict[str, Any]
    items: Tensor


def judge(
    generator: Generator,
    data: Data,
    classifier: Classifier,
    number: int,
    sampling: Sampling | None = None,
    inception: Features | None = None,
    *,
    keep: int = 20,
) -> Verdict:
    """Draws items of all classes in turn and evaluates them.

    Args:
        generator: Prior and tokenizer that draw the items.
        data: The real items.
        classifier: The judge, in evaluation mode.
        number: Number of items to draw.
        sampling: Settings of sampling.
        inception: Features for FID and KID, see :func:`gmvq.metrics.load_inception`; None omits these.
        keep: Number of drawn items to return; the others are discarded once they are evaluated.

    Returns:
        Metrics: ``agreement``, the fraction of drawn items that the judge assigns to the requested class (None for a
        prior without classes); ``real_accuracy``, its accuracy on held-out items (None without labels); ``frechet``,
        ``kernel``, ``precision`` and ``recall`` of its features against held-out items; the same for as many
        reconstructed training items as ``reconstructed_*``, the values of a perfect prior with this tokenizer. With
        ``inception`` also ``fid``, ``kid`` and ``reconstructed_fid``; they fall with the number of images, and
        published values use tens of thousands.

    Raises:
        ValueError: If fewer than 4 items are drawn or held out, or the real ones differ in size from the drawn ones.
    """
    _check(generator, data, inception)
    classes = generator.prior.shape.classes
    labels = torch.arange(number) % max(1, classes)
    device = generator.prior.device
    kept: list[Tensor] = []

    def drawn() -> Iterator[Tensor]:
        for start in range(0, number, BATCH):
            some = labels[start : start + BATCH]
            items = generator.sample(len(some), some if classes else None, sampling, first=start).items
            if start < keep:
                kept.append(items[: keep - start].cpu())
            yield items

    real = data.held_out.subset(range(min(REAL, len(data.held_out))))
    # training items instead of held-out ones, and as many as are drawn: an item would be nearest to itself
    learned = data.train.subset([index * len(data.train) // number for index in range(number)])
    starts = itertools.count(0, BATCH)
    sides = {
        "drawn": drawn(),
        "real": (batch.items.to(device) for batch in held_out_batches(real, BATCH)),
        "again": (
            generator.reconstruct(batch.items.to(device), first=start)
            for batch, start in zip(held_out_batches(learned, BATCH), starts, strict=False)
        ),
    }
    seen = {name: _seen(classifier, inception, batches) for name, batches in sides.items()}
    own, reconstructed = (measure_realism(seen["real"].features, seen[name].features) for name in ("drawn", "again"))
    agreement = float((seen["drawn"].classes == labels).float().mean()) if classes else None
    accuracy = None if data.held_out.labels is None else accuracy_of(classifier, data.held_out)
    found = {"agreement": agreement, "real_accuracy": accuracy, **own._asdict()}
    found |= {f"reconstructed_{name}": getattr(reconstructed, name) for name in ("frechet", "kernel")}
    if inception is not None:
        of_drawn, of_again = (measure_realism(seen["real"].known, seen[name].known) for name in ("drawn", "again"))
        found |= {"fid": of_drawn.frechet, "kid": of_drawn.kernel, "reconstructed_fid": of_again.frechet}
    return Verdict(found, torch.cat(kept))


def _check(generator: Generator, data: Data, inception: Features | None) -> None:
    """Checks that real items can be compared with drawn ones."""
    check_enough(data)
    if {*data.train.sizes, *data.held_out.sizes} != {generator.size}:
        size, kind = "x".join(map(str, generator.size[::-1])), data.modality
        raise ValueError(f"'data' must be {kind.items} of {size} {kind.sample}s, the size of drawn ones. Cut them.")
    if inception is not None and (data.signal.axes != 2 or data.signal.channels not in (1, 3)):
        raise ValueError(
            f"'data' must be gray or RGB for FID and KID, got {data.signal.channels} channels. Leave them out."
        )


def check_enough(data: Data) -> None:
    """Raises ValueError if too few items are held out for a comparison with drawn ones."""
    if len(data.held_out) < FEWEST:
        raise ValueError(
            f"'data' must have at least {FEWEST} held-out {data.modality.items} for a judge, got "
            f"{len(data.held_out)}. Train on more, or with a larger --held-out-fraction."
        )


class _Seen(NamedTuple):
    """Outputs of the networks on the CPU: features ``(B, F)``, classes ``(B,)``, Inception features or None."""

    features: Tensor
    classes: Tensor
    known: Tensor


def _seen(classifier: Classifier, inception: Features | None, batches: Iterable[Tensor]) -> _Seen:
    parts = []
    for items in batches:
        known = torch.zeros(len(items), 0) if inception is None else inception(classifier.prepared(items)).cpu()
        parts.append((*_looked_at(classifier, items), known))
    return _Seen(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.no_grad()
def _looked_at(classifier: Classifier, items: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features ``(B, F)`` and classes ``(B,)`` on the CPU."""
    device = next(classifier.parameters()).device
    parts = [classifier.features(classifier.prepared(some.to(device))) for some in items.split(256)]
    features = torch.cat(parts)
    return features.cpu(), classifier.head(features.relu()).argmax(1).cpu()


def nearest_real(classifier: Classifier, drawn: Tensor, items: Items) -> list[int]:
    """Finds the training item with the nearest features for each drawn item, to detect memorization."""
    real = torch.cat([_looked_at(classifier, batch.items)[0] for batch in held_out_batches(items, 256)])
    return nearest_neighbors(_looked_at(classifier, drawn)[0], real).tolist()
