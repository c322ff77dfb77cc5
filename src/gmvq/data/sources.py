"""From a path to a data set with a split, whatever lies at the path."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from gmvq.data.celeba import read_celeba
from gmvq.data.cifar import read_cifar
from gmvq.data.decoding import IMAGE_SUFFIXES, check_channels
from gmvq.data.folders import describe, read_files, read_folder
from gmvq.data.formats import Parts, find_idx, is_idx, read_idx_files, read_npy, read_npz
from gmvq.data.images import DEFAULT_MEMORY_BYTES, Data, Images, Skipped

_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_SAMPLED = 64


def load(
    source: str | Path,
    *,
    channels: int | None = None,
    held_out_fraction: float = 0.1,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    verify: bool = True,
    face_side: int | None = None,
) -> Data:
    """Loads images from a path and splits them.

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
        source: The path; ``~`` is understood.
        channels: 1, 3 or 4 for all images. By default what the data have: 3 if any image is coloured, else 1.
        held_out_fraction: Share held out where the data have no split of their own; at least one image.
        memory_bytes: Budget in bytes for keeping image files decoded.
        verify: Decode each image file once now, so that damaged ones are skipped. Without it they raise when drawn.
        face_side: Side in pixels to which the centre crops of CelebA's faces are scaled; all are kept in memory. None
            for other data.

    Returns:
        The data set. Files that could not be read are in ``skipped`` and named by one warning.

    Raises:
        FileNotFoundError: If nothing is at the path.
        ValueError: If no images are found there, or an argument or the data are out of range.
    """
    check_channels(channels)
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"'held_out_fraction' must lie in (0, 1), got {held_out_fraction}. The default is 0.1.")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"There is nothing at '{path}' (looked from '{Path.cwd()}'). Pass the path of a folder of images, a .npy "
            "or .npz file, or a folder with the files of CIFAR-10 or Fashion-MNIST."
        )
    if face_side is None:
        parts = _read_arrays(path, channels)
    else:
        parts = read_celeba(path, face_side, channels, held_out_fraction)
    if parts is not None:
        data = _split(_name(path), parts.train, held_out_fraction, parts.skipped, parts.held_out)
    elif path.is_dir():
        folder = read_folder(path, channels=channels, memory_bytes=memory_bytes, verify=verify)
        held_out = None if folder.held_out is None else folder.images.subset(folder.held_out)
        train = folder.images if folder.train is None else folder.images.subset(folder.train)
        data = _split(_name(path), train, held_out_fraction, folder.skipped, held_out)
    else:
        data = _load_image_file(path, channels, memory_bytes)
    if data.skipped:
        warnings.warn(f"Skipped {len(data.skipped)} file(s) of '{path}': {describe(data.skipped)}.", stacklevel=2)
    if data.train is data.held_out:
        warnings.warn(
            f"'{path}' holds one image, used for training and for evaluation: the figures say nothing about other "
            "images. Add more.",
            stacklevel=2,
        )
    return data


def held_out_indices(count: int, fraction: float) -> list[int]:
    """Evenly spaced indices of about ``fraction`` of ``count`` images, at least one and never all.

    Sorted names or sorted classes are both sampled evenly by this, and it needs no random state.
    """
    held_out = min(max(1, round(count * fraction)), count - 1)
    return [(2 * i + 1) * count // (2 * held_out) for i in range(held_out)]


def fingerprint(data: Data) -> str:
    """SHA-256 of names, labels, sizes and the pixels of up to 64 images of each side, for the record of a run.

    Returns:
        64 hexadecimal digits. The same files give the same digits on every machine whose image decoders agree.
    """
    digest = hashlib.sha256(f"gmvq.data 1 {data.channels}".encode())
    for side, images in (("train", data.train), ("held_out", data.held_out)):
        digest.update(f"\n{side} {len(images)}\n".encode() + "\0".join(images.names).encode("utf8", "surrogateescape"))
        if images.labels is not None:
            digest.update(images.labels.numpy().astype("<i8").tobytes())
        step = max(1, len(images) // _SAMPLED)
        for index in range(0, len(images), step)[:_SAMPLED]:
            image = images[index]
            digest.update(f"\n{index} {tuple(image.shape)}\n".encode() + image.numpy().tobytes())
    return digest.hexdigest()


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


def _load_image_file(path: Path, channels: int | None, memory_bytes: int) -> Data:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"'{path}' is none of the files known here: {' '.join(sorted(IMAGE_SUFFIXES))}, .npy, .npz, idx files, the "
            "archive of CIFAR-10. Pass a folder of images, or convert it."
        )
    files = read_files(
        [path], path.parent, channels=channels, memory_bytes=memory_bytes, verify=True, skipped=(skipped := [])
    )
    return Data(path.stem, files, files, files.channels, tuple(skipped))


def _split(
    name: str, images: Images, fraction: float, skipped: tuple[Skipped, ...], held_out: Images | None = None
) -> Data:
    if held_out is not None:
        if held_out.channels != images.channels:
            raise ValueError(
                f"The training part has {images.channels} channels and the held-out part {held_out.channels}. "
                "Set 'channels' to 1 or 3."
            )
        return Data(name, images, held_out, images.channels, skipped)
    if len(images) == 1:
        return Data(name, images, images, images.channels, skipped)
    chosen = held_out_indices(len(images), fraction)
    rest = sorted(set(range(len(images))) - set(chosen))
    return Data(name, images.subset(rest), images.subset(chosen), images.channels, skipped)


def _name(path: Path) -> str:
    name = path.resolve().name
    return name if path.is_dir() else name.split(".")[0]
