"""Metrics during training: of the steps, and of a sample of held-out items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from gmvq.data import Items, central, evenly_spaced
from gmvq.evaluation import levels_counted, use_of
from gmvq.metrics import CompositeStatistics, countable, counted
from gmvq.metrics.counting import CodeCounts
from gmvq.models import Autoencoder
from gmvq.types import Signal

HELD_OUT_SAMPLES = 1 << 19
"""Total samples of the held-out items that are evaluated during training."""

HELD_OUT_PART = 1 << 16
"""Samples of the central part evaluated in place of a larger item during training: 256 x 256 pixels."""

OVERFLOWS = 50
"""With fp16, steps with overflowing gradients are skipped and the loss scaled down; this many in a row are an error."""

GRADIENT = "gradient_norm"


class NonFiniteLossError(ArithmeticError):
    """The loss, one of its terms, a gradient or a weight has become infinite or NaN.

    Args:
        step: The step, counted from 1.
        terms: Names of the values that are not finite.
        remedy: Advice for the user.
    """

    def __init__(self, step: int, terms: tuple[str, ...], remedy: str = "") -> None:
        self.step, self.terms = step, terms
        names = ", ".join(f"'{term}'" for term in terms)
        super().__init__(f"Training stopped at step {step}: {names} not finite. {remedy}".rstrip())


class StepMetrics(NamedTuple):
    """Metrics of one step, still on their device.

    Attributes:
        values: Scalars by name, each ``()``.
        codes: Codes of the step's tokens, or the means of a continuous bottleneck.
    """

    values: dict[str, Tensor]
    codes: tuple[Tensor, ...]


class Window:
    """Metrics of the steps since the last line of the log.

    They stay on their device until the line is written: reading a number earlier would wait for all queued work.

    Args:
        accelerator: Accelerator of the run, which communicates with other ranks.
        codebook_sizes: Number of codes K at each level of a token, None for a continuous bottleneck.
        allow_overflow: True with fp16, where gradients may be infinite now and then.
    """

    def __init__(
        self, accelerator: Accelerator, codebook_sizes: tuple[int, ...] | None, *, allow_overflow: bool = False
    ) -> None:
        self.accelerator = accelerator
        self.allow_overflow = allow_overflow
        self.names: tuple[str, ...] = ()
        self.rows: list[Tensor] = []
        self.first_step = 1
        self.sizes = codebook_sizes or ()
        self.counts = [CodeCounts(size, accelerator.device) for size in (countable(self.sizes) if self.sizes else ())]

    def add(self, metrics: StepMetrics) -> None:
        """Adds the metrics of the next step."""
        self.names = tuple(metrics.values)
        self.rows.append(torch.stack([value.detach().float() for value in metrics.values.values()]))
        for codes in metrics.codes if self.counts else ():
            for counts, own in zip(self.counts, counted(codes, self.sizes).unbind(-1), strict=True):
                counts.add(own)

    def check_last(self) -> None:
        """Checks that the last step is finite on this rank; waits for the device.

        Raises:
            NonFiniteLossError: If it is not.
        """
        last = self.rows[-1]
        if not bool(last.isfinite().all()):
            self._raise_for(last[None], self.first_step + len(self.rows) - 1)

    def check(self) -> None:
        """Checks that all steps of the window are finite on all ranks; waits for the device.

        Raises:
            NonFiniteLossError: For the first step that is not.
        """
        if self.rows:
            self._raise_for(self._over_ranks(), self.first_step)

    def take(self) -> dict[str, float | None]:
        """Returns means over the window's steps and all ranks, with the code usage, and starts the next window."""
        rows = self._over_ranks()
        finite = rows.isfinite()  # overflows of fp16 are excluded from the mean
        means = (rows.nan_to_num(0, 0, 0).sum(0) / finite.sum(0)).tolist()
        metrics: dict[str, float | None] = dict(zip(self.names, means, strict=True))
        if self.counts:
            statistics = CompositeStatistics([counts.codebook_size for counts in self.counts])
            for place, counts in zip(statistics.places, self.counts, strict=True):
                place.code_counts = counts.merged()
            use = use_of(statistics)
            metrics |= {"perplexity": use["perplexity"], "used_codes": use["used_codes"]}
        self._begin(self.first_step + len(self.rows))
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Returns the metrics of all ranks for a checkpoint."""
        tensors = self._counted()
        if not self.rows:
            return tensors
        columns = self._over_ranks().T
        # numbered, since safetensors does not keep their order
        return tensors | {f"{i:03d}.{name}": columns[i] for i, name in enumerate(self.names)}

    def _counted(self) -> dict[str, Tensor]:
        tensors = {}
        for place, counts in enumerate(self.counts):
            merged = counts.merged()
            tensors[f"counts.{place}"] = merged.counts if merged.is_dense else merged.times
            if not merged.is_dense:
                tensors[f"codes.{place}"] = merged.seen
        return tensors

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restores the result of :meth:`tensors` after ``step`` finished steps."""
        keys = sorted(key for key in tensors if key.split(".", 1)[0] not in ("counts", "codes"))
        self.names = tuple(key.split(".", 1)[1] for key in keys)
        rows = torch.stack([tensors[key] for key in keys], dim=1) if keys else torch.empty(0, 0)
        self._begin(step - len(rows) + 1)
        self.rows = list(rows.to(self.accelerator.device))
        if self.accelerator.is_main_process:  # the first rank has the counts of all ranks
            for place, counts in enumerate(self.counts):
                counts.place(tensors[f"counts.{place}"], tensors.get(f"codes.{place}"))

    def _begin(self, first_step: int) -> None:
        self.first_step = first_step
        self.rows = []
        for counts in self.counts:
            counts.clear()

    def _over_ranks(self) -> Tensor:
        """Averages the rows over ranks, ``(steps, metrics)``; a value is finite only if it is finite on all of them."""
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


