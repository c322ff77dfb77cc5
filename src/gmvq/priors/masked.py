r"""A transformer that sees some codes and says the others, all at once: drawn in a few steps, completed anywhere.

Learning hides n of the S codes. With n uniform in 1, ..., S and any n of them, the weighted sum

.. math::
    -\log p(c) \le \mathbb{E}_n \Big[ \tfrac{S}{n} \sum_{s \text{ hidden}} -\log p(c_s \mid \text{the shown}, y) \Big]

is the bound of autoregression in a random order, and of absorbing diffusion (``weighting="bound"``). MaskGIT hides
:math:`\cos(\pi u / 2)` of the codes with u uniform and takes the mean over the hidden ones (``weighting="mean"``),
which bounds nothing and makes better pictures in few steps.

Drawing goes the other way: all codes are hidden; in each step every hidden code is drawn, and those drawn with most
confidence stay. With one code in each step, in a given order, this is autoregression, whose likelihood is exact:
that is what :meth:`MaskedPrior.log_prob` says.

References:
    MaskGIT: Masked Generative Image Transformer (Chang et al., 2022), https://arxiv.org/abs/2202.04200;
    Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021),
    https://arxiv.org/abs/2107.03006; Autoregressive Diffusion Models (Hoogeboom et al., 2022),
    https://arxiv.org/abs/2110.02037; Simple and Effective Masked Diffusion Language Models (Sahoo et al., 2024),
    https://arxiv.org/abs/2406.07524
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.checks import at_least, one_of
from gmvq.networks.layers import even_times
from gmvq.networks.transformer import Transformer, initialize
from gmvq.priors.base import AbstractSequentialPrior, CodeShape, Integers, Reader
from gmvq.priors.conditioning import ClassVectors, grid_vectors
from gmvq.priors.orders import ORDERS, OrderName
from gmvq.priors.sampling import Sampling


@dataclass(frozen=True)
class MaskedConfig:
    """Size of a masked prior, and how it learns.

    Args:
        width: Features of the transformer.
        depth: Layers.
        heads: Heads of the attention.
        dropout: Share of the features that each part of a layer loses in training.
        label_dropout: Share of the images that are learned without their class, so that guidance has both.
        weighting: ``mean`` over the hidden codes, MaskGIT's, or ``bound``: that of absorbing diffusion.
        order: The order of the places where codes are drawn one by one.

    Raises:
        ValueError: If there is no such weighting or order.
    """

    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.1
    label_dropout: float = 0.1
    weighting: Literal["mean", "bound"] = "mean"
    order: OrderName = "raster"

    def __post_init__(self) -> None:
        one_of("weighting", self.weighting, ("mean", "bound"))
        one_of("order", self.order, ORDERS)


@dataclass(frozen=True)
class Unmasking:
    r"""In how many steps codes are drawn, and which of them stay.

    After step i of n, :math:`\cos(\pi i / 2 n)` of the codes that were hidden at first are hidden still. Those that
    were drawn with the largest :math:`\log p + \rho\, (1 - i / n)\, g` stay, with g from a Gumbel distribution.

    Args:
        steps: n; at most the number of hidden codes counts.
        choice_temperature: rho: 0 keeps the most confident ones, infinity any.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 12
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1, "Use 12.")
        if not isinstance(self.choice_temperature, Real) or not self.choice_temperature >= 0:
            raise ValueError(f"'choice_temperature' must be at least 0, got {self.choice_temperature!r}. Use 4.5.")

    def hidden_after(self, step: int, hidden: Tensor) -> Tensor:
        """How many of ``hidden`` codes ``(B,)`` are so after a step, counted from 1: fewer each time, 0 in the end."""
        share = torch.cos(math.pi / 2 * (step / self.steps_of(hidden)).clamp_max(1))
        return (hidden * share + 1e-6).floor().long().minimum(hidden - step).clamp_min(0)

    def steps_of(self, hidden: Tensor) -> Tensor:
        """Steps of images with so many hidden codes: no more than there are codes."""
        return hidden.clamp(1, self.steps)


