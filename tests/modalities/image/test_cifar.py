import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loading_images import load
from numpy.typing import NDArray
from PIL import Image

from gmvq.data import ArrayItems
from gmvq.modalities.image.cifar import load_batch

Pixels = Callable[..., NDArray[np.uint8]]

# A batch as Python 2 wrote it (the official files): {'data': uint8 (1, 3072) of 7, 'labels': [3]}.
PYTHON_2_BATCH = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq"
    b"\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff"
    b"\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + b"\x07" * 3072 + b"tbU\x06labelsq\x08]K\x03au."
)


def batch(images: NDArray[np.uint8], labels: object, protocol: int = 4) -> bytes:
    return pickle.dumps({b"data": images.reshape(len(images), -1), b"labels": labels}, protocol)


def write_batches(folder: Path, images: NDArray[np.uint8], form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for index, (name, part) in enumerate(zip(names, np.split(images, 6), strict=True)):
        if form == "pickle":
            (folder / name).write_bytes(batch(part, [index] * len(part)))
        else:
            rows = np.concatenate([np.full((len(part), 1), index, np.uint8), part.reshape(len(part), -1)], axis=1)
            rows.tofile(folder / f"{name}.bin")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("as_array", [False, True])
def test_pickles_of_every_protocol(protocol: int, order: str, as_array: bool, random_pixels: Pixels) -> None:
    images = random_pixels(3, 3, 32, 32)
    data = np.asarray(images.reshape(3, -1), order="F" if order == "F" else "C")
    labels = np.array([5, 6, 7], ">i8") if as_array else [5, 6, 7]
    read, read_labels = load_batch(pickle.dumps({"data": data, "labels": labels, "batch_label": "x"}, protocol))
    assert np.array_equal(read, images)
    assert read_labels is not None
    assert read_labels.tolist() == [5, 6, 7]


def test_pickle_of_python_2() -> None:
    images, labels = load_batch(PYTHON_2_BATCH)
    assert images.shape == (1, 3, 32, 32)
    assert (images == 7).all()
    assert labels is not None
    assert labels.tolist() == [3]


class Evil:
    """Would run a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    for protocol in range(6):
        with pytest.raises(ValueError, match=r"system is not allowed"):
            load_batch(pickle.dumps({"data": Evil(f"touch {tmp_path / 'ran'}")}, protocol))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "eval is not allowed"),
        (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "not allowed"),
        (b"cnumpy\nload\n.", "numpy.load is not allowed"),
        (b"Pother\n.", "references"),
        (PYTHON_2_BATCH[:2000], "damaged"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"data": [1]}), "no array 'data'"),
        (b"}S'data'\ncnumpy\nndarray\n)Rs.", "damaged array|not enough values"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8)}), r"must be uint8 \(N, 3072\)"),
        (pickle.dumps({"data": np.zeros((2, 3072))}), "must hold integers"),
        (pickle.dumps({"data": np.array([[print]])}), "not allowed|integers"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "1 labels for 2 images"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}), "list of integers"),
    ],
)
def test_damaged_and_foreign_pickles_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_batch(data)


@pytest.mark.parametrize("form", ["pickle", "binary"])
@pytest.mark.parametrize("nested", [False, True])
def test_official_batches(form: str, nested: bool, tmp_path: Path, random_pixels: Pixels) -> None:
    images = random_pixels(12, 3, 32, 32)
    inner = "cifar-10-batches-py" if form == "pickle" else "cifar-10-batches-bin"
    write_batches(tmp_path / inner if nested else tmp_path, images, form)
    data = load(tmp_path)
    assert isinstance(data.train, ArrayItems)
    assert np.array_equal(data.train.array.numpy(), images[:10])
    assert np.array_equal(data.held_out[1].numpy(), images[11])
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.held_out.labels is not None
    assert data.held_out.labels.tolist() == [5, 5]
    assert load(tmp_path, channels=1).signal.channels == 1


def test_archive(tmp_path: Path, random_pixels: Pixels) -> None:
    images = random_pixels(12, 3, 32, 32)
    write_batches(tmp_path / "cifar-10-batches-py", images, "pickle")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    data = load(path)
    assert (len(data.train), len(data.held_out)) == (10, 2)
    whole = path.read_bytes()
    wrong_checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]  # behind the last batch
    for damaged in (whole[:20000], wrong_checksum, b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"\ACannot read the archive .*Download it again\.\Z"):
            load(path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("other"), io.BytesIO())
    with pytest.raises(ValueError, match=r"not that of CIFAR-10.*Unpack"):
        load(path)


def test_batches_that_are_missing_or_damaged(tmp_path: Path, random_pixels: Pixels) -> None:
    write_batches(tmp_path, random_pixels(24, 3, 32, 32), "binary")
    (tmp_path / "data_batch_2.bin").write_bytes(b"\0" * 100)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.warns(UserWarning, match=r"Skipped 2 .*truncated.*missing"):
        data = load(tmp_path)
    assert len(data.held_out)
    assert len(data.train) + len(data.held_out) == 16
    for path in tmp_path.iterdir():
        path.write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"No training batch .*data_batch_1\.bin"):
        load(tmp_path)


def write_sheet(path: Path, images: NDArray[np.uint8]) -> None:
    sheet = images.transpose(0, 2, 3, 1).reshape(25, 40, 32, 32, 3).swapaxes(1, 2).reshape(800, 1280, 3)
    Image.fromarray(sheet).save(path, lossless=True, quality=0, method=0)


def test_sheets(tmp_path: Path, random_pixels: Pixels) -> None:
    images = random_pixels(1000, 3, 32, 32)
    labels = (np.arange(2000) % 10).astype(np.uint8)
    write_sheet(tmp_path / "train_01.webp", images)
    (tmp_path / "train_00.webp").write_bytes(b"broken")
    labels.tofile(tmp_path / "train_labels.bin")
    with pytest.warns(UserWarning, match=r"Skipped 1 .*train_00\.webp"):
        data = load(tmp_path)
    assert len(data.train) + len(data.held_out) == 1000
    assert 70 < len(data.held_out) < 130  # 3 standard deviations
    index = int(data.held_out.names[3])
    assert np.array_equal(data.held_out[3].numpy(), images[index])
    assert data.held_out.labels is not None
    assert data.held_out.labels[3] == labels[1000 + index]
    labels[:10].tofile(tmp_path / "train_labels.bin")
    with pytest.warns(UserWarning, match="10 labels for 2000 images"):
        assert load(tmp_path).train.labels is None
    Image.new("RGB", (64, 64)).save(tmp_path / "train_01.webp")
    with pytest.raises(ValueError, match=r"No training sheet .*train_01\.webp .*shape"):
        load(tmp_path)


def test_shared_cifar10_is_bit_exact(shared_data: Path) -> None:
    data = load(shared_data / "cifar10")
    expected = {
        "train": "10d94edc57bf6b034670d5061cb6ac228cfc0fd07d5ba6ba4082883c4999a6d6",
        "held_out": "4674ac8c77f372061aaf9216c8857c99599d5df0bb9f6b16a3de613ef8eb348a",
    }
    for side, images in (("train", data.train), ("held_out", data.held_out)):
        assert isinstance(images, ArrayItems)
        pixels = np.ascontiguousarray(images.array.permute(0, 2, 3, 1).numpy())
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected[side]
        assert images.labels is not None
        assert images.labels.bincount().tolist() == [len(images) // 10] * 10
