"""Images or codes become batches: which ones, and which crops, is a pure function of the seed and the step.

::

    Images --Loader.batch(step)------> Batch        training: shuffled, cropped, flipped; the same after a restart
    codes  --CodeLoader.batch(step)--> CodeBatch    the same for priors
    Images --held_out_batches--------> Batch        evaluation: in order, whole
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.data.images import ArrayImages, Images
from gmvq.types import Batch, CodeBatch

_LARGE_IMAGE_PIXELS = 256 * 256
_PREFETCHED = 3


Drawn = TypeVar("Drawn")


class AbstractLoader(ABC, Generic[Drawn]):
    """Draws batches, each a pure function of the seed and the step.

    The items of an epoch are all items, each ``repeats`` times, in an order that depends on the seed and the epoch.
    Epochs follow each other without a gap and a batch may span two (or, for few items, many), so each item is drawn
    equally often and none is dropped.

    Args:
        items: Their number.
        batch_size: Items in a batch, on each rank.
        seed: Non-negative integer from which all randomness comes.
        repeats: How often an epoch draws each item.
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
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("world_size", world_size, 1)
        _check_at_least("seed", seed, 0)
        _check_at_least("rank", rank, 0)
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
            step: Number of the step, from 0; steps may be asked for in any order.
        """

    def iterate(self, first_step: int = 0, last_step: int | None = None) -> Iterator[Drawn]:
        """Yields the batches of ``first_step``, ..., ``last_step - 1``, or without end, prepared ahead by one thread.

        The thread ends with the iterator: at its last step, when it is closed or forgotten, or when either side raises.

        Raises:
            ImageError: Or whatever else :meth:`batch` raised in the thread.
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
            _drain(ready)  # it may be waiting for room; after one more item it sees the event
            thread.join()

    def __call__(self, first_step: int = 0, last_step: int | None = None) -> Iterator[Drawn]:
        """The same as :meth:`iterate`."""
        return self.iterate(first_step, last_step)

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], slice]:
        """Items of a step on this rank, and their places among those of all ranks."""
        _check_at_least("step", step, 0)
        total = self.batch_size * self.world_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return self._indices(np.arange(step * total, (step + 1) * total)[mine]), mine

    def _indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items at positions of the endless sequence of epochs."""
        epochs, places = np.divmod(positions, self.items * self.repeats)
        drawn = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(drawn) % self.items

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.items * self.repeats)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}  # a batch can need two of them
        return order


class Loader(AbstractLoader[Batch]):
    """Draws training batches of images.

    Args:
        images: The images.
        batch_size: Images in a batch, on each rank.
        crop: Side in pixels of a random square crop, or None for whole images. Images that are smaller are continued
            by reflection.
        flip: Mirror half of the images left to right.
        seed: Non-negative integer from which all randomness comes.
        crops_per_image: How often an epoch draws each image.
        rank: Number of this process, see :class:`AbstractLoader`.
        world_size: Number of processes.

    Raises:
        ValueError: If an argument is out of range, there are no images, or they differ in size and ``crop`` is None.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        crop: int | None = None,
        flip: bool = False,
        seed: int = 0,
        crops_per_image: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """See the class."""
        _check_at_least("crops_per_image", crops_per_image, 1)
        super().__init__(len(images), batch_size, seed=seed, repeats=crops_per_image, rank=rank, world_size=world_size)
        if len(images) == 0:
            raise ValueError("'images' must hold at least one image, got none. Check the data or its split.")
        if crop is None:
            _check_one_size(images)
        else:
            _check_at_least("crop", crop, 1)
        self.images = images
        self.crop = crop
        self.flip = flip

    def batch(self, step: int) -> Batch:
        """Draws the batch of one step, on this rank.

        Args:
            step: Number of the step, from 0; steps may be asked for in any order.

        Returns:
            Images float32 ``(B, C, H, W)`` in [0, 1], with their labels if the data have any.
        """
        indices, mine = self._drawn(step)
        # Drawn for all ranks, so that a slice of it does not depend on how many there are.
        chance = np.random.default_rng([self.seed, 1, step]).random((self.batch_size * self.world_size, 3))[mine]
        pixels = self._pixels(indices, chance)
        if self.flip:
            mirrored = chance[:, 2] < 0.5
            pixels[mirrored] = pixels[mirrored, :, :, ::-1]
        # numpy, not torch: this runs beside the training, and torch would start a second team of threads for it.
        images = torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32))
        labels = self.images.labels
        return Batch(images, None if labels is None else labels[torch.from_numpy(indices)])

    def _pixels(self, indices: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The images, cropped: uint8 ``(B, C, H, W)``, a copy."""
        if self.crop is None:
            if isinstance(self.images, ArrayImages):
                return self.images.images.numpy()[indices]
            return np.stack([self.images[int(i)].numpy() for i in indices])
        crop = self.crop
        pixels = np.empty((len(indices), self.images.channels, crop, crop), np.uint8)
        for place, index in enumerate(indices):
            image = self.images[int(index)].numpy()
            rows = _window(image.shape[1], crop, chance[place, 0])
            columns = _window(image.shape[2], crop, chance[place, 1])
            if isinstance(rows, slice) or isinstance(columns, slice):
                pixels[place] = image[:, rows][:, :, columns]
            else:
                pixels[place] = image[:, rows[:, None], columns]
        return pixels


class CodeLoader(AbstractLoader[CodeBatch]):
    """Draws training batches of codes.

    Args:
        codes: Integers ``(N, *grid[, levels])``.
        labels: Class of each image ``(N,)``, or None.
        batch_size: Images in a batch, on each rank.
        seed: Non-negative integer from which all randomness comes.
        rank: Number of this process, see :class:`AbstractLoader`.
        world_size: Number of processes.

    Raises:
        ValueError: If an argument is out of range, there are no codes, or not one label for each.
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
            raise ValueError("'codes' must be of at least one image, got none. Check the data or its split.")
        if labels is not None and labels.shape != codes.shape[:1]:
            raise ValueError(
                f"'labels' must be one for each of {len(codes)} images, got {tuple(labels.shape)}. Check the data."
            )
        self.codes, self.labels = codes.numpy(), None if labels is None else labels.numpy()

    def batch(self, step: int) -> CodeBatch:
        """Draws the batch of one step, on this rank: codes int64 ``(B, *grid[, levels])`` and labels ``(B,)``."""
        indices, _ = self._drawn(step)
        codes = torch.from_numpy(self.codes[indices].astype(np.int64))
        return CodeBatch(codes, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def held_out_batches(images: Images, batch_size: int) -> Iterator[Batch]:
    """Yields whole images for evaluation, each once: see :func:`batches_by_size` for their order.

    Args:
        images: The images, of any sizes.
        batch_size: Most images in a batch.

    Yields:
        Images float32 ``(b, C, H, W)`` in [0, 1], all of one size, with their labels if the data have any.
    """
    for indices in batches_by_size(images, batch_size):
        pixels = np.stack([images[i].numpy() for i in indices])
        batch = torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32))
        yield Batch(batch, None if images.labels is None else images.labels[indices])


