import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_images import load
from numpy.typing import NDArray

from gmvq.data import ArrayItems
from gmvq.modalities import Data, Image, fingerprint

Save = Callable[..., NDArray[np.uint8]]


def test_missing_path_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at '.*nowhere'.*Pass the path"):
        load(tmp_path / "nowhere")


def test_unknown_file_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt' must be an image that Pillow reads .*\.npz"):
        load(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("options", "message"), [({"channels": 0}, "'channels'"), ({"held_out_fraction": 1.0}, "'held_out")]
)
def test_arguments_are_checked(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)  # pyright: ignore[reportArgumentType]


def test_a_single_image_stands_on_both_sides(tmp_path: Path, save_image: Save) -> None:
    save_image("a.png")
    for source in (tmp_path, str(tmp_path / "a.png")):
        with pytest.warns(UserWarning, match="one image, used for training and for evaluation"):
            data = load(source)
        assert data.train.names == data.held_out.names == ["a.png"]
    np.save(tmp_path / "b.npy", np.zeros((1, 4, 4), np.uint8))
    with pytest.warns(UserWarning, match="one image"):
        assert len(load(tmp_path / "b.npy").held_out) == 1


def test_a_single_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png"):
        load(tmp_path / "a.png")


def test_home_is_understood(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image("pictures/a.png")
    save_image("pictures/b.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/pictures").name == "pictures"


def test_sides_with_different_channels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 5, 8, 8), np.uint8), x_test=np.zeros((2, 6, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="5 channels"):
        load(tmp_path / "a.npz")


def test_images_that_are_added_or_renamed_move_no_other(tmp_path: Path, save_image: Save) -> None:
    for i in range(40):
        save_image(f"{i:02d}.png")
    before = load(tmp_path, held_out_fraction=0.2)
    for i in range(5):
        save_image(f"0{i}a.png")  # between the others
    (tmp_path / before.train.names[0]).rename(tmp_path / "zz.png")
    shutil.copy(tmp_path / before.held_out.names[0], tmp_path / "copy.png")
    after = load(tmp_path, held_out_fraction=0.2)
    assert set(before.held_out.names) <= set(after.held_out.names)
    assert set(before.train.names[1:]) <= set(after.train.names)
    assert "zz.png" in after.train.names
    assert "copy.png" in after.held_out.names


@pytest.mark.parametrize("kind", ["npy", "npz", "x_train", "idx"])
def test_the_split_of_an_array_is_that_of_its_rows(kind: str, tmp_path: Path, random_pixels: Save) -> None:
    images = random_pixels(60, 6, 5)
    path = tmp_path / {"npy": "a.npy", "idx": "train-images-idx3-ubyte"}.get(kind, "a.npz")

    def split(rows: NDArray[np.uint8], channels: int | None = None) -> set[bytes]:
        if kind == "npy":
            np.save(path, rows)
        elif kind == "idx":
            path.write_bytes(struct.pack(">4I", 0x803, *rows.shape) + rows.tobytes())
        else:
            np.savez(path, **{"images" if kind == "npz" else kind: rows})
        held_out = load(path, channels=channels).held_out
        return {held_out[index][0].numpy().tobytes() for index in range(len(held_out))}

    chosen = split(images)
    assert 0 < len(chosen) < 60
    assert split(images, 3) == split(images[::-1].copy()) == split(np.concatenate([images, images])) == chosen
    assert chosen <= split(np.concatenate([random_pixels(30, 6, 5), images]))


def test_images_that_are_all_the_same_stand_on_both_sides(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 4, 4), np.uint8))
    with pytest.warns(UserWarning, match="one image, repeated, used for training and for evaluation"):
        data = load(tmp_path / "a.npy")
    assert len(data.train) == len(data.held_out) == 5


def test_fingerprint_follows_the_content() -> None:
    pixels = torch.zeros(100, 1, 4, 4, dtype=torch.uint8)

    def make(images: torch.Tensor, labels: torch.Tensor | None = None, names: list[str] | None = None) -> str:
        train = ArrayItems(images, 2, labels, names)
        return fingerprint(Data("a", train, train.subset(range(3)), Image(1)))

    changed = pixels.clone()
    changed[0, 0, 0, 0] = 1
    prints = [
        make(pixels),
        make(changed),
        make(pixels.reshape(100, 1, 2, 8)),
        make(pixels, torch.zeros(100, dtype=torch.int64)),
        make(pixels, names=[f"x{i}" for i in range(100)]),
        make(pixels[:99]),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == make(pixels.clone())
    assert len(prints[0]) == 64
    int(prints[0], 16)


def test_shared_kodak(shared_data: Path) -> None:
    data = load(shared_data / "kodak")
    assert (len(data.train), len(data.held_out), data.signal.channels, data.skipped) == (11, 1, 3, ())
    assert {size for side in (data.train, data.held_out) for size in side.sizes} == {(512, 768), (768, 512)}
