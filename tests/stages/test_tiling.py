import pytest
import torch

from gmvq.data import ArrayItems, ListItems
from gmvq.modalities import Data, Series, Text
from gmvq.stages.tiling import tile_side, tiled

TEXT = Text(vocabulary=())


def lines(*lengths):
    texts = [torch.full((length,), 66) for length in lengths]
    items = ListItems(texts, 1, [str(place) for place in range(len(texts))])
    return Data("lines", items, items, TEXT)


@pytest.mark.parametrize(
    ("lengths", "size", "side"),
    [
        ((9, 10, 3), None, 12),  # the longest, in whole tokens
        ((9, 10, 3), 4, 12),  # of at most 4 windows
        ((9, 17, 3), 4, 4),  # of more
        ((12, 12), 8, 12),
        ((12, 12), None, None),  # as they are
        ((5,) * 99 + (900,), None, 8),  # one of a hundred is cut
        ((5,) * 94 + (900,) * 6, None, 900),
    ],
)
def test_sequences_are_whole_unless_they_are_long(lengths, size, side):
    assert tile_side(lines(*lengths), size, 4) == side


def test_shorter_texts_end_and_longer_ones_are_cut():
    found = tiled(lines(*(5,) * 98, 4, 17), None, 4)
    assert {*found.train.sizes, *found.held_out.sizes} == {(8,)}
    assert found.train[98].tolist() == [66] * 4 + [0] * 4
    assert [name.split("/")[-1] for name in found.train.names[-3:]] == ["0", "0", "8"]  # what is left is dropped
    assert len(found.train) == 101


def test_shorter_series_keep_their_last_values():
    rows = torch.tensor([[[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]]])
    found = tiled(Data("rows", ArrayItems(rows, 1), ArrayItems(rows, 1), Series(names=("a", "b"))), None, 2)
    assert found.train[0].tolist() == [[1.0, 2.0, 3.0, 3.0], [9.0, 8.0, 7.0, 7.0]]
