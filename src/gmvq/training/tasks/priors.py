"""Training of a prior on codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmvq import hub
from gmvq.data import CodeLoader, evenly_spaced
from gmvq.priors import AbstractPrior, described
from gmvq.training.tasks.base import AbstractTask, Outcome, same_noise
from gmvq.types import CodeBatch

HELD_OUT_CODES = 1 << 15
"""Number of codes of held-out items that are evaluated during training."""


class PriorTask(AbstractTask[AbstractPrior, CodeBatch]):
    """Training of a prior on codes.

    Args:
        prior: The prior; called with codes and labels it returns the loss in nats per code.
        train: Codes for training.
        held_out: Codes for evaluations during training.
        tokenizer: Fingerprint of the tokenizer that made them.
        about: Other properties of the data that a step depends on, as JSON types.
    """

    def __init__(
        self, prior: AbstractPrior, train: CodeBatch, held_out: CodeBatch, tokenizer: str, about: Mapping[str, Any]
    ) -> None:
        super().__init__(prior)
        for codes, labels in (train, held_out):  # once, here: a check in each step would wait for the GPU
            prior.shape.checked(codes)
            prior.shape.checked_labels(labels, len(codes), codes.device)
        self.sample = "items held back from training"
        self.train, self.rest, self.tokenizer, self.about = train, held_out, tokenizer, about

    def summary(self) -> dict[str, str]:  # noqa: D102
        shape = self.model.shape
        sizes = " × ".join(f"{size:,}" for size in shape.codebook_sizes)
        grid = f"{' × '.join(map(str, shape.grid))} tokens, each one" if shape.places > 1 else "1 token, one"
        return {
            "data": f"codes of {len(self.train.codes):,} items, {len(self.rest.codes):,} held back to select weights",
            "item": f"{grid} of {sizes} codes" + (f", {shape.classes} classes" if shape.classes else ""),
        }

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> CodeLoader:  # noqa: D102
        return CodeLoader(*self.train, batch_size, seed=seed, rank=rank, world_size=ranks)

    def inputs(self, batch: CodeBatch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return to_device(batch.codes), None if batch.labels is None else to_device(batch.labels)

    def outcome(self, answer: Tensor, batch: CodeBatch) -> Outcome:  # noqa: D102
        terms = {"bits_per_code": answer.detach() / math.log(2)} if self.model.has_likelihood else {}
        return Outcome(answer, terms, None)

    def description(self) -> dict[str, Any]:  # noqa: D102
        return {"model": described(self.model), "data": {"tokenizer": self.tokenizer, **self.about}}

    def held_out(self, batch_size: int) -> Callable[[AbstractPrior], dict[str, float | None]] | None:  # noqa: D102
        places = evenly_spaced(len(self.rest.codes), max(1, HELD_OUT_CODES // self.model.shape.length))
        if not places:
            return None
        codes, labels = (None if part is None else part[places] for part in self.rest)
        assert codes is not None

        if self.model.has_likelihood:
            return lambda prior: {"bits_per_code": prior.bits_per_code(codes, labels, batch_size)}
        return lambda prior: {"held_out_loss": _loss_of(prior, codes, labels, batch_size)}

    def score(self, metrics: Mapping[str, float | None]) -> float | None:  # noqa: D102
        loss = metrics.get("bits_per_code" if self.model.has_likelihood else "held_out_loss")
        return None if loss is None else -loss

    def save(self, averaged: AbstractPrior, out: Path) -> None:  # noqa: D102
        hub.save(averaged, out, tokenizer=self.tokenizer)


@torch.no_grad()
def _loss_of(prior: AbstractPrior, codes: Tensor, labels: Tensor | None, batch_size: int) -> float:
    """Computes a prior's loss on codes, with the same noise each time."""
    total = 0.0
    with same_noise(prior.device):
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            some = codes[part].to(prior.device), None if labels is None else labels[part].to(prior.device)
            total += float(prior(*some)) * len(some[0])
    return total / len(codes)
