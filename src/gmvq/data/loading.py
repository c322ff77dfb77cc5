"""Loaders of batches of items or codes, whose choice of items and windows depends only on the seed and the step.

::

    Items --Loader.batch(step)------> Batch        training: shuffled, cut, mirrored; the same after a restart
    codes --CodeLoader.batch(step)--> CodeBatch    the same for priors
    Items --held_out_batches--------> Batch        evaluation: in order, whole
"""

from __future__ import annotations

import math
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import at_least
from gmvq.data.items import ArrayItems, Items
from gmvq.types import Batch, CodeBatch

_LARGE_ITEM = 256 * 256
_PREFETCHED = 3


Drawn = TypeVar("Drawn")


class AbstractLoader(ABC, Generic[Drawn]):
    """Draws batches, each a pure function of the seed and the step.

    The items of an epoch are all items, each ``repeats`` times, in an order that depends on the seed and the epoch.
    Epochs follow each other without a gap and a batch may span two (or, for few items, many), so each item is drawn
    equally often and none is dropped.

    Args:
        items: Number of items.
        batch_size: Items in a batch, on each rank.
        seed: Non-negative integer from which all randomness comes.
        repeats: Number of times that an epoch draws each item.
        rank: Number of this process. ``world_size`` ranks with batches of B see disjoint slices of what one process
            with batches of ``world_size * B`` sees.
        world_size: Number of processes.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, items: int, batch_size: int, *, seed: int = 0, repeats: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        """See the class."""
        at_least("batch_size", batch_size, 1)
        at_least("world_size", world_size, 1)
        at_least("seed", seed, 0)
        at_least("rank", rank, 0)
        if rank >= world_size:
            raise ValueError(f"'rank' must be less than 'world_size' = {world_size}, got {rank}. Ranks count from 0.")
        self.items = items
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Full steps of all ranks together in an epoch, at least 1."""
        return max(1, self.items * self.repeats // (self.batch_size * self.world_size))

    @abstractmethod
    def batch(self, step: int) -> Drawn:
        """Draws the batch of one step, on this rank.

        Args:
            step: Number of the step, from 0; the order of steps is free.
        """

    def iterate(self, first_step: int = 0, last_step: int | None = None) -> Iterator[Drawn]:
        """Yields the batches of ``first_step``, ..., ``last_step - 1``, or without end, prepared ahead by one thread.

        The thread ends with the iterator: at its last step, when it is closed or forgotten, or when either side raises.

        Raises:
            ImageError: Or any other error that :meth:`batch` raised in the thread.
        """
        ready: queue.Queue[Drawn | Exception | None] = queue.Queue(_PREFETCHED)
        stop = threading.Event()
        thread = threading.Thread(
            target=_produce, args=(self, first_step, last_step, ready, stop), name="gmvq-loader", daemon=True
        )
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            _drain(ready)  # the thread may wait for room; after one more item it sees the event
            thread.join()

    def __call__(self, first_step: int = 0, last_step: int | None = None) -> Iterator[Drawn]:
        """Yields the same as :meth:`iterate`."""
        return self.iterate(first_step, last_step)

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], slice]:
        """Returns the items of a step on this rank, and their places among those of all ranks."""
        at_least("step", step, 0)
        total = self.batch_size * self.world_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return self._indices(np.arange(step * total, (step + 1) * total)[mine]), mine

    def _indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the items at positions of the endless sequence of epochs."""
        epochs, places = np.divmod(positions, self.items * self.repeats)
        drawn = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(drawn) % self.items

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.items * self.repeats)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}  # a batch can need two epochs
        return order


Window = Callable[[Tensor, int | None, NDArray[np.float64]], Tensor]
"""Function that cuts an item to a size, by random numbers in [0, 1): see :meth:`gmvq.modalities.Modality.window`."""


class Loader(AbstractLoader[Batch]):
    """Draws training batches of items.

    Args:
        items: The items.
        batch_size: Items in a batch, on each rank.
        window: Function that cuts an item; None for whole items.
        size: Samples of a window along each axis; None for whole items.
        mirror: Whether ``window`` mirrors half of the items.
        seed: Non-negative integer from which all randomness comes.
        windows_per_item: Number of times that an epoch draws each item.
        rank: Number of this process, see :class:`AbstractLoader`.
        world_size: Number of processes.

    Raises:
        ValueError: If an argument is out of range, there are no items, or they differ in size, have more than one axis
            and ``size`` is None.
    """

    def __init__(
        self,
        items: Items,
        batch_size: int,
        *,
        window: Window | None = None,
        size: int | None = None,
        mirror: bool = False,
        seed: int = 0,
        windows_per_item: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """See the class."""
        at_least("windows_per_item", windows_per_item, 1)
        super().__init__(len(items), batch_size, seed=seed, repeats=windows_per_item, rank=rank, world_size=world_size)
        if len(items) == 0:
            raise ValueError("'items' must hold at least one item, got none. Check the data or its split.")
        if size is not None:
            at_least("size", size, 1)
        elif items.axes > 1:
            _check_one_size(items)
        self.all, self.window = items, window
        self.size, self.mirror = size, mirror
        # a rank whose sequences happen to have one length must compute as the ranks whose sequences do not
        lengths = [length for (length,) in items.sizes] if world_size > 1 and items.axes == 1 else [0]
        self._differ = min(lengths) < (max(lengths) if size is None else min(size, max(lengths)))

    def batch(self, step: int) -> Batch:
        """Draws the batch of one step, on this rank.

        Args:
            step: Number of the step, from 0; the order of steps is free.

        Returns:
            Items as they are stored ``(B, C, *S)``, with their labels if the data have any. Sequences of different
            lengths are padded with zeros, and come with their lengths.
        """
        indices, mine = self._drawn(step)
        # Drawn for all ranks, so that a slice does not depend on the number of ranks.
        chance = np.random.default_rng([self.seed, 1, step]).random((self.batch_size * self.world_size, 3))[mine]
        if not self.mirror:
            chance[:, 2] = 1.0
        items, lengths = self._windows(indices, chance)
        labels = self.all.labels
        return Batch(items, lengths, None if labels is None else labels[torch.from_numpy(indices)])

    def _windows(self, indices: NDArray[np.int64], chance: NDArray[np.float64]) -> tuple[Tensor, Tensor | None]:
        """Returns a copy of the items, cut, and the lengths of sequences that differ in theirs."""
        # numpy, not torch: this runs beside the training, and torch would start a second pool of threads for it.
        if isinstance(self.all, ArrayItems) and (self.window is None or (self.size is None and not self.mirror)):
            return torch.from_numpy(self.all.array.numpy()[indices]), None
        items = [self.all[int(index)] for index in indices]
        if self.window is not None:
            items = [self.window(item, self.size, numbers) for item, numbers in zip(items, chance, strict=True)]
        return stacked(items, self.all.axes, with_lengths=self._differ)


def stacked(items: Sequence[Tensor], axes: int, *, with_lengths: bool = False) -> tuple[Tensor, Tensor | None]:
    """Stacks items to one batch ``(B, C, *S)``, with the lengths ``(B,)`` of sequences that differ in theirs.

    Args:
        items: Items that differ at most in their lengths.
        axes: Axes of an item beside its channels; only where it is 1 may lengths differ.
        with_lengths: Also return the lengths of sequences that do not differ.
    """
    if axes != 1 or (len({item.shape[-1] for item in items}) == 1 and not with_lengths):
        return torch.from_numpy(np.stack([item.numpy() for item in items])), None
    lengths = [item.shape[-1] for item in items]
    batch = np.zeros((len(items), *items[0].shape[:-1], max(lengths)), items[0].numpy().dtype)
    for place, item in enumerate(items):
        batch[place, ..., : lengths[place]] = item.numpy()
    return torch.from_numpy(batch), torch.tensor(lengths)


class CodeLoader(AbstractLoader[CodeBatch]):
    """Draws training batches of codes.

    Args:
        codes: Integers ``(N, *grid[, levels])``.
        labels: Class of each item ``(N,)``, or None.
        batch_size: Items in a batch, on each rank.
        seed: Non-negative integer from which all randomness comes.
        rank: Number of this process, see :class:`AbstractLoader`.
        world_size: Number of processes.

    Raises:
        ValueError: If an argument is out of range, there are no codes, or labels are not one for each item.
    """

    def __init__(
        self,
        codes: Tensor,
        labels: Tensor | None,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """See the class."""
        super().__init__(len(codes), batch_size, seed=seed, rank=rank, world_size=world_size)
        if len(codes) == 0:
            raise ValueError("'codes' must be of at least one item, got none. Check the data or its split.")
        if labels is not None and labels.shape != codes.shape[:1]:
            raise ValueError(
                f"'labels' must be one for each of {len(codes)} items, got {tuple(labels.shape)}. Check the data."
            )
        self.codes, self.labels = codes.numpy(), None if labels is None else labels.numpy()

    def batch(self, step: int) -> CodeBatch:
        """Draws the batch of one step, on this rank: codes int64 ``(B, *grid[, levels])`` and labels ``(B,)``."""
        indices, _ = self._drawn(step)
        codes = torch.from_numpy(self.codes[indices].astype(np.int64))
        return CodeBatch(codes, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def held_out_batches(items: Items, batch_size: int) -> Iterator[Batch]:
    """Yields whole items for evaluation, each once: see :func:`batches_by_size` for their order.

    Args:
        items: The items, of any sizes.
        batch_size: Largest number of items in a batch.

    Yields:
        Items as they are stored ``(b, C, *S)``, all of one size, with their labels if the data have any.
    """
    for indices in batches_by_size(items, batch_size):
        batch = torch.from_numpy(np.stack([items[i].numpy() for i in indices]))
        yield Batch(batch, None, None if items.labels is None else items.labels[indices])


def batches_by_size(items: Items, batch_size: int) -> list[list[int]]:
    """Groups the indices of items into batches of one size.

    Sizes follow in the order in which they first appear and items keep their order within a size. Items of more than
    65,536 samples in each channel come one by one.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """
    at_least("batch_size", batch_size, 1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(items.sizes):
        groups.setdefault(size, []).append(index)
    batches = []
    for size, indices in groups.items():
        most = 1 if math.prod(size) > _LARGE_ITEM else batch_size
        batches.extend(indices[start : start + most] for start in range(0, len(indices), most))
    return batches


def _produce(
    loader: AbstractLoader[Drawn],
    first_step: int,
    last_step: int | None,
    ready: queue.Queue[Drawn | Exception | None],
    stop: threading.Event,
) -> None:
    step = first_step
    try:
        while not stop.is_set() and (last_step is None or step < last_step):
            ready.put(loader.batch(step))
            step += 1
        ready.put(None)
    except Exception as error:  # raised again in the thread that uses the batches
        ready.put(error)


def _drain(ready: queue.Queue[Drawn | Exception | None]) -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return


def _check_one_size(items: Items) -> None:
    sizes = items.sizes
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"Without 'size' all items must have one size, but '{items.names[0]}' has {_by(sizes[0])} and "
                f"'{items.names[index]}' {_by(size)} samples. Set a size, for example 32."
            )


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size[::-1]))  # width x height
