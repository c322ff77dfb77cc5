"""A folder of image files, as people have them: nested, mixed, partly broken."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from gmvq.data.items import FileItems, Skipped
from gmvq.modalities.base import listed
from gmvq.modalities.image.decoding import IMAGE_SUFFIXES, ImageError, read_header, read_image

TRAIN_FOLDERS = ("train", "training")
HELD_OUT_FOLDERS = ("test", "testing", "val", "valid", "validation")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        images: All images that can be read, sorted by name.
        train: Their indices for training, or None if the folder names no split.
        held_out: Their indices for evaluation, or None likewise.
        skipped: Files that look like images and are none.
    """

    images: FileItems
    train: list[int] | None
    held_out: list[int] | None
    skipped: tuple[Skipped, ...]


def read_folder(folder: Path, *, channels: int | None, memory_bytes: int) -> Folder:
    """Finds the images below a folder and sets aside those that cannot be read.

    Nested folders are searched, links to folders followed, hidden files and folders ignored; files are told by their
    suffix in any case. With a ``train`` and a ``test`` (or ``val``, ``valid``) folder, only these two are read.

    Args:
        folder: Where to look.
        channels: 1, 3, 4 or None: 3 if any file is coloured, else 1.
        memory_bytes: Budget in bytes for decoded images.

    Returns:
        The images, sorted by their path within the folder.

    Raises:
        ValueError: If there is no image file, or none that can be read.
    """
    skipped: list[Skipped] = []
    split = _find_split(folder)
    sides = [sorted(_find_images(side, skipped), key=lambda p: p.relative_to(folder).as_posix()) for side in split]
    for side, paths in zip(split, sides, strict=True):
        if not paths:
            raise ValueError(_nothing_found(side, skipped))
    paths = [path for side in sides for path in side]
    images = read_files(paths, folder, channels=channels, memory_bytes=memory_bytes, skipped=skipped)
    if len(split) == 1:
        return Folder(images, None, None, tuple(skipped))
    belongs = set(sides[1])
    held_out = [i for i, path in enumerate(images.paths) if path in belongs]
    train = [i for i, path in enumerate(images.paths) if path not in belongs]
    for side, indices in zip(split, (train, held_out), strict=True):
        if not indices:
            raise ValueError(_nothing_found(side, [s for s in skipped if side in s.path.parents]))
    return Folder(images, train, held_out, tuple(skipped))


def read_files(
    paths: list[Path],
    root: Path,
    *,
    channels: int | None,
    memory_bytes: int,
    skipped: list[Skipped],
) -> FileItems:
    """Turns image files into a set of one channel count; files that cannot be read are added to ``skipped``.

    Raises:
        ValueError: If no file can be read.
    """
    with warnings.catch_warnings():
        # Pillow warns of metadata it dislikes and of large images; what matters of that is in `skipped`.
        warnings.simplefilter("ignore")
        headers = _attempt(read_header, paths, skipped)
        while headers:
            common = channels if channels is not None else max(header.channels for _, header in headers)
            good = [path for path, _ in headers]
            names = [path.relative_to(root).as_posix() for path in good]
            images = FileItems(
                good,
                2,
                partial(read_image, channels=common),
                measure=_measure,
                names=names,
                memory_bytes=memory_bytes,
            )
            readable = {index for index, _ in _attempt(images.__getitem__, range(len(good)), skipped)}
            headers = [header for index, header in enumerate(headers) if index in readable]
            if headers and (channels is not None or common == max(header.channels for _, header in headers)):
                return images.subset(sorted(readable))
            # The only coloured files were broken: once more, in gray.
    raise ValueError(_nothing_found(root, skipped))


def _measure(path: Path) -> tuple[int, int]:
    header = read_header(path)
    return header.height, header.width


def _attempt(
    function: Callable[[Item], Result], items: Iterable[Item], skipped: list[Skipped]
) -> list[tuple[Item, Result]]:
    """Applies a reader to all items in threads (Pillow decodes outside the interpreter's lock), keeping the order."""

    def one(item: Item) -> tuple[Item, Result] | Skipped:
        try:
            return item, function(item)
        except ImageError as error:
            return Skipped(error.path, error.reason)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, items))
    skipped.extend(result for result in results if isinstance(result, Skipped))
    return [result for result in results if not isinstance(result, Skipped)]


def _find_split(folder: Path) -> list[Path]:
    """[train folder, held-out folder] if both exist, else [folder]."""
    below = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train = [below[name] for name in TRAIN_FOLDERS if name in below]
    held_out = [below[name] for name in HELD_OUT_FOLDERS if name in below]
    return [train[0], held_out[0]] if train and held_out else [folder]


def _find_images(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename or folder), error.strerror or type(error).__name__))

    for place, folders, files in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
                skipped.append(Skipped(path, "it is no regular file"))
            else:
                yield path


def _nothing_found(folder: Path, skipped: list[Skipped]) -> str:
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    if skipped:
        return f"No image in '{folder}' can be read. Skipped: {listed(skipped)}. Check the files."
    hint = ""
    arrays = sorted(p.name for p in folder.iterdir() if p.suffix in (".npy", ".npz", ".zip", ".gz", ".tar"))[:3]
    if arrays:
        hint = f" It holds {', '.join(arrays)}: unpack archives, and pass the path of an array file itself."
    return (
        f"No images in '{folder}'. Looked, in nested folders too, for files that end in {suffixes} (any case), for the "
        f"files of CIFAR-10 and for idx files of MNIST or Fashion-MNIST. Check the path.{hint}"
    )
