import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmvq.data.splitting import digest_of, held_out

FRACTIONS = st.floats(0.001, 0.999)


def digests(values: list[int]) -> list[bytes]:
    return [hashlib.sha256(str(value).encode()).digest() for value in values]


def kept(contents: list[int], fraction: float) -> set[int]:
    return {contents[index] for index in held_out(digests(contents), fraction)}


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    expected = hashlib.sha256(b"content").digest()
    assert digest_of(tmp_path / "a") == digest_of(str(tmp_path / "a")) == expected
    assert (
        digest_of(np.frombuffer(b"content", np.uint8)) == digest_of(torch.tensor(list(b"content")).byte()) == expected
    )
    with pytest.raises(FileNotFoundError):
        digest_of(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_digest_is_of_the_values_not_of_their_layout(dtype: torch.dtype) -> None:
    values = (torch.arange(12) % 3).to(dtype).reshape(3, 4)
    assert digest_of(values.T.contiguous().T) == digest_of(values) != digest_of(values.T)
    if dtype != torch.bfloat16:
        assert digest_of(np.asfortranarray(values.numpy())) == digest_of(values)
    assert digest_of(values[0, 0]) == digest_of(values[0, :1])


@given(contents=st.lists(st.integers(0, 500), max_size=200), fraction=FRACTIONS)
def test_something_is_held_out_and_something_left(contents: list[int], fraction: float) -> None:
    chosen = held_out(digests(contents), fraction)
    assert chosen == sorted(set(chosen))
    if len(set(contents)) < 2:
        assert chosen == []
    else:
        assert 1 <= len(kept(contents, fraction)) < len(set(contents))


@given(contents=st.lists(st.integers(0, 50), min_size=2, max_size=60), fraction=FRACTIONS, chance=st.randoms())
def test_copies_share_a_side_and_order_does_not_matter(contents: list[int], fraction: float, chance: object) -> None:
    chosen = kept(contents, fraction)
    assert len(held_out(digests(contents), fraction)) == sum(content in chosen for content in contents)
    chance.shuffle(contents)  # pyright: ignore[reportAttributeAccessIssue]
    assert kept(contents, fraction) == chosen


@given(contents=st.sets(st.integers(0, 10_000), min_size=60, max_size=120), added=st.sets(st.integers(10_001, 20_000)))
def test_items_that_are_added_move_no_other(contents: set[int], added: set[int]) -> None:
    before, after = sorted(contents), sorted(contents | added)
    assert kept(after, 0.5) & contents == kept(before, 0.5)


@given(contents=st.sets(st.integers(0, 10_000), min_size=5, max_size=20), added=st.sets(st.integers(10_001, 20_000)))
def test_no_trained_item_becomes_held_out_where_none_was_below(contents: set[int], added: set[int]) -> None:
    assert kept(sorted(contents | added), 0.01) & contents <= kept(sorted(contents), 0.01)


def test_the_share_is_met_on_average() -> None:
    share = len(held_out(digests(list(range(20_000))), 0.1)) / 20_000
    assert abs(share - 0.1) < 0.0085  # 4 standard deviations


def test_the_least_is_held_out_and_the_greatest_kept() -> None:
    low, high = b"\x10" * 32, b"\xf0" * 32
    assert held_out([high, low, high], 0.01) == [1]
    assert held_out([low, high, low], 0.99) == [0, 2]


@pytest.mark.parametrize("fraction", [1, -0.1, float("nan")])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"'fraction' must lie in \[0, 1\)"):
        held_out(digests([1, 2]), fraction)


def test_nothing_is_held_out_where_nothing_is_wanted() -> None:
    assert held_out(digests([1, 2, 3]), 0) == []
