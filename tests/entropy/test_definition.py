import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmvq.entropy import DamagedCodesError, definition
from gmvq.entropy.definition import Reader, Tables, Writer

TABLES = Tables([[0, 1, 2, 3, 4]], [3], [(0, 0, -1, 0), (0, -1, 0, 0)], [[[], [(0, 24)], [(0, 1), (1, 2)]]], 14)


def test_the_tables_are_the_logistic_function():
    squash, after, stretch = definition.squash_table(), definition.next_table(), definition.stretch_table()
    for logit in range(-2047, 2048):
        expected = 65536 / (1 + math.exp(-logit / 256))
        assert abs(squash[2048 + logit] - min(max(expected, 16), 65520)) <= 0.501
    assert all(stretch[state] == 0 for state in (definition.FRESH, 5 << 5))
    for state in range(0, 65536, 97):
        chance, seen = 1 / (1 + math.exp(-(2 * (state >> 5) - 2047) / 256)), state & 31
        for bit in (0, 1):
            wanted = chance + (bit - chance) / (seen + 1.8)
            logit = min(max(math.log(wanted / (1 - wanted)), -7.996), 7.996)
            assert abs((2 * (after[bit][state] >> 5) - 2047) / 256 - logit) < 1 / 128
            assert after[bit][state] & 31 == min(seen + 1, 31)


decisions = st.lists(st.tuples(st.booleans(), st.integers(16, 65520)), max_size=300)


@given(decisions)
def test_decisions_come_back_in_as_many_bits_as_they_have(made: list[tuple[bool, int]]):
    writer = Writer()
    for bit, chance in made:
        writer.decide(int(bit), chance)
    data = writer.finish()
    reader = Reader(data)
    assert [reader.decide(0, chance) for _, chance in made] == [int(bit) for bit, _ in made]
    bits = sum(-math.log2((chance if bit else 65536 - chance) / 65536) for bit, chance in made)
    assert len(data) <= bits / 8 + 1.01 + len(made) * 1e-6


@given(st.lists(st.integers(1, 1 << 24).flatmap(lambda most: st.tuples(st.integers(0, most - 1), st.just(most)))))
def test_choices_come_back(made: list[tuple[int, int]]):
    writer = Writer()
    for value, number in made:
        writer.choose(value, number)
    data = writer.finish()
    reader = Reader(data)
    assert [reader.choose(0, number) for _, number in made] == [value for value, _ in made]
    assert len(data) <= sum(math.log2(number) for _, number in made) / 8 + 1.01


def test_carries_run_through_bytes_of_255():
    writer = Writer()
    writer.low, writer.range, writer.out = (1 << 48) - 1, 1 << 40, bytearray([1, 255, 255])
    assert writer.decide(0, 32768) == 0
    assert writer.finish()[:3] == bytes([2, 0, 0])


def test_bytes_that_end_too_early_are_refused():
    paths = [(index * index * 2654435761 >> 13) % 5 for index in range(600)]
    data = definition.encode(TABLES, definition.NOTHING, (1, 20, 30), paths)
    assert definition.decode(TABLES, definition.NOTHING, (1, 20, 30), data) == paths
    with pytest.raises(DamagedCodesError, match="end too early"):
        definition.decode(TABLES, definition.NOTHING, (1, 20, 30), data[:-20])


def test_decisions_with_one_outcome_take_nothing():
    one = TABLES._replace(paths=[[5]])
    assert definition.encode(one, definition.NOTHING, (1, 50, 50), [5] * 2500) == b""
    assert definition.decode(one, definition.NOTHING, (1, 50, 50), b"") == [5] * 2500
    assert list(definition.branches([0, 1, 2, 3, 4], 3))[1:] == [2, 2, 0, 2, 2, 0, 0]
