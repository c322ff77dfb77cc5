import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gmvq.data.folders import describe
from gmvq.data.images import Skipped
from gmvq.data.sources import load

Save = Callable[..., NDArray[np.uint8]]


def test_nested_folder_in_the_order_of_names(tmp_path: Path, save_image: Save) -> None:
    for name in ("b/2.PNG", "b/1.JPeG", "a.webp", "c/d/e.tiff", ".hidden.png", ".cache/x.png", "__MACOSX/y.png"):
        save_image(name)
    (tmp_path / "notes.txt").write_text("not an image, and no reason to warn")
    (tmp_path / "folder.png").mkdir()
    data = load(tmp_path, held_out_fraction=0.25)
    assert sorted([*data.train.names, *data.held_out.names]) == ["a.webp", "b/1.JPeG", "b/2.PNG", "c/d/e.tiff"]
    assert data.train.names == sorted(data.train.names)
    assert len(data.held_out) == 1
    assert data.name == tmp_path.name
    assert data.skipped == ()
    assert load(tmp_path, held_out_fraction=0.25).held_out.names == data.held_out.names


def test_broken_files_are_named_counted_and_skipped(tmp_path: Path, save_image: Save) -> None:
    for i in range(4):
        save_image(f"{i}.png")
    save_image("half.jpg", 64, 64, 3)
    path = tmp_path / "half.jpg"
    path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning, match=r"Skipped 4 file\(s\)") as caught:
        data = load(tmp_path)
    assert len(caught) == 1
    assert {skipped.path.name for skipped in data.skipped} == {"half.jpg", "empty.png", "gone.png", "pipe.png"}
    assert all(skipped.reason and skipped.path.name in str(caught[0].message) for skipped in data.skipped)
    assert len(data.train) + len(data.held_out) == 4


def test_without_verification_only_headers_are_read(tmp_path: Path, save_image: Save) -> None:
    for i in range(3):
        save_image(f"{i}.png")
    save_image("3.jpg", 64, 64, 3)
    path = tmp_path / "3.jpg"
    path.write_bytes(path.read_bytes()[:900])
    data = load(tmp_path, verify=False)
    assert len(data.train) + len(data.held_out) == 4


@pytest.mark.parametrize(
    ("shapes", "channels", "expected"),
    [
        ([(5, 5), (5, 5, 3), (5, 5, 4)], None, 3),
        ([(5, 5), (6, 5, 2)], None, 1),
        ([(5, 5), (5, 5)], 3, 3),
        ([(5, 5), (5, 5, 3)], 1, 1),
        ([(5, 5), (5, 5, 4)], 4, 4),
    ],
)
def test_channels_are_common(
    shapes: list[tuple[int, ...]], channels: int | None, expected: int, tmp_path: Path, save_image: Save
) -> None:
    for i, shape in enumerate(shapes):
        save_image(f"{i}.png", *shape)
    Image.fromarray(np.full((5, 5), 30000, np.uint16)).save(tmp_path / "wide.png")
    data = load(tmp_path, channels=channels)
    assert data.channels == data.train.channels == data.held_out.channels == expected
    for side in (data.train, data.held_out):
        assert all(side[i].shape[0] == expected for i in range(len(side)))


def test_a_broken_coloured_file_does_not_colour_the_rest(tmp_path: Path, save_image: Save) -> None:
    save_image("a.png", 5, 5)
    save_image("b.png", 5, 5)
    save_image("c.png", 50, 50, 3)
    path = tmp_path / "c.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"c\.png"):
        data = load(tmp_path)
    assert data.channels == data.train[0].shape[0] == 1
    assert len(data.skipped) == 1


@pytest.mark.parametrize(("train", "held_out"), [("train", "test"), ("Train", "val"), ("training", "valid")])
def test_named_split_is_used(train: str, held_out: str, tmp_path: Path, save_image: Save) -> None:
    for name in (f"{train}/x/1.png", f"{train}/2.png", f"{held_out}/1.png", "outside.png"):
        save_image(name)
    data = load(tmp_path)
    assert data.train.names == [f"{train}/2.png", f"{train}/x/1.png"]
    assert data.held_out.names == [f"{held_out}/1.png"]


def test_a_side_without_images_is_an_error(tmp_path: Path, save_image: Save) -> None:
    save_image("train/1.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"No images in '.*test'"):
        load(tmp_path)
    (tmp_path / "test" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"No image in '.*test' can be read.*1\.png"):
        load(tmp_path)


def test_train_alone_is_an_ordinary_folder(tmp_path: Path, save_image: Save) -> None:
    for i in range(3):
        save_image(f"train/{i}.png")
    assert len(load(tmp_path).train) == 2


def test_empty_folder_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No images in .*\.png.*CIFAR-10.*Check the path\.$") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "images.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"It holds images\.npz"):
        load(tmp_path)


def test_only_broken_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"No image in .* can be read\. Skipped: .*a\.png"):
        load(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path: Path, save_image: Save) -> None:
    save_image("data/a.png")
    save_image("other/b.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    data = load(tmp_path / "data")
    assert sorted([*data.train.names, *data.held_out.names]) == ["a.png", "link/b.png"]


def test_decompression_bombs_are_skipped(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        save_image(f"{i}.png", 5, 5)
    save_image("large.png", 10, 15)
    save_image("huge.png", 50, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(UserWarning, match=r"Skipped 2 .*huge\.png.*large\.png"):
        assert len(load(tmp_path).skipped) == 2


def test_describe_shortens() -> None:
    text = describe([Skipped(Path(f"{i}.png"), "broken") for i in range(12)])
    assert text.endswith("9.png (broken); and 2 more")
