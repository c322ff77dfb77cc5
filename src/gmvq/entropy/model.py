"""The entropy model of a tokenizer's codes: its tables, and the conversion of codes to symbols."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmvq.checks import at_least
from gmvq.entropy.coding import Learned, Paths
from gmvq.entropy.compiled import Coding, coding_of
from gmvq.entropy.definition import GROUP, MOST_WIDTH, NODES, PLACES, DamagedCodesError, Shape, Tables
from gmvq.kernels.compiled import library

MOST_BITS = 16
"""Bits of a code that are one symbol; larger codes are two symbols, the higher bits first."""
MOST_LEVELS = 64
COLD_RATE = 14
"""Rate of mixers that begin from nothing."""

_NEIGHBOURS = {
    **{"w": (0, 0, -1, 0), "v": (0, 0, -2, 0), "u": (0, 0, -3, 0)},
    **{"n": (0, -1, 0, 0), "m": (0, -2, 0, 0), "q": (0, -1, -1, 0), "e": (0, -1, 1, 0), "p": (-1, 0, 0, 0)},
    **{"a": (0, 0, 0, -1), "b": (0, 0, 0, -2), "y": (0, 0, -1, -1)},
}
"""Letters of neighbours: one, two and three places before; one and two rows above, there before and after; a plane
before; one and two levels before, and one level before at the place before."""
_LATER_1 = ("", "a", "ab", "ay", "a3w", "av3", "aw3")
_LATER_2 = ("", "a", "ab", "aw3n3", "a3w", "a3n", "aw2n2y2")
Contexts = tuple[tuple[str, ...], tuple[str, ...]]
"""Contexts of the first symbol of a place and of its others: letters of neighbours, each with the number of first bits
of its path that count, or all."""
CONTEXTS: tuple[tuple[Contexts, ...], ...] = (
    ((("",), ("", "a", "ab", "b")),),
    (
        (("", "w", "w5v5", "w4v4u4", "v6u3", "wv2u2", "u"), _LATER_1),
        (("", "w", "wv", "wvu", "w5v5", "w4v4u4", "v6u3", "wv2u2"), _LATER_1),
    ),
    ((("", "w", "n", "w2n2q2e2v2m2", "e", "w6v6", "nm"), _LATER_2),),
    ((("", "p", "w", "n", "w2n2p2e2", "pw3n3", "w6n6"), (*_LATER_2, "a3p")),),
)
"""Contexts to choose from, by the number of axes of the grid; the first are the default. Files without a fitted model
need the default as it is."""
_MOST_CONTEXTS = 15
_CONTEXT = re.compile(f"([{''.join(_NEIGHBOURS)}]\\d{{0,2}}){{0,12}}")


@dataclass(frozen=True)
class EntropyConfig:
    """Form of the codes, and how their contexts are chosen.

    Args:
        codebook_sizes: Number of codes K of each level.
        axes: Axes of the grid of tokens, 0 to 3.
        has_levels: Whether codes have an axis of levels.
        contexts: Contexts of symbols, see :data:`CONTEXTS`; by default the first that suit the axes.
        rate: Mixers learn by 2^-rate of input times error.

    Raises:
        ValueError: If a field is out of range.
    """

    codebook_sizes: tuple[int, ...]
    axes: int
    has_levels: bool = False
    contexts: Contexts | None = None
    rate: int = COLD_RATE

    def __post_init__(self) -> None:
        object.__setattr__(self, "codebook_sizes", tuple(self.codebook_sizes))
        for size in self.codebook_sizes:
            at_least("codebook_sizes", size, 1)
        at_least("axes", self.axes, 0)
        at_least("rate", self.rate, 8)
        if self.axes > 3 or self.rate > 24:
            raise ValueError(f"'axes' must be at most 3 and 'rate' 24, got {self.axes} and {self.rate}.")
        if not 1 <= len(self.codebook_sizes) <= MOST_LEVELS or max(self.codebook_sizes) > 1 << 2 * MOST_BITS:
            raise ValueError(
                f"'codebook_sizes' must be 1 to {MOST_LEVELS} levels of at most 2^{2 * MOST_BITS} codes, got "
                f"{self.codebook_sizes}. Use fewer."
            )
        if len(self.codebook_sizes) > 1 and not self.has_levels:
            raise ValueError(f"'has_levels' must be true for several levels, got {self.codebook_sizes}.")
        first, later = CONTEXTS[self.axes][0] if self.contexts is None else self.contexts
        object.__setattr__(self, "contexts", (tuple(first), tuple(later)))
        for context in (*first, *later):
            if not isinstance(context, str) or not _CONTEXT.fullmatch(context):
                raise ValueError(
                    f"'contexts' must be of letters {', '.join(_NEIGHBOURS)} and numbers, got {context!r}."
                )
        if max(len(first), len(later)) > _MOST_CONTEXTS:
            raise ValueError(f"'contexts' must be at most {_MOST_CONTEXTS}, got {len(first)} and {len(later)}.")

    @property
    def symbol_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Number of values of each symbol of each level."""
        found: list[tuple[int, ...]] = []
        for size in self.codebook_sizes:
            found.append((size,) if size <= 1 << MOST_BITS else (-(-size >> MOST_BITS), 1 << MOST_BITS))
        return tuple(found)


