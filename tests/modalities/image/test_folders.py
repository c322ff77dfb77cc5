import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loading_images import load
from numpy.typing import NDArray
from PIL import Image

from gmvq.data import Skipped
from gmvq.modalities import fingerprint
from gmvq.modalities.base import listed

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
    assert data.signal.channels == data.train[0].shape[0] == data.held_out[0].shape[0] == expected
    for side in (data.train, data.held_out):
        assert all(side[i].shape[0] == expected for i in range(len(side)))


def test_a_broken_colored_file_does_not_color_the_rest(tmp_path: Path, save_image: Save) -> None:
    save_image("a.png", 5, 5)
    save_image("b.png", 5, 5)
    save_image("c.png", 50, 50, 3)
    path = tmp_path / "c.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"c\.png"):
        data = load(tmp_path)
    assert data.signal.channels == data.train[0].shape[0] == 1
    assert len(data.skipped) == 1


@pytest.mark.parametrize(("train", "held_out"), [("train", "test"), ("Train", "val"), ("training", "valid")])
def test_named_split_is_used(train: str, held_out: str, tmp_path: Path, save_image: Save) -> None:
    for name in (f"{train}/x/1.png", f"{train}/2.png", f"{held_out}/1.png", "outside.png"):
        save_image(name)
    data = load(tmp_path)
    assert data.train.names == [f"{train}/2.png", f"{train}/x/1.png"]
    assert data.held_out.names == [f"{held_out}/1.png"]


def test_folders_and_tables_become_labels(tmp_path: Path, save_image: Save) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png"):
        save_image(name)
    data = load(tmp_path, held_out_fraction=0.4)
    assert data.labelled
    assert data.classes == ("cat", "dog")
    for side in (data.train, data.held_out):
        assert side.labels is not None
        assert [data.classes[label] for label in side.labels.tolist()] == [name.split("/")[0] for name in side.names]
    (tmp_path / "labels.csv").write_text(
        "file,label\n"
        + "".join(f"{name},{i % 3}\n" for i, name in enumerate(sorted(data.train.names + data.held_out.names)))
    )
    data = load(tmp_path, held_out_fraction=0.4)
    labels = {}
    for side in (data.train, data.held_out):
        assert side.labels is not None
        labels |= dict(zip(side.names, side.labels.tolist(), strict=True))
    assert labels == {"cat/1.png": 0, "cat/2.png": 1, "dog/1.png": 2, "dog/2.png": 0, "dog/3.png": 1}
    assert data.classes == ("0", "1", "2")


def test_a_named_split_keeps_the_classes_of_both_sides(tmp_path: Path, save_image: Save) -> None:
    for name in ("train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png"):
        save_image(name)
    data = load(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [1, 2]
    assert data.held_out.labels is not None
    assert data.held_out.labels.tolist() == [0, 2]


def test_a_broken_file_needs_no_label(tmp_path: Path, save_image: Save) -> None:
    for name in ("a.png", "b.png"):
        save_image(name)
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("name,label\na.png,x\nb.png,y\n")
    with pytest.warns(UserWarning, match=r"Skipped 1 .*c\.png"):
        assert load(tmp_path).classes == ("x", "y")


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


def test_what_may_not_be_read_is_skipped(tmp_path: Path, save_image: Save) -> None:
    for name in ("a.png", "b.png", "c.png", "closed/d.png"):
        save_image(name)
    (tmp_path / "link.png").symlink_to(tmp_path / "closed" / "d.png")
    (tmp_path / "c.png").chmod(0)
    if os.access(tmp_path / "c.png", os.R_OK):
        pytest.skip("nothing is closed to the superuser")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.warns(UserWarning, match=r"Skipped 3 file.*permission denied"):
            data = load(tmp_path)
        assert {skipped.path.name for skipped in data.skipped} == {"c.png", "closed", "link.png"}
        assert len(data.train) + len(data.held_out) == 2
        with pytest.raises(PermissionError, match="closed"):
            load(tmp_path / "closed")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_decompression_bombs_are_skipped(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        save_image(f"{i}.png", 5, 5)
    save_image("larger.png", 10, 20)  # Pillow warns of it, and refuses what is larger still
    save_image("large.png", 3, 67)
    save_image("huge.png", 50, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(UserWarning, match=r"Skipped 2 .*huge\.png.*large\.png"):
        data = load(tmp_path)
    assert len(data.skipped) == 2
    assert "larger.png" in [*data.train.names, *data.held_out.names]


def test_names_with_line_breaks_and_without_unicode(tmp_path: Path, save_image: Save) -> None:
    names = ["two\nlines.png", os.fsdecode(b"\xff.png"), "ü.png"]
    for name in names:
        save_image(name)
    (tmp_path / "bad\nname.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"bad\\nname\.png \(it is empty\)"):
        data = load(tmp_path)
    assert {*data.train.names, *data.held_out.names} == set(names)
    assert len(fingerprint(data)) == 64


def test_describe_shortens() -> None:
    text = listed([Skipped(Path(f"{i}.png"), "broken") for i in range(12)])
    assert text.endswith("9.png (broken); and 2 more")
