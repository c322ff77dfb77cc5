"""Images in arrays: ``.npy``, ``.npz`` and the idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.data import archives
from gmvq.data.items import ArrayItems, Skipped
from gmvq.data.splitting import digest_of
from gmvq.modalities.base import listed
from gmvq.modalities.image.decoding import (
    CHANNEL_CHOICES,
    OVERSHOOT,
    check_channels,
    convert_channels,
    sixteen_to_eight_bits,
)

Value = TypeVar("Value")

TRAIN_KEYS = ("x_train", "train_images", "images_train", "train")
HELD_OUT_KEYS = ("x_test", "test_images", "images_test", "test", "x_val", "val_images", "images_val", "val")
TRAIN_LABEL_KEYS = ("y_train", "train_labels", "labels_train")
HELD_OUT_LABEL_KEYS = {"test": ("y_test", "test_labels", "labels_test"), "val": ("y_val", "val_labels", "labels_val")}
IMAGE_KEYS = ("images", "image", "x", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets")

_IDX_NAME = re.compile(r"(?P<part>train|t10k|test)[-.](?P<kind>images|labels)[-.]idx\d[-.]ubyte(\.gz|\.xz)?$", re.I)
_MOST_CHANNELS = 16
_CHUNK = 4096


class Parts(NamedTuple):
    """Images of a file or folder of arrays.

    Attributes:
        train: All images, or the training part.
        held_out: The official test part, or None.
        skipped: Files that could not be read.
        digests: Digest of each stored image if there is no test part; empty to use digests of the pixels.
    """

    train: ArrayItems
    held_out: ArrayItems | None = None
    skipped: tuple[Skipped, ...] = ()
    digests: tuple[bytes, ...] = ()


def read_npy(path: Path, channels: int | None, maximum: float | None = None) -> Parts:
    """Reads a ``.npy`` file that holds an array for :func:`array_to_images`.

    Raises:
        ValueError: If the file is damaged, holds pickled objects or is not an array of images.
    """

    def whole(file: BinaryIO) -> NDArray[np.generic]:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays, which ends in .npz")
        return array

    array = _read_numpy(path, whole)
    return Parts(ArrayItems(array_to_images(array, channels, path.name, maximum), 2), digests=digests_of(array))


def read_npz(path: Path, channels: int | None, maximum: float | None = None) -> Parts:
    """Reads a ``.npz`` file with ``images`` (or ``x``), or ``x_train`` and ``x_test``.

    Optional labels are ``labels`` (or ``y``), or ``y_train`` and ``y_test``.

    Raises:
        ValueError: If the file is damaged, holds pickled objects or no images, or lengths differ.
    """

    def members(file: BinaryIO) -> dict[str, NDArray[np.generic]]:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array, which ends in .npy")
        with archive:
            archives.check_directory(file, archive.zip)
            return {name: archive[name] for name in archive.files}

    arrays = _read_numpy(path, members)
    found = {name.lower(): name for name in arrays}
    train_key = _first(found, TRAIN_KEYS)
    held_out_key = _first(found, HELD_OUT_KEYS)
    if train_key is not None:
        part = "val" if held_out_key is not None and "val" in held_out_key.lower() else "test"
        train = _labelled(arrays, train_key, _first(found, TRAIN_LABEL_KEYS), channels, path, maximum)
        if held_out_key is None:
            return Parts(train, digests=digests_of(arrays[train_key]))
        labels_key = _first(found, HELD_OUT_LABEL_KEYS[part])
        common = (
            channels if channels is not None or train.array.shape[1] not in CHANNEL_CHOICES else train.array.shape[1]
        )
        return Parts(train, _labelled(arrays, held_out_key, labels_key, common, path, maximum))
    key = _first(found, IMAGE_KEYS)
    if key is None:
        pictures = [name for name, array in arrays.items() if array.ndim >= 3]
        if len(pictures) != 1:
            raise ValueError(
                f"'{path}' must hold its images under one of the keys {', '.join((*IMAGE_KEYS, *TRAIN_KEYS[:2]))}, got "
                f"{sorted(arrays)}. Save it with np.savez(path, images=..., labels=...)."
            )
        key = pictures[0]
    images = _labelled(arrays, key, _first(found, LABEL_KEYS), channels, path, maximum)
    return Parts(images, digests=digests_of(arrays[key]))


def array_to_images(
    array: NDArray[np.generic], channels: int | None = None, name: str = "images", maximum: float | None = None
) -> Tensor:
    """Converts an array of images to uint8 ``(N, C, H, W)``.

    Args:
        array: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``: an axis of 1, 3 or 4 is taken as C, the last
            one first, else the smaller of the two if it is at most 16. Type uint8; uint16, scaled by 255 / 65535;
            bool; or float in [0, 1]. Floats may exceed the range by 1 % and are clipped.
        channels: 1, 3, 4 or None for the array's own (4 become 3, composited onto white).
        name: Name of the array in errors.
        maximum: Value of white in floats and in integers of more than 8 bits; if given, these may have any type.

    Returns:
        uint8 ``(N, C, H, W)``.

    Raises:
        ValueError: For other shapes, types and values; the message gives the index of the image.
    """
    check_channels(channels)
    array, axis = _find_channels(array, name)
    _check_type(array, name, maximum)
    count = array.shape[axis]
    if count not in CHANNEL_CHOICES and channels not in (None, count):
        raise ValueError(
            f"'{name}' has {count} channels, which cannot become {channels}. Leave 'channels' out, or pick channels."
        )
    chunks = []
    for start in range(0, len(array), _CHUNK):  # in chunks: float data would need several times their memory
        pixels = np.moveaxis(_bytes_from(array[start : start + _CHUNK], name, start, maximum), axis, -1)
        if count in CHANNEL_CHOICES:
            pixels = convert_channels(pixels, channels)
        chunks.append(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
    return torch.from_numpy(np.concatenate(chunks))


def digests_of(array: NDArray[np.generic]) -> tuple[bytes, ...]:
    """Computes the digest of each item of an array as stored, before its channels are converted."""
    return tuple(digest_of(item) for item in array)


def find_idx(folder: Path) -> dict[str, Path]:
    """Finds the idx files of a folder (or of its ``raw`` folder) by ``train-images``, ``train-labels``, ``test-...``.

    If the same file is plain and compressed, the plain one is used.
    """
    for place in (folder, folder / "raw", *sorted(folder.glob("*MNIST/raw"))):
        if not place.is_dir():
            continue
        found: dict[str, Path] = {}
        for path in sorted(place.iterdir(), key=lambda p: p.name):
            match = _IDX_NAME.search(path.name)
            if match and path.is_file():
                part = "train" if match["part"].lower() == "train" else "test"
                found.setdefault(f"{part}-{match['kind'].lower()}", path)
        if "train-images" in found or "test-images" in found:
            return found
    return {}


def is_idx(path: Path) -> bool:
    """Returns whether the name of a file is that of idx images."""
    match = _IDX_NAME.search(path.name)
    return match is not None and match["kind"].lower() == "images"


def read_idx_files(files: Mapping[str, Path], channels: int | None) -> Parts:
    """Reads the files of :func:`find_idx`; labels that are damaged or do not match are skipped, not the images.

    Raises:
        ValueError: If no images can be read.
    """
    skipped: list[Skipped] = []
    parts: dict[str, Parts] = {}
    for part in ("train", "test"):
        images = _attempt(files.get(f"{part}-images"), lambda path: read_idx(path, 3), skipped)
        if images is None:
            continue
        labels = _attempt(files.get(f"{part}-labels"), lambda path: read_idx(path, 1), skipped)
        if labels is not None and len(labels) != len(images):
            reason = f"it has {len(labels)} labels for {len(images)} images"
            skipped.append(Skipped(files[f"{part}-labels"], reason))
            labels = None
        tensor = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        parts[part] = Parts(
            ArrayItems(array_to_images(images[..., None], channels), 2, tensor), digests=digests_of(images)
        )
    if not parts:
        raise ValueError(f"No idx file can be read: {listed(skipped)}.")
    if len(parts) == 2:
        return Parts(parts["train"].train, parts["test"].train, tuple(skipped))
    return next(iter(parts.values()))._replace(skipped=tuple(skipped))


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Reads one idx file of bytes (magic number 0x0000080n, n axes), plain, gzip or xz.

    Raises:
        ValueError: If the file is damaged or has another number of axes.
    """
    data = _decompressed(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] != axes or len(data) < 4 + 4 * axes:
        raise ValueError(
            f"it is not an idx file of bytes with {axes} axes (it starts with {data[:4].hex() or 'nothing'})"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    expected = 4 + 4 * axes + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise ValueError(f"it is truncated or damaged: {len(data)} bytes instead of {expected}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    try:  # by content: the suffix is often lost
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        return lzma.decompress(data) if data[:6] == b"\xfd7zXZ\0" else data
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error


def _attempt(path: Path | None, read: Callable[[Path], Value], skipped: list[Skipped]) -> Value | None:
    if path is None:
        return None
    try:
        return read(path)
    except (OSError, ValueError) as error:
        skipped.append(Skipped(path, str(error)))
        return None


def _read_numpy(path: Path, read: Callable[[BinaryIO], Value]) -> Value:
    try:
        with path.open("rb") as file:  # np.load would leave a damaged file open
            return read(file)
    except Exception as error:  # a damaged header can make numpy raise nearly any exception
        if "allow_pickle" in str(error) or "pickled" in str(error):
            reason = "it holds Python objects, or is not a numpy file; reading objects could run foreign code"
        else:
            reason = archives.reason_of(error)
        raise ValueError(
            f"Cannot read '{path}': {reason}. Save a plain array with np.save or np.savez (uint8, uint16 or float)."
        ) from error


def _first(found: Mapping[str, str], keys: Iterable[str]) -> str | None:
    return next((found[key] for key in keys if key in found), None)


def _labelled(
    arrays: Mapping[str, NDArray[np.generic]],
    key: str,
    labels_key: str | None,
    channels: int | None,
    path: Path,
    maximum: float | None,
) -> ArrayItems:
    images = array_to_images(arrays[key], channels, f"{path.name}[{key}]", maximum)
    if labels_key is None:
        return ArrayItems(images, 2)
    labels = arrays[labels_key]
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"'{path.name}[{labels_key}]' must be integers of shape ({len(images)},), got {labels.dtype} "
            f"{labels.shape}. Save class indices, or leave the labels out."
        )
    return ArrayItems(images, 2, torch.from_numpy(labels.astype(np.int64)))


def _find_channels(array: NDArray[np.generic], name: str) -> tuple[NDArray[np.generic], int]:
    """Returns the array with four axes and the index of its channel axis, 1 or 3."""
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4) and shape[1] > 8):
        raise ValueError(f"'{name}' has shape {shape}, which looks like one image. Add an axis for it: images[None].")
    if array.ndim not in (3, 4):
        raise ValueError(f"'{name}' must have shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {shape}. Reshape it.")
    if 0 in shape:
        raise ValueError(f"'{name}' must not be empty, got shape {shape}. Check how it was saved.")
    if array.ndim == 3:
        return array[..., None], 3
    for axis in (3, 1):
        if shape[axis] in CHANNEL_CHOICES:
            return array, axis
    axis = 3 if shape[3] <= shape[1] else 1
    if shape[axis] > _MOST_CHANNELS:
        raise ValueError(
            f"'{name}' of shape {shape} has no axis of channels: neither axis 1 nor axis 3 is 1, 3, 4 or at most "
            f"{_MOST_CHANNELS}. Save (N, H, W), (N, H, W, C) or (N, C, H, W)."
        )
    return array, axis


