"""Writing, reading and learning symbols as :mod:`gmvq.entropy.definition` does it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmvq.entropy import definition
from gmvq.entropy.definition import GROUP, NODES, Memory, Shape, Tables

Paths = NDArray[np.int32]


class Learned(NamedTuple):
    """A memory as arrays.

    Attributes:
        places: Place of each group, int32 ``(G,)``, rising.
        groups: uint16 ``(G, 16)``.
        nodes: Component times NODES plus node of each set of weights, int32 ``(W,)``, rising.
        weights: int64 ``(W, inputs)``; zeros after the last input of a component with fewer contexts.
    """

    places: NDArray[np.int32]
    groups: NDArray[np.uint16]
    nodes: NDArray[np.int32]
    weights: NDArray[np.int64]

    @classmethod
    def of(cls, memory: Memory, inputs: int) -> Learned:
        """Converts a memory; ``inputs`` is the largest number of inputs of its mixers."""
        places, nodes = sorted(memory.groups), sorted(memory.weights)
        groups = np.array([memory.groups[place] for place in places], np.uint16).reshape(-1, GROUP)
        weights = np.zeros((len(nodes), inputs), np.int64)
        for row, node in zip(weights, nodes, strict=True):
            row[: len(memory.weights[node])] = memory.weights[node]
        return cls(np.array(places, np.int32), groups, np.array(nodes, np.int32), weights)

    def memory(self, tables: Tables) -> Memory:
        """Converts back."""
        weights = {}
        for node, row in zip(self.nodes.tolist(), self.weights.tolist(), strict=True):
            weights[node] = row[: 1 + len(tables.contexts[node // NODES])]
        return Memory(dict(zip(self.places.tolist(), self.groups.tolist(), strict=True)), weights)

    def of_components(self, number: int) -> Learned:
        """Keeps the weights of the first components."""
        inside = self.nodes < number * NODES
        return self._replace(nodes=self.nodes[inside], weights=self.weights[inside])


class Lesson(NamedTuple):
    """What came of learning.

    Attributes:
        learned: Groups and weights.
        bits: Information of the items, each coded by what was learned before.
    """

    learned: Learned
    bits: float


class PlainCoding:
    """Writes and reads symbols, in Python.

    Args:
        tables: What reader and writer know beforehand.
        start: What was learned before; by default nothing.
    """

    def __init__(self, tables: Tables, start: Learned | None = None) -> None:
        self.tables = tables
        self.start = definition.NOTHING if start is None else start.memory(tables)

    def encode(self, shape: Shape, paths: Paths, *, packed: bool = False, masked: bool = False) -> bytes:
        """Writes paths ``(symbols,)``, as :func:`gmvq.entropy.definition.encode`."""
        return definition.encode(self.tables, self.start, shape, paths.tolist(), packed=packed, masked=masked)

    def decode(self, shape: Shape, data: bytes, *, packed: bool = False, masked: bool = False) -> Paths:
        """Reads what :meth:`encode` wrote.

        Raises:
            DamagedCodesError: If the bytes end too early.
        """
        found = definition.decode(self.tables, self.start, shape, data, packed=packed, masked=masked)
        return np.array(found, np.int32)

    def bits(self, shape: Shape, paths: Paths) -> float:
        """Computes the information of paths in bits: what :meth:`encode` writes, but for its last bytes."""
        return self._counted(Memory({}, {}), shape, paths)

    def learn(self, items: Iterable[tuple[Shape, Paths]]) -> Lesson:
        """Adapts groups and weights to items, one after another."""
        memory = Memory({}, {})
        total = sum(self._counted(memory, *item) for item in items)
        whole = Memory({**self.start.groups, **memory.groups}, {**self.start.weights, **memory.weights})
        return Lesson(Learned.of(whole, inputs_of(self.tables)), total)

    def _counted(self, memory: Memory, shape: Shape, paths: Paths) -> float:
        counter, masked = _Counter(), bool((paths < 0).any())
        for _ in definition.coded(self.tables, self.start, memory, shape, paths.tolist(), counter, masked=masked):
            pass
        return counter.bits


class _Counter:
    """Sums up information in bits."""

    def __init__(self) -> None:
        self.bits = 0.0

    def decide(self, bit: int, chance: int) -> int:
        self.bits -= math.log2((chance if bit else 65536 - chance) / 65536)
        return bit

    def choose(self, value: int, number: int) -> int:
        self.bits += math.log2(number)
        return value


def inputs_of(tables: Tables) -> int:
    """Largest number of inputs of a mixer: those of the contexts, and the last."""
    return 1 + max((len(contexts) for contexts in tables.contexts), default=0)
