"""Writing, reading and learning symbols in C++, where that can be built."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmvq.entropy import definition
from gmvq.entropy.coding import Learned, Lesson, Paths, PlainCoding, inputs_of
from gmvq.entropy.definition import GROUP, NODES, PLACES, DamagedCodesError, Shape, Tables
from gmvq.kernels.compiled import library

_Arrays = tuple[NDArray[np.uint16], NDArray[np.int64]]
"""Groups of states by place, and weights of mixers."""


class _Job(ctypes.Structure):
    """GmvqEntropy in kernels/entropy.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("after", "squash", "widths", "sizes", "paths", "branches")),
        *((name, ctypes.c_void_p) for name in ("offsets", "terms", "contexts", "rows", "start")),
        *((name, ctypes.c_int32) for name in ("components", "neighbours", "number_of_terms", "rate")),
        ("shape", ctypes.c_int64 * 3),
        ("packed", ctypes.c_int32),
        ("masked", ctypes.c_int32),
    )


class CompiledCoding:
    """Writes and reads symbols as :class:`~gmvq.entropy.coding.PlainCoding`, in C++.

    Args:
        kernels: The library.
        tables: What reader and writer know beforehand.
        start: What was learned before; by default nothing.
    """

    def __init__(self, kernels: ctypes.CDLL, tables: Tables, start: Learned | None = None) -> None:
        self.kernels, self.tables, self.inputs = kernels, tables, inputs_of(tables)
        start = Learned.of(definition.NOTHING, self.inputs) if start is None else start
        # fewer levels may have fewer contexts
        self.start = start._replace(weights=start.weights[:, : self.inputs])

    def encode(self, shape: Shape, paths: Paths, *, packed: bool = False, masked: bool = False) -> bytes:
        """Writes paths ``(symbols,)``, as :func:`gmvq.entropy.definition.encode`."""
        # a decision has at least 2^-12 of the range: 12 bits, and a symbol as many decisions as its path has bits
        room = 16 + 2 * sum(self.tables.widths) * math.prod(shape) + len(paths)
        out, size = np.empty(room, np.uint8), ctypes.c_int64(room)
        rest = _at(out), ctypes.byref(size)
        self._call(self.kernels.gmvq_entropy_write, shape, paths.copy(), self._memory(), packed, masked, *rest)
        return out[: size.value].tobytes()

    def decode(self, shape: Shape, data: bytes, *, packed: bool = False, masked: bool = False) -> Paths:
        """Reads what :meth:`encode` wrote.

        Raises:
            DamagedCodesError: If the bytes end too early.
        """
        paths = np.zeros(math.prod(shape) * len(self.tables.widths), np.int32)
        rest = data, ctypes.c_int64(len(data))
        self._call(self.kernels.gmvq_entropy_read, shape, paths, self._memory(), packed, masked, *rest)
        return paths

    def bits(self, shape: Shape, paths: Paths) -> float:
        """Computes the information of paths in bits: what :meth:`encode` writes, but for its last bytes."""
        return self._counted(self._memory(), shape, paths)

    def learn(self, items: Iterable[tuple[Shape, Paths]]) -> Lesson:
        """Adapts groups and weights to items, one after another."""
        memory = self._memory()
        total = sum(self._counted(memory, *item) for item in items)
        return Lesson(self._exported(*memory), total)

    def _counted(self, memory: _Arrays, shape: Shape, paths: Paths) -> float:
        bits, masked = ctypes.c_double(), bool((paths < 0).any())
        self._call(self.kernels.gmvq_entropy_count, shape, paths.copy(), memory, False, masked, ctypes.byref(bits))
        return bits.value

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
        """The arrays of a job by their names in it."""
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
        memory: _Arrays,
        packed: bool,
        masked: bool,
        *rest: Any,  # noqa: ANN401
    ) -> None:
        arrays, tables = self._arrays, self.tables
        job = _Job(
            **{name: _at(array) for name, array in arrays.items()},
            components=len(tables.widths),
            neighbours=len(tables.offsets),
            number_of_terms=len(arrays["terms"]),
            rate=tables.rate,
            shape=(ctypes.c_int64 * 3)(*shape),
            packed=packed,
            masked=masked,
        )
        failed = function(ctypes.byref(job), _at(paths), *map(_at, memory), *rest)
        if failed == 1:
            raise MemoryError(f"There is no memory for {len(paths):,} symbols. Use smaller segments.")
        if failed:
            raise DamagedCodesError("the codes end too early")


Coding = PlainCoding | CompiledCoding


def coding_of(tables: Tables, start: Learned | None = None) -> Coding:
    """Makes what writes and reads symbols: compiled where that can be built."""
    kernels = library()
    return PlainCoding(tables, start) if kernels is None else CompiledCoding(kernels, tables, start)


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
