import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from gmvq.metrics.codes import CodebookStatistics, CompositeStatistics
from gmvq.metrics.precision import in_float64


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def counted(codes, size):
    statistics = CodebookStatistics(size)
    statistics.update(torch.as_tensor(codes))
    return statistics


def test_even_use_reaches_the_bounds():
    for size in (1, 3, 512):
        statistics = counted(torch.arange(size).repeat(7), size)
        assert (statistics.used, statistics.usage, statistics.total) == (size, 1.0, 7 * size)
        assert statistics.entropy <= math.log(size)
        assert statistics.perplexity == pytest.approx(size, rel=1e-12)


def test_one_code_has_perplexity_one():
    statistics = counted([2] * 9, 4)
    assert (statistics.used, statistics.usage, statistics.entropy, statistics.perplexity) == (1, 0.25, 0.0, 1.0)
    assert statistics.counts.tolist() == [0, 0, 9, 0]


def test_entropy_of_a_known_distribution():
    statistics = counted([0, 0, 1, 2], 5)
    assert statistics.entropy == pytest.approx(1.5 * math.log(2), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=60), st.integers(1, 10))
def test_streaming_equals_a_single_update(codes, parts):
    codes = torch.tensor(codes)
    streamed = CodebookStatistics(7)
    for part in codes.chunk(parts):
        streamed.update(part)
    whole = CodebookStatistics(7)
    whole.update(codes)
    assert torch.equal(streamed.counts, whole.counts)
    assert whole.counts.tolist() == [int((codes == code).sum()) for code in range(7)]


def test_mask_equals_a_shorter_input():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(6, (3, 4, 5), generator=generator)
    mask = torch.rand(3, 4, 5, generator=generator) > 0.5
    masked, marked = CodebookStatistics(6), CodebookStatistics(6)
    masked.update(codes, mask)
    marked.update(codes.masked_fill(~mask, -1))
    shorter = counted(codes[mask], 6)
    assert torch.equal(masked.counts, shorter.counts)
    assert torch.equal(marked.counts, shorter.counts)


def test_narrow_integers_count_without_wrapping():
    codes = torch.arange(256, dtype=torch.uint8)
    assert counted(codes, 256).usage == 1.0
    assert counted(codes.to(torch.int32), 300).used == 256


def test_nothing_counted():
    statistics = counted(torch.zeros(0, dtype=torch.int64), 3)
    assert (statistics.total, statistics.used, statistics.usage) == (0, 0, 0.0)
    with pytest.raises(ValueError, match="at least 1 counted code"):
        _ = statistics.perplexity


@pytest.mark.parametrize(
    ("codes", "mask", "message"),
    [
        (torch.zeros(3), None, "integers"),
        (torch.zeros(3, dtype=torch.bool), None, "integers"),
        (torch.tensor([0, 4]), None, "lie in"),
        (torch.tensor([0, -2]), None, "lie in"),
        (torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.bool), "mask"),
        (torch.zeros(3, dtype=torch.int64), torch.ones(3), "mask"),
    ],
)
def test_bad_input_is_refused_and_not_counted(codes, mask, message):
    statistics = CodebookStatistics(4)
    with pytest.raises(ValueError, match=message):
        statistics.update(codes, mask)
    assert statistics.total == 0


def test_empty_codebook_is_refused():
    with pytest.raises(ValueError, match="codebook_size"):
        CodebookStatistics(0)


def test_merged_is_a_copy_without_a_process_group():
    statistics = counted([0, 1, 1], 2)
    merged = statistics.merged()
    merged.update(torch.tensor([0]))
    assert (statistics.total, merged.total) == (3, 4)


def test_merged_twice_counts_once(process_group):
    statistics = counted([0, 1, 1], 2)
    assert statistics.merged().counts.tolist() == statistics.merged().counts.tolist() == [1, 2]
    assert statistics.counts.tolist() == [1, 2]


def test_merged_counts_are_a_copy():
    statistics = CodebookStatistics(2)
    statistics.update(torch.tensor([0, 1, 1]))
    statistics.merged().counts.add_(1)
    assert statistics.counts.tolist() == [1, 2]


def test_in_float64_does_not_copy_float64():
    values = torch.zeros(2, dtype=torch.float64)
    assert in_float64(values) is values
    assert in_float64(values.half()).dtype == torch.float64


TWO_RANKS = """
import sys, torch
from torch import distributed as dist
from gmvq.metrics import CodebookStatistics, Distortion, MixtureInformation
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
codes, images = torch.randint(5, (8, 3), generator=generator), torch.rand(8, 1, 12, 12, generator=generator)
targets, logits = torch.rand(8, 1, 12, 12, generator=generator), torch.randn(8, 3, 5, generator=generator)
def measured(rows):
    statistics, distortion, information = CodebookStatistics(5), Distortion(), MixtureInformation(5)
    statistics.update(codes[rows])
    distortion.update(images[rows], targets[rows])
    information.update(logits[rows].softmax(-1))
    return statistics, distortion, information
# Unequal shares: a mean of the ranks' means would be wrong.
whole, parts = measured(slice(0, 8)), measured(slice(0, 3) if rank == 0 else slice(3, 8))
statistics, distortion, information = (part.merged() for part in parts)
assert torch.equal(statistics.counts, whole[0].counts)
assert distortion.images == 8
for name in ("mse", "psnr", "ssim"):
    assert abs(getattr(distortion, name) - getattr(whole[1], name)) < 1e-12, name
assert abs(information.mutual_information - whole[2].mutual_information) < 1e-12
dist.destroy_process_group()
"""


def test_two_ranks_equal_one(tmp_path):
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors


def test_dead_codes_and_the_information_of_hard_codes():
    statistics = CodebookStatistics(5)
    statistics.update(torch.tensor([0, 3, 3, 0, -1]))
    assert statistics.dead_codes.tolist() == [1, 2, 4]
    assert statistics.mutual_information == pytest.approx(math.log(2))


def test_information_of_soft_codes_by_hand():
    statistics = CodebookStatistics(2)
    responsibilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    statistics.update(torch.tensor([0, 1, -1]), responsibilities=responsibilities)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert statistics.mutual_information == pytest.approx(math.log(2) - entropy)
    assert statistics.merged().mutual_information == statistics.mutual_information
    with pytest.raises(ValueError, match="'responsibilities' must have the shape"):
        statistics.update(torch.tensor([0, 1]), responsibilities=responsibilities)


def test_composite_statistics_count_each_place():
    statistics = CompositeStatistics((4, 2))
    statistics.update(torch.tensor([[[0, 1], [1, -1]]]), torch.tensor([[True, True]]))
    assert [place.total for place in statistics.places] == [2, 1]
    assert statistics.usage == pytest.approx(3 / 6)
    assert statistics.perplexities == pytest.approx((2.0, 1.0))
    assert statistics.merged().bits_per_token == pytest.approx(1.0)
    with pytest.raises(ValueError, match="must have 2 places"):
        statistics.update(torch.zeros(3, dtype=torch.int64))
