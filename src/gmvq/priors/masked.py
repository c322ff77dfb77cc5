r"""A transformer that predicts all hidden codes at once from the others: draws in a few steps, completes any part.

Training hides n of the S codes. With n uniform in 1, ..., S and any n codes equally likely, the weighted sum

.. math::
    -\log p(c) \le \mathbb{E}_n \Big[ \tfrac{S}{n} \sum_{s \text{ hidden}} -\log p(c_s \mid \text{the shown}, y) \Big]

is the bound of autoregression in a random order, and of absorbing diffusion (``weighting="bound"``). MaskGIT hides
the share :math:`\cos(\pi u / 2)` of the codes with u uniform and takes the mean over the hidden ones
(``weighting="mean"``), which is not a bound but gives better samples in few steps.

Drawing begins with all codes hidden; in each step every hidden code is drawn, and those drawn with the most confidence
are kept. With one code per step, in a given order, this is autoregression, whose likelihood is exact:
:meth:`MaskedPrior.log_prob`.

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
from gmvq.distributed import places_per_rank
from gmvq.networks.layers import even_times
from gmvq.networks.transformer import Transformer, initialize
from gmvq.priors.base import AbstractSequentialPrior, CodeShape, Integers, Reader
from gmvq.priors.conditioning import ClassVectors, grid_vectors
from gmvq.priors.orders import ORDERS, OrderName
from gmvq.priors.sampling import Sampling


@dataclass(frozen=True)
class MaskedConfig:
    """Size of a masked prior, and its loss.

    Args:
        width: Features of the transformer.
        depth: Number of layers.
        heads: Number of attention heads.
        dropout: Share of features set to 0 in each part of a layer, in training.
        label_dropout: Share of the items that are learned without their class, as guidance needs.
        weighting: Loss: ``mean`` over the hidden codes as in MaskGIT, or ``bound`` as in absorbing diffusion.
        order: Order of the places if codes are drawn one by one.

    Raises:
        ValueError: If the weighting or the order is unknown.
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
    r"""Number of steps of a draw, and which codes each step keeps.

    After step i of n, the share :math:`\cos(\pi i / 2 n)` of the codes that were hidden at first is still hidden. Kept
    are the codes with the largest :math:`\log p + \rho\, (1 - i / n)\, g`, with g from a Gumbel distribution.

    Args:
        steps: n; no more steps are taken than codes are hidden.
        choice_temperature: rho; 0 keeps the most confident codes, infinity any.

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
        """Number of ``hidden`` codes ``(B,)`` still hidden after a step, counted from 1: fewer each time, at last 0."""
        share = torch.cos(math.pi / 2 * (step / self.steps_of(hidden)).clamp_max(1))
        return (hidden * share + 1e-6).floor().long().minimum(hidden - step).clamp_min(0)

    def steps_of(self, hidden: Tensor) -> Tensor:
        """Steps of items with ``hidden`` codes each ``(B,)``: at most one per code."""
        return hidden.clamp(1, self.steps)


class MaskedPrior(AbstractSequentialPrior):
    """Draws a few codes at a time, by a transformer that sees all known ones.

    Args:
        shape: Shape of the codes.
        config: Its size; the defaults of its class, if None.

    Shape:
        codes ``(B, *grid[, levels])`` -> log-likelihood ``(B,)`` in nats, for codes drawn one by one in order.

    References:
        MaskGIT: Masked Generative Image Transformer (Chang et al., 2022), https://arxiv.org/abs/2202.04200;
        Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021),
        https://arxiv.org/abs/2107.03006;
        Autoregressive Diffusion Models (Hoogeboom et al., 2022), https://arxiv.org/abs/2110.02037

    Example:
        >>> prior = MaskedPrior(CodeShape((4, 4), (16,)), MaskedConfig(width=32, depth=1, heads=2)).eval()
        >>> known = torch.zeros(1, 4, 4, dtype=torch.int64)
        >>> known[:, 2:] = -1  # draw the lower half
        >>> prior.complete(known).shape
        torch.Size([1, 4, 4])
    """

    citations: ClassVar[tuple[str, ...]] = ("maskgit_chang2022", "d3pm_austin2021", "ardm_hoogeboom2022")

    def __init__(self, shape: CodeShape, config: MaskedConfig | None = None) -> None:
        config = MaskedConfig() if config is None else config
        super().__init__(shape, config.order)
        self.config = config
        width, sizes = config.width, shape.codebook_sizes
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, width) for size in sizes)  # the last: hidden
        self.classes = ClassVectors(shape.classes, width, config.label_dropout)
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(side, width)) for side in (*shape.sides, shape.levels))
        self.transformer = Transformer(
            width, config.depth, config.heads, shape.length + 1, causal=False, dropout=config.dropout
        )
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        initialize(self.axes, self.embeddings, self.heads)

    def forward(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Loss in nats per code: hides a random share of the codes. In training, classes are dropped at random.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for no class.

        Returns:
            Nats per code, ``()``; with ``weighting="bound"`` the expectation is at least -log p / S.
        """
        # checking values would wait for a GPU in each step; the trainer has checked its codes before
        sequence, labels = self._inputs(codes, labels, ranges=self.device.type == "cpu")
        batch, length = sequence.shape
        even = even_times(batch, sequence.device, over_ranks=self.training)
        share = even if self.config.weighting == "bound" else torch.cos(math.pi / 2 * even)
        number = ((share * length).long() + 1).clamp_max(length)[:, None]
        hidden = torch.rand(sequence.shape, device=sequence.device).argsort(1).argsort(1) < number
        nats = -self._log_probs(sequence, hidden, labels) * hidden
        if self.config.weighting == "bound":  # each of n hidden codes may be the next, so the weight is S / n
            return (nats / number).sum(1).mean()
        number = hidden.sum()
        return nats.sum() / (places_per_rank(number) if self.training else number.clamp_min(1))

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Log-likelihood in nats, for codes drawn one by one in order: S passes through the network.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for no class.

        Returns:
            Nats per item, ``(B,)``.

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
        """Estimates a lower bound of the log-likelihood over random orders in nats, by ``samples`` passes.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for no class.
            samples: Number of random sets of hidden codes per item.
            seed: Seed of the sets.

        Returns:
            Nats per item, ``(B,)``.
        """
        sequence, labels = self._inputs(codes, labels)
        generator = torch.Generator(sequence.device).manual_seed(seed)
        length, total = self.shape.length, torch.zeros(len(sequence), device=sequence.device)
        for _ in range(samples):
            # the number n of hidden codes is uniform in 1, ..., S: each hidden code has the same weight, S / n
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
        """Draws the unknown codes in a few steps.

        Args:
            known: Int64 ``(B, *grid[, levels])`` with -1 for codes to draw.
            labels: Class of each item ``(B,)``; None for no class.
            sampling: Temperature, guidance, seed and so on; by default, draws from the model's distribution.
            first: Index of the first item, for its random numbers.
            unmasking: Number of steps and which codes are kept; by default with the steps of ``sampling``.

        Returns:
            Int64 ``(B, *grid[, levels])``, with the known codes unchanged.

        Raises:
            ValueError: If known codes or labels do not fit, or guidance is given without labels.
        """
        sampling = Sampling() if sampling is None else sampling
        unmasking = Unmasking(sampling.steps_or(Unmasking.steps)) if unmasking is None else unmasking
        known, labels = self._to_complete(known, labels, sampling)
        sequence = self.sequence(known)
        hidden = sequence < 0
        sequence = sequence.clamp_min(0)
        hidden_at_first = hidden.sum(1)
        own_steps = unmasking.steps_of(hidden_at_first)  # by item, so that a draw does not depend on the batch
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
        """Logits of all codes of each level ``(B, T, K)``, given those not hidden; codes and mask are ``(B, S)``."""
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
        """Log-probability of each code in nats, given those that are not hidden, ``(B, S)``."""
        by_place = sequence.unflatten(1, (-1, self.shape.levels))
        parts = [
            -F.cross_entropy(logits.float().flatten(0, 1), by_place[..., level].flatten(), reduction="none")
            for level, logits in enumerate(self.logits(sequence, hidden, labels))
        ]
        return torch.stack(parts, dim=-1).reshape(sequence.shape)

    def _drawn(
        self, sequence: Tensor, hidden: Tensor, labels: Tensor | None, sampling: Sampling, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws all codes; returns them and their log-probabilities before temperature and cuts, both ``(B, S)``."""
        answers = [self.logits(sequence, hidden, each) for each in sampling.conditions(labels)]
        return sampling.drawn(answers, uniforms)


class _MaskedReader(Reader):
    """Hides all codes that are still to come."""

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
