"""Writing, reading and learning symbols: in C++ where it can be built, else as the definition does it."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmvq.entropy import definition
from gmvq.entropy.definition import NODES, DamagedCodesError, Memory, Shape, Tables
from gmvq.kernels.compiled import library

Paths = NDArray[np.int32]
PLACES = 1 << 20
"""Places of groups."""
GROUP = 16
_Arrays = tuple[NDArray[np.uint16], NDArray[np.int64]]
"""Groups of states by place, and weights of mixers."""


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


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("after", "squash", "widths", "sizes", "paths", "branches")),
        *((name, ctypes.c_void_p) for name in ("offsets", "terms", "contexts", "rows", "start")),
        *((name, ctypes.c_int32) for name in ("components", "neighbours", "number_of_terms", "rate")),
        ("shape", ctypes.c_int64 * 3),
        ("packed", ctypes.c_int32),
        ("masked", ctypes.c_int32),
    )


class Coding:
    """Writes and reads symbols by tables.

    Args:
        tables: What reader and writer know beforehand.
        start: The groups and weights at the start, in place of those of the tables.
    """

    def __init__(self, tables: Tables, start: Learned | None = None) -> None:
        self.tables = tables
        self.inputs = 1 + max((len(contexts) for contexts in tables.contexts), default=0)
        start = _learned(Memory(tables.groups, tables.weights), self.inputs) if start is None else start
        # fewer levels may have fewer contexts
        self.start = start._replace(weights=start.weights[:, : self.inputs])

    def encode(self, shape: Shape, paths: Paths, *, packed: bool = False, masked: bool = False) -> bytes:
        """Writes paths ``(symbols,)``, as :func:`gmvq.entropy.definition.encode`."""
        kernels = library()
        if kernels is None:
            return definition.encode(self._whole, shape, paths.tolist(), packed=packed, masked=masked)
        # a decision has at least 2^-12 of the range: 12 bits, and a symbol as many decisions as its path has bits
        room = 16 + 2 * sum(self.tables.widths) * math.prod(shape) + len(paths)
        out, size = np.empty(room, np.uint8), ctypes.c_int64(room)
        self._call(kernels.gmvq_entropy_write, shape, paths.copy(), packed, masked, _at(out), ctypes.byref(size))
        return out[: size.value].tobytes()

    def decode(self, shape: Shape, data: bytes, *, packed: bool = False, masked: bool = False) -> Paths:
        """Reads what :meth:`encode` wrote.

        Raises:
            DamagedCodesError: If the bytes end too early.
        """
        kernels = library()
        if kernels is None:
            found = definition.decode(self._whole, shape, data, packed=packed, masked=masked)
            return np.array(found, np.int32)
        paths = np.zeros(math.prod(shape) * len(self.tables.widths), np.int32)
        self._call(kernels.gmvq_entropy_read, shape, paths, packed, masked, data, ctypes.c_int64(len(data)))
        return paths

    def bits(self, shape: Shape, paths: Paths) -> float:
        """Computes the information of paths in bits: what :meth:`encode` writes, but for its last bytes."""
        kernels = library()
        if kernels is None:
            return self._counted(Memory({}, {}), shape, paths)
        return self._counted_fast(kernels, self._memory(), shape, paths)

    def learn(self, items: Iterable[tuple[Shape, Paths]]) -> Lesson:
        """Adapts groups and weights to items, one after another."""
        kernels = library()
        if kernels is None:
            memory = Memory({}, {})
            total = sum(self._counted(memory, *item) for item in items)
            whole = Memory({**self._whole.groups, **memory.groups}, {**self._whole.weights, **memory.weights})
            return Lesson(_learned(whole, self.inputs), total)
        arrays = self._memory()
        total = sum(self._counted_fast(kernels, arrays, *item) for item in items)
        return Lesson(self._exported(*arrays), total)

    def _counted(self, memory: Memory, shape: Shape, paths: Paths) -> float:
        counter, masked = _Counter(), bool((paths < 0).any())
        for _ in definition.coded(self._whole, memory, shape, paths.tolist(), counter, masked=masked):
            pass
        return counter.bits

    def _counted_fast(self, kernels: ctypes.CDLL, memory: _Arrays, shape: Shape, paths: Paths) -> float:
        bits, masked = ctypes.c_double(), bool((paths < 0).any())
        rest = ctypes.byref(bits)
        self._call(kernels.gmvq_entropy_count, shape, paths.copy(), False, masked, rest, memory=memory)
        return bits.value

    @functools.cached_property
    def _whole(self) -> Tables:
        """The tables with the start as lists."""
        start = self.start
        weights = {}
        for node, row in zip(start.nodes.tolist(), start.weights.tolist(), strict=True):
            weights[node] = row[: 1 + len(self.tables.contexts[node // NODES])]
        groups = dict(zip(start.places.tolist(), start.groups.tolist(), strict=True))
        return self.tables._replace(groups=groups, weights=weights)

    @functools.cached_property
    def _first_weights(self) -> NDArray[np.int64]:
        rows = np.zeros((len(self.tables.contexts), NODES, self.inputs), np.int64)
        for component, contexts in enumerate(self.tables.contexts):
            rows[component, :, : len(contexts)] = (2 << 16) // max(1, len(contexts))
        return rows.reshape(-1, self.inputs)

    def _memory(self) -> _Arrays:
        # pages of zeros take no time and no memory until they are written: a short item needs few
        groups, weights = np.zeros((PLACES, GROUP), np.uint16), self._first_weights.copy()
        weights[self.start.nodes] = self.start.weights
        return groups, weights

    def _exported(self, groups: NDArray[np.uint16], weights: NDArray[np.int64]) -> Learned:
        unused = groups[self.start.places, 0] == 0
        groups[self.start.places[unused]] = self.start.groups[unused]
        places = np.flatnonzero(groups[:, 0])
        nodes = np.flatnonzero((weights != self._first_weights).any(1))
        return Learned(places.astype(np.int32), groups[places], nodes.astype(np.int32), weights[nodes])

    @functools.cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        tables = self.tables
        terms = [
            (component, number, neighbour, bits)
            for component, contexts in enumerate(tables.contexts)
            for number, context in enumerate(contexts)
            for neighbour, bits in context
        ]
        pairs = zip(tables.paths, tables.widths, strict=True)
        rows = np.zeros(PLACES, np.int32)
        rows[self.start.places] = np.arange(1, len(self.start.places) + 1)
        return {
            "after": np.array(definition.next_table(), np.uint16),
            "squash": np.array(definition.squash_table(), np.uint16),
            "widths": np.array(tables.widths, np.int32),
            "sizes": np.array([len(paths) for paths in tables.paths], np.int32),
            "paths": np.concatenate([np.sort(np.array(paths, np.int32)) for paths in tables.paths]),
            "branches": np.frombuffer(b"".join(definition.branches(*pair) for pair in pairs), np.uint8),
            "offsets": np.array(tables.offsets, np.int32).reshape(-1, 4),
            "terms": np.array(terms, np.int32).reshape(-1, 4),
            "contexts": np.array([len(contexts) for contexts in tables.contexts], np.int32),
            "rows": rows,
            "start": np.ascontiguousarray(self.start.groups),
        }

    def _call(
        self,
        function: Any,  # noqa: ANN401 (a function of the library)
        shape: Shape,
        paths: Paths,
        packed: bool,
        masked: bool,
        *rest: Any,  # noqa: ANN401
        memory: _Arrays | None = None,
    ) -> None:
        arrays, tables = self._arrays, self.tables
        counts = (len(tables.widths), len(tables.offsets), len(arrays["terms"]), tables.rate)
        job = _Job(*(_at(one) for one in arrays.values()), *counts, (ctypes.c_int64 * 3)(*shape), packed, masked)
        groups, weights = memory or self._memory()
        failed = function(ctypes.byref(job), _at(paths), _at(groups), _at(weights), *rest)
        if failed == 1:
            raise MemoryError(f"There is no memory for {len(paths):,} symbols. Use smaller segments.")
        if failed:
            raise DamagedCodesError("the codes end too early")


class Lesson(NamedTuple):
    """What came of learning.

    Attributes:
        learned: Groups and weights.
        bits: Information of the items, each coded by what was learned before.
    """

    learned: Learned
    bits: float


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


def _learned(memory: Memory, inputs: int) -> Learned:
    places, nodes = sorted(memory.groups), sorted(memory.weights)
    groups = np.array([memory.groups[place] for place in places], np.uint16).reshape(-1, GROUP)
    weights = np.zeros((len(nodes), inputs), np.int64)
    for row, node in zip(weights, nodes, strict=True):
        row[: len(memory.weights[node])] = memory.weights[node]
    return Learned(np.array(places, np.int32), groups, np.array(nodes, np.int32), weights)


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
