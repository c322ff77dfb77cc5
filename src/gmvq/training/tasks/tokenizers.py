"""Training of a tokenizer on items, with or without a discriminator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmvq import hub
from gmvq.data import Loader
from gmvq.modalities import Data, fingerprint
from gmvq.models import AdversarialAutoencoder, AdversarialConfig, Autoencoder
from gmvq.models.adversarial import DISCRIMINATOR, GENERATOR, GUESSES, LEARNING, OPPOSING
from gmvq.training.monitoring import HELD_OUT_PART, HeldOut
from gmvq.training.tasks.base import AbstractTask, Outcome
from gmvq.types import Batch, Reconstruction

WINS = 0.98
"""Accuracy of the discriminator above which its gradient carries little information."""

CONTINUED, CONTINUED_SHARE = 16, 0.25
"""Tokens after the end of a shorter sequence that a tokenizer learns at most, and in which share of the windows.

A prior draws sequences of one length, so a decoder must know their ends; these are alike, and would take many codes.
"""


class Drawing(NamedTuple):
    """Settings of the windows of training items: see :class:`gmvq.data.Loader`."""

    size: int | None
    mirror: bool
    windows_per_item: int


class AutoencoderTask(AbstractTask[Autoencoder, Batch]):
    """Training of a tokenizer on items.

    Args:
        model: The autoencoder.
        data: The items.
        drawing: Settings of the windows.
    """

    def __init__(self, model: Autoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(model)
        channels_last(model)
        self.data, self.drawing = data, drawing
        self.codebook_sizes = None if model.codebook_size is None else model.level_sizes
        headline = model.modality.distortion(quick=True).headline
        self.headline = next((each for each in model.modality.measures if each.key == headline), None)
        large = any(math.prod(size) > HELD_OUT_PART for size in data.held_out.sizes)
        self.sample = f"{'the central parts of' if large else 'a sample of'} held-out {model.modality.items}"

    def summary(self) -> dict[str, str]:  # noqa: D102
        return summary_of(self.data, self.drawing)

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        return drawn(self.data, self.drawing, batch_size, seed, rank, ranks, CONTINUED * self.model.downsampling)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        if batch.lengths is None:
            return (to_device(batch.items),)
        return to_device(batch.items), to_device(batch.lengths)

    def outcome(self, answer: Reconstruction, batch: Batch) -> Outcome:  # noqa: D102
        codes = answer.codes.detach()
        return Outcome(answer.loss, answer.terms, codes if self.model.bottleneck.code_shape else codes[..., None])

    def description(self) -> dict[str, Any]:  # noqa: D102
        data = {"name": self.data.name, "items": len(self.data.train), "fingerprint": fingerprint(self.data)[:16]}
        return {"model": self.model.config.described(), "data": data, "drawing": self.drawing._asdict()}

    def layers(self) -> tuple[nn.Module, ...]:
        """Returns encoder and decoder: weight decay would move codes away from the latents."""
        return self.model.encoder, self.model.decoder

    def averaged(self, metrics: dict[str, float | None]) -> dict[str, float | None]:
        """Adds the headline metric, computed from the mean error."""
        error = metrics.get(self.model.likelihood.error_name)
        return {**metrics, **({} if error is None else self.model.modality.distortion(quick=True).of_error(error))}

    def held_out(self, batch_size: int) -> Callable[[Autoencoder], dict[str, float | None]] | None:  # noqa: D102
        return HeldOut(self.data.held_out, self.model.signal, batch_size).measure if len(self.data.held_out) else None

    def score(self, metrics: Mapping[str, float | None]) -> float | None:  # noqa: D102
        distortion = self.model.modality.distortion(quick=True)
        value = metrics.get(distortion.headline)
        return value if value is None or distortion.higher_is_better else -value

    def begin(self) -> None:
        """Lets the forward passes of one step share a codebook: its statistics are updated once, after the step."""
        self.model.bottleneck.updates_itself = False

    def end(self) -> None:  # noqa: D102
        self.model.bottleneck.updates_itself = True

    def before_step(self, progress: float) -> None:  # noqa: D102
        self.model.bottleneck.set_progress(progress)

    def after_step(self) -> None:  # noqa: D102
        self.model.bottleneck.update()

    def finish(self, averaged: Autoencoder, batches: Iterable[Batch], to_device: Callable[[Tensor], Tensor]) -> None:
        """Calibrates the scale of the averaged model's likelihood."""
        averaged.bottleneck.set_progress(1.0)
        averaged.calibrate(
            batch._replace(
                items=to_device(batch.items), lengths=None if batch.lengths is None else to_device(batch.lengths)
            )
            for batch in batches
        )

    def save(self, averaged: Autoencoder, out: Path) -> None:  # noqa: D102
        hub.save(averaged, out)


