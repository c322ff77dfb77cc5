r"""A transformer that predicts each code from those before it, with a small second one for the levels of a place.

.. math:: p(c) = \prod_{t=1}^{T} \prod_{l=1}^{n} p(c_{tl} \mid c_{<t}, c_{t,<l}, y)

::

    y, c_1, ..., c_{t-1}  --embed, place t--> transformer over places --> h_t
    h_t, c_{t1}, ..., c_{t,l-1} ------------> transformer over levels --> logits of c_{tl}     (one level: a linear map)

The first input is the vector of the class, or a learned one for no class. The input after a place is the sum of the
vectors of its codes and of learned vectors of the next place's row and column; so codes can be drawn in any order, and
attention gets distances along that order by rotary positions.

References:
    rows of pixels: Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
    https://arxiv.org/abs/1606.05328; over codes: Taming Transformers for High-Resolution Image Synthesis (Esser et al.,
    2021), https://arxiv.org/abs/2012.09841; levels: Autoregressive Image Generation using Residual Quantization (Lee et
    al., 2022), https://arxiv.org/abs/2203.01941
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.checks import one_of
from gmvq.networks.transformer import Transformer, initialize
from gmvq.priors.base import AbstractSequentialPrior, CodeShape, Integers, Reader
from gmvq.priors.conditioning import ClassVectors, grid_vectors
from gmvq.priors.orders import ORDERS, OrderName


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Size of an autoregressive prior.

    Args:
        width: Features of the transformer.
        depth: Layers over places.
        level_depth: Layers over the levels of a place, if there are several.
        heads: Number of attention heads.
        dropout: Share of features set to 0 in each part of a layer, in training.
        label_dropout: Share of the items that are learned without their class, as guidance needs.
        order: Order of the places.

    Raises:
        ValueError: If the order is unknown.
    """

    width: int = 256
    depth: int = 6
    level_depth: int = 2
    heads: int = 4
    dropout: float = 0.1
    label_dropout: float = 0.1
    order: OrderName = "raster"

    def __post_init__(self) -> None:
        one_of("order", self.order, ORDERS)


