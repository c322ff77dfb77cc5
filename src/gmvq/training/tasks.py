"""What is learned: a model, the batches it sees, and what its figures are. The trainer knows how to learn it.

::

    Batch --inputs--> tensors --model--> its answer --outcome--> loss, figures, codes
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq import hub
from gmvq.data import AbstractLoader, CodeLoader, Data, Images, Loader, fingerprint, held_out_batches
from gmvq.models import AdversarialAutoencoder, AdversarialConfig, Autoencoder, DiffusionDecoder
from gmvq.models.adversarial import DISCRIMINATOR, GENERATOR, LEARNING, OPPOSING
from gmvq.networks import Classifier
from gmvq.priors import AbstractPrior, described
from gmvq.training.monitoring import HeldOut
from gmvq.types import Batch, CodeBatch, Reconstruction

Model = TypeVar("Model", bound=nn.Module)
Drawn = TypeVar("Drawn")

WINS, LOSES = 0.98, 0.52
"""Accuracies of a discriminator above and below which it teaches little."""

HELD_OUT_CODES = 1 << 15
"""Codes of the held-out images that are looked at during training."""


class Outcome(NamedTuple):
    """What a forward of a batch gave.

    Attributes:
        loss: What to minimize, ``()``.
        terms: Its parts and other figures to log, detached, each ``()``.
        codes: Codes whose use is counted; None where there is nothing to count.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None