class AdversarialTask(AbstractTask[AdversarialAutoencoder, Batch]):
    """Adversarial training of a tokenizer on items; only the tokenizer is saved.

    Args:
        model: Tokenizer and discriminator.
        data: The images.
        drawing: Settings of the windows.

    Raises:
        ValueError: If the images, or their crops, are too small for the discriminator.
    """

    has_idle_parameters = True

    def __init__(self, model: AdversarialAutoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(model)
        check_sides(model.config, data, drawing.size)
        channels_last(model)
        self.alone = AutoencoderTask(model.autoencoder, data, drawing)
        self.codebook_sizes, self.headline = self.alone.codebook_sizes, self.alone.headline
        self.sample = self.alone.sample

    def summary(self) -> dict[str, str]:  # noqa: D102
        return self.alone.summary()

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
        """Returns both sides, so that a large gradient of one does not change the step of the other."""
        return self.model.autoencoder, self.model.discriminator

    def held_out(  # noqa: D102
        self, batch_size: int
    ) -> Callable[[AdversarialAutoencoder], dict[str, float | None]] | None:
        measure = self.alone.held_out(batch_size)
        return None if measure is None else lambda model: measure(model.autoencoder)

    def averaged(self, metrics: dict[str, float | None]) -> dict[str, float | None]:
        """Averages the discriminator's metrics over the steps in which it is trained; None before the first."""
        metrics = self.alone.averaged(dict(metrics))
        for name, of in ((LEARNING, DISCRIMINATOR), (OPPOSING, GENERATOR)):
            share = metrics.pop(name)
            for key in of:
                value = metrics[key]
                metrics[key] = value / share if share and value is not None else None
        return metrics

    def advice(self, metrics: Mapping[str, float | None]) -> str | None:
        """Warns if the discriminator's accuracy is too high or too low once its loss counts."""
        accuracy = metrics.get("discriminator_accuracy")
        if accuracy is None or metrics.get("adversarial_weight") is None:
            return None
        if accuracy > WINS:
            return (
                f"The discriminator recognizes more than {WINS:.0%} of the patches: its gradient is of little use. "
                "Give it less width, or more of the LeCam or R1 regularizer."
            )
        if accuracy < GUESSES:
            return (
                f"The discriminator recognizes less than {GUESSES:.0%} of the patches, like guessing: its loss is of "
                "no use. Give it more width, let it start earlier, or look for an error in it."
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


def channels_last(model: nn.Module) -> None:
    """Stores the channels of each pixel together: convolutions are up to a tenth faster, quantizers too."""
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def summary_of(data: Data, drawing: Drawing | None = None) -> dict[str, str]:
    """Describes a run's data for the output before the first step, by name.

    Args:
        data: The data.
        drawing: Settings of the windows, None for whole items.
    """
    kind, signal, sizes = data.modality, data.signal, data.train.sizes
    texts = []
    if signal.axes:
        least, most = (tuple(map(extreme, zip(*sizes, strict=True))) for extreme in (min, max))
        ends = " to ".join(dict.fromkeys(" × ".join(f"{side:,}" for side in size) for size in (least, most)))
        texts.append(f"{ends} {kind.sample}s")
    noun = "symbol" if signal.values == "symbols" else "channel"
    texts.append(f"{signal.channels:,} {noun}{'s' if signal.channels != 1 else ''}")
    texts += [] if signal.rate is None else [f"{signal.rate:,g} Hz"]
    if drawing is not None and drawing.size is not None:
        texts.append(f"windows of {' × '.join([f'{drawing.size:,}'] * signal.axes)} {kind.sample}s")
    if drawing is not None and drawing.mirror:
        texts.append("half of them mirrored")
    return {
        "data": f"{data.name}: {len(data.train):,} training {kind.items}, {len(data.held_out):,} held out",
        kind.item: ", ".join(texts),
    }


def drawn(data: Data, drawing: Drawing, batch_size: int, seed: int, rank: int, ranks: int, most: int = 0) -> Loader:
    """Creates a loader of windows of training items; shorter sequences are continued by up to ``most`` samples."""
    modality = data.modality
    longest = max((length for (length,) in data.train.sizes), default=0) if data.signal.axes == 1 else 0
    longest = longest if drawing.size is None else min(longest, drawing.size)

    def window(item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        cut = modality.window(item, size, chance)
        length = cut.shape[-1]
        # the second number says where along a second axis, which sequences do not have
        extra = max(0.0, 1 - chance[1] / CONTINUED_SHARE) * min(most, longest - length)
        return modality.padded(cut, length + math.ceil(extra))

    return Loader(
        data.train,
        batch_size,
        window=window if longest else modality.window,
        seed=seed,
        rank=rank,
        world_size=ranks,
        **drawing._asdict(),
    )


def check_sides(config: AdversarialConfig, data: Data, crop: int | None) -> None:
    """Checks that images are large enough for the discriminator, before hours of training.

    Raises:
        ValueError: If the images, or their crops, are too small for the discriminator.
    """
    side = crop if crop is not None else min((min(size) for size in data.train.sizes), default=config.smallest_side)
    if side < config.smallest_side:
        raise ValueError(
            f"'layers' of the discriminator must be fewer for images of {side} pixels, got {config.layers}, which need "
            f"{config.smallest_side}. Use {max(1, side.bit_length() - 1)}."
        )