class AutoregressivePrior(AbstractSequentialPrior):
    """Draws codes one after another, by a transformer with a cache.

    Args:
        shape: Shape of the codes.
        config: Its size; the defaults of its class, if None.

    Shape:
        codes ``(B, *grid[, levels])`` -> log-likelihood ``(B,)`` in nats.

    References:
        Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762;
        rotary positions: RoFormer (Su et al., 2021), https://arxiv.org/abs/2104.09864;
        levels: Autoregressive Image Generation using Residual Quantization (Lee et al., 2022),
        https://arxiv.org/abs/2203.01941

    Example:
        >>> prior = AutoregressivePrior(CodeShape((4, 4), (16,)), AutoregressiveConfig(width=32, depth=1, heads=2))
        >>> codes = prior.eval().sample(3)
        >>> codes.shape, prior.log_prob(codes).shape
        (torch.Size([3, 4, 4]), torch.Size([3]))
    """

    citations: ClassVar[tuple[str, ...]] = ("attention_vaswani2017", "roformer_su2021", "rqvae_lee2022")

    def __init__(self, shape: CodeShape, config: AutoregressiveConfig | None = None) -> None:
        config = AutoregressiveConfig() if config is None else config
        super().__init__(shape, config.order)
        self.config = config
        width, sizes = config.width, shape.codebook_sizes
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.classes = ClassVectors(shape.classes, width, config.label_dropout)
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(places, width)) for places in shape.sides)
        self.transformer = Transformer(width, config.depth, config.heads, shape.places, dropout=config.dropout)
        self.levels = (
            Transformer(width, config.level_depth, config.heads, shape.levels, dropout=config.dropout)
            if shape.levels > 1
            else None
        )
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        initialize(self.axes, self.embeddings, self.heads)

    def forward(self, codes: Integers, labels: Integers | None = None) -> Tensor:
        """Loss: mean negative log-likelihood of a code in nats. In training, classes are dropped at random.

        Args:
            codes: Int64 ``(B, *grid[, levels])``.
            labels: Class of each item ``(B,)``; None for no class.

        Returns:
            Nats per code, ``()``.
        """
        # checking values would wait for a GPU in each step; the trainer has checked its codes before
        return -self._log_probs(*self._inputs(codes, labels, ranges=self.device.type == "cpu")).mean()

    def log_prob(self, codes: Integers, labels: Integers | None = None) -> Tensor:  # noqa: D102
        return self._log_probs(*self._inputs(codes, labels)).flatten(1).sum(1)

    def logits(self, codes: Integers, labels: Integers | None = None) -> list[Tensor]:
        """Logits of all codes, each given those before it in order: for each level ``(B, T, K)``."""
        return self._logits(*self._inputs(codes, labels))

    def _reader(self, batch: int, labels: Tensor | None) -> Reader:
        return _CachedReader(self, batch, labels)

    def first_input(self, batch: int, labels: Tensor | None) -> Tensor:
        """Input of the transformer before the first place, ``(B, width)``."""
        return self.classes(labels, batch)

    def place_vectors(self) -> Tensor:
        """Vectors of the places in order, ``(T, width)``."""
        return grid_vectors(self.axes)[self.order]

    def summed(self, places: Tensor) -> Tensor:
        """Sums the vectors of the codes of each place, ``(..., levels)`` -> ``(..., width)``."""
        return torch.stack([embed(places[..., level]) for level, embed in enumerate(self.embeddings)]).sum(0)

    def _inputs(self, codes: Integers, labels: Integers | None, *, ranges: bool = True) -> tuple[Tensor, Tensor | None]:
        """Codes by place in order ``(B, T, levels)``, and labels."""
        sequence = self.sequence(self.shape.checked(codes, ranges=ranges).to(self.device))
        labels = self.shape.checked_labels(labels, len(codes), self.device, ranges=ranges)
        return sequence.reshape(len(codes), self.shape.places, self.shape.levels), labels

    def _logits(self, places: Tensor, labels: Tensor | None) -> list[Tensor]:
        first = self.first_input(len(places), labels)
        inputs = torch.cat([first[:, None], self.summed(places[:, :-1])], dim=1) + self.place_vectors()
        hidden = self.transformer(inputs)
        if self.levels is None:
            return [self.heads[0](hidden)]
        known = [embed(places[..., level]) for level, embed in enumerate(list(self.embeddings)[:-1])]
        deep = self.levels(torch.stack([hidden, *known], dim=2).flatten(0, 1)).unflatten(0, places.shape[:2])
        return [head(deep[:, :, level]) for level, head in enumerate(self.heads)]

    def _log_probs(self, places: Tensor, labels: Tensor | None) -> Tensor:
        """Log-probability of each code in nats, ``(B, T, levels)``."""
        parts = [
            -F.cross_entropy(logits.float().flatten(0, 1), places[..., level].flatten(), reduction="none")
            for level, logits in enumerate(self._logits(places, labels))
        ]
        return torch.stack(parts, dim=-1).unflatten(0, places.shape[:2])


class _CachedReader(Reader):
    """Runs each place through the transformer once."""

    def __init__(self, prior: AutoregressivePrior, batch: int, labels: Tensor | None) -> None:
        self.prior = prior
        self.vectors = prior.place_vectors()
        self.input = prior.first_input(batch, labels)
        self.cache = prior.transformer.cache(batch, self.input)
        self.codes: list[Tensor] = []
        self.place = 0
        self._begin_place()

    def logits(self) -> Tensor:
        level = len(self.codes)
        if self.level_cache is None:
            return self.prior.heads[0](self.hidden)
        assert self.prior.levels is not None
        given = self.hidden if level == 0 else self.prior.embeddings[level - 1](self.codes[-1])
        if self.level_cache.length == level:
            self.deep = self.prior.levels(given[:, None], self.level_cache)[:, 0]
        return self.prior.heads[level](self.deep)

    def add(self, codes: Tensor) -> None:
        if self.level_cache is not None and self.level_cache.length == len(self.codes):
            self.logits()  # fills the cache, which the next level needs
        self.codes.append(codes)
        if len(self.codes) < self.prior.shape.levels:
            return
        self.input = self.prior.summed(torch.stack(self.codes, dim=-1))
        self.codes, self.place = [], self.place + 1
        if self.place < self.prior.shape.places:
            self._begin_place()

    def _begin_place(self) -> None:
        place = self.input + self.vectors[self.place]
        self.hidden = self.prior.transformer(place[:, None], self.cache)[:, 0]
        levels = self.prior.levels
        self.level_cache = None if levels is None else levels.cache(len(place), place)
