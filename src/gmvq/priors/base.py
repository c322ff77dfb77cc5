r"""What is known of codes before the image: p(codes), and draws from it.

Codes of an image stand on a grid, one or several at each place. Read in an order, with the levels of a place next to
each other, they are a sequence of S codes:

.. math:: \log p(c) = \sum_{s=1}^{S} \log p(c_s \mid c_1, \dots, c_{s-1}, y)

::

    codes (B, *grid[, levels]) <--order--> sequence (B, S) --Reader: probabilities, add--> nats, new codes, bits

A prior knows nothing of images. Log-likelihoods are in nats for each image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.priors.orders import OrderName, places_in_order
from gmvq.priors.sampling import Sampling, inverted


@dataclass(frozen=True)
class CodeShape:
    """What codes a prior is of.

    Args:
        grid: Places along each axis, 1 or 2 of them.
        codebook_sizes: Number of codes K at each level of a place; one level has no axis of its own.
        classes: Number of classes that codes may be conditioned on, 0 for none.

    Raises:
        ValueError: If a number is not at least 1 (0 for classes).
    """

    grid: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    classes: int = 0

    def __post_init__(self) -> None:
        for name in ("grid", "codebook_sizes"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)  # JSON gives lists
            if not values or any(
                isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values
            ):
                raise ValueError(f"'{name}' must be integers of at least 1, got {values}. Give for example (8, 8).")
        if len(self.grid) > 2:
            raise ValueError(f"'grid' must have 1 or 2 axes, got {self.grid}. Flatten the others.")
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 0:
            raise ValueError(f"'classes' must be an integer of at least 0, got {self.classes!r}. Use 0 for none.")

    @property
    def levels(self) -> int:
        """Codes of each place."""
        return len(self.codebook_sizes)

    @property
    def places(self) -> int:
        """Places of the grid, T."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Codes of an image, S."""
        return self.places * self.levels

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the codes of one image."""
        return (*self.grid, self.levels) if self.levels > 1 else self.grid

    def checked(self, codes: Tensor, *, ranges: bool = True) -> Tensor:
        """Codes as int64 ``(B, *axes)``.

        Args:
            codes: Integers of any type.
            ranges: Look at the codes themselves, too, for which a GPU must wait.

        Raises:
            ValueError: If they are not integers of these axes, or outside their codebooks.
        """
        if codes.is_floating_point() or codes.dtype == torch.bool or tuple(codes.shape[1:]) != self.axes:
            raise ValueError(
                f"'codes' must be integers of shape (B, {', '.join(map(str, self.axes))}), got {codes.dtype} "
                f"{tuple(codes.shape)}. Pass what the tokenizer's encode() returned."
            )
        codes = codes.long()
        if ranges and codes.numel():
            sizes = torch.tensor(self.codebook_sizes, device=codes.device)
            by_level = codes.reshape(-1, self.levels)
            if bool((by_level < 0).any()) or bool((by_level >= sizes).any()):
                raise ValueError(
                    f"'codes' must lie in [0, {', '.join(map(str, self.codebook_sizes))}), got {int(codes.min())} to "
                    f"{int(codes.max())}. Masked codes have no likelihood: leave such images out."
                )
        return codes

    def checked_labels(
        self, labels: Tensor | None, batch: int, device: torch.device, *, ranges: bool = True
    ) -> Tensor | None:
        """Labels as int64 ``(B,)`` on a device, or None.

        Args:
            labels: Integers of any type.
            batch: How many they must be.
            device: Where to.
            ranges: Look at the labels themselves, too, for which a GPU must wait.

        Raises:
            ValueError: If there are labels without classes, they are not one integer for each image, or out of range.
        """
        if labels is None:
            return None
        if not self.classes:
            raise ValueError("'labels' must be None for a prior without classes. Leave them out, or fit one with them.")
        if labels.is_floating_point() or labels.shape != (batch,):
            raise ValueError(
                f"'labels' must be {batch} integers, got {labels.dtype} {tuple(labels.shape)}. Give one for each image."
            )
        if ranges and batch and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"'labels' must lie in [0, {self.classes}), got {int(labels.min())} to {int(labels.max())}. Check them."
            )
        return labels.long().to(device)


class NoLikelihoodError(TypeError):
    """The prior draws codes and does not say how likely given ones are."""


class Reader(ABC):
    """Codes of some images, one after the other: what is likely next, given those that came before."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Unnormalized log-probabilities of the next code of each image ``(B, K)``."""

    @abstractmethod
    def add(self, codes: Tensor) -> None:
        """Takes the next code of each image in, int64 ``(B,)``."""


