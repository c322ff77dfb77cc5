"""Small files of data of each kind that gmvq reads."""

import csv
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import tifffile
from PIL import Image as Picture


def pixels(*shape: int) -> np.ndarray:
    """Smooth values, 0 to 255."""
    rows = np.add.outer(np.arange(shape[-2]) * 3, np.arange(shape[-1]) * 2)
    first = 5 * np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (np.broadcast_to(rows, shape) + first).astype(np.uint8)


def written(name: str, data: Callable[[], bytes]) -> Callable[[Path], Path]:
    """Makes a file of some bytes, in a folder of its own."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(data())
        return folder / name

    return make


def picture(form: str, **options) -> bytes:
    """A color picture of 24 x 20 pixels."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 32, (20, 24, 3)).astype(np.uint8)
    Picture.fromarray(pixels(3, 20, 24).transpose(1, 2, 0) // 2 + noise).save(buffer, form, **options)
    return buffer.getvalue()


def tiff() -> bytes:
    """A picture in strips."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels(1, 40, 24)[0], rowsperstrip=8)
    return buffer.getvalue()


def sound(form: str, pitch: float = 0.15) -> bytes:
    """Half a second of a tone."""
    buffer = io.BytesIO()
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(form, "PCM_16")
    soundfile.write(buffer, 0.5 * np.sin(np.arange(4000) * pitch), 8000, format=form, subtype=subtype)
    return buffer.getvalue()


def table(rows: int = 60) -> bytes:
    """A table of numbers with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["x", "y", "label"])
    for row in np.random.default_rng(0).normal(size=(rows, 2)).round(4):
        writer.writerow([*row, int(row[0] > 0)])
    return text.getvalue().encode()


def vectors() -> bytes:
    """Rows of numbers."""
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(40, 3)))
    return buffer.getvalue()


def npz() -> bytes:
    """Images and labels."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=pixels(12, 8, 8), labels=np.arange(12) % 3)
    return buffer.getvalue()


def npy() -> bytes:
    """Images."""
    buffer = io.BytesIO()
    np.save(buffer, pixels(12, 8, 8))
    return buffer.getvalue()


def parquet() -> bytes:
    """A table of numbers, in pages with checksums."""
    import pyarrow
    from pyarrow import parquet as files

    values = np.random.default_rng(0).normal(size=(60, 2))
    made = pyarrow.table({"x": values[:, 0], "y": values[:, 1], "label": (values[:, 0] > 0).astype(int)})
    buffer = pyarrow.BufferOutputStream()
    files.write_table(made, buffer, write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


def celeba(folder: Path) -> Path:
    """A zip of faces."""
    folder.mkdir(parents=True)
    path = folder / "celeba_89x109.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1, 7):
            buffer = io.BytesIO()
            Picture.fromarray(pixels(3, 109, 89).transpose(1, 2, 0) // number).save(buffer, "JPEG")
            archive.writestr(f"{number:06d}.jpg", buffer.getvalue())
    return path


def labels(folder: Path) -> Path:
    """The table of labels of a folder of pictures."""
    folder_of_pictures(folder)
    (folder / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n")
    return folder / "labels.csv"


def recordings() -> bytes:
    """Recordings in an array."""
    buffer = io.BytesIO()
    np.save(buffer, 0.5 * np.sin(np.outer(np.arange(1, 7), np.arange(300)) / 9).astype(np.float32))
    return buffer.getvalue()


def lines_of_json() -> bytes:
    """Labelled texts."""
    lines = [{"text": text, "label": len(text) % 2} for text in prose().decode().splitlines()]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(folder: Path, packed: bool) -> Path:
    """Images and labels of both sides."""
    folder.mkdir(parents=True)
    for side, count in (("train", 20), ("t10k", 6)):
        classes = np.arange(count, dtype=np.uint8) % 4
        for name, array in (("images-idx3", pixels(count, 8, 8)), ("labels-idx1", classes)):
            data = idx(array)
            path = folder / f"{side}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"


def cifar_batch(number: int) -> bytes:
    """A batch of CIFAR-10 as Python 2 and NumPy pickled it."""
    rows = pixels(4, 3, 32, 32).reshape(4, -1) + np.uint8(number)
    return pickle.dumps({b"data": rows, b"labels": [number, 1, 2, 3]}, protocol=2)


def cifar_archive(folder: Path) -> Path:
    """The official archive, in small."""
    folder.mkdir(parents=True)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            data = cifar_batch(number)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar_folder(folder: Path) -> Path:
    """The batches themselves, of which one is mutated."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(cifar_batch(number))
    return folder / "data_batch_2"


def cifar_binary(folder: Path) -> Path:
    """The binary batches."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        rows = pixels(4, 3, 32, 32).reshape(4, -1) + np.uint8(number)
        (folder / name).write_bytes(np.concatenate([np.arange(4, dtype=np.uint8)[:, None], rows], 1).tobytes())
    return folder / "data_batch_2.bin"


def sounds_packed(folder: Path, form: str) -> Path:
    """An archive of recordings."""
    folder.mkdir(parents=True)
    path = folder / f"sounds.{form}"
    names = [f"{label}/{index}.wav" for label in ("high", "low") for index in range(2)]
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for index, name in enumerate(names):
                archive.writestr(name, sound("WAV", 0.1 + 0.1 * index))
        return path
    with tarfile.open(path, "w:gz") as archive:
        for index, name in enumerate(names):
            data = sound("WAV", 0.1 + 0.1 * index)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def folder_of_pictures(folder: Path) -> Path:
    """Four pictures, of which one is mutated."""
    folder.mkdir(parents=True)
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(picture("PNG"))
    return folder / "b.png"


def prose() -> bytes:
    """A few lines, not only of ASCII."""
    colors = ("red", "blue", "süße", "€ 20", "😀")
    return "".join(f"the {color} {animal} sleeps\n" for color in colors for animal in ("cat", "dog", "fox")).encode()
