"""Division of a large item into tiles that are encoded and decoded one by one, to what the whole would give.

::

    grid of tokens     a tile keeps its own tokens            and sees a margin beside them
    +---------------+  +---------------+                      +---------------+
    |               |  |   |   |   |   |                      | :         :   |
    |               |  |---+---+---+---|                      | : +---+   :   |
    |               |  |   | x |   |   |                      | : | x |   :   |
    |               |  |---+---+---+---|                      | : +---+   :   |
    +---------------+  +---------------+                      +---------------+

The margin is the receptive field of the network (:mod:`gmvq.networks.reach`), so each token sees the same samples as in
the whole. At the borders of the item there is no margin: the network pads a tile as it pads the whole. Results agree
but for rounding: a kernel may add in another order on another shape. PyTorch's convolutions on the CPU do so where
a layer's input has at most 20,480 numbers: with tiles of the default size only those of tokens of 8x8 pixels or more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gmvq.checks import at_least
from gmvq.networks import Decoder, Encoder, SQVAEDecoder, SQVAEEncoder, WholeItemError
from gmvq.quantizers import AbstractBottleneck, Hierarchical
from gmvq.types import Signal

TILE = 1 << 19
"""Samples of the largest tile, its margins included, as 724 x 724 pixels: 100 MB at the default width, of sound 200."""

MOST_WHOLE = 1 << 24
"""Samples of the largest item that passes at once a network that cannot take tiles: 3 GB at the default width."""

Network = Encoder | Decoder | SQVAEEncoder | SQVAEDecoder

Places = tuple[slice | EllipsisType, ...] | EllipsisType
"""Index of a part in a batch of items ``(B, C, *S)``, or of symbols ``(B, T)``."""


class Tokenizer(Protocol):
    """What tiles need of an autoencoder: its parts, and its steps from items to latents and from values to items."""

    @property
    def signal(self) -> Signal: ...  # noqa: D102
    @property
    def downsampling(self) -> int: ...  # noqa: D102
    @property
    def bottleneck(self) -> AbstractBottleneck | Hierarchical: ...  # noqa: D102
    def latents(self, items: Tensor, lengths: Tensor | None = None) -> Tensor: ...  # noqa: D102
    def values_of(self, codes: Tensor, size: tuple[int, ...] | None = None) -> Tensor: ...  # noqa: D102
    def decode_values(self, values: Tensor, size: tuple[int, ...] | None, tokens: Tensor | None = None) -> Tensor: ...  # noqa: D102
    def mean(self, parameters: Tensor) -> Tensor: ...  # noqa: D102


class Part(NamedTuple):
    """A part of a batch of decoded items.

    Attributes:
        places: The index of the part in the batch; ``...`` for the whole batch.
        items: Its values, ``(b, C, *s)``; of symbols ``(b, t)``.
    """

    places: Places
    items: Tensor


class Assembly:
    """A batch of items that is put together from its parts.

    Args:
        number: Items of the batch.
        size: Lengths of their axes beside the channels.
    """

    def __init__(self, number: int, size: Sequence[int]) -> None:
        self.number, self.size = number, tuple(size)
        self._items: Tensor | None = None

    def put(self, part: Part) -> None:
        """Puts a part in its place."""
        if part.places is ...:
            self._items = part.items
            return
        if self._items is None:
            channels = part.items.shape[1 : part.items.ndim - len(self.size)]
            self._items = part.items.new_empty((self.number, *channels, *self.size))
        self._items[part.places] = part.items

    @property
    def items(self) -> Tensor:
        """The batch, when all parts are in their places."""
        assert self._items is not None
        return self._items


class Tile(NamedTuple):
    """A part of a grid of tokens.

    Attributes:
        kept: The tile's own tokens along each axis; those of all tiles cover the grid once.
        seen: The tokens along each axis that they depend on.
    """

    kept: tuple[slice, ...]
    seen: tuple[slice, ...]

    @property
    def inner(self) -> tuple[slice, ...]:
        """Places of the kept tokens among those seen."""
        pairs = zip(self.kept, self.seen, strict=True)
        return tuple(slice(kept.start - seen.start, kept.stop - seen.start) for kept, seen in pairs)


def tiles(grid: Sequence[int], margin: Sequence[int], most: int) -> list[Tile]:
    """Divides a grid of tokens into tiles that all see the same number of tokens, so that memory can be used again.

    Args:
        grid: Tokens along each axis.
        margin: Tokens that a tile sees on either side of its own, along each axis.
        most: Largest number of tokens that a tile sees, exceeded only where its margins leave no token of its own.

    Example:
        >>> [(tile.kept[0], tile.seen[0]) for tile in tiles((8,), (1,), 6)]
        [(slice(0, 3, None), slice(0, 6, None)), (slice(3, 8, None), slice(2, 8, None))]
    """
    spans: list[list[tuple[slice, slice]]] = [[] for _ in grid]
    left = most
    # the shortest axis first: what it does not need is left to the others
    for number, axis in enumerate(sorted(range(len(grid)), key=grid.__getitem__)):
        length, beside = grid[axis], margin[axis]
        side = min(length, max(2 * beside + 1, int(left ** (1 / (len(grid) - number)) + 1e-9)))
        spans[axis] = _spans(length, beside, side)
        left //= side
    return [
        Tile(tuple(kept for kept, _ in chosen), tuple(seen for _, seen in chosen))
        for chosen in itertools.product(*spans)
    ]


def _spans(length: int, margin: int, side: int) -> list[tuple[slice, slice]]:
    """Divides one axis: the places that each tile keeps and sees, evenly spaced from border to border."""
    steps = -(-(length - side) // max(1, side - 2 * margin))
    starts = [place * (length - side) // max(1, steps) for place in range(steps + 1)]
    borders = [0, *(start + margin for start in starts[1:]), length]
    return [
        (slice(*kept), slice(start, start + side))
        for kept, start in zip(itertools.pairwise(borders), starts, strict=True)
    ]


def is_large(size: Sequence[int], tile: int | None) -> bool:
    """Returns whether an item has more samples than a tile; False in a graph, whose shapes may be symbols.

    Raises:
        ValueError: If ``tile`` is neither None nor an integer of at least 1.
    """
    if tile is None or torch.compiler.is_compiling():
        return False
    return math.prod(size) > at_least("tile", tile, 1, "Leave it out for the default, or pass None for whole items.")


def planned(
    network: Network, grid: Sequence[int], size: Sequence[int], tile: int | None, width: int
) -> list[Tile] | None:
    """Divides the tokens of an item for a network.

    Args:
        network: The encoder or decoder.
        grid: Tokens of the item along each axis.
        size: Samples of the item along each axis.
        tile: Largest number of samples that a tile sees; None for no tiles.
        width: Channels of the network, for an estimate of its memory.

    Returns:
        The tiles, or None if the item is to pass as a whole: it is not large, or of at most 2^24 samples and the
        network cannot take tiles.

    Raises:
        WholeItemError: If the network cannot take tiles and the item is larger.
    """
    if tile is None or not is_large(size, tile):
        return None
    try:
        reach = network.reach()
    except WholeItemError as error:
        samples, halved = math.prod(size), 2 ** len(size)
        if samples <= MOST_WHOLE:
            return None
        memory = samples * 12 * width / halved / 1e9  # the input and output of a layer, and a copy
        raise WholeItemError(
            f"Items must have at most {MOST_WHOLE:,} samples for this model, got {' x '.join(map(str, size))}: "
            f"{error}, so that tiles would give other codes, and whole it takes about {memory:.0f} GB. Cut it, "
            "train with --normalization layer, or in Python pass tile=None."
        ) from error
    return tiles(grid, reach.margin, max(1, tile // math.prod(reach.stride)))


def encode_tiles(model: Tokenizer, items: Tensor, lengths: Tensor | None, chosen: Sequence[Tile]) -> Tensor:
    """Encodes a batch as :meth:`gmvq.Autoencoder.encode`, item by item and tile by tile."""
    signal, stride, bottleneck = model.signal, model.downsampling, model.bottleneck
    size, found = signal.size(items), None
    tokens = None if lengths is None else -(-lengths // stride)
    for index, tile in itertools.product(range(len(items)), chosen):
        one, seen = slice(index, index + 1), _samples_of(tile.seen, stride, size)
        own = None if lengths is None else _within(lengths[one], seen[-1])
        part = model.latents(items[(one, ..., *seen)], own)[(slice(None), *tile.inner)]
        if bottleneck.quantizes_rows:
            part = bottleneck.encode(part, lengths=None if tokens is None else _within(tokens[one], tile.kept[-1]))
        if found is None:
            found = part.new_empty((len(items), *signal.grid(size, stride), *part.shape[1 + signal.axes :]))
        found[(one, *tile.kept)] = part
    assert found is not None
    return found if bottleneck.quantizes_rows else bottleneck.encode(found, lengths=tokens)


def decode_tiles(
    model: Tokenizer, codes: Tensor, size: Sequence[int], tokens: Tensor | None, chosen: Sequence[Tile]
) -> Iterator[Part]:
    """Decodes a batch as :meth:`gmvq.Autoencoder.decode_parts`, item by item and tile by tile."""
    stride, by_rows = model.downsampling, model.bottleneck.quantizes_rows
    values = None if by_rows else model.values_of(codes, tuple(size))
    for index, tile in itertools.product(range(len(codes)), chosen):
        one = slice(index, index + 1)
        seen = (one, *tile.seen)
        part = model.bottleneck.decode(codes[seen]) if values is None else values[seen]
        own = None if tokens is None else _within(tokens[one], tile.seen[-1])
        kept = _samples_of(tile.kept, stride, size)
        first = [each.start * stride for each in tile.inner]
        inner = [slice(start, start + each.stop - each.start) for start, each in zip(first, kept, strict=True)]
        yield Part((one, ..., *kept), model.mean(model.decode_values(part, None, own)[(..., *inner)]))


def _samples_of(tokens: Sequence[slice], stride: int, size: Sequence[int]) -> tuple[slice, ...]:
    """Converts places of tokens to those of their samples, which end with the item."""
    pairs = zip(tokens, size, strict=True)
    return tuple(slice(each.start * stride, min(length, each.stop * stride)) for each, length in pairs)


def _within(lengths: Tensor, part: slice) -> Tensor:
    """Converts lengths of sequences ``(B,)`` to those of a part of them."""
    return (lengths - part.start).clamp(0, part.stop - part.start)