class AbstractPrior(nn.Module, ABC):
    """A distribution of the codes of an image.

    Args:
        shape: What codes it is of.

    Attributes:
        citations: Keys of its sources in the bibliography.
        has_likelihood: True if :meth:`log_prob` gives one.
    """

    citations: ClassVar[tuple[str, ...]] = ()
    has_likelihood: ClassVar[bool] = True

    def __init__(self, shape: CodeShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def log_prob(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-likelihood in nats.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each image ``(B,)``; None for a distribution over all classes.

        Returns:
            Nats for each image, ``(B,)``.

        Raises:
            ValueError: If codes or labels do not fit.
            NoLikelihoodError: If the prior has none.
        """

    def sample(
        self, number: int, labels: Tensor | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws codes.

        Args:
            number: Images B.
            labels: Class of each ``(B,)``; None for none.
            sampling: How; as the model says, by default.
            first: Number of the first image: its random numbers are those that it has in any batch.

        Returns:
            Int64 ``(B, *grid[, levels])``.

        Raises:
            ValueError: If labels do not fit, or guidance is asked for without them.
        """
        if type(number) is not int or number < 0:
            raise ValueError(f"'number' must be an integer of at least 0, got {number!r}. Say how many to draw.")
        unknown = torch.full((number, *self.shape.axes), -1, device=self.device)
        return self.complete(unknown, labels, sampling, first=first)

    @abstractmethod
    def complete(
        self, known: Tensor, labels: Tensor | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws the codes that are not known.

        Args:
            known: Int64 ``(B, *grid[, levels])`` with -1 where a code is to be drawn.
            labels: Class of each image ``(B,)``; None for none.
            sampling: How; as the model says, by default.
            first: Number of the first image, for its random numbers.

        Returns:
            Int64 ``(B, *grid[, levels])``, the known codes as they were.

        Raises:
            ValueError: If known codes or labels do not fit, or guidance is asked for without labels.
        """

    def quick_log_prob(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, or a bound of it from below where that takes many passes: nats for each image ``(B,)``."""
        return self.log_prob(codes, labels)

    @torch.no_grad()
    def bits_per_code(self, codes: Tensor, labels: Tensor | None = None, batch_size: int = 64) -> float:
        """Mean length of a code in bits, by :meth:`quick_log_prob`.

        Args:
            codes: Int64 ``(N, *grid[, levels])``, of at least one image, on any device.
            labels: Class of each image ``(N,)``; None for none.
            batch_size: Images at a time.

        Raises:
            ValueError: If codes or labels do not fit.
        """
        nats = 0.0
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            some = codes[part].to(self.device), None if labels is None else labels[part].to(self.device)
            nats -= float(self.quick_log_prob(*some).sum(dtype=torch.float64))
        return nats / (len(codes) * self.shape.length * math.log(2))

    def _to_complete(self, known: Tensor, labels: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
        """Checked codes with -1 where one is to be drawn, and checked labels, where the prior is."""
        drawn = known < 0
        checked = self.shape.checked(known.masked_fill(drawn, 0)).masked_fill(drawn, -1)
        labels = self.shape.checked_labels(labels, len(known), self.device)
        if labels is None and sampling.needs_both:
            raise ValueError(f"'guidance' must be 1 without labels, got {sampling.guidance}. Give labels.")
        return checked.to(self.device), labels

    @property
    def device(self) -> torch.device:
        """Where the prior's numbers are."""
        tensor = next(iter(self.parameters()), None)
        tensor = next(iter(self.buffers())) if tensor is None else tensor
        return tensor.device


class AbstractSequentialPrior(AbstractPrior):
    """A prior that says each code given those before it, in an order.

    Args:
        shape: What codes it is of.
        order: The order of the places.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, shape: CodeShape, order: OrderName = "raster") -> None:
        super().__init__(shape)
        places = places_in_order(order, shape.grid)
        self.register_buffer("order", places, persistent=False)
        self.register_buffer("inverse", places.argsort(), persistent=False)

    def sequence(self, codes: Tensor) -> Tensor:
        """Codes in order, the levels of a place next to each other: ``(B, *grid[, levels])`` -> ``(B, S)``."""
        return codes.reshape(len(codes), self.shape.places, self.shape.levels)[:, self.order].flatten(1)

    def codes_of(self, sequence: Tensor) -> Tensor:
        """What :meth:`sequence` was made of: ``(B, S)`` -> ``(B, *grid[, levels])``."""
        by_place = sequence.reshape(len(sequence), self.shape.places, self.shape.levels)
        return by_place[:, self.inverse].reshape(len(sequence), *self.shape.axes)

    @abstractmethod
    def reader(self, batch: int, labels: Tensor | None = None) -> Reader:
        """A reader of some images that has seen nothing yet.

        Args:
            batch: Images B.
            labels: Class of each ``(B,)``; None for none.
        """

    @torch.no_grad()
    def next_probabilities(self, known: Tensor, labels: Tensor | None = None) -> Tensor:
        """Distribution of the next code, given the first codes of the sequence.

        Args:
            known: Int64 ``(B, s)``, the first s codes as :meth:`sequence` orders them, s below S.
            labels: Class of each image ``(B,)``; None for none.

        Returns:
            Probabilities ``(B, K)``, K that of the next code's level.

        Raises:
            ValueError: If there is no next code, or labels do not fit.
        """
        if known.ndim != 2 or known.shape[1] >= self.shape.length:
            raise ValueError(
                f"'known' must be (B, s) with s below {self.shape.length}, got {tuple(known.shape)}. Give the first "
                "codes of sequence(codes)."
            )
        for step, codes in enumerate(known.unbind(1)):
            size = self.shape.codebook_sizes[step % self.shape.levels]
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
                raise ValueError(f"'known' must lie in [0, {size}) at its code {step}. Give codes of the codebook.")
        known = known.long().to(self.device)
        reader = self.reader(len(known), self.shape.checked_labels(labels, len(known), self.device))
        for codes in known.unbind(1):
            reader.logits()
            reader.add(codes)
        return reader.logits().float().softmax(-1)

    def complete(  # noqa: D102
        self, known: Tensor, labels: Tensor | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        return self.complete_in_order(known, labels, sampling, first=first)

    @torch.no_grad()
    def complete_in_order(
        self, known: Tensor, labels: Tensor | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws the codes that are not known one by one, each given all that come before it in the order.

        What it draws is distributed as :meth:`log_prob` says, where nothing is known. Arguments, result and errors are
        those of :meth:`complete`.
        """
        sampling = Sampling() if sampling is None else sampling
        known, labels = self._to_complete(known, labels, sampling)
        sequence = self.sequence(known)
        uniforms = sampling.uniforms(first, len(sequence), self.shape.length, self.device)
        readers = [self.reader(len(sequence), each) for each in sampling.conditions(labels)]
        for step in range(self.shape.length):
            logits = [reader.logits() for reader in readers]
            guided = sampling.guided(*logits) if len(logits) == 2 else logits[0]
            drawn = inverted(sampling.probabilities(guided), uniforms[:, step])
            codes = torch.where(sequence[:, step] >= 0, sequence[:, step], drawn)
            sequence[:, step] = codes
            for reader in readers:
                reader.add(codes)
        return self.codes_of(sequence)
