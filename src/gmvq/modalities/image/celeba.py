"""CelebA with the preprocessing of papers on variational autoencoders: the center of each face, scaled down.

::

    178 x 218 --center 140 x 140--+
                                  +--bilinear--> uint8 (3, side, side)
     89 x 109 --center  70 x  70--+
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gmvq.data import archives
from gmvq.data.items import ArrayItems, Skipped
from gmvq.modalities.base import listed
from gmvq.modalities.image.decoding import convert_channels, reason_of
from gmvq.modalities.image.formats import Parts

LEAST_SIDE = 8
_FOLDER = "img_align_celeba"
_ARCHIVES = (f"{_FOLDER}.zip", "celeba_89x109.zip")
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
_TRAIN, _TEST = 0, 2
_CROPS = {(178, 218): (19, 39, 159, 179), (89, 109): (9, 19, 79, 89)}
"""Left, upper, right and lower edge of the crop for each size. In the half-size images the center lies between two
pixels; of the four crops of 70 x 70 around it, it is the upper left one."""
_SUFFIXES = (".jpg", ".jpeg")
_LARGEST_FILE = 1 << 24
"""Limit in bytes; the largest JPEG of CelebA is a thousand times smaller."""
_CHUNK = 1024

Face = Callable[[], bytes]


class _Found(NamedTuple):
    """Place of the faces, a reader of each one's bytes, and the skipped files."""

    place: Path
    faces: dict[str, Face]
    skipped: list[Skipped]


def check_side(name: str, side: int | None) -> None:
    """Raises ValueError unless ``side`` is None or at least 8."""
    if side is not None and side < LEAST_SIDE:
        raise ValueError(f"'{name}' must be at least {LEAST_SIDE} pixels, got {side}. Papers take 64.")


def read_celeba(source: Path, side: int, channels: int | None = None, held_out_fraction: float = 0.1) -> Parts:
    """Reads the faces, cropped to the center and scaled to ``side`` x ``side``, sorted by name.

    The split is the official one, its training part and its test part, if ``list_eval_partition.txt`` (or ``.csv``) is
    next to the images. Otherwise the last of the sorted names are held out.

    Args:
        source: A folder with ``img_align_celeba/*.jpg``, ``img_align_celeba.zip`` or ``celeba_89x109.zip`` (the first
            one found), the folder of the images itself, or a zip of them.
        side: Height and width of the result in pixels, at most 140, or 70 for images of half the size.
        channels: 1, 3, 4 or None for 3.
        held_out_fraction: Fraction held out if there is no partition; at least one image of several, or none for 0.

    Returns:
        Images ``(N, C, side, side)``; both parts share one tensor. Files that are not images, differ in size from the
        first, or are missing from the partition are skipped.

    Raises:
        ValueError: If no face can be read, ``side`` is out of range, or the partition is damaged or leaves one part
            empty.
    """
    check_side("face_side", side)
    place = _locate(source)
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # Pillow's warnings about metadata
        found = _in_archive(place, stack) if place.is_file() else _in_folder(place)
        size = _common_size(found)
        _check_crop(side, size, place)
        partition = _read_partition((source, place, place.parent))
        if partition is None:
            return _read_all(found, size, side, channels, held_out_fraction)
        return _read_partitioned(found, partition, size, side, channels)


def _read_all(found: _Found, size: tuple[int, int], side: int, channels: int | None, held_out_fraction: float) -> Parts:
    images = _decode(found, sorted(found.faces), size, side, channels)
    if not held_out_fraction:
        return Parts(images, None, tuple(found.skipped))
    count = len(images)
    return _cut(images, count - min(max(1, round(count * held_out_fraction)), count - 1), found)


def _read_partitioned(
    found: _Found, partition: dict[str, int], size: tuple[int, int], side: int, channels: int | None
) -> Parts:
    names = sorted(found.faces)
    found.skipped.extend(
        Skipped(found.place / name, "the official partition lacks it") for name in names if name not in partition
    )
    wanted = [name for part in (_TRAIN, _TEST) for name in names if partition.get(name) == part]
    images = _decode(found, wanted, size, side, channels) if wanted else None
    trained = 0 if images is None else sum(partition[name] == _TRAIN for name in images.names)
    if images is None or trained in (0, len(images)):
        raise ValueError(
            f"The official partition of CelebA beside '{found.place}' must leave images for training and for testing, "
            f"got {trained} and {0 if images is None else len(images) - trained}. Add the other images, or remove the "
            "partition's file to hold out the last ones."
        )
    return _cut(images, trained, found)


def _cut(images: ArrayItems, trained: int, found: _Found) -> Parts:
    """Splits off the first ``trained`` images for training; a single image is not split."""
    if len(images) == 1:
        return Parts(images, None, tuple(found.skipped))
    held_out = images.subset(range(trained, len(images)))
    return Parts(images.subset(range(trained)), held_out, tuple(found.skipped))


