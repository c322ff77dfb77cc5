import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist

import gmvq
from gmvq.metrics.codes import CodebookStatistics, CompositeStatistics
from gmvq.metrics.information import MixtureInformation
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
from gmvq.metrics import CodebookStatistics, ImageDistortion, MixtureInformation
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
codes, images = torch.randint(5, (8, 3), generator=generator), torch.rand(8, 1, 12, 12, generator=generator)
targets, logits = torch.rand(8, 1, 12, 12, generator=generator), torch.randn(8, 3, 5, generator=generator)
def measured(rows):
    statistics, distortion, information = CodebookStatistics(5), ImageDistortion(), MixtureInformation(5)
    statistics.update(codes[rows])
    distortion.update(images[rows], targets[rows])
    information.update(logits[rows].softmax(-1))
    huge, soft = CodebookStatistics(2**62), CodebookStatistics(5)
    huge.update(codes[rows] << 59)
    if rows.start:  # only one rank has any
        soft.update(codes[rows], responsibilities=logits[rows].softmax(-1))
    return statistics, distortion, information, huge, soft
# Unequal shares: a mean of the ranks' means would be wrong.
whole, parts = measured(slice(0, 8)), measured(slice(0, 3) if rank == 0 else slice(3, 8))
statistics, distortion, information, huge, soft = (part.merged() for part in parts)
assert torch.equal(statistics.counts, whole[0].counts)
assert distortion.images == 8
for name in ("mse", "psnr", "ssim"):
    assert abs(getattr(distortion, name) - getattr(whole[1], name)) < 1e-12, name
assert abs(information.mutual_information - whole[2].mutual_information) < 1e-12
assert torch.equal(huge.code_counts.seen, whole[3].code_counts.seen)
assert torch.equal(huge.code_counts.times, whole[3].code_counts.times)
assert (huge.used, huge.entropy, huge.information.tokens) == (5, whole[3].entropy, 0)
assert soft.total == soft.information.tokens == 15
assert soft.mutual_information > 0
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


SURE = torch.eye(4)[:3]


@pytest.mark.parametrize(
    ("codes", "mask", "responsibilities", "message"),
    [
        (torch.tensor([0, 1, 2]), torch.ones(2, dtype=torch.bool), SURE, "'mask' must be boolean"),
        (torch.tensor([0, 1, 2]), torch.ones(3), SURE, "'mask' must be boolean"),
        (torch.tensor([0, 1, 4]), None, SURE, "lie in"),
        (torch.tensor([0.0, 1.0, 2.0]), None, SURE, "integers"),
        (torch.tensor([0, 1, 2]), None, 2 * SURE, "sum to 1"),
        (torch.tensor([0, 1, 2]), None, SURE[:, :3], "must have 4 components"),
        (torch.tensor([0, 1, 2]), None, SURE[0], "'responsibilities' must have the shape"),
    ],
)
def test_an_update_counts_all_or_nothing(codes, mask, responsibilities, message):
    statistics = CodebookStatistics(4)
    with pytest.raises(ValueError, match=message):
        statistics.update(codes, mask, responsibilities)
    assert (statistics.total, statistics.information.tokens) == (0, 0)
    composite = CompositeStatistics([4, 4])
    fine = torch.tensor([0, 1, 2]).to(codes.dtype)  # the other place has no fault
    sure = SURE if responsibilities.shape == SURE.shape else responsibilities
    both = torch.stack([sure, responsibilities], -2)
    with pytest.raises(ValueError, match=message if "components" not in message else "'responsibilities'"):
        composite.update(torch.stack([fine, codes], -1), mask, both)
    assert [(place.total, place.information.tokens) for place in composite.places] == [(0, 0), (0, 0)]


def test_responsibilities_for_some_tokens_only_have_no_information():
    for parts in ([SURE, None], [None, SURE]):
        statistics = CodebookStatistics(4)
        for responsibilities in parts:
            statistics.update(torch.tensor([0, 1, 2]), responsibilities=responsibilities)
        assert statistics.perplexity == pytest.approx(3)
        with pytest.raises(ValueError, match="for all tokens or for none, got them for 3 of 6"):
            _ = statistics.mutual_information


def test_composite_statistics_count_each_place():
    statistics = CompositeStatistics((4, 2))
    statistics.update(torch.tensor([[[0, 1], [1, -1]]]), torch.tensor([[True, True]]))
    assert [place.total for place in statistics.places] == [2, 1]
    assert statistics.usage == pytest.approx(3 / 6)
    assert statistics.perplexities == pytest.approx((2.0, 1.0))
    assert statistics.merged().bits_per_token == pytest.approx(1.0)
    with pytest.raises(ValueError, match="must have 2 places"):
        statistics.update(torch.zeros(3, dtype=torch.int64))


def test_composite_statistics_take_what_products_say():
    torch.manual_seed(0)
    latents = torch.randn(30, 6)
    for quantizer in (
        gmvq.Product([gmvq.GaussianMixtureQuantizer(3, 8), gmvq.GaussianMixtureQuantizer(3, 5)]),
        gmvq.GaussianQuantizer(6, 8, group_dim=3),
    ):
        quantizer.eval()
        codes, posterior = quantizer.encode(latents), quantizer.posterior(latents)
        statistics = CompositeStatistics(quantizer.codebook_sizes)
        mask = torch.arange(30) < 20
        statistics.update(codes, mask, posterior.responsibilities)
        for place, size in enumerate(quantizer.codebook_sizes):
            information = MixtureInformation(size)
            information.update(posterior.responsibilities[:20, place, :size])
            assert statistics.mutual_informations[place] == information.mutual_information
        with pytest.raises(ValueError, match="'responsibilities' must have the shape"):
            statistics.update(codes, mask, posterior.responsibilities[..., :4])


def test_a_place_that_was_always_dropped_needs_no_bits():
    statistics = CompositeStatistics([4, 4])
    for figure in ("bits_per_token", "perplexities", "mutual_informations"):
        with pytest.raises(ValueError, match="at least 1 counted code"):
            getattr(statistics, figure)
    statistics.update(torch.tensor([[0, -1], [1, -1]]))
    assert statistics.bits_per_token == pytest.approx(1)
    assert statistics.perplexities == pytest.approx((2, 1))
    assert statistics.mutual_informations == pytest.approx((math.log(2), 0))


def test_composite_statistics_need_a_place():
    with pytest.raises(ValueError, match="at least 1 size"):
        CompositeStatistics([])
