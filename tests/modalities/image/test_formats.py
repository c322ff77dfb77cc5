import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_images import load
from numpy.typing import NDArray

from gmvq.data import ArrayItems
from gmvq.modalities.image.formats import array_to_images, read_idx

Pixels = Callable[..., NDArray[np.uint8]]


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3), (5, 6, 7, 1), (5, 6, 7, 5)])
@pytest.mark.parametrize("first", [False, True])
def test_channels_are_found_on_either_side(shape: tuple[int, ...], first: bool, random_pixels: Pixels) -> None:
    array = random_pixels(*shape)
    expected = (array if array.ndim == 4 else array[..., None]).transpose(0, 3, 1, 2)
    given = expected if first and array.ndim == 4 else array
    assert np.array_equal(array_to_images(given).numpy(), expected)


def test_types_are_scaled_to_bytes() -> None:
    shape = (1, 1, 4)
    assert array_to_images(np.array([0, 257, 65535, 32896], np.uint16).reshape(shape)).flatten().tolist() == [
        0,
        1,
        255,
        128,
    ]
    for dtype in (np.float16, np.float32, np.float64):
        assert array_to_images(np.array([0, 0.25, 1, 0.5], dtype).reshape(shape)).flatten().tolist() == [
            0,
            64,
            255,
            128,
        ]
    assert array_to_images(np.array([0, 1, 1, 0], bool).reshape(shape)).flatten().tolist() == [0, 255, 255, 0]


def test_bytes_survive_the_way_through_floats() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(array_to_images(values / np.float32(255)).numpy()[0], values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint16, np.int16, np.int64, np.uint32])
def test_white_can_be_stated(dtype: type[np.generic]) -> None:
    values = np.array([0, 50, 100, 101], dtype).reshape(1, 2, 2)
    assert array_to_images(values, maximum=100).flatten().tolist() == [0, 128, 255, 255]
    with pytest.raises(ValueError, match=r"lie in \[0, 99\], got 100 in image 0"):
        array_to_images(values, maximum=99)


def test_a_little_overshoot_is_clipped() -> None:
    values = np.array([-0.009, 1.009, 1.0001, 0.2], np.float32).reshape(1, 2, 2)
    assert array_to_images(values).flatten().tolist() == [0, 255, 255, 51]


def test_channels_can_be_chosen(random_pixels: Pixels) -> None:
    assert array_to_images(random_pixels(2, 6, 6), 3).shape == (2, 3, 6, 6)
    assert array_to_images(random_pixels(2, 6, 6, 3), 1).shape == (2, 1, 6, 6)
    assert array_to_images(random_pixels(2, 4, 6, 6)).shape == (2, 3, 6, 6)
    assert array_to_images(random_pixels(2, 4, 6, 6), 4).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5), np.uint8), r"looks like one image.*images\[None\]"),
        (np.zeros((9, 9, 3), np.uint8), "looks like one image"),
        (np.zeros((1, 1, 1, 1, 1), np.uint8), "must have shape"),
        (np.zeros((0, 5, 5), np.uint8), "must not be empty"),
        (np.zeros((2, 20, 20, 20), np.uint8), "no axis of channels"),
        (np.zeros((2, 5, 5), np.int64), r"int64.*astype\(np\.uint8\)"),
        (np.zeros((2, 5, 5), complex), "complex128"),
        (np.full((2, 5, 5), 2.0), r"lie in \[0, 1\], got 2 in image 0.*Divide by 255"),
        (np.full((2, 5, 5), -0.1), r"lie in \[0, 1\], got -0\.1"),
    ],
)
def test_other_arrays_are_refused(array: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array_to_images(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_names_the_image(bad: float) -> None:
    array = np.zeros((5000, 2, 2), np.float32)
    array[4321, 1, 0] = bad
    with pytest.raises(ValueError, match=r"image 4321.*nan_to_num"):
        array_to_images(array)


def test_five_channels_cannot_become_three(random_pixels: Pixels) -> None:
    with pytest.raises(ValueError, match="5 channels"):
        array_to_images(random_pixels(2, 5, 8, 8), 3)


def test_npy(tmp_path: Path, random_pixels: Pixels) -> None:
    np.save(tmp_path / "a.npy", random_pixels(20, 6, 6))
    data = load(tmp_path / "a.npy")
    assert (data.name, data.signal.channels) == ("a", 1)
    assert data.held_out.names
    assert sorted([*data.train.names, *data.held_out.names]) == [f"{i:05d}" for i in range(20)]


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("data", "targets"), ("faces", "label")])
def test_npz_with_labels(keys: tuple[str, str], tmp_path: Path, random_pixels: Pixels) -> None:
    images = random_pixels(10, 6, 6, 3)
    arrays: dict[str, Any] = {keys[0]: images, keys[1]: np.arange(10)}
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(tmp_path / "a.npz", held_out_fraction=0.2)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [int(name) for name in data.train.names]
    assert np.array_equal(data.held_out[0].permute(1, 2, 0).numpy(), images[int(data.held_out.names[0])])


