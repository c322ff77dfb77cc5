"""From a path to a data set with a split, whatever lies at the path."""

from __future__ import annotations

from pathlib import Path

from gmvq.data.items import Items, Skipped
from gmvq.modalities.base import Data, Modality
from gmvq.modalities.image.celeba import read_celeba
from gmvq.modalities.image.cifar import read_cifar
from gmvq.modalities.image.decoding import IMAGE_SUFFIXES
from gmvq.modalities.image.folders import read_files, read_folder
from gmvq.modalities.image.formats import Parts, find_idx, is_idx, read_idx_files, read_npy, read_npz

_ARCHIVES = (".tar.gz", ".tgz", ".tar")


def read_source(
    path: Path, modality: Modality, channels: int | None, face_side: int | None, fraction: float, memory_bytes: int
) -> Data:
    """Reads images from a path and splits them.

    What is understood: a folder of image files, flat or nested; one image file; ``.npy`` and ``.npz``; CIFAR-10 as
    pickles, binary batches (a folder or its ``.tar.gz``) or sheets of WebP; idx files of MNIST and Fashion-MNIST,
    plain, ``.gz`` or ``.xz``.

    The split is the data's own if it has one: official test parts, ``x_test`` in a ``.npz``, a ``train`` folder beside
    a ``test`` (or ``val``, ``valid``) folder. Otherwise evenly spaced images of the sorted names are held out: the same
    ones on each call.

    With ``face_side`` the path is read as CelebA: a folder with ``img_align_celeba``, its zip or the zip of half the
    size. Its split is the official one if ``list_eval_partition.txt`` lies beside the images, else the last ones are
    held out, as its authors do.

    Args:
        path: Where there is something.
        modality: What the data set is to carry.
        channels: 1, 3 or 4 for all images. By default what the data have: 3 if any image is colored, else 1.
        face_side: Side in pixels to which the centre crops of CelebA's faces are scaled; all are kept in memory. None
            for other data.
        fraction: Share held out where the data have no split of their own; at least one image.
        memory_bytes: Budget in bytes for keeping image files decoded.

    Raises:
        ValueError: If no images are found there, or an argument or the data are out of range.
    """
    parts = _read_arrays(path, channels) if face_side is None else read_celeba(path, face_side, channels, fraction)
    if parts is not None:
        return _split(_name(path), modality, parts.train, fraction, parts.skipped, parts.held_out)
    if not path.is_dir():
        return _read_image_file(path, modality, channels, memory_bytes)
    folder = read_folder(path, channels=channels, memory_bytes=memory_bytes)
    held_out = None if folder.held_out is None else folder.images.subset(folder.held_out)
    train = folder.images if folder.train is None else folder.images.subset(folder.train)
    return _split(_name(path), modality, train, fraction, folder.skipped, held_out)


def held_out_indices(count: int, fraction: float) -> list[int]:
    """Evenly spaced indices of about ``fraction`` of ``count`` images, at least one and never all.

    Sorted names or sorted classes are both sampled evenly by this, and it needs no random state.
    """
    held_out = min(max(1, round(count * fraction)), count - 1)
    return [(2 * i + 1) * count // (2 * held_out) for i in range(held_out)]


def _read_arrays(path: Path, channels: int | None) -> Parts | None:
    """What lies at the path if it is arrays and not image files."""
    if path.is_dir():
        cifar = read_cifar(path, channels)
        if cifar is not None:
            return cifar
        idx = find_idx(path)
        return read_idx_files(idx, channels) if idx else None
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_npy(path, channels)
    if suffix == ".npz":
        return read_npz(path, channels)
    if is_idx(path):
        return read_idx_files({"train-images": path}, channels)
    if path.name.lower().endswith(_ARCHIVES):
        cifar = read_cifar(path, channels)
        if cifar is None:
            raise ValueError(f"The archive '{path}' is not that of CIFAR-10. Unpack it and pass the folder.")
        return cifar
    return None


def _read_image_file(path: Path, modality: Modality, channels: int | None, memory_bytes: int) -> Data:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"'{path}' is none of the files known here: {' '.join(sorted(IMAGE_SUFFIXES))}, .npy, .npz, idx files, the "
            "archive of CIFAR-10. Pass a folder of images, or convert it."
        )
    files = read_files([path], path.parent, channels=channels, memory_bytes=memory_bytes, skipped=(skipped := []))
    return Data(path.stem, files, files, modality, tuple(skipped))


def _split(
    name: str,
    modality: Modality,
    images: Items,
    fraction: float,
    skipped: tuple[Skipped, ...],
    held_out: Items | None = None,
) -> Data:
    if held_out is not None:
        channels = images[0].shape[0], held_out[0].shape[0]
        if channels[0] != channels[1]:
            raise ValueError(
                f"The training part has {channels[0]} channels and the held-out part {channels[1]}. Set 'channels' to "
                "1 or 3."
            )
        return Data(name, images, held_out, modality, skipped)
    if len(images) == 1:
        return Data(name, images, images, modality, skipped)
    chosen = held_out_indices(len(images), fraction)
    rest = sorted(set(range(len(images))) - set(chosen))
    return Data(name, images.subset(rest), images.subset(chosen), modality, skipped)


def _name(path: Path) -> str:
    name = path.resolve().name
    return name if path.is_dir() else name.split(".")[0]
