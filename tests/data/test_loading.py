import itertools
import threading
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gmvq.data import ArrayItems, Items, ListItems, loading
from gmvq.data.loading import batches_by_size, held_out_batches, stacked
from gmvq.modalities import Image
from gmvq.modalities.image.modality import _window

THREAD = "gmvq-loader"


def Loader(items: Items, batch_size: int, **options: Any) -> loading.Loader:  # noqa: N802
    """A loader that cuts images."""
    return loading.Loader(items, batch_size, window=Image(channels=1).window, **options)


def numbered(count: int, side: int = 4) -> ArrayItems:
    """Image i is filled with i and has label i."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, side, side)
    return ArrayItems(pixels, 2, torch.arange(count))


def drawn(loader: loading.Loader, step: int) -> list[int]:
    labels = loader.batch(step).labels
    assert labels is not None
    return labels.tolist()


def threads() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


def test_batches_are_as_stored_with_their_labels() -> None:
    batch = Loader(numbered(200), 8).batch(3)
    assert batch.items.dtype == torch.uint8
    assert batch.items.shape == (8, 1, 4, 4)
    assert batch.labels is not None
    assert batch.lengths is None
    assert torch.equal(batch.items[:, 0, 0, 0], batch.labels)


def test_sequences_of_different_lengths_come_with_their_lengths() -> None:
    items = ListItems([torch.ones(2, length) for length in (3, 5, 4)], 1, list("abc"))
    batch = loading.Loader(items, 3).batch(0)
    assert batch.items.shape == (3, 2, 5)
    assert batch.lengths is not None
    assert sorted(batch.lengths.tolist()) == [3, 4, 5]
    assert torch.equal(batch.items.sum((1, 2)), 2.0 * batch.lengths)
    assert loading.Loader(items.subset([0, 0]), 2).batch(0).lengths is None
    symbols, lengths = stacked([torch.arange(2), torch.arange(3)], 1)
    assert symbols.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert lengths is not None


def test_vectors_are_stacked() -> None:
    batch = loading.Loader(ArrayItems(torch.arange(6.0).reshape(3, 2), 0), 2).batch(0)
    assert batch.items.shape == (2, 2)


@pytest.mark.parametrize("crop", [None, 3, 6])
def test_a_batch_depends_on_seed_and_step_alone(crop: int | None) -> None:
    pixels = torch.randint(0, 256, (10, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = Loader(ArrayItems(pixels, 2), 4, size=crop, mirror=True, seed=5)
    batches = [loader.batch(step).items for step in range(12)]
    again = Loader(ArrayItems(pixels, 2), 4, size=crop, mirror=True, seed=5)
    for step in (7, 0, 11, 3):
        assert torch.equal(again.batch(step).items, batches[step])
    other = Loader(ArrayItems(pixels, 2), 4, size=crop, mirror=True, seed=6)
    assert not torch.equal(other.batch(0).items, batches[0])


@pytest.mark.parametrize(("count", "batch_size", "crops"), [(10, 4, 1), (10, 4, 3), (3, 8, 1), (1, 5, 2), (7, 7, 1)])
def test_each_image_is_drawn_equally_often(count: int, batch_size: int, crops: int) -> None:
    loader = Loader(numbered(count), batch_size, windows_per_item=crops)
    items = count * crops
    sequence = [i for step in range(items) for i in drawn(loader, step)]  # `batch_size` epochs
    for start in range(0, len(sequence), items):
        assert Counter(sequence[start : start + items]) == dict.fromkeys(range(count), crops)
    assert loader.steps_per_epoch == max(1, items // batch_size)


def test_epochs_differ_in_order() -> None:
    loader = Loader(numbered(50), 50)
    assert drawn(loader, 0) != drawn(loader, 1)
    assert sorted(drawn(loader, 0)) == list(range(50))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_one_process(world_size: int) -> None:
    pixels = torch.randint(0, 256, (11, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ArrayItems(pixels, 2, torch.arange(11))
    whole = Loader(images, 2 * world_size, size=4, mirror=True)
    ranks = [Loader(images, 2, size=4, mirror=True, rank=r, world_size=world_size) for r in range(world_size)]
    assert {loader.steps_per_epoch for loader in ranks} == {whole.steps_per_epoch}
    for step in range(7):
        parts = [loader.batch(step) for loader in ranks]
        assert torch.equal(torch.cat([part.items for part in parts]), whole.batch(step).items)
        assert [i for loader in ranks for i in drawn(loader, step)] == drawn(whole, step)


@pytest.mark.parametrize(("size", "says"), [(None, True), (6, True), (3, False)])
def test_all_ranks_say_lengths_where_those_of_one_may_differ(size: int | None, says: bool) -> None:
    """A rank that averages over places that count waits for the others to do the same."""
    items = ListItems([torch.zeros(1, length) for length in (5, 5, 9, 9)], 1, list("abcd"))
    window = (lambda item, size, chance: item[:, :size]) if size else None
    loaders = [loading.Loader(items, 1, window=window, size=size, rank=rank, world_size=2) for rank in (0, 1)]
    batches = [loader.batch(step) for loader in loaders for step in range(6)]
    assert {batch.lengths is not None for batch in batches} == {says}
    assert all(batch.lengths is None or batch.lengths.tolist() == [batch.items.shape[-1]] for batch in batches)
    assert loading.Loader(items, 1, window=window, size=size).batch(0).lengths is None


def test_crops_are_windows_of_the_image_and_reach_every_place() -> None:
    image = torch.arange(5 * 6, dtype=torch.uint8).reshape(1, 5, 6)
    loader = Loader(ListItems([image], 2, ["a"]), 200, size=3)
    windows = {tuple(image[0, r : r + 3, c : c + 3].flatten().tolist()) for r in range(3) for c in range(4)}
    crops = loader.batch(0).items
    assert {tuple(crop.flatten().tolist()) for crop in crops} == windows


def test_flip_mirrors_about_half() -> None:
    image = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    flipped = Loader(ArrayItems(image[None], 2), 400, mirror=True).batch(0).items
    mirrored = flipped[:, 0, 0, 0] > 0
    assert torch.equal(flipped[mirrored][0], flipped[~mirrored][0].flip(-1))
    assert 0.4 < mirrored.float().mean() < 0.6  # 4 standard deviations
    assert (Loader(ArrayItems(image[None], 2), 50).batch(0).items[:, 0, 0, 0] == 0).all()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("crop", [1, 4, 8, 19])
def test_short_axes_are_reflected_as_numpy_pads(length: int, crop: int) -> None:
    values = np.arange(length)
    window = values[_window(length, crop, 0.999999999999)]
    if length >= crop:
        assert window.tolist() == list(range(length - crop, length))
    else:
        before = (crop - length) // 2
        mode = "edge" if length == 1 else "reflect"
        assert window.tolist() == np.pad(values, (before, crop - length - before), mode=mode).tolist()


def test_images_smaller_than_the_crop_are_padded() -> None:
    images = ListItems(
        [torch.ones(3, h, w, dtype=torch.uint8) for h, w in ((2, 9), (9, 2), (1, 1), (9, 9))], 2, list("abcd")
    )
    batch = Loader(images, 8, size=4).batch(0).items
    assert batch.shape == (8, 3, 4, 4)
    assert (batch == 1).all()


def test_differing_sizes_without_crop_name_the_files() -> None:
    images = ListItems(
        [torch.zeros(1, 2, 3, dtype=torch.uint8), torch.zeros(1, 2, 4, dtype=torch.uint8)], 2, ["a.png", "b.png"]
    )
    with pytest.raises(ValueError, match=r"'a\.png' has 3x2 and 'b\.png' 4x2 samples. Set a size"):
        Loader(images, 2)
    same = ListItems([images[0], images[0]], 2, ["a", "b"])
    assert Loader(same, 2).batch(0).items.shape == (2, 1, 2, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"size": 0},
        {"size": 2.5},
        {"seed": -1},
        {"windows_per_item": 0},
        {"rank": 1},
        {"rank": -1},
        {"world_size": 0},
        {"batch_size": True},
    ],
)
def test_arguments_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(options))}' must be"):
        Loader(numbered(3), **{"batch_size": 2, **options})  # pyright: ignore[reportArgumentType]


def test_no_images_and_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Loader(numbered(0), 2)
    with pytest.raises(ValueError, match="'step'"):
        Loader(numbered(2), 2).batch(-1)
    with pytest.raises(ValueError, match="'batch_size'"):
        batches_by_size(numbered(2), 0)


def test_iterate_gives_the_same_batches_and_ends() -> None:
    loader = Loader(numbered(20), 4, mirror=True)
    assert [b.items.sum().item() for b in loader.iterate(2, 9)] == [
        loader.batch(s).items.sum().item() for s in range(2, 9)
    ]
    assert list(loader(5, 5)) == []
    assert threads() == 0


def test_iterate_prepares_ahead_and_stops_when_closed() -> None:
    batches = Loader(numbered(20), 4).iterate()
    assert len(list(itertools.islice(batches, 3))) == 3
    assert threads() == 1
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threads() == 0


def test_the_thread_ends_when_the_consumer_fails() -> None:
    def fail() -> None:
        for _ in Loader(numbered(20), 4).iterate():
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert threads() == 0


def test_many_iterators_closed_early_leave_no_thread() -> None:
    loader = Loader(numbered(20), 4)
    for step in range(30):
        batches = loader.iterate(step)
        next(batches)
        del batches
    assert threads() == 0


class Failing(ArrayItems):
    """Has one image that cannot be read."""

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise OSError("disk gone")
        return super().__getitem__(index)


def test_errors_of_the_thread_reach_the_consumer() -> None:
    loader = Loader(cast("Items", Failing(numbered(10).array, 2)), 1, size=2)
    with pytest.raises(OSError, match="disk gone"):
        list(loader.iterate(0, 20))
    assert threads() == 0


def test_held_out_batches_hold_each_image_once_by_size() -> None:
    shapes = [(4, 4), (2, 3), (4, 4), (300, 300), (4, 4), (300, 300), (2, 3)]
    images = ListItems(
        [torch.full((1, *shape), i, dtype=torch.uint8) for i, shape in enumerate(shapes)],
        2,
        [str(i) for i in range(7)],
        torch.arange(7),
    )
    assert batches_by_size(images, 2) == [[0, 2], [4], [1, 6], [3], [5]]
    seen = []
    for batch in held_out_batches(images, 2):
        assert batch.labels is not None
        assert torch.equal(batch.items[:, 0, 0, 0], batch.labels)
        assert batch.items.dtype == torch.uint8
        seen += batch.labels.tolist()
    assert sorted(seen) == list(range(7))
    assert next(held_out_batches(ArrayItems(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8), 2), 8)).labels is None
