import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq.metrics import CodebookStatistics, counting
from gmvq.metrics.counting import CodeCounts

FIGURES = ("total", "used", "usage", "entropy", "perplexity", "mutual_information")


@pytest.fixture
def sparse(monkeypatch):
    monkeypatch.setattr(counting, "DENSE_CODES", 0)
    monkeypatch.setattr(counting, "WAITING", 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 6), max_size=9), min_size=1, max_size=9))
def test_both_ways_count_the_same(parts):
    dense = CodebookStatistics(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "DENSE_CODES", 0)
        patch.setattr(counting, "WAITING", 8)
        sparse = CodebookStatistics(7)
    for part in parts:
        codes = torch.tensor(part, dtype=torch.int64)
        mask = torch.arange(len(part)) % 4 != 3
        dense.update(codes, mask)
        sparse.update(codes, mask)
    assert not sparse.code_counts.is_dense
    assert torch.equal(sparse.counts.to_dense(), dense.counts)
    assert torch.equal(sparse.code_counts.seen, dense.code_counts.seen)
    assert torch.equal(sparse.code_counts.times, dense.code_counts.times)
    for name in FIGURES if dense.total else FIGURES[:3]:
        assert getattr(sparse, name) == getattr(dense, name), name


@pytest.mark.parametrize("bits", [25, 36, 62])
def test_figures_of_a_huge_codebook(bits):
    statistics = CodebookStatistics(2**bits)
    for _ in range(3):
        statistics.update(torch.tensor([[0, 2**bits - 1], [2**24, -1]]), torch.tensor([[True, True], [True, True]]))
    statistics.update(torch.tensor([5]), torch.tensor([False]))
    assert statistics.information._sums is None
    assert (statistics.total, statistics.used, statistics.usage) == (9, 3, 3 / 2**bits)
    assert statistics.entropy == pytest.approx(math.log(3), rel=1e-12)
    assert statistics.mutual_information == statistics.entropy
    assert statistics.perplexity == pytest.approx(3)
    assert statistics.counts.shape == (2**bits,)
    assert len(statistics.code_counts._counts) == 3
    assert statistics.code_counts.seen.tolist() == [0, 2**24, 2**bits - 1]
    assert statistics.merged().code_counts.times.tolist() == [3, 3, 3]
    assert statistics.merged().information.tokens == 0
    with pytest.raises(ValueError, match=r"at most 16777216 codes, got .*codebook_size - used"):
        _ = statistics.dead_codes
    with pytest.raises(ValueError, match="lie in"):
        statistics.update(torch.tensor([2**62]) if bits < 62 else torch.tensor([-2]))


def test_a_merged_copy_counts_for_itself(sparse):
    statistics = CodebookStatistics(9)
    statistics.update(torch.tensor([1, 1, 3]))
    merged = statistics.merged()
    merged.update(torch.tensor([8]))
    assert statistics.code_counts.seen.tolist() == [1, 3]
    assert merged.code_counts.seen.tolist() == [1, 3, 8]


def test_codes_that_wait_are_copies(sparse):
    codes, numbers = torch.tensor([1, 2]), CodeCounts(9)
    numbers.add(codes)
    codes.fill_(5)
    assert numbers.seen.tolist() == [1, 2]


def test_memory_is_that_of_different_codes(sparse):
    numbers = CodeCounts(2**40)
    for _ in range(50):
        numbers.add(torch.arange(10).repeat(10))
    assert numbers._waiting == []
    assert len(numbers._codes) == 10
    assert numbers.times.tolist() == [500] * 10


@pytest.mark.parametrize("limit", [0, 100])
def test_counts_come_back_where_they_were(monkeypatch, limit):
    monkeypatch.setattr(counting, "DENSE_CODES", limit)
    numbers, again = CodeCounts(9), CodeCounts(9)
    numbers.add(torch.tensor([3, 3, 8]))
    again.add(torch.tensor([1]))
    again.place(numbers.counts if limit else numbers.times, None if limit else numbers.seen)
    again.add(torch.tensor([0]))
    assert again.seen.tolist() == [0, 3, 8]
    assert again.times.tolist() == [1, 2, 1]
    again.clear()
    assert len(again.seen) == 0