class MaskedPrior(AbstractSequentialPrior):
    """Codes a few at a time, by a transformer that looks at all that are known.

    Args:
        shape: What codes it is of.
        config: Its size.

    Shape:
        codes ``(B, *grid[, levels])`` -> log-likelihood ``(B,)`` in nats, of codes drawn one by one in order.

    References:
        MaskGIT: Masked Generative Image Transformer (Chang et al., 2022), https://arxiv.org/abs/2202.04200;
        Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021),
        https://arxiv.org/abs/2107.03006;
        Autoregressive Diffusion Models (Hoogeboom et al., 2022), https://arxiv.org/abs/2110.02037

    Example:
        >>> prior = MaskedPrior(CodeShape((4, 4), (16,)), MaskedConfig(width=32, depth=1, heads=2)).eval()
        >>> known = torch.zeros(1, 4, 4, dtype=torch.int64)
        >>> known[:, 2:] = -1  # the lower half is to be drawn
        >>> prior.complete(known).shape
        torch.Size([1, 4, 4])
    """

    citations: ClassVar[tuple[str, ...]] = ("maskgit_chang2022", "d3pm_austin2021", "ardm_hoogeboom2022")

    def __init__(self, shape: CodeShape, config: MaskedConfig | None = None) -> None:
        config = MaskedConfig() if config is None else config
        super().__init__(shape, config.order)
        self.config = config
        width, sizes = config.width, shape.codebook_sizes
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, width) for size in sizes)  # the last one: hidden
        self.classes = ClassVectors(shape.classes, width, config.label_dropout)
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(side, width)) for side in (*shape.sides, shape.levels))
        self.transformer = Transformer(
            width, config.depth, config.heads, shape.length + 1, causal=False, dropout=config.dropout
        )
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        initialize(self.axes, self.embeddings, self.heads)

    def forward(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """What to learn from, in nats for each code: a random share is hidden, classes are dropped in training.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each image ``(B,)``; None for none.

        Returns:
            Nats for each code, ``()``; with ``weighting="bound"`` their expectation is at least -log p / S.
        """
        # on a GPU to look would wait for it in each step; the trainer's codes were looked at before
        sequence, labels = self._inputs(codes, labels, ranges=self.device.type == "cpu")
        batch, length = sequence.shape
        even = even_times(batch, sequence.device)
        share = even if self.config.weighting == "bound" else torch.cos(math.pi / 2 * even)
        number = ((share * length).long() + 1).clamp_max(length)[:, None]
        hidden = torch.rand(sequence.shape, device=sequence.device).argsort(1).argsort(1) < number
        nats = -self._log_probs(sequence, hidden, labels) * hidden
        if self.config.weighting == "bound":  # each of n hidden codes may be the next: S / n times the weight
            return (nats / number).sum(1).mean()
        return nats.sum() / hidden.sum().clamp_min(1)

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Log-likelihood in nats of codes drawn one by one in order: S passes through the network.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each image ``(B,)``; None for none.

        Returns:
            Nats for each image, ``(B,)``.

        Raises:
            ValueError: If codes or labels do not fit.
        """
        sequence, labels = self._inputs(codes, labels)
        hidden = torch.ones_like(sequence, dtype=torch.bool)
        total = torch.zeros(len(sequence), device=sequence.device)
        for step in range(self.shape.length):
            total = total + self._log_probs(sequence, hidden, labels)[:, step]
            hidden[:, step] = False
        return total

    @torch.no_grad()
    def bound(self, codes: Integers, labels: Integers | None = None, samples: int = 16, seed: int = 0) -> Tensor:
        """A bound of the log-likelihood from below over random orders, in nats: an estimate of ``samples`` passes.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each image ``(B,)``; None for none.
            samples: Numbers of hidden codes and sets of them that are looked at.
            seed: Of these.

        Returns:
            Nats for each image, ``(B,)``.
        """
        sequence, labels = self._inputs(codes, labels)
        generator = torch.Generator(sequence.device).manual_seed(seed)
        length, total = self.shape.length, torch.zeros(len(sequence), device=sequence.device)
        for _ in range(samples):
            # number n of hidden codes uniform in 1, ..., S: each of them is the next of S with the same weight, S / n
            number = torch.randint(1, length + 1, (len(sequence), 1), generator=generator, device=sequence.device)
            ranks = torch.rand(sequence.shape, generator=generator, device=sequence.device).argsort(1).argsort(1)
            hidden = ranks < number
            nats = self._log_probs(sequence, hidden, labels) * hidden
            total += nats.sum(1) * length / number[:, 0]
        return total / samples

    def quick_log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:  # noqa: D102
        return self.bound(codes, labels)

    @torch.no_grad()
    def complete(
        self,
        known: Integers,
        labels: Integers | None = None,
        sampling: Sampling | None = None,
        *,
        first: int = 0,
        unmasking: Unmasking | None = None,
    ) -> Tensor:
        """Draws the codes that are not known, in a few steps.

        Args:
            known: Int64 ``(B, *grid[, levels])`` with -1 where a code is to be drawn.
            labels: Class of each image ``(B,)``; None for none.
            sampling: How to draw; as the model says, by default.
            first: Number of the first image, for its random numbers.
            unmasking: In how many steps, and which codes stay; by default as many as ``sampling`` says.

        Returns:
            Int64 ``(B, *grid[, levels])``, the known codes as they were.

        Raises:
            ValueError: If known codes or labels do not fit, or guidance is asked for without labels.
        """
        sampling = Sampling() if sampling is None else sampling
        unmasking = Unmasking(sampling.steps_or(Unmasking.steps)) if unmasking is None else unmasking
        known, labels = self._to_complete(known, labels, sampling)
        sequence = self.sequence(known)
        hidden = sequence < 0
        sequence = sequence.clamp_min(0)
        hidden_at_first = hidden.sum(1)
        own_steps = unmasking.steps_of(hidden_at_first)  # of each image, so that none depends on the others
        numbers = sampling.uniforms(first, len(sequence), 2 * unmasking.steps * self.shape.length, self.device)
        numbers = numbers.unflatten(1, (unmasking.steps, 2, self.shape.length))
        for step in range(1, int(own_steps.max()) + 1 if len(sequence) else 1):
            drawn, confidence = self._drawn(sequence, hidden, labels, sampling, numbers[:, step - 1, 0])
            sequence = torch.where(hidden, drawn, sequence)
            gumbel = -(-numbers[:, step - 1, 1].clamp(1e-12, 1 - 1e-12).log()).log()
            if math.isinf(unmasking.choice_temperature):
                confidence = gumbel
            else:
                calm = (1 - step / own_steps).clamp_min(0)[:, None]
                confidence = confidence + unmasking.choice_temperature * calm * gumbel
            least_first = confidence.masked_fill(~hidden, torch.inf).argsort(1).argsort(1)
            hidden = hidden & (least_first < unmasking.hidden_after(step, hidden_at_first)[:, None])
        return self.codes_of(sequence)

    def _reader(self, batch: int, labels: Tensor | None) -> Reader:
        return _MaskedReader(self, batch, labels)

    def logits(self, sequence: Tensor, hidden: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Logits of all codes of each level ``(B, T, K)``, given those not hidden; both ``(B, S)`` in order."""
        levels = self.shape.levels
        shown = sequence.unflatten(1, (-1, levels))
        masked = hidden.unflatten(1, (-1, levels))
        parts = [
            embed(shown[..., level].masked_fill(masked[..., level], size))
            for level, (embed, size) in enumerate(zip(self.embeddings, self.shape.codebook_sizes, strict=True))
        ]
        inputs = torch.stack(parts, dim=2).flatten(1, 2) + self._place_vectors()
        first = self.classes(labels, len(sequence))
        answers = self.transformer(torch.cat([first[:, None], inputs], dim=1))[:, 1:].unflatten(1, (-1, levels))
        return [head(answers[:, :, level]) for level, head in enumerate(self.heads)]

    def _place_vectors(self) -> Tensor:
        *grid, levels = self.axes
        return (grid_vectors(grid)[self.order][:, None] + levels).flatten(0, 1)

    def _inputs(self, codes: Integers, labels: Integers | None, *, ranges: bool = True) -> tuple[Tensor, Tensor | None]:
        """Codes in order ``(B, S)``, and labels."""
        sequence = self.sequence(self.shape.checked(codes, ranges=ranges).to(self.device))
        return sequence, self.shape.checked_labels(labels, len(codes), self.device, ranges=ranges)

    def _log_probs(self, sequence: Tensor, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """Nats of each code given those that are not hidden, ``(B, S)``."""
        by_place = sequence.unflatten(1, (-1, self.shape.levels))
        parts = [
            -F.cross_entropy(logits.float().flatten(0, 1), by_place[..., level].flatten(), reduction="none")
            for level, logits in enumerate(self.logits(sequence, hidden, labels))
        ]
        return torch.stack(parts, dim=-1).reshape(sequence.shape)

    def _drawn(
        self, sequence: Tensor, hidden: Tensor, labels: Tensor | None, sampling: Sampling, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A draw of all codes, and its log-probability before temperature and cuts, both ``(B, S)``."""
        answers = [self.logits(sequence, hidden, each) for each in sampling.conditions(labels)]
        return sampling.drawn(answers, uniforms)


class _MaskedReader(Reader):
    """Hides all codes that have not come yet."""

    def __init__(self, prior: MaskedPrior, batch: int, labels: Tensor | None) -> None:
        self.prior, self.labels, self.step = prior, labels, 0
        shape = (batch, prior.shape.length)
        self.sequence = torch.zeros(shape, dtype=torch.int64, device=prior.device)
        self.hidden = torch.ones(shape, dtype=torch.bool, device=prior.device)

    def logits(self) -> Tensor:
        place, level = divmod(self.step, self.prior.shape.levels)
        return self.prior.logits(self.sequence, self.hidden, self.labels)[level][:, place]

    def add(self, codes: Tensor) -> None:
        self.sequence[:, self.step] = codes
        self.hidden[:, self.step] = False
        self.step += 1
