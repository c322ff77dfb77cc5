from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gmvq.data.images import ArrayImages, Data
from gmvq.data.sources import fingerprint, held_out_indices, load

Save = Callable[..., NDArray[np.uint8]]


def test_missing_path_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at '.*nowhere'.*Pass the path"):
        load(tmp_path / "nowhere")


def test_unknown_file_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt' is none of the files known here: .*\.npz"):
        load(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("options", "message"), [({"channels": 2}, "'channels'"), ({"held_out_fraction": 1.0}, "'held_out")]
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


@given(count=st.integers(2, 2000), fraction=st.floats(0.001, 0.999))
def test_held_out_images_are_distinct_and_never_all(count: int, fraction: float) -> None:
    chosen = held_out_indices(count, fraction)
    assert 1 <= len(set(chosen)) == len(chosen) < count
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < count
    assert max(np.diff(chosen), default=0) - min(np.diff(chosen), default=0) <= 1


def test_fingerprint_follows_the_content() -> None:
    pixels = torch.zeros(100, 1, 4, 4, dtype=torch.uint8)

    def make(images: torch.Tensor, labels: torch.Tensor | None = None, names: list[str] | None = None) -> str:
        train = ArrayImages(images, labels, names)
        return fingerprint(Data("a", train, train.subset(range(3)), 1))

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
    assert (len(data.train), len(data.held_out), data.channels, data.skipped) == (11, 1, 3, ())
    assert {size for side in (data.train, data.held_out) for size in side.sizes} == {(512, 768), (768, 512)}