class AbstractTask(ABC, Generic[Model, Drawn]):
    """A model and what it learns from.

    Args:
        model: Trained in place.

    Attributes:
        codebook_size: Number of codes whose use is counted, None for none.
        has_idle_parameters: True if some parameters have no part in some steps.
    """

    codebook_size: int | None = None
    has_idle_parameters: bool = False

    def __init__(self, model: Model) -> None:
        self.model = model

    @abstractmethod
    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> AbstractLoader[Drawn]:
        """Draws the batches of a rank."""

    @abstractmethod
    def inputs(self, batch: Drawn, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
        """What the model is called with."""

    @abstractmethod
    def outcome(self, answer: Any, batch: Drawn) -> Outcome:  # noqa: ANN401 (what the model returns)
        """What the model's answer to a batch says."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What of the model and the data a step depends on, as JSON has it."""

    def layers(self) -> tuple[nn.Module, ...]:
        """The parts of the model whose weights decay, if any do."""
        return (self.model,)

    def clipped_apart(self) -> tuple[nn.Module, ...]:
        """The parts of the model whose gradients are clipped each by its own norm."""
        return (self.model,)

    def averaged(self, figures: dict[str, float | None]) -> dict[str, float | None]:
        """Figures of training for the log, of their means over the steps since the last line."""
        return figures

    def held_out(self, batch_size: int) -> Callable[[Model], dict[str, float | None]] | None:
        """Figures of a model in evaluation mode on held-out data, or None without any."""
        return None

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        """How good held-out figures are, higher is better; None if they do not say."""
        return None

    def advice(self, figures: Mapping[str, float | None]) -> str | None:
        """A warning about figures of training that are not as they should be; None if they are."""
        return None

    def begin(self) -> None:
        """Called before the first step of a start, and undone by :meth:`end`."""

    def end(self) -> None:
        """Called when a start is over, however it ended."""

    def before_step(self, progress: float) -> None:
        """Called before each step, with the progress of training in [0, 1]."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""

    def finish(self, averaged: Model, batches: Iterable[Drawn], to_device: Callable[[Tensor], Tensor]) -> None:
        """Completes the averaged model, by a look at a few batches."""

    @abstractmethod
    def save(self, averaged: Model, out: Path) -> None:
        """Writes the averaged model into the run's folder."""


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
        if accuracy is None or not figures.get("adversarial_weight"):
            return None
        if accuracy > WINS:
            return (
                f"The discriminator tells more than {WINS:.0%} of the patches: its gradient says little then. Give it "
                "less width, or more of the LeCam or R1 regularizer."
            )
        if accuracy < LOSES:
            return (
                f"The discriminator tells less than {LOSES:.0%} of the patches, as if it guessed. Give it more width, "
                "let it start earlier, or look for what is broken in it."
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


class DiffusionTask(AbstractTask[DiffusionDecoder, Batch]):
    """A diffusion decoder, from images through a tokenizer that stays as it is.

    Args:
        decoder: The decoder.
        tokenizer: The tokenizer; a copy of it is used, in evaluation mode.
        data: The images.
        drawing: How they are drawn.
    """

    def __init__(self, decoder: DiffusionDecoder, tokenizer: Autoencoder, data: Data, drawing: Drawing) -> None:
        super().__init__(decoder)
        decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.tokenizer = copy.deepcopy(tokenizer).eval().requires_grad_(False)
        self.data, self.drawing = data, drawing

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        drawing = self.drawing._asdict()
        return Loader(self.data.train, batch_size, seed=seed, rank=rank, world_size=ranks, **drawing)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return self._through(to_device(batch.images))

    def outcome(self, answer: Tensor, batch: Batch) -> Outcome:  # noqa: D102
        return Outcome(answer, {}, None)

    def description(self) -> dict[str, Any]:  # noqa: D102
        data = {"tokenizer": hub.fingerprint(self.tokenizer), "fingerprint": fingerprint(self.data)[:16]}
        return {"model": asdict(self.model.config), "data": data, "drawing": self.drawing._asdict()}

    def held_out(self, batch_size: int) -> Callable[[DiffusionDecoder], dict[str, float | None]] | None:  # noqa: D102
        if not len(self.data.held_out):
            return None
        batches = HeldOut(self.data.held_out, batch_size).batches
        return lambda decoder: {"held_out_loss": self._loss(decoder, batches)}

    def score(self, figures: Mapping[str, float | None]) -> float | None:  # noqa: D102
        loss = figures.get("held_out_loss")
        return None if loss is None else -loss

    def save(self, averaged: DiffusionDecoder, out: Path) -> None:  # noqa: D102
        hub.save_decoder(averaged, hub.fingerprint(self.tokenizer), out)

    def _through(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, what the tokenizer makes of them, and the values that its decoder saw."""
        if next(self.tokenizer.parameters()).device != images.device:
            self.tokenizer.to(images.device)
        reconstructions, values = self.tokenizer.decode_with_values(
            self.tokenizer.encode(images), (images.shape[-2], images.shape[-1])
        )
        return images, reconstructions, values

    @torch.no_grad()
    def _loss(self, decoder: DiffusionDecoder, batches: Iterable[Tensor]) -> float:
        """What a decoder minimizes, with the same noise each time."""
        device, total, images = decoder.scale.device, 0.0, 0
        with same_noise(device):
            for batch in batches:
                total += float(decoder(*self._through(batch.to(device).float() / 255))) * len(batch)
                images += len(batch)
        return total / images


class ClassifierTask(AbstractTask[Classifier, Batch]):
    """A classifier, from labelled images.

    Args:
        classifier: The classifier.
        data: Images with labels, all of one size.
    """

    def __init__(self, classifier: Classifier, data: Data) -> None:
        super().__init__(classifier)
        classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.data = data

    def loader(self, batch_size: int, seed: int, rank: int, ranks: int) -> Loader:  # noqa: D102
        return Loader(self.data.train, batch_size, seed=seed, rank=rank, world_size=ranks)

    def inputs(self, batch: Batch, to_device: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:  # noqa: D102
        return (to_device(batch.images),)

    def outcome(self, answer: Tensor, batch: Batch) -> Outcome:  # noqa: D102
        assert batch.labels is not None
        labels = batch.labels.to(answer.device)
        accuracy = (answer.detach().argmax(1) == labels).float().mean()
        return Outcome(F.cross_entropy(answer, labels), {"accuracy": accuracy}, None)

    def description(self) -> dict[str, Any]:  # noqa: D102
        return {"model": asdict(self.model.config), "data": {"fingerprint": fingerprint(self.data)[:16]}}

    def held_out(self, batch_size: int) -> Callable[[Classifier], dict[str, float | None]] | None:  # noqa: D102
        return lambda classifier: {"accuracy": accuracy_of(classifier, self.data.held_out)}

    def score(self, figures: Mapping[str, float | None]) -> float | None:  # noqa: D102
        return figures.get("accuracy")

    def save(self, averaged: Classifier, out: Path) -> None:  # noqa: D102
        hub.save_classifier(averaged, out)


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Within it, random numbers are the same each time; outside they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@torch.no_grad()
def _loss_of(prior: AbstractPrior, codes: Tensor, labels: Tensor | None, batch_size: int) -> float:
    """What a prior minimizes, over codes, with the same noise each time."""
    total = 0.0
    with same_noise(prior.device):
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            some = codes[part].to(prior.device), None if labels is None else labels[part].to(prior.device)
            total += float(prior(*some)) * len(some[0])
    return total / len(codes)


@torch.no_grad()
def accuracy_of(classifier: Classifier, images: Images) -> float:
    """Share of images whose label a classifier in evaluation mode tells."""
    device = next(classifier.parameters()).device
    right = 0
    for batch in held_out_batches(images, 256):
        assert batch.labels is not None
        right += int((classifier(batch.images.to(device)).argmax(1).cpu() == batch.labels).sum())
    return right / len(images)


class PriorTask(AbstractTask[AbstractPrior, CodeBatch]):
    """A prior, from codes.

    Args:
        prior: The prior; called with codes and labels it returns what to minimize, in nats for each code.
        train: Codes to learn from.
        held_out: Codes to look at now and then.
        tokenizer: Fingerprint of the tokenizer that made them.
        about: What else a step depends on, as JSON has it: what the codes are of.
    """

    def __init__(
        self, prior: AbstractPrior, train: CodeBatch, held_out: CodeBatch, tokenizer: str, about: Mapping[str, Any]
    ) -> None:
        super().__init__(prior)
        for codes, labels in (train, held_out):  # here, once: a look in each step would wait for the GPU
            prior.shape.checked(codes)
            prior.shape.checked_labels(labels, len(codes), codes.device)
        self.train, self.rest, self.tokenizer, self.about = train, held_out, tokenizer, about

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
        number = min(len(self.rest.codes), max(1, HELD_OUT_CODES // self.model.shape.length))
        if not number:
            return None
        places = torch.arange(number) * len(self.rest.codes) // number
        codes, labels = (None if part is None else part[places] for part in self.rest)
        assert codes is not None

        if self.model.has_likelihood:
            return lambda prior: {"bits_per_code": prior.bits_per_code(codes, labels, batch_size)}
        return lambda prior: {"held_out_loss": _loss_of(prior, codes, labels, batch_size)}

    def score(self, figures: Mapping[str, float | None]) -> float | None:  # noqa: D102
        loss = figures.get("bits_per_code" if self.model.has_likelihood else "held_out_loss")
        return None if loss is None else -loss

    def save(self, averaged: AbstractPrior, out: Path) -> None:  # noqa: D102
        hub.save_prior(averaged, self.tokenizer, out)
