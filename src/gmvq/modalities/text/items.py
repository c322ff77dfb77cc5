"""Turns texts into items: splits, cuts, encodes and labels them.

::

    Entries --split--> sides --parted--> parts of at most 65,536 characters --encoded--> TextItems
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gmvq.data.items import Items, Size
from gmvq.data.labels import Labels, labels_of
from gmvq.data.splitting import held_out
from gmvq.modalities.tables import classes_of
from gmvq.modalities.text.files import Entry
from gmvq.modalities.text.symbols import AbstractAlphabet

LONGEST = 1 << 16
"""Largest number of characters of an item: longer texts are cut into several items."""

_AT_ONCE = 4096
_INT64 = 8


class TextItems(Items):
    """Sequences of symbols, stored end to end in one tensor.

    Args:
        symbols: Integers ``(N,)`` of any type; items are converted to int64.
        spans: Start and end of each item.
        names: Name of each item.
        labels: int64, one per item, or None.
    """

    axes = 1

    def __init__(
        self, symbols: Tensor, spans: Sequence[tuple[int, int]], names: Sequence[str], labels: Tensor | None = None
    ) -> None:
        self.symbols, self.spans = symbols, list(spans)
        self.names, self.labels = list(names), labels

    def __getitem__(self, index: int) -> Tensor:
        """Returns item ``index``: a view of int64 symbols, a converted copy of other types."""
        start, stop = self.spans[index]
        return self.symbols[start:stop].long()

    @property
    def sizes(self) -> list[Size]:
        """Number of symbols of each item."""
        return [(stop - start,) for start, stop in self.spans]

    def subset(self, indices: Iterable[int]) -> TextItems:
        """Returns the items at ``indices``, in that order; the symbols are shared."""
        chosen = list(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return TextItems(self.symbols, [self.spans[i] for i in chosen], [self.names[i] for i in chosen], labels)


def split(entries: list[Entry], fraction: float, *, lines: bool) -> list[list[Entry]]:
    """Holds items out by a hash of their content; a single document is cut, at a line start if possible.

    Args:
        entries: All items.
        fraction: Fraction to hold out, 0 for nothing.
        lines: True if the items are lines, which are not cut.

    Returns:
        Two sides, the second held out, or one if there is too little to split.
    """
    if len(entries) > 1 or lines or not fraction:
        digests = [hashlib.sha256(entry.text.encode()).digest() for entry in entries]
        chosen = set(held_out(digests, fraction))
        sides = [[entry for place, entry in enumerate(entries) if (place in chosen) == side] for side in (False, True)]
        return sides if chosen else [entries]
    (document,) = entries
    text = document.text
    rest = max(1, round(len(text) * fraction))
    border = text.rfind("\n", max(0, len(text) - 2 * rest), len(text) - rest) + 1 or len(text) - rest
    if not text[:border].strip() or not text[border:].strip():
        return [entries]
    head = parted(document._replace(text=text[:border]), always=True)
    return [head, parted(document._replace(text=text[border:]), len(head) + 1, always=True)]


def parted(entry: Entry, first: int = 1, *, always: bool = False) -> list[Entry]:
    """Cuts a long text into numbered parts; returns a short one unchanged, or numbered if ``always`` is set."""
    parts = list(parts_of(entry.text))
    if len(parts) == 1 and not always:
        return [entry]
    return [entry._replace(name=f"{entry.name}-{first + place:05d}", text=part) for place, part in enumerate(parts)]


def parts_of(text: str, longest: int = LONGEST) -> Iterator[str]:
    r"""Cuts a text into parts, after line ends if possible; their concatenation is the text.

    Example:
        >>> list(parts_of("one\ntwo\nthree", 9))
        ['one\ntwo\n', 'three']
    """
    start = 0
    while len(text) - start > longest:
        stop = text.rfind("\n", start + longest // 2, start + longest) + 1 or start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]


def encoded(
    texts: Sequence[str], alphabet: AbstractAlphabet, memory_bytes: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Encodes texts as symbols, end to end, and returns the start and end of each.

    The type is int64 if that takes at most ``memory_bytes``, else the smallest type that holds the vocabulary.
    """
    small = torch.int16 if alphabet.size <= torch.iinfo(torch.int16).max else torch.int32
    chunks, spans, stop = list[Tensor](), list[tuple[int, int]](), 0
    for start in range(0, len(texts), _AT_ONCE):
        found = alphabet.encode(texts[start : start + _AT_ONCE])
        for symbols in found:
            spans.append((stop, stop := stop + len(symbols)))
        chunks.append(torch.cat(found).to(small))
    whole = torch.cat(chunks)
    return whole.long() if _INT64 * stop <= memory_bytes else whole, spans


def labels_of_texts(entries: Sequence[Entry], root: Path | None) -> Labels | None:
    """Returns the classes given in the files, or else by their folders.

    Args:
        entries: All texts.
        root: The folder that was read; None for a single file.
    """
    said = [entry.label for entry in entries if entry.label is not None]
    if said and len(said) == len(entries):
        classes = classes_of(said)
        index = {word: place for place, word in enumerate(classes)}
        return Labels(torch.tensor([index[word] for word in said]), classes)
    if root is None:
        return None
    files = list(dict.fromkeys(entry.path for entry in entries if entry.path is not None))
    labels = labels_of([file.relative_to(root).as_posix() for file in files], root)
    if labels is None:
        return None
    of_file = dict(zip(files, labels.values.tolist(), strict=True))
    return labels._replace(values=torch.tensor([of_file[entry.path] for entry in entries if entry.path is not None]))
