r"""A transformer over sequences of vectors, with rotary positions and a cache of keys and values.

::

    (B, T, width) --[norm, attention, +, norm, MLP, +] x depth--> norm --> (B, T, width)
                             |
                   Cache: keys and values of the places before

Keys and queries are rotated by an angle proportional to their place, so that their product depends on distance alone:

.. math:: q_t \to R_{t} q_t, \quad k_s \to R_{s} k_s, \qquad (R_t q)^T (R_s k) = q^T R_{s - t} k

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762;
    rotary positions: RoFormer (Su et al., 2021), https://arxiv.org/abs/2104.09864;
    Root Mean Square Layer Normalization (Zhang and Sennrich, 2019), https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
"""Number of places over which the slowest pair of features rotates by about one radian."""

INITIAL_DEVIATION = 0.02


def initialize(*modules: nn.Module) -> None:
    """Initializes matrices with small normal weights and biases with 0; normalizations keep their weights."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Rotation(NamedTuple):
    """Cosines and sines of the angles of T places, each ``(T, head width / 2)``."""

    cosines: Tensor
    sines: Tensor

    def turn(self, heads: Tensor) -> Tensor:
        """Rotates ``(..., T, head width)``: features i and i + half are one pair."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat(
            (first * self.cosines - second * self.sines, first * self.sines + second * self.cosines), dim=-1
        )

    def at(self, start: int, stop: int) -> Rotation:
        """Returns the rotation of the places ``start``, ..., ``stop - 1``."""
        return Rotation(self.cosines[start:stop], self.sines[start:stop])


def rotation(places: int, head_width: int, device: torch.device | None = None) -> Rotation:
    """Computes the rotation of the places 0, 1, ... in float32.

    Args:
        places: Number of places T.
        head_width: Features of a head, an even number.
        device: Device of the result.
    """
    half = head_width // 2
    speeds = ROTARY_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(places, device=device, dtype=torch.float32)[:, None] * speeds
    return Rotation(angles.cos(), angles.sin())


class Cache:
    """Keys and values of the places that a causal transformer has processed.

    Args:
        depth: Number of layers.
        shape: Number of sequences, heads, places and features of a head.
        like: Tensor with the type and device of keys and values.
    """

    def __init__(self, depth: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.keys = [like.new_zeros(shape) for _ in range(depth)]
        self.values = [like.new_zeros(shape) for _ in range(depth)]
        self.length = 0

    @property
    def room(self) -> int:
        """Number of places that the cache can hold."""
        return self.keys[0].shape[2]

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values of the next T places and returns all stored ones: ``(B, heads, length + T, width)``.

        The length grows by :meth:`advance`, after all layers have stored theirs.
        """
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, places: int) -> None:
        """Adds to the length the number of places that all layers have stored."""
        self.length += places


class Attention(nn.Module):
    """Attention of each place to all places, or to those up to its own.

    Args:
        width: Features.
        heads: Number of heads; each has an even number of features.
        causal: Attend to no later place.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor, rotation: Rotation, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Maps ``(B, T, width)`` to the same shape."""
        batch, places, width = features.shape
        parts = self.project_in(features).view(batch, places, 3, self.heads, width // self.heads)
        queries_and_keys, values = parts[:, :, :2].permute(2, 0, 3, 1, 4), parts[:, :, 2].transpose(1, 2)
        queries, keys = rotation.turn(queries_and_keys).to(values.dtype)
        mask, seen = None, 0
        if cache is not None:
            seen = cache.length
            keys, values = cache.extended(layer, keys, values)
            if seen and places > 1:
                mask = torch.ones(places, seen + places, dtype=torch.bool, device=features.device).tril(seen)
        causal = self.causal and places > 1 and not seen
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.project_out(mixed.transpose(1, 2).reshape(batch, places, width))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a normalization and with a residual connection.

    Args:
        width: Features.
        heads: Heads of the attention.
        causal: Attend to no later place.
        dropout: Dropout rate of each part's output in training.
    """

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, causal)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, rotation: Rotation, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Maps ``(B, T, width)`` to the same shape."""
        mixed = self.attention(self.attention_norm(features), rotation, cache, layer)
        features = features + self.dropout(mixed)
        return features + self.dropout(self.perceptron(self.perceptron_norm(features)))


class Transformer(nn.Module):
    """Stack of attention blocks over a sequence.

    Args:
        width: Features.
        depth: Number of layers.
        heads: Heads of each layer; the width is a multiple of twice their number.
        places: Length of the longest sequence.
        causal: Attend to no later place.
        dropout: Dropout rate of each part of a layer in training.

    Shape:
        ``(B, T, width)`` with T up to ``places`` -> the same.

    Raises:
        ValueError: If the heads do not divide the width into even parts, a number is not at least 1, or ``dropout`` is
            not in [0, 1).
    """

    def __init__(
        self, width: int, depth: int, heads: int, places: int, *, causal: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("heads", heads), ("places", places)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. Use for example 4.")
        if width % (2 * heads):
            raise ValueError(
                f"'width' must be a multiple of twice 'heads' = {heads}, got {width}. Use for example {16 * heads}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"'dropout' must lie in [0, 1), got {dropout}. Use 0.1, or 0.0 for none.")
        self.width, self.depth, self.heads, self.places = width, depth, heads, places
        self.blocks = nn.ModuleList(Block(width, heads, causal, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.causal = causal
        self._rotations: Rotation | None = None
        initialize(self)
        for name, parameter in self.named_parameters():  # deeper networks start with smaller residual branches
            if name.endswith(("project_out.weight", "perceptron.2.weight")):
                nn.init.normal_(parameter, std=INITIAL_DEVIATION / math.sqrt(2 * depth))

    def forward(self, features: Tensor, cache: Cache | None = None) -> Tensor:
        """Maps ``(B, T, width)`` to the same shape.

        Args:
            features: The sequence, or with a cache the places after those in the cache.
            cache: Made by :meth:`cache`; it stores the places.

        Raises:
            ValueError: If the sequence is longer than the transformer or its cache has room for, or a transformer that
                is not causal is given a cache.
        """
        places = features.shape[1]
        start = 0 if cache is None else cache.length
        room = self.places if cache is None else cache.room
        if start + places > room:
            raise ValueError(f"A sequence must have at most {room} places, got {start + places}. Make it shorter.")
        if cache is not None and not self.causal:
            raise ValueError("'cache' must be None for a transformer that is not causal. Leave it out.")
        turned = self._rotation(features).at(start, start + places)
        for layer, block in enumerate(self.blocks):
            features = block(features, turned, cache, layer)
        if cache is not None:
            cache.advance(places)
        return self.norm(features)

    def cache(self, batch: int, like: Tensor, places: int | None = None) -> Cache:
        """Makes an empty cache for ``batch`` sequences, of the type and on the device of ``like``."""
        room = self.places if places is None else places
        return Cache(self.depth, (batch, self.heads, room, self.width // self.heads), like)

    def _rotation(self, features: Tensor) -> Rotation:
        # not a buffer: half precision would round the angles
        if self._rotations is None or self._rotations.cosines.device != features.device:
            with torch.inference_mode(False):  # the kept tensors may be needed for a gradient later
                self._rotations = rotation(self.places, self.width // self.heads, features.device)
        return self._rotations
