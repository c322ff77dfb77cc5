"""A set of images is a sequence of uint8 tensors of one channel count.

::

    Images --[i]--> uint8 (C, H, W)          ArrayImages   one tensor, all of one size
                                             MixedImages   a tensor for each image, of any size
                                             FileImages    files, decoded when asked for
    Data = (train: Images, held_out: Images)
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.data.decoding import check_channels, read_header, read_image

DEFAULT_MEMORY_BYTES = 1 << 30


class Images(ABC):
    """Images of one channel count, in a fixed order.

    Attributes:
        channels: Channels C of every image.
        names: A name for each image: its path within the folder, or its index.
        labels: int64 ``(N,)``, or None for data without labels.
    """

    channels: int
    names: list[str]
    labels: Tensor | None

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``: uint8 ``(C, H, W)``. It may be shared with later calls: do not write to it."""

    @property
    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image in pixels."""

    @abstractmethod
    def subset(self, indices: Iterable[int]) -> Images:
        """The images at ``indices``, in that order."""


class ArrayImages(Images):
    """Images of one size in one tensor.

    Args:
        images: uint8 ``(N, C, H, W)``.
        labels: Integers ``(N,)``, or None.
        names: N names; by default the index of each image.

    Raises:
        ValueError: If the shapes, the type or the lengths do not agree.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, names: Sequence[str] | None = None) -> None:
        """See the class."""
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise ValueError(
                f"'images' must be uint8 of shape (N, C, H, W) without empty axes, got {images.dtype} "
                f"{tuple(images.shape)}. Scale with (255 * images).round().to(torch.uint8)."
            )
        self.images = images.contiguous()
        self.channels = images.shape[1]
        self.names = [f"{i:05d}" for i in range(len(images))] if names is None else list(names)
        _check_length("names", len(self.names), len(images))
        self.labels = _checked_labels(labels, len(images))

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``: uint8 ``(C, H, W)``, a view."""
        return self.images[index]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image in pixels."""
        return [(self.images.shape[2], self.images.shape[3])] * len(self.names)

    def subset(self, indices: Iterable[int]) -> ArrayImages:
        """The images at ``indices``, in that order: a view if they follow each other, else a copy."""
        chosen = list(indices)
        names = [self.names[i] for i in chosen]
        if chosen and chosen[0] >= 0 and chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            part: slice | Tensor = slice(chosen[0], chosen[0] + len(chosen))
        else:
            part = torch.as_tensor(chosen, dtype=torch.int64)
        return ArrayImages(self.images[part], None if self.labels is None else self.labels[part], names)


class MixedImages(Images):
    """Images of any size, all in memory.

    Args:
        images: uint8 tensors ``(C, H, W)``, all with the same C.
        names: A name for each.
        labels: Integers ``(N,)``, or None.

    Raises:
        ValueError: If there is no image, or types, channels or lengths do not agree.
    """

    def __init__(self, images: Sequence[Tensor], names: Sequence[str], labels: Tensor | None = None) -> None:
        """See the class."""
        if not images:
            raise ValueError("'images' must hold at least one tensor, got none. Check where they come from.")
        self.channels = images[0].shape[0]
        for name, image in zip(names, images, strict=True):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != self.channels or 0 in image.shape:
                raise ValueError(
                    f"'images' must be uint8 tensors of shape ({self.channels}, H, W), got {image.dtype} "
                    f"{tuple(image.shape)} for '{name}'. Convert them to one channel count first."
                )
        self._images = list(images)
        self.names = list(names)
        self.labels = _checked_labels(labels, len(images))

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``: uint8 ``(C, H, W)``."""
        return self._images[index]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image in pixels."""
        return [(image.shape[1], image.shape[2]) for image in self._images]

    def subset(self, indices: Iterable[int]) -> MixedImages:
        """The images at ``indices``, in that order; the tensors are shared."""
        chosen = list(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return MixedImages([self._images[i] for i in chosen], [self.names[i] for i in chosen], labels)


class _Decoded:
    """Decoded files, kept until the budget is spent and then never replaced.

    Training visits all images in random order: dropping one for another would only trade one miss for the next.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.left = memory_bytes
        self.images: dict[Path, Tensor] = {}
        self.sizes: dict[Path, tuple[int, int]] = {}
        self.lock = threading.Lock()

    def keep(self, path: Path, image: Tensor) -> None:
        with self.lock:
            self.sizes[path] = (image.shape[1], image.shape[2])
            if path not in self.images and image.numel() <= self.left:
                self.left -= image.numel()
                self.images[path] = image


class FileImages(Images):
    """Image files, decoded when they are asked for and kept decoded as far as the memory budget goes.

    Args:
        paths: Image files.
        channels: 1, 3 or 4 channels for all of them, see :func:`gmvq.data.read_image`.
        names: A name for each; by default its path.
        memory_bytes: Budget in bytes for decoded images; files beyond it are decoded each time.

    Raises:
        ImageError: Later, by the call that reads a damaged file. :func:`gmvq.data.load` finds those beforehand.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        channels: int,
        *,
        names: Sequence[str] | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        """See the class."""
        check_channels(channels)
        self.paths = [Path(path) for path in paths]
        self.channels = channels
        self.names = [str(path) for path in self.paths] if names is None else list(names)
        _check_length("names", len(self.names), len(self.paths))
        self.labels = None
        self._decoded = _Decoded(memory_bytes)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``: uint8 ``(C, H, W)``."""
        path = self.paths[index]
        image = self._decoded.images.get(path)
        if image is None:
            image = read_image(path, self.channels)
            self._decoded.keep(path, image)
        return image

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image in pixels, from the headers of files that are not decoded yet."""
        known = self._decoded.sizes
        for path in self.paths:
            if path not in known:
                header = read_header(path)
                known[path] = (header.height, header.width)
        return [known[path] for path in self.paths]

    def subset(self, indices: Iterable[int]) -> FileImages:
        """The images at ``indices``, in that order; decoded images and their budget are shared."""
        chosen = list(indices)
        part = FileImages([self.paths[i] for i in chosen], self.channels, names=[self.names[i] for i in chosen])
        part._decoded = self._decoded
        return part


class Skipped(NamedTuple):
    """A file that was to be read and could not be.

    Attributes:
        path: The file.
        reason: Why, in a few words.
    """

    path: Path
    reason: str


class Data(NamedTuple):
    """A data set with its split.

    Attributes:
        name: What to call it in reports.
        train: What to learn from.
        held_out: What to measure on.
        channels: Channels of all images.
        skipped: Files that could not be read.
    """

    name: str
    train: Images
    held_out: Images
    channels: int
    skipped: tuple[Skipped, ...] = ()

    @property
    def labelled(self) -> bool:
        """True if the images of both sides have labels."""
        return self.train.labels is not None and self.held_out.labels is not None


def evenly_spaced(count: int, most: int) -> list[int]:
    """Places below a count at even steps, all of them if there are not more than ``most``.

    Example:
        >>> evenly_spaced(10, 4), evenly_spaced(3, 4)
        ([0, 2, 5, 7], [0, 1, 2])
    """
    number = min(count, most)
    return [place * count // number for place in range(number)]


def _check_length(name: str, length: int, expected: int) -> None:
    if length != expected:
        raise ValueError(f"'{name}' must have one entry for each of the {expected} images, got {length}. Match them.")


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
