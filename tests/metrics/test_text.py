import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq.metrics.text import TextDistortion, character_error_rate, edit_distance


def decode(symbols):
    return "".join(chr(96 + symbol) for symbol in symbols.tolist() if symbol)


def table_distance(made, real):
    """The whole table of distances, row by row."""
    row = list(range(len(real) + 1))
    for i, one in enumerate(made, 1):
        below = [i]
        for j, other in enumerate(real, 1):
            below.append(min(row[j] + 1, below[-1] + 1, row[j - 1] + (one != other)))
        row = below
    return row[-1]


@settings(deadline=None)
@given(st.text("abc", max_size=80), st.text("abcd", max_size=80))
def test_distances_are_those_of_the_table(made, real):
    assert edit_distance(made, real) == table_distance(made, real)
    assert edit_distance(real, made) == edit_distance(made, real)


def test_known_distances():
    assert edit_distance("", "") == 0
    assert edit_distance("abc", "") == edit_distance("", "abc") == 3
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("😀é", "e\u0301") == 2
    assert character_error_rate("abcd", "") == 4
    assert character_error_rate("", "ab") == 1


def test_metrics_are_means_over_texts():
    distortion = TextDistortion(decode)
    assert (distortion.metrics(), distortion.items) == ({}, 0)
    distortion.update(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4]]))
    distortion.update(torch.tensor([[1, 2]]), torch.tensor([[2, 2]]))
    expected = {"symbol_accuracy": 0.75, "exact_share": 0.5, "character_error_rate": 0.25}
    assert (distortion.metrics(), distortion.items) == (expected, 2)
    assert distortion.merged().metrics() == expected
    assert TextDistortion().of_error(0.25) == {TextDistortion.headline: 0.75}


def test_the_rate_sees_shifts_that_the_accuracy_does_not():
    distortion = TextDistortion(decode)
    distortion.update(torch.tensor([[2, 3, 4, 5, 0]]), torch.tensor([[1, 2, 3, 4, 5]]))
    assert distortion.metrics() == {"symbol_accuracy": 0.0, "exact_share": 0.0, "character_error_rate": 0.2}


def test_identity_is_perfect():
    distortion = TextDistortion(decode)
    items = torch.randint(0, 9, (5, 40))
    distortion.update(items, items)
    assert distortion.metrics() == {"symbol_accuracy": 1.0, "exact_share": 1.0, "character_error_rate": 0.0}


def test_lengths_equal_shorter_texts():
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(1, 4, (6, 30), generator=generator)
    made = torch.where(torch.rand(6, 30, generator=generator) < 0.3, 1, real)
    lengths = torch.tensor([30, 1, 7, 12, 29, 30])
    together, alone = TextDistortion(decode), TextDistortion(decode)
    together.update(made, real, lengths)
    for one, other, length in zip(made, real, lengths.tolist(), strict=True):
        alone.update(one[None, :length], other[None, :length])
    assert together.metrics() == pytest.approx(alone.metrics())


def test_every_metric_is_explained():
    distortion = TextDistortion(decode)
    distortion.update(torch.tensor([[1]]), torch.tensor([[2]]))
    assert [measure.key for measure in distortion.measures] == list(distortion.metrics())
    assert distortion.measures[0].shown(0.98765) == "98.77"
    assert "Levenshtein" in distortion.protocol
    assert "Levenshtein" not in TextDistortion().protocol


@pytest.mark.parametrize(
    ("made", "real", "lengths", "rule"),
    [
        (torch.zeros(1, 3), torch.zeros(1, 3), None, "must be integers of one shape"),
        (torch.ones(1, 3).long(), torch.ones(1, 4).long(), None, "must be integers of one shape"),
        (torch.ones(3).long(), torch.ones(3).long(), None, "must be integers of one shape"),
        (torch.ones(1, 0).long(), torch.ones(1, 0).long(), None, "must be integers of one shape"),
        (torch.ones(1, 3).long(), torch.ones(1, 3).long(), torch.tensor([4]), "'lengths' must be one for each"),
        (torch.ones(1, 3).long(), torch.ones(1, 3).long(), torch.tensor([0]), "'lengths' must be one for each"),
        (torch.ones(1, 3).long(), torch.ones(1, 3).long(), torch.tensor([1, 1]), "'lengths' must be one for each"),
    ],
)
def test_what_is_refused(made, real, lengths, rule):
    with pytest.raises(ValueError, match=rule):
        TextDistortion().update(made, real, lengths)