@pytest.mark.parametrize("part", ["test", "val"])
def test_npz_with_a_split(part: str, tmp_path: Path, random_pixels: Pixels) -> None:
    arrays: dict[str, Any] = {"X_train": random_pixels(4, 6, 6), "y_train": np.zeros((4, 1), int)}
    arrays |= {f"x_{part}": random_pixels(2, 6, 6), f"y_{part}": np.array([7, 8])}
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(tmp_path / "a.npz")
    assert (len(data.train), len(data.held_out)) == (4, 2)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0] * 4
    assert data.held_out.labels is not None
    assert data.held_out.labels.tolist() == [7, 8]


def test_npz_with_train_only_and_mixed_channels(tmp_path: Path, random_pixels: Pixels) -> None:
    np.savez(tmp_path / "a.npz", x_train=random_pixels(4, 6, 6))
    assert len(load(tmp_path / "a.npz").train) == 3
    np.savez(tmp_path / "b.npz", x_train=random_pixels(4, 6, 6), x_test=random_pixels(2, 6, 6, 3))
    assert load(tmp_path / "b.npz").held_out[0].shape[0] == 1


def test_npz_says_what_is_wrong(tmp_path: Path, random_pixels: Pixels) -> None:
    np.savez(tmp_path / "a.npz", foo=random_pixels(4, 6, 6), bar=random_pixels(4, 6, 6))
    with pytest.raises(ValueError, match=r"one of the keys images.*\['bar', 'foo'\]"):
        load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=random_pixels(4, 6, 6), labels=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"b\.npz\[labels\]"):
        load(tmp_path / "b.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_objects_and_damage_are_refused(name: str, tmp_path: Path, random_pixels: Pixels) -> None:
    path = tmp_path / name
    save = np.save if name == "a.npy" else np.savez
    save(path, np.array([print, None]))
    with pytest.raises(ValueError, match=rf"{name}.*(objects|keys)"):
        load(path)
    save(path, random_pixels(10, 8, 8))
    whole = path.read_bytes()
    for data in (whole[:300], whole[:5], b"", b"no numpy file"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"Cannot read '.*{name}'"):
            load(path)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("folder", ["", "raw", "FashionMNIST/raw"])
def test_idx_folder(
    suffix: str, pack: Callable[[bytes], bytes], folder: str, tmp_path: Path, random_pixels: Pixels
) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    images, labels = random_pixels(6, 5, 4), np.arange(6, dtype=np.uint8)
    for name, count in (("train", 6), ("t10k", 2)):
        (place / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images[:count])))
        (place / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels[:count])))
    data = load(tmp_path)
    assert (len(data.train), len(data.held_out), data.signal.channels) == (6, 2, 1)
    assert isinstance(data.train, ArrayItems)
    assert np.array_equal(data.train.array[:, 0].numpy(), images)
    assert data.held_out.labels is not None
    assert data.held_out.labels.tolist() == [0, 1]


def test_idx_parts_that_are_missing_or_damaged(tmp_path: Path, random_pixels: Pixels) -> None:
    images = random_pixels(6, 5, 4)
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(images))
    assert len(load(tmp_path / "train-images.idx3-ubyte").held_out) == 1
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(images)[:-1])
    with pytest.warns(UserWarning, match=r"Skipped 2 .*5 labels for 6 images.*truncated"):
        data = load(tmp_path)
    assert data.train.labels is None
    assert len(data.train) + len(data.held_out) == 6
    (tmp_path / "train-images.idx3-ubyte").unlink()
    with pytest.raises(ValueError, match="No idx file can be read"):
        load(tmp_path)
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(images))
    assert len(load(tmp_path).train) == 5


def test_idx_damage(tmp_path: Path, random_pixels: Pixels) -> None:
    path = tmp_path / "a"
    good = idx(random_pixels(2, 3, 4))
    for data, message in (
        (b"", "starts with nothing"),
        (good[:9], "not an idx file"),
        (good[:20], "truncated"),
        (idx(random_pixels(4)), "not an idx file of bytes with 3 axes"),
        (gzip.compress(good)[:-12], "decompressed"),
        (lzma.compress(good)[:-12], "decompressed"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_idx(path, 3)


def test_shared_fashion_mnist(shared_data: Path) -> None:
    data = load(shared_data / "fashion_mnist")
    assert (len(data.train), len(data.held_out), data.signal.channels) == (60000, 10000, 1)
    assert data.train.labels is not None
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.train.labels.bincount().tolist() == [6000] * 10