class Symbols(NamedTuple):
    """Codes of an item as symbols.

    Attributes:
        shape: Lengths (Z, Y, X) of the grid.
        paths: Path of each symbol, int32 ``(symbols,)``, -1 where masked.
        levels: Number of levels that the codes have.
    """

    shape: Shape
    paths: Paths
    levels: int


class EntropyModel(nn.Module):
    """Probabilities of codes, in integers: an order of each codebook, and tables that may be fitted.

    A new model has the order of the codes' numbers and empty tables, which learn from the codes as they are written.

    Args:
        config: Form of the codes.

    Example:
        >>> model = EntropyModel(EntropyConfig((512,), axes=2))
        >>> codes = torch.arange(64).reshape(8, 8)
        >>> bool((model.decode(model.encode(codes), (8, 8)) == codes).all())
        True
    """

    paths: Tensor
    places: Tensor
    groups: Tensor
    nodes: Tensor
    weights: Tensor

    def __init__(self, config: EntropyConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [size for level in config.symbol_sizes for size in level]
        inputs = 1 + max(len(contexts) for contexts in _contexts_of(config))
        natural = [torch.arange(size, dtype=torch.int32) for size in sizes]
        self.register_buffer("paths", torch.cat(natural))
        self.register_buffer("places", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("groups", torch.zeros(0, GROUP, dtype=torch.uint16))
        self.register_buffer("nodes", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(0, inputs, dtype=torch.int64))
        self._codings: dict[tuple[int, bool], Coding] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codings": {}}  # a loaded library cannot be copied

    @property
    def is_fitted(self) -> bool:
        """True if the tables are not empty."""
        return len(self.places) > 0

    def encode(self, codes: Tensor, *, packed: bool = False, masked: bool | None = None) -> bytes:
        """Writes the codes of an item: integers ``(*grid[, levels])``, -1 where masked.

        Args:
            codes: The codes; with fewer levels than the model, those of the first levels.
            packed: Write all codes of a level as equally likely, in log2(K) bits.
            masked: Whether the reader will be told that some codes are -1; by default, whether some are.

        Raises:
            ValueError: If they are not of the model's form.
        """
        symbols = self.symbols(codes)
        masked = bool((symbols.paths < 0).any()) if masked is None else masked
        return self.coding(symbols.levels).encode(symbols.shape, symbols.paths, packed=packed, masked=masked)

    def decode(
        self,
        data: bytes,
        grid: Sequence[int],
        levels: int | None = None,
        *,
        packed: bool = False,
        masked: bool = False,
    ) -> Tensor:
        """Reads the codes that :meth:`encode` wrote: int64 ``(*grid[, levels])``.

        Args:
            data: The bytes.
            grid: Lengths of the grid.
            levels: Number of levels; by default all.
            packed: As for :meth:`encode`.
            masked: Whether some codes are -1.

        Raises:
            DamagedCodesError: If the bytes end too early, or hold a code that is not in its codebook.
        """
        levels = len(self.config.codebook_sizes) if levels is None else levels
        paths = self.coding(levels).decode(self._shape(grid), data, packed=packed, masked=masked)
        return self._codes(paths, tuple(grid), levels)

    def bits(self, codes: Tensor) -> float:
        """Computes the information of the codes of an item, in bits."""
        symbols = self.symbols(codes)
        return self.coding(symbols.levels).bits(symbols.shape, symbols.paths)

    def symbols(self, codes: Tensor) -> Symbols:
        """Converts codes ``(*grid[, levels])`` to symbols.

        Raises:
            ValueError: If they are not of the model's form.
        """
        given = _checked(codes, self.config)
        grid = given.shape[: self.config.axes]
        by_level = given.reshape(-1, given.shape[-1] if self.config.has_levels else 1)
        columns = []
        for level, (orders, size) in enumerate(zip(self._orders, self.config.codebook_sizes, strict=False)):
            if level == by_level.shape[1]:
                break
            column = by_level[:, level]
            if column.size and not -1 <= column.min() <= column.max() < size:
                raise ValueError(
                    f"'codes' of level {level} must lie in [0, {size}), -1 where masked, got {column.min()} to "
                    f"{column.max()}. Encode with the same model."
                )
            parts = [column] if len(orders) == 1 else [column >> MOST_BITS, column & (1 << MOST_BITS) - 1]
            columns += [np.where(column < 0, -1, order[part]) for order, part in zip(orders, parts, strict=True)]
        paths = np.stack(columns, -1).reshape(-1).astype(np.int32)
        return Symbols(self._shape(grid), paths, by_level.shape[1])

    def coding(self, levels: int) -> Coding:
        """Makes what writes and reads symbols of the first levels."""
        key = levels, library() is None
        if key not in self._codings:
            tables = self.tables(levels)
            self._codings[key] = coding_of(tables, self.learned.of_components(len(tables.paths)))
        return self._codings[key]

    def tables(self, levels: int) -> Tables:
        """Makes the tables of the first levels."""
        orders = [order for level in self._orders[:levels] for order in level]
        widths = [(len(order) - 1).bit_length() for order in orders]
        letters = list(_NEIGHBOURS)
        contexts = [
            [[(letters.index(letter), bits) for letter, bits in context] for context in of_one]
            for of_one in _contexts_of(self.config)[: len(orders)]
        ]
        paths = [order.tolist() for order in orders]
        return Tables(paths, widths, list(_NEIGHBOURS.values()), contexts, self.config.rate)

    def start_from(self, learned: Learned) -> None:
        """Takes what was learned of codes of all levels as the start of each item."""
        self.places, self.groups = torch.from_numpy(learned.places), torch.from_numpy(learned.groups)
        self.nodes, self.weights = torch.from_numpy(learned.nodes), torch.from_numpy(learned.weights)
        self._codings.clear()

    def order_by(self, orders: Sequence[NDArray[np.int32]]) -> None:
        """Takes the paths of each symbol's values; all of them different, and below the next power of two."""
        self.paths = torch.from_numpy(np.concatenate(orders).astype(np.int32))
        self._codings.clear()

    @property
    def _orders(self) -> list[list[NDArray[np.int32]]]:
        ends, found, start = self.paths.cpu().numpy(), [], 0
        for sizes in self.config.symbol_sizes:
            found.append([])
            for size in sizes:
                found[-1].append(ends[start : start + size])
                start += size
        return found

    @property
    def learned(self) -> Learned:
        """What each item starts from."""
        arrays = [each.cpu().numpy() for each in (self.places, self.groups, self.nodes, self.weights)]
        return Learned(*arrays)

    def _shape(self, grid: Sequence[int]) -> Shape:
        z, y, x = (1,) * (3 - len(grid)) + tuple(grid)
        return z, y, x

    def _codes(self, paths: Paths, grid: tuple[int, ...], levels: int) -> Tensor:
        orders = self._orders[:levels]
        by_symbol = paths.reshape(-1, sum(len(each) for each in orders))
        codes, column = [], 0
        for size, of_level in zip(self.config.codebook_sizes, orders, strict=False):
            code = np.zeros(len(by_symbol), np.int64)
            for order in of_level:
                code = code << MOST_BITS | _inverse(order)[by_symbol[:, column].clip(0)]
                column += 1
            code = np.where(by_symbol[:, column - 1] < 0, -1, code)
            if code.size and code.max() >= size:
                raise DamagedCodesError(f"there is the code {code.max()} of {size}")
            codes.append(code)
        made = torch.from_numpy(np.stack(codes, -1))
        return made.reshape(*grid, levels) if self.config.has_levels else made.reshape(grid)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *rest: Any,  # noqa: ANN401
    ) -> None:
        for name in ("places", "groups", "nodes", "weights"):  # their lengths depend on the data
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.check()
        self._codings.clear()

    def check(self) -> None:
        """Checks the tables, which may come from a stranger's file.

        Raises:
            ValueError: If they contradict each other.
        """
        inputs = 1 + max(len(contexts) for contexts in _contexts_of(self.config))
        orders = [order for level in self._orders for order in level]
        for order in orders:
            width = (len(order) - 1).bit_length()
            if len(np.unique(order)) != len(order) or order.min() < 0 or order.max() >= max(1, 1 << width):
                raise ValueError("the paths of a codebook are not all different, or too long")
        places, groups, nodes, weights = self.learned
        for name, numbers, most in (("places", places, PLACES), ("nodes", nodes, len(orders) * NODES)):
            rising = numbers.ndim == 1 and bool((np.diff(numbers) > 0).all())
            if not rising or (len(numbers) and not 0 <= numbers[0] <= numbers[-1] < most):
                raise ValueError(f"{name} are not rising numbers below {most}")
        if groups.shape != (len(places), GROUP) or weights.shape != (len(nodes), inputs):
            raise ValueError("groups or weights do not fit their places")
        if len(weights) and np.abs(weights).max() > 1 << 40:
            raise ValueError("weights are too large")


def described(model: EntropyModel) -> dict[str, Any]:
    """Returns the configuration as JSON types."""
    return json.loads(json.dumps(asdict(model.config)))


def from_description(description: Any) -> EntropyModel:  # noqa: ANN401 (JSON)
    """Makes a model with empty tables from the result of :func:`described`."""
    return EntropyModel(EntropyConfig(**description))


@functools.cache
def _contexts_of(config: EntropyConfig) -> tuple[tuple[tuple[tuple[str, int], ...], ...], ...]:
    """Returns the contexts of each symbol: letters of neighbours with numbers of bits."""
    assert config.contexts is not None
    first, later = config.contexts
    number = sum(len(sizes) for sizes in config.symbol_sizes)
    found = [
        tuple(
            tuple((letter, int(bits or MOST_WIDTH)) for letter, bits in re.findall(r"([a-z])(\d*)", context))
            for context in (later if symbol else first)
        )
        for symbol in range(number)
    ]
    return tuple(found)


def _checked(codes: Tensor, config: EntropyConfig) -> NDArray[np.int64]:
    """Checks type and shape of the codes of an item.

    Raises:
        ValueError: If they do not fit the configuration.
    """
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"'codes' must be a tensor of integers, got {kind}. Pass the result of encode().")
    axes, levels = config.axes + config.has_levels, len(config.codebook_sizes)
    if codes.ndim != axes or (config.has_levels and not 1 <= codes.shape[-1] <= levels) or 0 in codes.shape:
        form = f"{config.axes} axes" + (f" and at most {levels} levels" if config.has_levels else "")
        raise ValueError(f"'codes' of an item must have {form}, got {tuple(codes.shape)}. Pass one item's.")
    if math.prod(codes.shape) > 1 << 31:
        raise ValueError(f"'codes' must be at most 2^31, got {tuple(codes.shape)}. Use segments.")
    return codes.detach().cpu().to(torch.int64).numpy()


def _inverse(order: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the value of each path."""
    found = np.zeros(1 << (len(order) - 1).bit_length(), np.int64)
    found[order] = np.arange(len(order))
    return found
