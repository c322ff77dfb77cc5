import math

from gmvq.experiments.speed import clock
from gmvq.experiments.speed.clock import best_blocks, interleaved, ratio
from gmvq.experiments.speed.shapes import Shape


def test_rounds_take_turns_to_begin():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert min(min(values) for values in times.values()) >= 0


def test_ratios_are_medians_of_rounds():
    # the second round ran on a busy machine, which hit both
    assert ratio([1.0, 9.0, 1.2], [2.0, 18.0, 2.0]) == 0.5


def test_blocks_fit_the_shape_and_memory(monkeypatch):
    shape = Shape(300, 4, 500)
    blocks = best_blocks(shape)
    assert 1 <= len(blocks) <= clock.FINALISTS
    assert all(rows <= 300 and columns <= 500 for rows, columns in blocks)
    monkeypatch.setattr(clock, "LARGEST_BLOCK", 256 * 500)
    assert all(math.prod(block) <= 256 * 500 for block in best_blocks(shape))
