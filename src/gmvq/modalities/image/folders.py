"""Folders of image files: nested, mixed, partly damaged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from gmvq.data.items import FileItems, Skipped
from gmvq.data.labels import labels_of, split_folders
from gmvq.modalities.base import listed
from gmvq.modalities.image.decoding import (
    IMAGE_SUFFIXES,
    ImageError,
    RangeError,
    read_header,
    read_image,
    reason_of,
)
from gmvq.modalities.image.readable import COMMON_SUFFIXES, reason_unread

LARGE = 1 << 24
"""Pixels from which images are decoded one at a time: each takes seven times as many bytes until it is."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Folder(NamedTuple):
    """Images of a folder.

    Attributes:
        images: All readable images, sorted by name.
        train: Their indices for training, or None if the folder names no split.
        held_out: Their indices for evaluation, or None if the folder names no split.
        skipped: Files with image suffixes that cannot be read.
        classes: Name of each class, empty if there are no labels.
    """

    images: FileItems
    train: list[int] | None
    held_out: list[int] | None
    skipped: tuple[Skipped, ...]
    classes: tuple[str, ...] = ()


def read_folder(folder: Path, *, channels: int | None, memory_bytes: int, maximum: float | None = None) -> Folder:
    """Finds the images below a folder; unreadable ones are returned as skipped.

    Searches nested folders, follows links to folders, and ignores hidden files and folders. Images are recognized by
    suffix, in any case; images of unsupported formats, as HEIC, are skipped with a reason. If there are a ``train`` and
    a ``test`` (or ``val``, ``valid``) folder, only these two are read. Labels are those of
    :func:`gmvq.data.labels.labels_of`.

    Args:
        folder: The folder to search.
        channels: 1, 3, 4 or None: 3 if any file is colored, else 1.
        memory_bytes: Budget in bytes for decoded images.
        maximum: Value of white in files of more than 8 bits; None for the default of their type.

    Returns:
        The images, sorted by their path relative to the folder.

    Raises:
        ValueError: If there is no image file, or no readable one, or the table of their labels is damaged.
        RangeError: If the values of a file are out of range: others of its kind may have a wrong scale, too.
    """
    skipped: list[Skipped] = []
    split = split_folders(folder) or (folder,)
    sides = [sorted(_find_images(side, skipped), key=lambda p: p.relative_to(folder).as_posix()) for side in split]
    for side, paths in zip(split, sides, strict=True):
        if not paths:
            raise ValueError(_nothing_found(side, skipped))
    paths = [path for side in sides for path in side]
    images = read_files(paths, folder, channels=channels, memory_bytes=memory_bytes, skipped=skipped, maximum=maximum)
    labels = labels_of(images.names, folder)
    if labels is not None:
        images.labels = labels.values
    classes = () if labels is None else labels.classes
    if len(split) == 1:
        return Folder(images, None, None, tuple(skipped), classes)
    belongs = set(sides[1])
    held_out = [i for i, path in enumerate(images.paths) if path in belongs]
    train = [i for i, path in enumerate(images.paths) if path not in belongs]
    for side, indices in zip(split, (train, held_out), strict=True):
        if not indices:
            raise ValueError(_nothing_found(side, [s for s in skipped if side in s.path.parents]))
    return Folder(images, train, held_out, tuple(skipped), classes)


def read_files(
    paths: list[Path],
    root: Path,
    *,
    channels: int | None,
    memory_bytes: int,
    skipped: list[Skipped],
    maximum: float | None = None,
) -> FileItems:
    """Reads image files as items with one number of channels; unreadable files are appended to ``skipped``.

    Raises:
        ValueError: If no file can be read.
    """
    with warnings.catch_warnings():
        # Pillow warns about metadata and large images; relevant problems are in `skipped`.
        warnings.simplefilter("ignore")
        headers = _attempt(read_header, paths, skipped)
        while headers:
            common = channels if channels is not None else max(header.channels for _, header in headers)
            good = [path for path, _ in headers]
            names = [path.relative_to(root).as_posix() for path in good]
            images = FileItems(
                good,
                2,
                partial(read_image, channels=common, maximum=maximum),
                measure=_measure,
                names=names,
                memory_bytes=memory_bytes,
            )
            large = [header.height * header.width > LARGE for _, header in headers]
            readable = set[int]()
            for threads, is_large in ((8, False), (1, True)):
                some = [index for index in range(len(good)) if large[index] == is_large]
                readable.update(index for index, _ in _attempt(partial(_decode, images), some, skipped, threads))
            headers = [header for index, header in enumerate(headers) if index in readable]
            if headers and (channels is not None or common == max(header.channels for _, header in headers)):
                return images.subset(sorted(readable))
            # The only colored files were damaged: read again as gray.
    raise ValueError(_nothing_found(root, skipped))


def _measure(path: Path) -> tuple[int, int]:
    header = read_header(path)
    return header.height, header.width


def _decode(images: FileItems, index: int) -> None:
    """Decodes an image, so that it is known to be readable, and lets go of it unless it is kept."""
    images[index]


def _attempt(
    function: Callable[[Item], Result], items: Iterable[Item], skipped: list[Skipped], threads: int = 8
) -> list[tuple[Item, Result]]:
    """Applies a reader to all items in threads, in order: Pillow releases the interpreter's lock."""

    def one(item: Item) -> tuple[Item, Result] | Skipped:
        try:
            return item, function(item)
        except RangeError:
            raise
        except ImageError as error:
            return Skipped(error.path, error.reason)

    if threads == 1:  # in this thread: memory that another one frees need not go back to the system
        results = [one(item) for item in items]
    else:
        with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
            results = list(pool.map(one, items))
    skipped.extend(result for result in results if isinstance(result, Skipped))
    return [result for result in results if not isinstance(result, Skipped)]


def _find_images(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename or folder), reason_of(error)))

    for place, folders, files in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
            elif (reason := reason_unread(path)) is not None:
                skipped.append(Skipped(path, reason))


def _nothing_found(folder: Path, skipped: list[Skipped]) -> str:
    if skipped:
        return f"No image in '{folder}' can be read. Skipped: {listed(skipped)}. Check the files."
    hint = ""
    arrays = sorted(p.name for p in folder.iterdir() if p.suffix in (".npy", ".npz", ".zip", ".gz", ".tar"))[:3]
    if arrays:
        hint = f" It holds {', '.join(arrays)}: unpack archives, and pass the path of an array file itself."
    return (
        f"No images in '{folder}'. Looked, in nested folders too, for files that end in {COMMON_SUFFIXES} or another "
        "suffix of a format that Pillow reads (any case), for the files of CIFAR-10 and for idx files of MNIST or "
        f"Fashion-MNIST. Check the path.{hint}"
    )
