"""Fitting of an entropy model: a tree over each codebook, and tables from the codes of many items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmvq.entropy.coding import Learned
from gmvq.entropy.compiled import coding_of
from gmvq.entropy.model import CONTEXTS, EntropyConfig, EntropyModel

RATES = (14, 15, 17)
"""Rates of mixers to choose from."""
CONFIDENCES = (1, 3, 31)
"""Largest counts of states at the start of an item, to choose from. States with low counts move fast: they follow the
item's own codes after a few of them."""
MOST_GROUPS = 1 << 17
"""Groups of states that a model keeps, the most frequent ones: at most four megabytes on the disk."""
MOST_TRIED = 48
"""Items by which a choice is made."""


def fit(config: EntropyConfig, vectors: Sequence[NDArray[np.floating] | None], items: Sequence[Tensor]) -> EntropyModel:
    """Fits a model: trees by the codes' vectors; contexts, rate and tables by the codes of items.

    Contexts, rate and confidence are those that write some of the items in the fewest bits by tables of the others.

    Args:
        config: Form of the codes.
        vectors: Code vectors ``(K, dim)`` of each level; None keeps the order of the codes' numbers.
        items: Codes of items ``(*grid[, levels])``, with all levels.

    Raises:
        ValueError: If there are no items, or codes are not of the configured form.
    """
    if not items:
        raise ValueError("'items' must have codes of at least one item, got none. Tokenize some.")
    trees = [tree for level, rows in enumerate(vectors) for tree in _trees(config, level, rows)]
    model = _ordered(config, trees)
    pairs = [symbols[:2] for symbols in map(model.symbols, items)]  # of any contexts
    others = pairs[1::2] or pairs
    tried = others[:: -(-len(others) // MOST_TRIED)]
    best: tuple[float, EntropyConfig, int] | None = None
    for contexts in CONTEXTS[config.axes]:
        for rate in RATES:
            made = replace(config, contexts=contexts, rate=rate)
            tables = _ordered(made, trees).tables(len(vectors))
            learned = coding_of(tables).learn(pairs[::2]).learned
            for confidence in CONFIDENCES:
                coding = coding_of(tables, _cut(learned, confidence))
                bits = sum(coding.bits(*pair) for pair in tried)
                if best is None or bits < best[0]:
                    best = bits, made, confidence
    assert best is not None
    model = _ordered(best[1], trees)
    model.start_from(_cut(model.coding(len(vectors)).learn(pairs).learned, best[2]))
    return model


def _ordered(config: EntropyConfig, trees: Sequence[NDArray[np.int32]]) -> EntropyModel:
    model = EntropyModel(config)
    model.order_by(trees)
    return model


def _trees(config: EntropyConfig, level: int, vectors: NDArray[np.floating] | None) -> list[NDArray[np.int32]]:
    """Returns the paths of the symbols of a level."""
    size, *more = config.symbol_sizes[level]
    if vectors is None or more:
        return [np.arange(number, dtype=np.int32) for number in (size, *more)]
    if len(vectors) != size:
        raise ValueError(f"'vectors' of level {level} must be {size}, got {len(vectors)}. Give one for each code.")
    return [bisected(np.asarray(vectors, np.float64))]


def bisected(vectors: NDArray[np.float64]) -> NDArray[np.int32]:
    """Computes a path for each of K vectors ``(K, dim)``, int32 ``(K,)``.

    Vectors are halved along their direction of largest variance, and the halves again: vectors that are near each other
    have the first bits of their paths in common. With K = 2^width, all paths of that many bits are taken.
    """
    found, halves = np.zeros(len(vectors), np.int32), [(np.arange(len(vectors)), (len(vectors) - 1).bit_length())]
    while halves:
        chosen, bits = halves.pop()
        if len(chosen) < 2:
            continue
        centred = vectors[chosen] - vectors[chosen].mean(0)
        direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        ordered = chosen[np.argsort(centred @ direction, kind="stable")]
        middle = (len(ordered) + 1) // 2
        found[ordered[middle:]] |= 1 << bits - 1
        halves += [(ordered[:middle], bits - 1), (ordered[middle:], bits - 1)]
    return found


def _cut(learned: Learned, confidence: int) -> Learned:
    """Keeps the most frequent groups, none of one visit, with counts of at most ``confidence``."""
    counts = learned.groups[:, 1:] & 31
    seen = counts.sum(1, dtype=np.int64)
    often = np.flatnonzero(counts[:, 0] > 1)
    kept = np.sort(often[np.argsort(-seen[often], kind="stable")[:MOST_GROUPS]])
    groups = learned.groups[kept]
    groups[:, 1:] = (groups[:, 1:] & ~np.uint16(31)) | np.minimum(counts[kept], confidence)
    return learned._replace(places=learned.places[kept], groups=groups)