def _decode(found: _Found, names: Sequence[str], size: tuple[int, int], side: int, channels: int | None) -> ArrayItems:
    """Decodes the readable images among ``names``, in order."""
    pixels = np.empty((len(names), channels or 3, side, side), np.uint8)
    kept: list[str] = []

    def one(name: str) -> NDArray[np.uint8] | str:
        try:
            return convert_channels(_prepared(found.faces[name](), size, side), channels)
        except Exception as error:  # a damaged file can raise nearly any exception
            return reason_of(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the interpreter's lock
        for start in range(0, len(names), _CHUNK):  # in chunks, so that all are in memory only once
            chunk = names[start : start + _CHUNK]
            for name, face in zip(chunk, pool.map(one, chunk), strict=True):
                if isinstance(face, str):
                    found.skipped.append(Skipped(found.place / name, face))
                else:
                    pixels[len(kept)] = face.transpose(2, 0, 1)
                    kept.append(name)
    if not kept:
        raise ValueError(f"No face in '{found.place}' can be read: {listed(found.skipped)}. Download it again.")
    return ArrayItems(torch.from_numpy(pixels[: len(kept)]), 2, names=kept)


def _prepared(data: bytes, size: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Decodes, crops and scales one face to ``(side, side, 3)``."""
    with Image.open(io.BytesIO(data)) as image:
        if image.size != size:
            raise ValueError(f"it has {image.width} x {image.height} pixels instead of {size[0]} x {size[1]}")
        face = image.convert("RGB").crop(_CROPS[size])
        return np.asarray(face.resize((side, side), Image.Resampling.BILINEAR))


def _common_size(found: _Found) -> tuple[int, int]:
    """Returns width and height of the first image that has a size of CelebA."""
    seen = ""
    for name in sorted(found.faces):
        try:
            with Image.open(io.BytesIO(found.faces[name]())) as image:
                if image.size in _CROPS:
                    return image.size
                reason = f"it has {image.width} x {image.height} pixels"
        except Exception as error:
            reason = reason_of(error)
        seen = seen or f" The first, {name}: {reason}."
    raise ValueError(
        f"No image of CelebA in '{found.place}'.{seen} They are JPEG of 178 x 218 pixels (aligned and cropped by its "
        "authors) or half of that, 89 x 109. For other images leave 'face_side' out."
    )


def _check_crop(side: int, size: tuple[int, int], place: Path) -> None:
    left, _, right, _ = _CROPS[size]
    if side > right - left:
        remedy = "Take 64, or pass the images of 178 x 218 pixels" if right - left < 128 else "Take 64 or 128"
        raise ValueError(
            f"'face_side' must be at most {right - left}, the side of the crop from images of {size[0]} x {size[1]} "
            f"pixels in '{place}', got {side}. {remedy}: faces are not enlarged."
        )


def _locate(source: Path) -> Path:
    """Returns the archive or the folder that holds the images."""
    if source.is_file():
        return source
    nested = (source / _FOLDER / _FOLDER, source / _FOLDER)  # Kaggle's archive nests the folder twice
    archives = (source / name for name in _ARCHIVES)
    place = next((place for place in (*nested, *archives, source) if place.is_file() or _holds_faces(place)), None)
    if place is not None:
        return place
    raise ValueError(
        f"No images of CelebA in '{source}'. Pass a folder with {_FOLDER}/*.jpg, {_ARCHIVES[0]} or {_ARCHIVES[1]}, or "
        "leave 'face_side' out for other images."
    )


def _in_folder(folder: Path) -> _Found:
    found = _Found(folder, {}, [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_face(entry.name):
                continue
            if entry.is_file():  # reading a pipe would wait forever
                _add(found, entry.name, entry.stat().st_size, Path(entry.path).read_bytes)
            else:
                found.skipped.append(Skipped(folder / entry.name, "it is no regular file"))
    return found


def _in_archive(path: Path, stack: ExitStack) -> _Found:
    """Finds the members of a zip by file name; they can be read until ``stack`` is closed."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        with path.open("rb") as file:
            archives.check_directory(file, archive)
        for member in archive.infolist():
            if not _is_face(PurePosixPath(member.filename).name):
                archive.open(member).close()  # raises if its name, maybe that of a face, differs where the file is
    except archives.DAMAGED as error:
        raise ValueError(
            f"'{path}' must be a zip with the images of CelebA, or a folder, and is neither or damaged: "
            f"{archives.reason_of(error)}. Download it again."
        ) from error
    found = _Found(path, {}, [])
    for member in archive.infolist():
        name = PurePosixPath(member.filename).name
        if not _is_face(name):
            continue
        if name in found.faces:
            found.skipped.append(Skipped(path / name, "its name occurs twice"))
        else:
            _add(found, name, member.file_size, partial(archive.read, member))
    return found


def _holds_faces(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_face(entry.name) for entry in entries)


def _is_face(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _add(found: _Found, name: str, size: int, read: Face) -> None:
    if size > _LARGEST_FILE:
        found.skipped.append(Skipped(found.place / name, f"it has {size} bytes, too many for a face"))
    else:
        found.faces[name] = read


def _read_partition(places: Sequence[Path]) -> dict[str, int] | None:
    """Reads the part of each image, 0, 1 or 2, from the first partition file found; returns None if there is none."""
    path = next((place / name for place in places for name in _PARTITIONS if (place / name).is_file()), None)
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").replace(",", " ").splitlines()
    parts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or (number == 1 and words[-1] == "partition"):  # the header of Kaggle's file
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise ValueError(
                f"Line {number} of '{path}' must hold the name of an image and 0, 1 or 2, got {line[:80]!r}. Download "
                "it again, or remove it to hold out the last images."
            )
        parts[words[0]] = int(words[1])
    return parts