def _check_type(array: NDArray[np.generic], name: str, maximum: float | None) -> None:
    known = array.dtype in (np.uint8, np.uint16, np.bool_) or np.issubdtype(array.dtype, np.floating)
    if not known and (maximum is None or array.dtype.kind not in "iu"):
        raise ValueError(
            f"'{name}' must be uint8, uint16, bool or float in [0, 1], got {array.dtype}. Save "
            "images.astype(np.uint8) if the values are 0 to 255, or state the value of white of integers as 'maximum'."
        )


def _bytes_from(array: NDArray[np.generic], name: str, start: int, maximum: float | None) -> NDArray[np.uint8]:
    """Converts a chunk, whose first image is number ``start``, to uint8."""
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16 and maximum is None:
        return sixteen_to_eight_bits(array)
    values = array.astype(np.float32)
    limit = 1.0 if maximum is None else maximum
    inside = (values >= -OVERSHOOT * limit) & (values <= (1 + OVERSHOOT) * limit)
    for good, rule, remedy in (
        (np.isfinite(values), "be finite", "Replace NaN and infinity, e.g. with np.nan_to_num, or drop the image"),
        (inside, f"lie in [0, {limit:g}]", "Divide by 255, save uint8, or state the value of white as 'maximum'"),
    ):
        if not good.all():
            index = int(np.argmin(good.reshape(len(values), -1).all(axis=1)))
            bad = values[index][~good[index]].flat[0]
            raise ValueError(f"Values of '{name}' must {rule}, got {bad:g} in image {start + index}. {remedy}.")
    return np.rint(values.clip(0, limit) * 255 / limit).astype(np.uint8)
