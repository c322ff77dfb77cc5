"""The bitstream of codes, defined in integers: plain Python, no dependency, the same bytes on any machine.

::

    paths (Z, Y, X, J) --decisions--> probability of each --range coder--> bytes
                                            ^
          contexts -> groups of states -> mixer

A place of the grid has J symbols, one for each component. A symbol is written as the bits of its *path* through a
binary tree, first bit first; a decision with one possible outcome is not written. Contexts are prefixes of the paths of
symbols that are known already. For each context and each four decisions there is a *group* of 15 *states*, one for each
decision that may follow. A state is a number of 16 bits: a logit in steps of 1/128, and how often it has been seen. A
*mixer*, logistic regression with weights of its own at each node of the tree, makes one probability of all states
(Mahoney 2005). States and weights learn from each decision after it is known, so reader and writer agree.

``kernels/entropy.cpp`` computes the same, many times as fast. Where they differ, this file is right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import mul
from typing import NamedTuple, Protocol

FRESH = 1024 << 5
"""State that has seen nothing."""
BIAS = 256
"""Last input of each mixer."""
CERTAIN = 2048
"""Error, in 2^-16, below which a mixer does not learn."""
NODES = 1 << 12
"""Weights of each component; nodes deeper in the tree share them."""
MOST_WIDTH = 24
PLACES = 1 << 20
"""Places of groups; a group there says by 12 more bits whose it is."""
GROUP = 16
"""Numbers of a group: its mark and 15 states."""
_MASK, _TERM, _GROUP, _NODE = 0xFFFFFFFF, 0x9E3779B1, 0xC2B2AE35, 0x85EBCA6B
_TOP, _LEAST = 48, 1 << 40


Shape = tuple[int, int, int]


class Tables(NamedTuple):
    """What reader and writer know beforehand.

    Attributes:
        paths: For each component, the path of each of its symbols; all different.
        widths: Bits of the paths of each component.
        offsets: For each neighbour, its place relative to a symbol: steps along Z, Y, X and the components.
        contexts: For each component, its contexts: pairs of a neighbour and of the number of first bits of its path.
        rate: Each mixer learns by 2^-rate of input times error.
    """

    paths: Sequence[Sequence[int]]
    widths: Sequence[int]
    offsets: Sequence[tuple[int, int, int, int]]
    contexts: Sequence[Sequence[Sequence[tuple[int, int]]]]
    rate: int


class Memory(NamedTuple):
    """What is learned from symbols.

    Attributes:
        groups: Groups of states by their place.
        weights: Weights of mixers by component times NODES plus node.
    """

    groups: dict[int, list[int]]
    weights: dict[int, list[int]]


NOTHING = Memory({}, {})


class DamagedCodesError(ValueError):
    """Raised for bytes that no writer makes."""


@cache
def squash_table() -> tuple[int, ...]:
    """Probability of a logit, in 2^-16: entry 2048 + x for a logit of x / 256."""
    return tuple(min(max((value + (1 << 15)) >> 16, 16), 65520) for value in _sigmoid()[:4096])


@cache
def next_table() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """State after a decision: for 0 and for 1, by the state before."""
    sigmoid = _sigmoid()
    borders, after = sigmoid[:4096:2], ([0] * 65536, [0] * 65536)
    for logit in range(2048):
        for seen in range(32):
            for bit in (0, 1):
                old = sigmoid[2 * logit + 1]
                new = old + ((bit << 32) - old) * 5 // (5 * seen + 9)
                moved = max(bisect_right(borders, new) - 1, 0)
                after[bit][logit << 5 | seen] = moved << 5 | min(seen + 1, 31)
    return tuple(after[0]), tuple(after[1])


@cache
def stretch_table() -> tuple[int, ...]:
    """Logit of a state, in 1/256; 0 for one that has seen nothing."""
    return tuple(2 * (state >> 5) - 2047 if state & 31 else 0 for state in range(65536))


@cache
def _sigmoid() -> list[int]:
    """Logistic function in 2^-32: entry 2048 + x at x / 256."""
    one, decay, term, count = 1 << 64, 0, 1 << 64, 0
    while term:  # the series of exp(-1/256)
        decay += -term if count % 2 else term
        count += 1
        term //= 256 * count
    found, power = [1 << 31] * 4097, one
    for step in range(2049):
        found[2048 + step] = (1 << 96) // (one + power)
        found[2048 - step] = (1 << 32) - found[2048 + step]
        power = power * decay >> 64
    return found


class Coder(Protocol):
    """What is done with decisions: they are written, read or counted."""

    def decide(self, bit: int, chance: int) -> int:
        """Takes a decision that is 1 with a probability of ``chance`` / 2^16, and returns it."""
        ...

    def choose(self, value: int, number: int) -> int:
        """Takes one of ``number`` equally likely values, and returns it."""
        ...


class Writer:
    """A range coder."""

    def __init__(self) -> None:
        self.low, self.range, self.out = 0, 1 << _TOP, bytearray()

    def decide(self, bit: int, chance: int) -> int:  # noqa: D102
        bound = (self.range >> 16) * chance
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < _LEAST:
            self._shift()
        return bit

    def choose(self, value: int, number: int) -> int:  # noqa: D102
        self.range //= number
        self.low += self.range * value
        while self.range < _LEAST:
            self._shift()
        return value

    def _shift(self) -> None:
        self._carry()
        self.out.append(self.low >> _TOP - 8)
        self.low = (self.low << 8) & (1 << _TOP) - 1
        self.range <<= 8

    def _carry(self) -> None:
        if self.low >> _TOP:
            self.low -= 1 << _TOP
            place = len(self.out) - 1
            while self.out[place] == 255:
                self.out[place] = 0
                place -= 1
            self.out[place] += 1

    def finish(self) -> bytes:
        """Returns all bytes; of the last ones as few as tell, since a reader takes what is missing as 0."""
        last = self.low + self.range - 1
        free = next(bits for bits in range(_TOP, -1, -8) if last >> bits << bits >= self.low)
        self.low = last >> free << free
        self._carry()
        return bytes(self.out) + self.low.to_bytes(6, "big").rstrip(b"\0")


class Reader:
    """Reads what a :class:`Writer` wrote, by the same calls; the values that it is given do not matter."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.range = data, 6, 1 << _TOP
        self.value = int.from_bytes(data[:6].ljust(6, b"\0"), "big")

    def decide(self, bit: int, chance: int) -> int:  # noqa: D102
        bound = (self.range >> 16) * chance
        bit = int(self.value < bound)
        if bit:
            self.range = bound
        else:
            self.value -= bound
            self.range -= bound
        while self.range < _LEAST:
            self._shift()
        return bit

    def choose(self, value: int, number: int) -> int:  # noqa: D102
        self.range //= number
        value = min(self.value // self.range, number - 1)
        self.value -= self.range * value
        while self.range < _LEAST:
            self._shift()
        return value

    def _shift(self) -> None:
        self.value = self.value << 8 | (self.data[self.place] if self.place < len(self.data) else 0)
        self.range <<= 8
        self.place += 1
        if self.place > len(self.data) + 6:
            raise DamagedCodesError("the codes end too early")


def encode(
    tables: Tables,
    start: Memory,
    shape: Shape,
    paths: Sequence[int],
    *,
    packed: bool = False,
    masked: bool = False,
) -> bytes:
    """Writes symbols.

    Args:
        tables: What the reader will have, too.
        start: What was learned before, and the reader will have, too.
        shape: Lengths (Z, Y, X).
        paths: Path of each symbol, component after component and place after place; -1 where masked.
        packed: Write all symbols as equally likely.
        masked: Whether there may be masked symbols.
    """
    writer = Writer()
    for _ in coded(tables, start, Memory({}, {}), shape, paths, writer, packed=packed, masked=masked):
        pass
    return writer.finish()


def decode(
    tables: Tables, start: Memory, shape: Shape, data: bytes, *, packed: bool = False, masked: bool = False
) -> list[int]:
    """Reads the paths that :func:`encode` wrote.

    Raises:
        DamagedCodesError: If the bytes end too early.
    """
    return list(coded(tables, start, Memory({}, {}), shape, None, Reader(data), packed=packed, masked=masked))


def coded(
    tables: Tables,
    start: Memory,
    memory: Memory,
    shape: Shape,
    paths: Sequence[int] | None,
    coder: Coder,
    *,
    packed: bool = False,
    masked: bool = False,
) -> Iterator[int]:
    """Writes or reads symbols one by one and yields their paths; -1 where masked.

    The memory adapts to them: what it does not have yet it copies from the start.
    """
    number = len(tables.widths)
    padded = _Padded(tables.offsets, shape, number)
    known, index = [0] * padded.size, 0  # a path with a leading 1, or 0 where there is none
    left, above, before = (padded.step(move) for move in ((0, 0, -1, 0), (0, -1, 0, 0), (0, 0, 0, -1)))
    codings = [_coding(tables, start, memory, padded, known, component, coder) for component in range(number)]
    kept = [[FRESH] * 8 for _ in codings]
    uniform = [(sorted(one), {path: rank for rank, path in enumerate(sorted(one))}) for one in tables.paths]
    squash, after, stretch = squash_table(), next_table(), stretch_table()
    for place in padded.places():
        for component, coding in enumerate(codings):
            at, path = place + component, 0 if paths is None else paths[index]
            index += 1
            if masked:
                beside = (known[at + left] > 0) + 2 * (known[at + above] > 0)
                beside += 4 * (component > 0 and known[at + before] > 0)
                state = kept[component][beside]
                there = coder.decide(int(path >= 0), squash[stretch[state] + 2048])
                kept[component][beside] = after[there][state]
                if not there:
                    yield -1
                    continue
            if packed:
                values, ranks = uniform[component]
                path = values[coder.choose(ranks.get(path, 0), len(values))]
            else:
                path = coding(path, at)
            known[at] = path | 1 << tables.widths[component]
            yield path


class _Padded:
    """Places of symbols in one list, with room at the borders for neighbours that are not there."""

    def __init__(self, offsets: Sequence[Sequence[int]], shape: Shape, components: int) -> None:
        above, self.high, self.wide = (max([1, *(abs(move[axis]) for move in offsets)]) for axis in range(3))
        self.above, self.shape, self.components = above, shape, components
        self.row = (shape[2] + 2 * self.wide) * components
        self.plane = (shape[1] + 2 * self.high) * self.row
        self.size = (shape[0] + above) * self.plane

    def step(self, move: Sequence[int]) -> int:
        return move[0] * self.plane + move[1] * self.row + move[2] * self.components + move[3]

    def places(self) -> Iterator[int]:
        for z in range(self.shape[0]):
            for y in range(self.shape[1]):
                start = self.step((z + self.above, y + self.high, self.wide, 0))
                yield from range(start, start + self.shape[2] * self.components, self.components)


def _coding(
    tables: Tables, start: Memory, memory: Memory, padded: _Padded, known: list[int], component: int, coder: Coder
) -> Callable[[int, int], int]:
    """Makes the function that writes or reads a symbol of a component: its path and place -> its path."""
    width, contexts, rate = tables.widths[component], tables.contexts[component], tables.rate
    squash, stretch, (after_0, after_1) = squash_table(), stretch_table().__getitem__, next_table()
    outcomes = branches(tables.paths[component], width)
    groups, weights, decide = memory.groups, memory.weights, coder.decide
    even = [(2 << 16) // max(1, len(contexts))] * len(contexts) + [0]
    first_groups, first_weights, base = start.groups, start.weights, component * NODES
    hashed, unseen = [], [0] + [FRESH] * 15
    for number, context in enumerate(contexts):
        seen = []
        for neighbour, bits in context:
            other = component + tables.offsets[neighbour][3]
            if 0 <= other < len(tables.widths):
                seen.append((padded.step(tables.offsets[neighbour]), max(0, tables.widths[other] - bits)))
        hashed.append(((number + 1) * _NODE + component * _GROUP & _MASK, seen))

    def coding(path: int, at: int) -> int:
        keys = []
        for key, seen in hashed:
            for step, dropped in seen:
                key = (key ^ known[at + step] >> dropped) * _TERM & _MASK
                key ^= key >> 15
            keys.append(key)
        node, slot, used = 1, 1, []
        for depth in range(width):
            if not depth & 3:
                slot, used, salt = 1, [], node * _NODE
                for key in keys:
                    key = (key ^ salt) * _GROUP & _MASK
                    group, mark = groups.get(key >> 12), key & 4095 | 4096
                    if group is None:
                        group = groups[key >> 12] = first_groups.get(key >> 12, unseen)[:]
                    if group[0] != mark:  # in place: two contexts may have one group
                        group[:] = unseen
                        group[0] = mark
                    used.append(group)
            bit = outcomes[node]
            if bit == 2:
                states = [group[slot] for group in used]
                inputs = [*map(stretch, states), BIAS]
                key = base + (node & NODES - 1)
                own = weights.get(key)
                if own is None:
                    own = weights[key] = first_weights.get(key, even)[:]
                logit = sum(map(mul, own, inputs)) >> 16
                chance = squash[2048 + logit if -2048 < logit < 2048 else 4095 if logit > 0 else 1]
                bit = decide(path >> width - 1 - depth & 1, chance)
                error, after = (65536 - chance, after_1) if bit else (-chance, after_0)
                if not -CERTAIN < error < CERTAIN:
                    own[:] = [weight + (value * error >> rate) for weight, value in zip(own, inputs)]  # noqa: B905
                for group, state in zip(used, states):  # noqa: B905
                    group[slot] = after[state]
            node += node + bit
            slot += slot + bit
        return node - (1 << width)

    return coding


def branches(paths: Sequence[int], width: int) -> bytes:
    """Returns for each node of a tree 0 or 1 where only that decision is possible, 2 where both are."""
    there = bytearray(2 << width)
    for path in paths:
        node = path | 1 << width
        while node and not there[node]:
            there[node] = 1
            node >>= 1
    return bytes(there[2 * node + 1] + (there[2 * node] & there[2 * node + 1]) for node in range(1 << width))
