"""Training of a diffusion decoder on images and their tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmvq import hub
from gmvq.data import Loader
from gmvq.modalities import Data, fingerprint
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.training.monitoring import HeldOut
from gmvq.training.tasks.base import AbstractTask, Outcome, same_noise
from gmvq.training.tasks.tokenizers import Drawing, channels_last, drawn, summary_of
from gmvq.types import Batch


class DiffusionTask(AbstractTask[DiffusionDecoder, Batch]):
    """Training of a diffusion decoder on images and their tokens; the tokenizer is frozen.

    Args:
        decoder: The decoder.
        tokenizer: The tokenizer; a copy of it is used, in evaluation mode.
        data: The images.
        drawing: Settings of the windows.
    """

    def __init__(self, decoder: DiffusionDecoder, tokenizer: Autoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(decoder)
        channels_last(decoder)
        self.tokenizer = copy.deepcopy(tokenizer).eval().requires_grad_(False)
        self.data, self.drawing = data, drawing

    def summary(self) -> dict[str, str]:  # noqa: D102
        return summary_of(self.data, self.drawing)

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        return drawn(self.data, self.drawing, batch_size, seed, rank, ranks)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return self._through(to_device(batch.items))

    def outcome(self, answer: Tensor, batch: Batch) -> Outcome:  # noqa: D102
        return Outcome(answer, {}, None)

    def description(self) -> dict[str, Any]:  # noqa: D102
        data = {"tokenizer": hub.fingerprint(self.tokenizer), "fingerprint": fingerprint(self.data)[:16]}
        return {"model": asdict(self.model.config), "data": data, "drawing": self.drawing._asdict()}

    def held_out(self, batch_size: int) -> Callable[[DiffusionDecoder], dict[str, float | None]] | None:  # noqa: D102
        if not len(self.data.held_out):
            return None
        batches = HeldOut(self.data.held_out, self.tokenizer.signal, batch_size).batches
        return lambda decoder: {"held_out_loss": self._loss(decoder, batches)}

    def score(self, metrics: Mapping[str, float | None]) -> float | None:  # noqa: D102
        loss = metrics.get("held_out_loss")
        return None if loss is None else -loss

    def save(self, averaged: DiffusionDecoder, out: Path) -> None:  # noqa: D102
        hub.save(averaged, out, tokenizer=hub.fingerprint(self.tokenizer))

    def _through(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images as floats, their reconstructions, and the values that the tokenizer's decoder receives."""
        if next(self.tokenizer.parameters()).device != images.device:
            self.tokenizer.to(images.device)
        images = self.tokenizer.signal.checked(images)
        reconstructions, values = self.tokenizer.decode_with_values(
            self.tokenizer.encode(images), (images.shape[-2], images.shape[-1])
        )
        return images, reconstructions, values

    @torch.no_grad()
    def _loss(self, decoder: DiffusionDecoder, batches: Iterable[Tensor]) -> float:
        """Computes a decoder's loss, with the same noise each time."""
        device, total, images = decoder.scale.device, 0.0, 0
        with same_noise(device):
            for batch in batches:
                total += float(decoder(*self._through(batch.to(device)))) * len(batch)
                images += len(batch)
        return total / images
