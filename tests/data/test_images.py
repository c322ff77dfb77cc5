from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gmvq.data.decoding import ImageError
from gmvq.data.images import ArrayImages, FileImages, Images, MixedImages

Save = Callable[..., NDArray[np.uint8]]


def make_array(tmp_path: Path, save_image: Save) -> Images:
    return ArrayImages(torch.arange(4 * 3 * 6 * 8).reshape(4, 3, 6, 8).to(torch.uint8), torch.arange(4))


def make_mixed(tmp_path: Path, save_image: Save) -> Images:
    tensors = [torch.full((3, 4 + i, 5), i, dtype=torch.uint8) for i in range(4)]
    return MixedImages(tensors, list("abcd"), torch.arange(4))


def make_files(tmp_path: Path, save_image: Save) -> Images:
    for i in range(4):
        save_image(f"{i}.png", 4 + i, 5, 3)
    return FileImages([tmp_path / f"{i}.png" for i in range(4)], 3)


@pytest.mark.parametrize("make", [make_array, make_mixed, make_files])
class TestEveryKind:
    """The laws of Images, for each implementation."""

    def test_items_sizes_and_channels_agree(
        self, make: Callable[..., Images], tmp_path: Path, save_image: Save
    ) -> None:
        images = make(tmp_path, save_image)
        assert len(images) == len(images.names) == len(images.sizes) == 4
        assert len(set(images.names)) == 4
        for index, size in enumerate(images.sizes):
            assert images[index].dtype == torch.uint8
            assert images[index].shape == (images.channels, *size)

    def test_subset_picks_in_order(self, make: Callable[..., Images], tmp_path: Path, save_image: Save) -> None:
        images = make(tmp_path, save_image)
        part = images.subset([3, 1])
        assert part.names == [images.names[3], images.names[1]]
        assert part.sizes == [images.sizes[3], images.sizes[1]]
        assert torch.equal(part[0], images[3])
        assert torch.equal(part[1], images[1])
        assert type(part) is type(images)
        assert (
            (part.labels is None)
            if images.labels is None
            else (part.labels is not None and part.labels.tolist() == [3, 1])
        )

    @pytest.mark.parametrize("indices", [range(1, 4), [2], range(4), [-2, -1], [3, 2], [0, 0]])
    def test_subset_is_indexing(
        self, make: Callable[..., Images], indices: list[int], tmp_path: Path, save_image: Save
    ) -> None:
        images = make(tmp_path, save_image)
        part = images.subset(indices)
        assert part.names == [images.names[i] for i in indices]
        assert all(torch.equal(part[place], images[i]) for place, i in enumerate(indices))
        if images.labels is not None:
            assert part.labels is not None
            assert part.labels.tolist() == [int(images.labels[i]) for i in indices]

    def test_index_past_the_end(self, make: Callable[..., Images], tmp_path: Path, save_image: Save) -> None:
        with pytest.raises(IndexError):
            make(tmp_path, save_image)[4]


def test_files_are_kept_up_to_the_budget(tmp_path: Path, save_image: Save) -> None:
    for name in ("a.png", "b.png"):
        save_image(name, 4, 4, 3)
    images = FileImages([tmp_path / "a.png", tmp_path / "b.png"], 3, memory_bytes=50)
    assert images[0] is images[0]
    assert images[1] is not images[1]
    assert torch.equal(images[1], images[1])
    assert images.subset([0])[0] is images[0]


def test_neighbours_in_an_array_are_shared_and_others_copied() -> None:
    images = ArrayImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8))
    start = images.images.data_ptr()
    assert images.subset(range(2, 5)).images.data_ptr() == start + 2 * 4
    assert images.subset([0, 2]).images.data_ptr() != start
    with pytest.raises(IndexError):
        images.subset(range(3, 6))


def test_damaged_file_raises_when_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png"):
        FileImages([tmp_path / "a.png"], 3)[0]


def test_array_images_say_what_is_wrong() -> None:
    good = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'images' must be uint8.*float32"):
        ArrayImages(good.float())
    with pytest.raises(ValueError, match=r"'images' must be uint8.*\(2, 4, 4\)"):
        ArrayImages(good[:, 0])
    with pytest.raises(ValueError, match=r"'labels' must be integers"):
        ArrayImages(good, torch.zeros(2))
    with pytest.raises(ValueError, match=r"'labels' must have one entry for each of the 2 images, got 3"):
        ArrayImages(good, torch.arange(3))
    with pytest.raises(ValueError, match=r"'names' must have one entry"):
        ArrayImages(good, names=["a"])


def test_mixed_images_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MixedImages([], [])
    with pytest.raises(ValueError, match=r"shape \(1, H, W\).*'b'"):
        MixedImages([torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(3, 2, 2, dtype=torch.uint8)], ["a", "b"])