def batches_by_size(images: Images, batch_size: int) -> list[list[int]]:
    """Indices of the images in batches of one size.

    Sizes follow in the order in which they first appear and images keep their order within a size. Images of more than
    256x256 pixels come one by one.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """
    _check_at_least("batch_size", batch_size, 1)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(images.sizes):
        groups.setdefault(size, []).append(index)
    batches = []
    for (height, width), indices in groups.items():
        most = 1 if height * width > _LARGE_IMAGE_PIXELS else batch_size
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
    except Exception as error:  # raised again where the batches are used
        ready.put(error)


def _drain(ready: queue.Queue[Drawn | Exception | None]) -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return


def _window(length: int, crop: int, chance: float) -> slice | NDArray[np.int64]:
    """Pixels of a crop along one axis; an axis that is too short is continued by reflection on both sides."""
    if length >= crop:
        start = min(int(chance * (length - crop + 1)), length - crop)
        return slice(start, start + crop)
    if length == 1:
        return np.zeros(crop, np.int64)
    period = 2 * (length - 1)
    places = (np.arange(crop) - (crop - length) // 2) % period
    return np.minimum(places, period - places)


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"'{name}' must be an integer of at least {least}, got {value!r}. Change it.")


def _check_one_size(images: Images) -> None:
    sizes = images.sizes
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"Without 'crop' all images must have one size, but '{images.names[0]}' is {sizes[0][1]}x{sizes[0][0]} "
                f"and '{images.names[index]}' is {size[1]}x{size[0]} pixels (width x height). Set 'crop', e.g. crop=32."
            )
