from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gmvq.data import ArrayItems, FileItems, Items, ListItems, central, evenly_spaced


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path))


def files(tmp_path: Path, axes: int) -> list[Path]:
    paths = [tmp_path / f"{i}.npy" for i in range(4)]
    for i, path in enumerate(paths):
        np.save(path, np.random.default_rng(i).integers(0, 256, (3, *(4 + i, 5)[:axes]), np.uint8))
    return paths


def make_array(tmp_path: Path, axes: int) -> Items:
    shape = (4, 3, *(6, 8)[:axes])
    return ArrayItems(torch.arange(int(np.prod(shape))).reshape(shape).to(torch.uint8), axes, torch.arange(4))


def make_list(tmp_path: Path, axes: int) -> Items:
    tensors = [torch.full((3, *(4 + i, 5)[:axes]), i, dtype=torch.uint8) for i in range(4)]
    return ListItems(tensors, axes, list("abcd"), torch.arange(4))


def make_files(tmp_path: Path, axes: int) -> Items:
    return FileItems(files(tmp_path, axes), axes, read)


def make_measured(tmp_path: Path, axes: int) -> Items:
    """Sizes come from what looks like a header."""

    def measure(path: Path) -> tuple[int, ...]:
        return np.load(path, mmap_mode="r").shape[1:]

    return FileItems(files(tmp_path, axes), axes, read, measure=measure, labels=torch.arange(4))


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("make", [make_array, make_list, make_files, make_measured])
class TestEveryKind:
    """The laws of Items, for each implementation."""

    def test_items_and_sizes_agree(self, make: Callable[..., Items], axes: int, tmp_path: Path) -> None:
        items = make(tmp_path, axes)
        assert len(items) == len(items.names) == len(items.sizes) == 4
        assert len(set(items.names)) == 4
        for index, size in enumerate(items.sizes):
            assert items[index].dtype == torch.uint8
            assert items[index].shape == (3, *size)
            assert len(size) == axes

    @pytest.mark.parametrize("indices", [range(1, 4), [2], range(4), [-2, -1], [3, 2], [3, 1], [0, 0]])
    def test_subset_is_indexing(
        self, make: Callable[..., Items], axes: int, indices: list[int], tmp_path: Path
    ) -> None:
        items = make(tmp_path, axes)
        part = items.subset(indices)
        assert type(part) is type(items)
        assert part.names == [items.names[i] for i in indices]
        assert part.sizes == [items.sizes[i] for i in indices]
        assert all(torch.equal(part[place], items[i]) for place, i in enumerate(indices))
        if items.labels is None:
            assert part.labels is None
        else:
            assert part.labels is not None
            assert part.labels.tolist() == [int(items.labels[i]) for i in indices]

    def test_index_past_the_end(self, make: Callable[..., Items], axes: int, tmp_path: Path) -> None:
        with pytest.raises(IndexError):
            make(tmp_path, axes)[4]


def test_files_are_kept_up_to_the_budget(tmp_path: Path) -> None:
    paths = files(tmp_path, 2)[:1] * 2 + files(tmp_path, 2)[1:2]
    items = FileItems(paths, 2, read, memory_bytes=3 * 4 * 5)
    assert items[0] is items[1]
    assert items[2] is not items[2]
    assert torch.equal(items[2], items[2])
    assert items.subset([0])[0] is items[0]
    first = items[0]
    for _ in range(2):
        items.subset([0]).let_go(0)
    assert items[0] is not first
    assert items[0] is items[1]  # kept again: its part of the budget is free


def test_sizes_of_measured_files_read_none(tmp_path: Path) -> None:
    items = make_measured(tmp_path, 2)
    items.read = None  # pyright: ignore[reportAttributeAccessIssue]
    assert items.sizes == [(4, 5), (5, 5), (6, 5), (7, 5)]


def test_neighbors_in_an_array_are_shared_and_others_copied() -> None:
    items = ArrayItems(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), 2)
    start = items.array.data_ptr()
    assert items.subset(range(2, 5)).array.data_ptr() == start + 2 * 4
    assert items.subset([0, 2]).array.data_ptr() != start
    with pytest.raises(IndexError):
        items.subset(range(3, 6))


def test_symbols_have_no_channels() -> None:
    items = ArrayItems(torch.arange(6).reshape(2, 3), 1)
    assert items.sizes == [(3,), (3,)]
    assert ListItems([torch.arange(2), torch.arange(3)], 1, ["a", "b"]).sizes == [(2,), (3,)]


def test_array_items_say_what_is_wrong() -> None:
    good = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'array' must have 2 axes.*\(4, 4\)"):
        ArrayItems(good[0, 0], 2)
    with pytest.raises(ValueError, match=r"'array' must have 2 axes.*\(2, 1, 0, 4\)"):
        ArrayItems(good[:, :, :0], 2)
    with pytest.raises(ValueError, match=r"'labels' must be integers"):
        ArrayItems(good, 2, torch.zeros(2))
    with pytest.raises(ValueError, match=r"'labels' must have one entry for each of the 2 items, got 3"):
        ArrayItems(good, 2, torch.arange(3))
    with pytest.raises(ValueError, match=r"'names' must have one entry"):
        ArrayItems(good, 2, names=["a"])


def test_list_items_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ListItems([], 2, [])
    one = torch.zeros(1, 2, 2, dtype=torch.uint8)
    for other in (torch.zeros(3, 2, 2, dtype=torch.uint8), one.float(), one[:, :0], one[None]):
        with pytest.raises(ValueError, match=r"must all be like the first.*for 'b'"):
            ListItems([one, other], 2, ["a", "b"])


def test_central_parts_and_even_steps() -> None:
    item = torch.arange(5 * 6).reshape(1, 5, 6)
    assert torch.equal(central(item, 2, 3), item[:, 1:4, 1:4])
    assert torch.equal(central(item, 2, 9), item)
    assert torch.equal(central(item, 1, 2), item[:, :, 2:4])
    assert evenly_spaced(7, 3) == [0, 2, 4]
