"""What a run tells of itself: figures of its steps, and of a few held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from gmvq.data import Images, evenly_spaced
from gmvq.metrics import CodebookStatistics, Distortion
from gmvq.metrics.counting import CodeCounts
from gmvq.models import Autoencoder

HELD_OUT_PIXELS = 1 << 19
"""Pixels of the held-out images that are looked at during training."""

HELD_OUT_SIDE = 256
"""Side in pixels of the central crop that stands for a larger image during training."""

OVERFLOWS = 50
"""With fp16 a gradient that overflows is skipped and the loss scaled down; this many in a row do not come from that."""

GRADIENT = "gradient_norm"


class NonFiniteLossError(ArithmeticError):
    """The loss, a part of it, a gradient or a weight has become infinite or NaN.

    Args:
        step: The step, counted from 1.
        terms: What is not finite.
        remedy: What to do.
    """

    def __init__(self, step: int, terms: tuple[str, ...], remedy: str = "") -> None:
        self.step, self.terms = step, terms
        names = ", ".join(f"'{term}'" for term in terms)
        super().__init__(f"Training stopped at step {step}: {names} not finite. {remedy}".rstrip())


class Figures(NamedTuple):
    """Figures of one step, still where they were computed.

    Attributes:
        values: Scalars by name, each ``()``.
        codes: Codes of the step's tokens, or means for a continuous bottleneck.
    """

    values: dict[str, Tensor]
    codes: tuple[Tensor, ...]


class Window:
    """The figures of the steps since the last line of the log.

    They stay on their device until the line is written: reading a number there would wait for all work before it.

    Args:
        accelerator: Knows the other ranks.
        codebook_size: Number of codes K, None for a continuous bottleneck.
        allow_overflow: True with fp16, where gradients may be infinite now and then.
    """

    def __init__(self, accelerator: Accelerator, codebook_size: int | None, *, allow_overflow: bool = False) -> None:
        self.accelerator = accelerator
        self.allow_overflow = allow_overflow
        self.names: tuple[str, ...] = ()
        self.rows: list[Tensor] = []
        self.first_step = 1
        self.counts = CodeCounts(codebook_size, accelerator.device) if codebook_size else None

    def add(self, figures: Figures) -> None:
        """Takes the figures of the next step."""
        self.names = tuple(figures.values)
        self.rows.append(torch.stack([value.detach().float() for value in figures.values.values()]))
        if self.counts is not None:
            for codes in figures.codes:
                self.counts.add(codes)

    def check_last(self) -> None:
        """Stops if the last step is not finite on this rank; it waits for the device.

        Raises:
            NonFiniteLossError: If so.
        """
        last = self.rows[-1]
        if not bool(last.isfinite().all()):
            self._raise_for(last[None], self.first_step + len(self.rows) - 1)

    def check(self) -> None:
        """Stops if any step of the window is not finite on any rank; it waits for the device.

        Raises:
            NonFiniteLossError: For the first such step.
        """
        if self.rows:
            self._raise_for(self._over_ranks(), self.first_step)

    def take(self) -> dict[str, float | None]:
        """Means over the window's steps and all ranks, with PSNR and the use of the codes; the next window begins."""
        rows = self._over_ranks()
        finite = rows.isfinite()  # an overflow of fp16 has no part in the mean
        means = (rows.nan_to_num(0, 0, 0).sum(0) / finite.sum(0)).tolist()
        figures: dict[str, float | None] = dict(zip(self.names, means, strict=True))
        if "mse" in figures:
            figures["psnr"] = decibels(figures["mse"])
        if self.counts is not None:
            statistics = CodebookStatistics(self.counts.codebook_size)
            statistics.code_counts = self.counts.merged()
            figures |= {"perplexity": statistics.perplexity, "used_codes": statistics.used}
        self._begin(self.first_step + len(self.rows))
        return figures

    def tensors(self) -> dict[str, Tensor]:
        """What all ranks have collected, for a checkpoint."""
        tensors = self._counted()
        if not self.rows:
            return tensors
        columns = self._over_ranks().T
        # numbered, since safetensors forgets their order
        return tensors | {f"{i:03d}.{name}": columns[i] for i, name in enumerate(self.names)}

    def _counted(self) -> dict[str, Tensor]:
        if self.counts is None:
            return {"counts": torch.zeros(0, dtype=torch.int64)}
        merged = self.counts.merged()
        return {"counts": merged.counts} if merged.is_dense else {"counts": merged.times, "codes": merged.seen}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Goes on after ``step`` finished steps from what :meth:`tensors` gave."""
        keys = sorted(key for key in tensors if key not in ("counts", "codes"))
        self.names = tuple(key.split(".", 1)[1] for key in keys)
        rows = torch.stack([tensors[key] for key in keys], dim=1) if keys else torch.empty(0, 0)
        self._begin(step - len(rows) + 1)
        self.rows = list(rows.to(self.accelerator.device))
        if self.accelerator.is_main_process and self.counts is not None:  # the counts of all ranks are with the first
            self.counts.place(tensors["counts"], tensors.get("codes"))

    def _begin(self, first_step: int) -> None:
        self.first_step = first_step
        self.rows = []
        if self.counts is not None:
            self.counts.clear()

    def _over_ranks(self) -> Tensor:
        """The rows, averaged over ranks, ``(steps, figures)``: what is not finite on one is not finite here."""
        rows = self.accelerator.reduce(torch.stack(self.rows), "mean")
        assert isinstance(rows, Tensor)
        return rows

    def _raise_for(self, rows: Tensor, first_step: int) -> None:
        wrong = ~rows.isfinite().cpu()
        if self.allow_overflow:
            overflowed = wrong[:, self.names.index(GRADIENT)]
            if len(overflowed) < OVERFLOWS or not bool(overflowed[-OVERFLOWS:].all()):
                wrong &= torch.tensor([name != GRADIENT for name in self.names])
        steps = wrong.any(1).nonzero().flatten().tolist()
        if steps:
            raise NonFiniteLossError(first_step + steps[0], _culprits(self.names, wrong[steps[0]].tolist()))


def decibels(mean_squared_error: float | None) -> float | None:
    """PSNR in dB of a mean squared error of images in [0, 1]; None if it is not above 0."""
    return -10 * math.log10(mean_squared_error) if mean_squared_error else None


class HeldOut:
    """A fixed part of the held-out images, small enough to be looked at again and again.

    Images are spread evenly over the set, large ones stand for themselves with their central crop.

    Args:
        images: Held-out images.
        batch_size: Most images in a batch.
    """

    def __init__(self, images: Images, batch_size: int) -> None:
        groups: dict[tuple[int, int], list[Tensor]] = {}
        for index in _spread(images):
            image = _central_crop(images[index], HELD_OUT_SIDE)
            groups.setdefault((image.shape[1], image.shape[2]), []).append(image)
        self.batches = [part for group in groups.values() for part in torch.stack(group).split(batch_size)]

    @torch.no_grad()
    def measure(self, model: Autoencoder) -> dict[str, float | None]:
        """PSNR (dB) and MSE of hard codes, and the use of the codebook.

        Args:
            model: In evaluation mode.
        """
        distortion = Distortion(structure=False)
        statistics = CodebookStatistics(model.codebook_size) if model.codebook_size else None
        device = next(model.parameters()).device
        for batch in self.batches:
            images = batch.to(device).float() / 255
            codes = model.encode(images)
            distortion.update(model.decode(codes, (images.shape[2], images.shape[3])), images)
            if statistics is not None:
                statistics.update(codes)
        figures: dict[str, float | None] = {"psnr": distortion.psnr, "mse": distortion.mse}
        if statistics is not None:
            figures |= {"perplexity": statistics.perplexity, "usage": statistics.usage, "used_codes": statistics.used}
        return figures


def _culprits(names: tuple[str, ...], wrong: list[bool]) -> tuple[str, ...]:
    """What to name of all that is not finite: the terms before their sum, the sum before its gradient."""
    found = [name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong]
    terms = tuple(name for name in found if name not in ("loss", GRADIENT))
    return terms or (("loss",) if "loss" in found else ("gradient norm",))


def _spread(images: Images) -> list[int]:
    """Indices of images, evenly spaced, that have about ``HELD_OUT_PIXELS`` together."""
    sizes = images.sizes
    mean = sum(min(h, HELD_OUT_SIDE) * min(w, HELD_OUT_SIDE) for h, w in sizes) / max(1, len(sizes))
    return evenly_spaced(len(sizes), max(1, int(HELD_OUT_PIXELS / max(1.0, mean))))


def _central_crop(image: Tensor, side: int) -> Tensor:
    top, left = max(0, (image.shape[1] - side) // 2), max(0, (image.shape[2] - side) // 2)
    return image[:, top : top + side, left : left + side]
