"""Sets of items as sequences of tensors: images, recordings, series, texts or vectors.

::

    Items --[i]--> (C, *S), of symbols (T,)      ArrayItems   one tensor, all of one size
                                                 ListItems    a tensor for each item, of any size
                                                 FileItems    files, read on access
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_MEMORY_BYTES = 1 << 30

Size = tuple[int, ...]
"""Lengths of an item's axes beside its channels: (H, W) of an image, (T,) of a sequence, () of a vector."""


class Items(ABC):
    """Items of one signal, in a fixed order.

    Attributes:
        axes: Axes of an item beside its channels.
        names: A name for each item: its path within the folder, or its index.
        labels: int64 ``(N,)``, or None for data without labels.
    """

    axes: int
    names: list[str]
    labels: Tensor | None

    def __len__(self) -> int:
        """Number of items N."""
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Returns item ``index``, as it is stored. It may be shared with later calls: do not write to it."""

    def let_go(self, index: int) -> None:  # noqa: B027 (most have no other place for their items)
        """Frees the memory of an item that is read from a file, when it is not needed again."""

    @property
    @abstractmethod
    def sizes(self) -> list[Size]:
        """Lengths of each item's axes beside its channels."""

    @abstractmethod
    def subset(self, indices: Iterable[int]) -> Items:
        """Returns the items at ``indices``, in that order."""


class ArrayItems(Items):
    """Items of one size in one tensor.

    Args:
        array: ``(N, C, *S)``, or symbols ``(N, T)``.
        axes: Axes beside the channels: 2 for images.
        labels: Integers ``(N,)``, or None.
        names: N names; by default the index of each item.

    Raises:
        ValueError: If the shapes or the lengths do not agree.
    """

    def __init__(
        self, array: Tensor, axes: int, labels: Tensor | None = None, names: Sequence[str] | None = None
    ) -> None:
        if array.ndim - axes not in (1, 2) or 0 in array.shape[1:]:
            raise ValueError(
                f"'array' must have {axes} axes beside those of items and channels, no axis empty, got "
                f"{tuple(array.shape)}. Add an axis for one item with array[None]."
            )
        self.array = array.contiguous()
        self.axes = axes
        self.names = [f"{i:05d}" for i in range(len(array))] if names is None else list(names)
        _check_length("names", len(self.names), len(array))
        self.labels = _checked_labels(labels, len(array))

    def __getitem__(self, index: int) -> Tensor:
        """Returns item ``index``, a view."""
        return self.array[index]

    @property
    def sizes(self) -> list[Size]:
        """Lengths of each item's axes beside its channels."""
        return [tuple(self.array.shape[self.array.ndim - self.axes :])] * len(self.names)

    def subset(self, indices: Iterable[int]) -> ArrayItems:
        """Returns the items at ``indices``, in that order: a view if they are consecutive, else a copy."""
        chosen = list(indices)
        names = [self.names[i] for i in chosen]
        if chosen and chosen[0] >= 0 and chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            part: slice | Tensor = slice(chosen[0], chosen[0] + len(chosen))
        else:
            part = torch.as_tensor(chosen, dtype=torch.int64)
        return ArrayItems(self.array[part], self.axes, None if self.labels is None else self.labels[part], names)


