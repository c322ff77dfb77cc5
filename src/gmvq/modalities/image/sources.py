"""Reads images from folders, files and archives, and splits them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gmvq.data.items import FileItems, Items, Skipped
from gmvq.data.splitting import digest_of, digests_of_files, held_out
from gmvq.modalities.base import Data, Modality
from gmvq.modalities.image.celeba import read_celeba
from gmvq.modalities.image.cifar import read_cifar
from gmvq.modalities.image.decoding import IMAGE_SUFFIXES, ImageError
from gmvq.modalities.image.folders import read_files, read_folder
from gmvq.modalities.image.formats import Parts, find_idx, is_idx, read_idx_files, read_npy, read_npz
from gmvq.modalities.image.readable import COMMON_SUFFIXES, reason_unread

_ARCHIVES = (".tar.gz", ".tgz", ".tar")


def read_source(
    path: Path,
    modality: Modality,
    channels: int | None,
    *,
    face_side: int | None,
    maximum: float | None,
    fraction: float,
    memory_bytes: int,
) -> Data:
    """Reads images from a path and splits them.

    The path may be that of a folder of image files, flat or nested; one image file; ``.npy`` and ``.npz``; CIFAR-10 as
    pickles, binary batches (a folder or its ``.tar.gz``) or sheets of WebP; idx files of MNIST and Fashion-MNIST,
    plain, ``.gz`` or ``.xz``.

    The split is the data's own if there is one: official test parts, ``x_test`` in a ``.npz``, a ``train`` folder
    beside a ``test`` (or ``val``, ``valid``) folder. Otherwise images are held out by a hash of their bytes, see
    :func:`gmvq.data.splitting.held_out`: if files are added or renamed, an image stays on its side, and copies of an
    image are on one side.

    Images of a folder have labels if ``labels.csv`` is next to them, or else if their folders are classes,
    see :func:`gmvq.data.labels.labels_of`.

    With ``face_side`` the path is read as CelebA: a folder with ``img_align_celeba``, its zip or the zip of half-size
    images. Its split is the official one if ``list_eval_partition.txt`` is next to the images, else the last ones are
    held out, as in the official split.

    Args:
        path: An existing file or folder.
        modality: Modality that the data set gets.
        channels: 1, 3 or 4 for all images. By default that of the data: 3 if any image is colored, else 1.
        face_side: Side in pixels to which the center crops of CelebA's faces are scaled; all are kept in memory. None
            for other data.
        maximum: Value of white in files and arrays of floats, and in gray files and integer arrays of more than 8 bits,
            e.g. 255 for floats from 0 to 255. None for the default of the type: 1 for floats, 65535 for 16 bits.
        fraction: Expected fraction held out if the data have no split of their own; at least one image.
        memory_bytes: Budget in bytes for keeping image files decoded.

    Raises:
        ValueError: If no images are found, or an argument or the data are out of range, as float images that exceed 1
            without ``maximum``.
    """
    if face_side is None:
        parts = _read_arrays(path, channels, maximum)
    else:
        parts = read_celeba(path, face_side, channels, fraction)
    if parts is not None:
        return _split(path, modality, parts.train, fraction, parts.skipped, parts.held_out, parts.digests)
    if not path.is_dir():
        return _read_image_file(path, modality, channels, memory_bytes, maximum)
    folder = read_folder(path, channels=channels, memory_bytes=memory_bytes, maximum=maximum)
    measured = None if folder.held_out is None else folder.images.subset(folder.held_out)
    train = folder.images if folder.train is None else folder.images.subset(folder.train)
    return _split(path, modality, train, fraction, folder.skipped, measured)._replace(classes=folder.classes)


def _read_arrays(path: Path, channels: int | None, maximum: float | None) -> Parts | None:
    """Reads arrays at a path; returns None for image files."""
    if path.is_dir():
        cifar = read_cifar(path, channels)
        if cifar is not None:
            return cifar
        idx = find_idx(path)
        return read_idx_files(idx, channels) if idx else None
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_npy(path, channels, maximum)
    if suffix == ".npz":
        return read_npz(path, channels, maximum)
    if is_idx(path):
        return read_idx_files({"train-images": path}, channels)
    if path.name.lower().endswith(_ARCHIVES):
        cifar = read_cifar(path, channels)
        if cifar is None:
            raise ValueError(f"The archive '{path}' is not that of CIFAR-10. Unpack it and pass the folder.")
        return cifar
    return None


def _read_image_file(
    path: Path, modality: Modality, channels: int | None, memory_bytes: int, maximum: float | None
) -> Data:
    if (reason := reason_unread(path)) is not None:
        raise ImageError(path, reason)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"'{path}' must be an image that Pillow reads ({COMMON_SUFFIXES}, ...), .npy, .npz, an idx file or the "
            "archive of CIFAR-10. Pass a folder of images, or convert it."
        )
    skipped: list[Skipped] = []
    files = read_files(
        [path], path.parent, channels=channels, memory_bytes=memory_bytes, skipped=skipped, maximum=maximum
    )
    return Data(path.stem, files, files, modality, tuple(skipped))


def _split(
    path: Path,
    modality: Modality,
    images: Items,
    fraction: float,
    skipped: tuple[Skipped, ...],
    measured: Items | None,
    digests: Sequence[bytes] = (),
) -> Data:
    """Splits off the data's own held-out part ``measured``, or one chosen by the digests of the images."""
    name = _name(path)
    if measured is not None:
        channels = images[0].shape[0], measured[0].shape[0]
        if channels[0] != channels[1]:
            raise ValueError(
                f"The training part has {channels[0]} channels and the held-out part {channels[1]}. Set 'channels' to "
                "1 or 3."
            )
        return Data(name, images, measured, modality, skipped)
    if isinstance(images, FileItems):
        digests = digests_of_files(images.paths)
    chosen = held_out(digests or [digest_of(images[index]) for index in range(len(images))], fraction)
    if not chosen:
        return Data(name, images, images, modality, skipped)
    rest = sorted(set(range(len(images))) - set(chosen))
    return Data(name, images.subset(rest), images.subset(chosen), modality, skipped)


def _name(path: Path) -> str:
    name = path.resolve().name
    return name if path.is_dir() else name.split(".")[0]
