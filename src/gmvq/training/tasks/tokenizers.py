"""A tokenizer, from images: alone, or against a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmvq import hub
from gmvq.data import Data, Loader, fingerprint
from gmvq.models import AdversarialAutoencoder, AdversarialConfig, Autoencoder
from gmvq.models.adversarial import DISCRIMINATOR, GENERATOR, GUESSES, LEARNING, OPPOSING
from gmvq.training.monitoring import HeldOut
from gmvq.training.tasks.base import AbstractTask, Outcome
from gmvq.types import Batch, Reconstruction

WINS = 0.98
"""Share of patches told above which a discriminator teaches little."""


class Drawing(NamedTuple):
    """How training images are drawn: see :class:`gmvq.data.Loader`."""

    crop: int | None
    flip: bool
    crops_per_image: int


class AutoencoderTask(AbstractTask[Autoencoder, Batch]):
    """A tokenizer, from images.

    Args:
        model: The autoencoder.
        data: The images.
        drawing: How they are drawn.
    """

    def __init__(self, model: Autoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(model)
        # convolutions are up to a tenth faster where the channels of a place lie together, as the quantizer wants them
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.data, self.drawing = data, drawing
        self.codebook_size = model.codebook_size

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        drawing = self.drawing._asdict()
        return Loader(self.data.train, batch_size, seed=seed, rank=rank, world_size=ranks, **drawing)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return (to_device(batch.images),)

    def outcome(self, answer: Reconstruction, batch: Batch) -> Outcome:  # noqa: D102
        return Outcome(answer.loss, answer.terms, answer.codes.detach())

    def description(self) -> dict[str, Any]:  # noqa: D102
        data = {"name": self.data.name, "images": len(self.data.train), "fingerprint": fingerprint(self.data)[:16]}
        return {"model": self.model.config.identity(), "data": data, "drawing": self.drawing._asdict()}

    def layers(self) -> tuple[nn.Module, ...]:
        """Encoder and decoder: codes belong where the latents are."""
        return self.model.encoder, self.model.decoder

    def held_out(self, batch_size: int) -> Callable[[Autoencoder], dict[str, float | None]] | None:  # noqa: D102
        return HeldOut(self.data.held_out, batch_size).measure if len(self.data.held_out) else None

    def score(self, figures: Mapping[str, float | None]) -> float | None:  # noqa: D102
        return figures.get("psnr")

    def begin(self) -> None:
        """Lets the forwards of one step share a codebook: their statistics are folded once, after the step."""
        self.model.bottleneck.updates_itself = False

    def end(self) -> None:  # noqa: D102
        self.model.bottleneck.updates_itself = True

    def before_step(self, progress: float) -> None:  # noqa: D102
        self.model.bottleneck.set_progress(progress)

    def after_step(self) -> None:  # noqa: D102
        self.model.bottleneck.update()

    def finish(self, averaged: Autoencoder, batches: Iterable[Batch], to_device: Callable[[Tensor], Tensor]) -> None:
        """Sets the scale of the averaged model's likelihood."""
        averaged.bottleneck.set_progress(1.0)
        averaged.calibrate(to_device(batch.images) for batch in batches)

    def save(self, averaged: Autoencoder, out: Path) -> None:  # noqa: D102
        hub.save(averaged, out)


class AdversarialTask(AbstractTask[AdversarialAutoencoder, Batch]):
    """A tokenizer against a discriminator, from images; the tokenizer is what is saved.

    Args:
        model: Both.
        data: The images.
        drawing: How they are drawn.

    Raises:
        ValueError: If the images, or their crops, are too small for the discriminator.
    """

    has_idle_parameters = True

    def __init__(self, model: AdversarialAutoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(model)
        check_sides(model.config, data, drawing.crop)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.alone = AutoencoderTask(model.autoencoder, data, drawing)
        self.codebook_size = self.alone.codebook_size

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        return self.alone.loader(batch_size, seed, rank, ranks)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return self.alone.inputs(batch, to_device)

    def outcome(self, answer: Reconstruction, batch: Batch) -> Outcome:  # noqa: D102
        return self.alone.outcome(answer, batch)

    def description(self) -> dict[str, Any]:  # noqa: D102
        features = self.model.features
        own: dict[str, Any] = {"adversarial": asdict(self.model.config)}
        if features is not None:
            own["features"] = hub.digest({"layers": sorted(features.layers)}, features.state_dict())[:16]
        return {**self.alone.description(), **own}

    def layers(self) -> tuple[nn.Module, ...]:  # noqa: D102
        return (*self.alone.layers(), self.model.discriminator)

    def clipped_apart(self) -> tuple[nn.Module, ...]:
        """Each side: a large gradient of one leaves the step of the other as it is."""
        return self.model.autoencoder, self.model.discriminator

    def held_out(  # noqa: D102
        self, batch_size: int
    ) -> Callable[[AdversarialAutoencoder], dict[str, float | None]] | None:
        measure = self.alone.held_out(batch_size)
        return None if measure is None else lambda model: measure(model.autoencoder)

    def averaged(self, figures: dict[str, float | None]) -> dict[str, float | None]:
        """Figures of the discriminator over the steps in which it learned, and None before there are any."""
        figures = dict(figures)
        for name, of in ((LEARNING, DISCRIMINATOR), (OPPOSING, GENERATOR)):
            share = figures.pop(name)
            for key in of:
                value = figures[key]
                figures[key] = value / share if share and value is not None else None
        return figures

    def advice(self, figures: Mapping[str, float | None]) -> str | None:
        """Says when the discriminator tells all patches, or none, once its loss counts."""
        accuracy = figures.get("discriminator_accuracy")
        if accuracy is None or figures.get("adversarial_weight") is None:
            return None
        if accuracy > WINS:
            return (
                f"The discriminator tells more than {WINS:.0%} of the patches: its gradient says little then. Give it "
                "less width, or more of the LeCam or R1 regularizer."
            )
        if accuracy < GUESSES:
            return (
                f"The discriminator tells less than {GUESSES:.0%} of the patches, as if it guessed: its loss counts "
                "for nothing then. Give it more width, let it start earlier, or look for what is broken in it."
            )
        return None

    def begin(self) -> None:  # noqa: D102
        self.alone.begin()

    def end(self) -> None:  # noqa: D102
        self.alone.end()

    def before_step(self, progress: float) -> None:  # noqa: D102
        self.model.set_progress(progress)

    def after_step(self) -> None:  # noqa: D102
        self.alone.after_step()
        self.model.lecam.update()

    def finish(  # noqa: D102
        self, averaged: AdversarialAutoencoder, batches: Iterable[Batch], to_device: Callable[[Tensor], Tensor]
    ) -> None:
        self.alone.finish(averaged.autoencoder, batches, to_device)

    def save(self, averaged: AdversarialAutoencoder, out: Path) -> None:  # noqa: D102
        hub.save(averaged.autoencoder, out)


def check_sides(config: AdversarialConfig, data: Data, crop: int | None) -> None:
    """Refuses images that a discriminator could not see, before hours of training and not after them.

    Raises:
        ValueError: If the images, or their crops, are too small for the discriminator.
    """
    side = crop if crop is not None else min((min(size) for size in data.train.sizes), default=config.smallest_side)
    if side < config.smallest_side:
        raise ValueError(
            f"'layers' of the discriminator must be fewer for images of {side} pixels, got {config.layers}, which need "
            f"{config.smallest_side}. Use {max(1, side.bit_length() - 1)}."
        )
