"""Training of a classifier on labeled items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq import hub
from gmvq.data import Items, Loader, held_out_batches
from gmvq.modalities import Data, fingerprint
from gmvq.networks import Classifier
from gmvq.training.tasks.base import AbstractTask, Outcome
from gmvq.training.tasks.tokenizers import channels_last, summary_of
from gmvq.types import Batch


class ClassifierTask(AbstractTask[Classifier, Batch]):
    """Training of a classifier on labeled items.

    Args:
        classifier: The classifier.
        data: Items with labels, all of the same size.
        tint: Largest random shift of each channel of an item, up or down.

    Raises:
        ValueError: If the tint is not a finite number of at least 0.
    """

    def __init__(self, classifier: Classifier, data: Data, tint: float = 0.0) -> None:
        if not 0 <= tint < float("inf"):
            raise ValueError(f"'tint' must be a finite number of at least 0, got {tint}. Use 0.3.")
        super().__init__(classifier)
        channels_last(classifier)
        self.data, self.tint = data, tint
        self.sample = f"all held-out {data.modality.items}"

    def summary(self) -> dict[str, str]:  # noqa: D102
        return summary_of(self.data)

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        return Loader(self.data.train, batch_size, seed=seed, rank=rank, world_size=ranks)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        items = to_device(self.model.prepared(batch.items))
        if self.tint:
            shape = (*items.shape[:2], *[1] * (items.ndim - 2))
            items = items + to_device(self.tint * (2 * torch.rand(shape) - 1))
        return (items,)

    def outcome(self, answer: Tensor, batch: Batch) -> Outcome:  # noqa: D102
        assert batch.labels is not None
        labels = batch.labels.to(answer.device)
        accuracy = (answer.detach().argmax(1) == labels).float().mean()
        return Outcome(F.cross_entropy(answer, labels), {"accuracy": accuracy}, None)

    def description(self) -> dict[str, Any]:  # noqa: D102
        data = {"fingerprint": fingerprint(self.data)[:16], "tint": self.tint}
        return {"model": asdict(self.model.config), "data": data}

    def held_out(self, batch_size: int) -> Callable[[Classifier], dict[str, float | None]] | None:  # noqa: D102
        return lambda classifier: {"accuracy": accuracy_of(classifier, self.data.held_out)}

    def score(self, metrics: Mapping[str, float | None]) -> float | None:  # noqa: D102
        return metrics.get("accuracy")

    def save(self, averaged: Classifier, out: Path) -> None:  # noqa: D102
        hub.save(averaged, out)


@torch.no_grad()
def accuracy_of(classifier: Classifier, items: Items) -> float:
    """Returns the accuracy of a classifier in evaluation mode."""
    device = next(classifier.parameters()).device
    right = 0
    for batch in held_out_batches(items, 256):
        assert batch.labels is not None
        right += int((classifier(classifier.prepared(batch.items.to(device))).argmax(1).cpu() == batch.labels).sum())
    return right / len(items)
