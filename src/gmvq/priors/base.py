r"""Distributions of the codes of an item: p(codes), and draws from it.

The codes of an item are on a grid, one or several at each place. Read in an order, with the levels of a place next to
each other, they are a sequence of S codes:

.. math:: \log p(c) = \sum_{s=1}^{S} \log p(c_s \mid c_1, \dots, c_{s-1}, y)

::

    codes (B, *grid[, levels]) <--order--> sequence (B, S) --Reader: probabilities, add--> nats, new codes, bits

A prior gets codes only, never items. Log-likelihoods are in nats per item.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.checks import at_least
from gmvq.priors.orders import OrderName, places_in_order
from gmvq.priors.sampling import Sampling, inverted
from gmvq.priors.shapes import CodeShape, Integers, as_tensor


class NoLikelihoodError(TypeError):
    """The prior draws codes but has no likelihood of given codes."""


class Reader(ABC):
    """Reads the codes of a batch one after another, and predicts each from those before it."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Unnormalized log-probabilities of the next code of each item, ``(B, K)``."""

    @abstractmethod
    def add(self, codes: Tensor) -> None:
        """Reads the next code of each item, int64 ``(B,)``."""


class AbstractPrior(nn.Module, ABC):
    """A distribution of the codes of an item.

    Args:
        shape: Shape of the codes.

    Attributes:
        citations: Keys of its sources in the bibliography.
        has_likelihood: True if :meth:`log_prob` is defined.
    """

    citations: ClassVar[tuple[str, ...]] = ()
    has_likelihood: ClassVar[bool] = True

    def __init__(self, shape: CodeShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Log-likelihood in nats.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for the distribution over all classes.

        Returns:
            Nats per item, ``(B,)``.

        Raises:
            ValueError: If codes or labels do not fit.
            NoLikelihoodError: If the prior has no likelihood.
        """

    def sample(
        self, number: int, labels: Integers | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws codes.

        Args:
            number: Number of items B.
            labels: Class of each item ``(B,)``; None for no class.
            sampling: Temperature, guidance, seed and so on; by default, draws from the model's distribution.
            first: Index of the first item: item i has the same random numbers in any batch.

        Returns:
            Int64 ``(B, *grid[, levels])``.

        Raises:
            ValueError: If labels do not fit, or guidance is given without them.
        """
        at_least("number", number, 0, "Say how many to draw.")
        unknown = torch.full((number, *self.shape.axes), -1, device=self.device)
        return self.complete(unknown, labels, sampling, first=first)

    @abstractmethod
    def complete(
        self, known: Integers, labels: Integers | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws the unknown codes.

        Args:
            known: Int64 ``(B, *grid[, levels])`` with -1 for codes to draw.
            labels: Class of each item ``(B,)``; None for no class.
            sampling: Temperature, guidance, seed and so on; by default, draws from the model's distribution.
            first: Index of the first item, for its random numbers.

        Returns:
            Int64 ``(B, *grid[, levels])``, with the known codes unchanged.

        Raises:
            ValueError: If known codes or labels do not fit, or guidance is given without labels.
        """

    def quick_log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """:meth:`log_prob`, or a lower bound of it where that takes many passes: nats per item ``(B,)``."""
        return self.log_prob(codes, labels)

    @torch.no_grad()
    def bits_per_code(self, codes: Integers, labels: Integers | None = None, batch_size: int = 64) -> float:
        """Mean length of a code in bits, by :meth:`quick_log_prob`.

        Args:
            codes: Int64 ``(N, *grid[, levels])``, of at least one item, on any device.
            labels: Class of each item ``(N,)``; None for no class.
            batch_size: Items at a time.

        Raises:
            ValueError: If codes or labels do not fit, or there are no codes.
        """
        at_least("batch_size", batch_size, 1, "Use 64.")
        codes = as_tensor("codes", codes)
        labels = self.shape.checked_labels(labels, len(codes), codes.device)
        if not len(codes):
            raise ValueError("'codes' must be of at least one item, got none. Give held-out codes.")
        nats = 0.0
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            some = codes[part].to(self.device), None if labels is None else labels[part].to(self.device)
            nats -= float(self.quick_log_prob(*some).sum(dtype=torch.float64))
        return nats / (len(codes) * self.shape.length * math.log(2))

    def _to_complete(
        self, known: Integers, labels: Integers | None, sampling: Sampling
    ) -> tuple[Tensor, Tensor | None]:
        """Checked codes, with -1 for codes to draw, and checked labels, both on the prior's device."""
        known = as_tensor("known", known)
        drawn = known < 0
        checked = self.shape.checked(known.masked_fill(drawn, 0)).masked_fill(drawn, -1)
        labels = self.shape.checked_labels(labels, len(known), self.device)
        if labels is None and sampling.needs_both:
            raise ValueError(f"'guidance' must be 1 without labels, got {sampling.guidance}. Give labels, too.")
        return checked.to(self.device), labels

    @property
    def device(self) -> torch.device:
        """Device of the prior."""
        tensor = next(iter(self.parameters()), None)
        tensor = next(iter(self.buffers())) if tensor is None else tensor
        return tensor.device


class AbstractSequentialPrior(AbstractPrior):
    """A prior that predicts each code from those before it in an order.

    Args:
        shape: Shape of the codes.
        order: Order of the places.
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
        """Inverts :meth:`sequence`: ``(B, S)`` -> ``(B, *grid[, levels])``."""
        by_place = sequence.reshape(len(sequence), self.shape.places, self.shape.levels)
        return by_place[:, self.inverse].reshape(len(sequence), *self.shape.axes)

    def reader(self, batch: int, labels: Integers | None = None) -> Reader:
        """Makes a reader of a batch, at its first code.

        Args:
            batch: Number of items B.
            labels: Class of each item ``(B,)``; None for no class.

        Raises:
            ValueError: If labels do not fit.
        """
        at_least("batch", batch, 0, "Give the number of items.")
        return self._reader(batch, self.shape.checked_labels(labels, batch, self.device))

    @abstractmethod
    def _reader(self, batch: int, labels: Tensor | None) -> Reader:
        """Makes a reader; labels are checked and on the prior's device."""

    @torch.no_grad()
    def next_probabilities(self, known: Integers, labels: Integers | None = None) -> Tensor:
        """Distribution of the next code, given the first codes of the sequence.

        Args:
            known: Int64 ``(B, s)``, the first s codes as :meth:`sequence` orders them, s below S.
            labels: Class of each item ``(B,)``; None for no class.

        Returns:
            Probabilities ``(B, K)``, with K of the next code's level.

        Raises:
            ValueError: If there is no next code, or labels do not fit.
        """
        known = as_tensor("known", known)
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
        reader = self.reader(len(known), labels)
        for codes in known.unbind(1):
            reader.logits()
            reader.add(codes)
        return reader.logits().float().softmax(-1)

    def complete(  # noqa: D102
        self, known: Integers, labels: Integers | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        return self.complete_in_order(known, labels, sampling, first=first)

    @torch.no_grad()
    def complete_in_order(
        self, known: Integers, labels: Integers | None = None, sampling: Sampling | None = None, *, first: int = 0
    ) -> Tensor:
        """Draws the unknown codes one by one, each given all before it in the order.

        If no code is known, draws have the distribution of :meth:`log_prob`. Arguments, result and errors are those of
        :meth:`complete`.
        """
        sampling = Sampling() if sampling is None else sampling
        known, labels = self._to_complete(known, labels, sampling)
        sequence = self.sequence(known)
        uniforms = sampling.uniforms(first, len(sequence), self.shape.length, self.device)
        readers = [self._reader(len(sequence), each) for each in sampling.conditions(labels)]
        for step in range(self.shape.length):
            logits = [reader.logits() for reader in readers]
            guided = sampling.guided(*logits) if len(logits) == 2 else logits[0]
            drawn = inverted(sampling.probabilities(guided), uniforms[:, step])
            codes = torch.where(sequence[:, step] >= 0, sequence[:, step], drawn)
            sequence[:, step] = codes
            for reader in readers:
                reader.add(codes)
        return self.codes_of(sequence)