class HeldOut:
    """A fixed sample of the held-out items for repeated evaluation during training.

    The items are evenly spaced over the set; large ones are replaced by their central part.

    Args:
        items: Held-out items.
        signal: Type and shape of their tensors.
        batch_size: Largest number of items in a batch.
    """

    def __init__(self, items: Items, signal: Signal, batch_size: int) -> None:
        side = None if signal.axes == 0 else round(HELD_OUT_PART ** (1 / signal.axes))
        groups: dict[tuple[int, ...], list[Tensor]] = {}
        for index in _spread(items):
            item = items[index] if side is None else central(items[index], signal.axes, side)
            groups.setdefault(tuple(item.shape), []).append(item)
        self.batches = [part for group in groups.values() for part in torch.stack(group).split(batch_size)]

    @torch.no_grad()
    def measure(self, model: Autoencoder) -> dict[str, float | None]:
        """Computes quick metrics of hard codes, and the codebook usage.

        Args:
            model: The model in evaluation mode.
        """
        distortion = model.modality.distortion(quick=True)
        statistics = None if model.codebook_size is None else CompositeStatistics(countable(model.level_sizes))
        for batch in self.batches:
            items = model.signal.checked(batch.to(model.device))
            codes = model.encode(items)
            distortion.update(model.decode(codes, model.signal.size(items)), items)
            if statistics is not None:
                statistics.update(levels_counted(model, codes))
        metrics = distortion.metrics()
        if statistics is not None:
            use = use_of(statistics)
            metrics |= {name: use[name] for name in ("perplexity", "usage", "used_codes")}
            metrics["tokens"] = statistics.places[0].total
        return metrics


def _culprits(names: tuple[str, ...], wrong: list[bool]) -> tuple[str, ...]:
    """Selects which non-finite values to name: terms rather than their sum, the sum rather than its gradient."""
    found = [name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong]
    terms = tuple(name for name in found if name not in ("loss", GRADIENT))
    return terms or (("loss",) if "loss" in found else ("gradient norm",))


def _spread(items: Items) -> list[int]:
    """Returns indices of evenly spaced items that have about ``HELD_OUT_SAMPLES`` samples in total."""
    sizes = items.sizes
    side = round(HELD_OUT_PART ** (1 / max(1, items.axes)))
    mean = sum(math.prod(min(length, side) for length in size) for size in sizes) / max(1, len(sizes))
    return evenly_spaced(len(sizes), max(1, int(HELD_OUT_SAMPLES / max(1.0, mean))))
