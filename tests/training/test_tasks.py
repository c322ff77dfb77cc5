"""What tasks draw from data."""

import torch

from gmvq.data import ListItems
from gmvq.modalities import Data, Text
from gmvq.training.tasks.tokenizers import Drawing, drawn


def batch(ranks=1, size=None, most=8, step=1):
    texts = [torch.full((length,), 66) for length in (3, 30, 30, 3, 3, 30, 3, 30)]
    items = ListItems(texts, 1, [str(place) for place in range(8)])
    data = Data("texts", items, items, Text(vocabulary=()))
    drawing = Drawing(size, False, 1)
    found = [drawn(data, drawing, 8 // ranks, 0, rank, ranks, most).batch(step) for rank in range(ranks)]
    return [
        item[: len(item) if one.lengths is None else one.lengths[place]].tolist()
        for one in found
        for place, item in enumerate(one.items)
    ]


def test_what_follows_the_end_is_learned_too():
    short = [item for step in range(6) for item in batch(step=step) if item[:4] != [66] * 4]
    assert len(short) == 24
    assert all(item[:3] == [66] * 3 and not any(item[3:]) for item in short)
    extra = [len(item) - 3 for item in short]
    assert min(extra) == 0 < max(extra) <= 8


def test_long_items_windows_and_ends_stay_as_they_are():
    assert sorted({len(item) for item in batch() if item[3:4] == [66]}) == [30]
    assert max(map(len, batch(size=5))) == 5  # a window ends where it ends
    assert {len(item) for item in batch(most=0)} == {3, 30}


def test_the_ends_do_not_depend_on_the_ranks():
    for step in range(6):
        assert batch(2, step=step) == batch(1, step=step)