class ListItems(Items):
    """Items of any size, all in memory.

    Args:
        items: Tensors ``(C, *S)``, or symbols ``(T,)``, of one type and number of channels.
        axes: Axes beside the channels.
        names: A name for each.
        labels: Integers ``(N,)``, or None.

    Raises:
        ValueError: If there is no item, or types, channels or lengths do not agree.
    """

    def __init__(self, items: Sequence[Tensor], axes: int, names: Sequence[str], labels: Tensor | None = None) -> None:
        if not items:
            raise ValueError("'items' must hold at least one tensor, got none. Check where they come from.")
        first = items[0]
        for name, item in zip(names, items, strict=True):
            same = item.dtype == first.dtype and item.ndim == first.ndim and item.ndim - axes in (0, 1)
            if not same or 0 in item.shape or item.shape[: item.ndim - axes] != first.shape[: first.ndim - axes]:
                raise ValueError(
                    f"'items' must all be like the first, {first.dtype} {tuple(first.shape)} but for its last {axes} "
                    f"axes, got {item.dtype} {tuple(item.shape)} for '{name}'. Convert them first."
                )
        self._items = list(items)
        self.axes = axes
        self.names = list(names)
        self.labels = _checked_labels(labels, len(items))

    def __getitem__(self, index: int) -> Tensor:
        """Returns item ``index``."""
        return self._items[index]

    @property
    def sizes(self) -> list[Size]:
        """Lengths of each item's axes beside its channels."""
        return [tuple(item.shape[item.ndim - self.axes :]) for item in self._items]

    def subset(self, indices: Iterable[int]) -> ListItems:
        """Returns the items at ``indices``, in that order; the tensors are shared."""
        chosen = list(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return ListItems([self._items[i] for i in chosen], self.axes, [self.names[i] for i in chosen], labels)


class _Read:
    """Cache of the items of files, filled until the budget is spent and then changed only by :meth:`let_go`.

    Training visits all items in random order: replacing one item by another would only trade one miss for the next.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.left = memory_bytes
        self.items: dict[Path, Tensor] = {}
        self.sizes: dict[Path, Size] = {}
        self.lock = threading.Lock()

    def keep(self, path: Path, item: Tensor, size: Size) -> None:
        with self.lock:
            self.sizes[path] = size
            if path not in self.items and item.nbytes <= self.left:
                self.left -= item.nbytes
                self.items[path] = item

    def let_go(self, path: Path) -> None:
        with self.lock:
            item = self.items.pop(path, None)
            self.left += 0 if item is None else item.nbytes


class FileItems(Items):
    """Items of one file each, read on access and kept in memory up to a budget.

    Args:
        paths: The files.
        axes: Axes of an item beside its channels.
        read: Function that reads a file's item.
        measure: Function that reads the size of a file's item from its header alone; by default the file is read.
        names: A name for each; by default its path.
        labels: Integers ``(N,)``, or None.
        memory_bytes: Budget in bytes for kept items; files beyond it are read each time.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        axes: int,
        read: Callable[[Path], Tensor],
        *,
        measure: Callable[[Path], Size] | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.axes = axes
        self.read, self.measure = read, measure
        self.names = [str(path) for path in self.paths] if names is None else list(names)
        _check_length("names", len(self.names), len(self.paths))
        self.labels = _checked_labels(labels, len(self.paths))
        self._kept = _Read(memory_bytes)

    def __getitem__(self, index: int) -> Tensor:
        """Returns item ``index``."""
        path = self.paths[index]
        item = self._kept.items.get(path)
        if item is None:
            item = self.read(path)
            self._kept.keep(path, item, tuple(item.shape[item.ndim - self.axes :]))
        return item

    def let_go(self, index: int) -> None:
        """Removes an item from those in memory, and from the budget."""
        self._kept.let_go(self.paths[index])

    @property
    def sizes(self) -> list[Size]:
        """Lengths of each item's axes beside its channels, from the headers of files that are not read yet."""
        known = self._kept.sizes
        for index, path in enumerate(self.paths):
            if path not in known:
                if self.measure is None:
                    self[index]
                else:
                    known[path] = self.measure(path)
        return [known[path] for path in self.paths]

    def subset(self, indices: Iterable[int]) -> FileItems:
        """Returns the items at ``indices``, in that order; kept items and the budget are shared."""
        chosen = list(indices)
        part = FileItems(
            [self.paths[i] for i in chosen],
            self.axes,
            self.read,
            measure=self.measure,
            names=[self.names[i] for i in chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )
        part._kept = self._kept
        return part


class Skipped(NamedTuple):
    """A file that could not be read.

    Attributes:
        path: The file.
        reason: The reason, in a few words.
    """

    path: Path
    reason: str


def evenly_spaced(count: int, most: int) -> list[int]:
    """Returns ``most`` integers below ``count`` at even steps, or all if there are fewer.

    Example:
        >>> evenly_spaced(10, 4), evenly_spaced(3, 4)
        ([0, 2, 5, 7], [0, 1, 2])
    """
    number = min(count, most)
    return [place * count // number for place in range(number)]


def central(item: Tensor, axes: int, side: int) -> Tensor:
    """Returns the middle of an item, at most ``side`` samples along each of its last ``axes`` axes, a view."""
    for axis in range(item.ndim - axes, item.ndim):
        length = item.shape[axis]
        if length > side:
            item = item.narrow(axis, (length - side) // 2, side)
    return item


def _check_length(name: str, length: int, expected: int) -> None:
    if length != expected:
        raise ValueError(f"'{name}' must have one entry for each of the {expected} items, got {length}. Match them.")


def _checked_labels(labels: Tensor | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"'labels' must be integers of shape ({count},), got {labels.dtype} {tuple(labels.shape)}. "
            "Pass class indices, or None."
        )
    _check_length("labels", len(labels), count)
    return labels.to(torch.int64)
