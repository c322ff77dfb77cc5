import itertools
import math

import pytest
import torch

from gmvq.quantizers.scalar import FiniteScalarQuantizer, LatentQuantizer

LEVELS = [(3,), (5, 5, 5), (8, 5, 5, 5), (8, 6, 5), (7, 4, 3), (16, 15, 9), (64, 65), (1000, 3)]
FORMS = list(itertools.product((False, True), ("tanh", "clamp")))
levels_lists = pytest.mark.parametrize("levels", LEVELS, ids=str)
forms = pytest.mark.parametrize(("symmetric", "bound"), FORMS)
all_forms = pytest.mark.parametrize(("symmetric", "bound"), [*FORMS, (False, "paper")])


def latents(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(1.5).to(dtype)


def test_a_code_by_hand():
    # 4 levels: y = 1.5015 tanh(z + artanh(0.5 / 1.5015)) - 0.5; 5 levels: y = 2.002 tanh(z)
    quantizer = FiniteScalarQuantizer([4, 5]).double()
    rows = torch.tensor([[0.0, 0.0], [9.0, -9.0], [-0.6, 0.4]], dtype=torch.float64)
    first = 1.5015 * math.tanh(-0.6 + math.atanh(0.5 / 1.5015)) - 0.5
    assert (round(first), round(2.002 * math.tanh(0.4))) == (-1, 1)
    levels = torch.tensor([[2, 2], [3, 0], [1, 3]])
    values, codes, loss, _ = quantizer(rows)
    assert torch.equal(codes, levels[:, 0] + 4 * levels[:, 1])
    assert torch.equal(values, (levels - 2).double() / torch.tensor([2, 2]))
    assert loss == 0


def test_a_symmetric_code_by_hand():
    quantizer = FiniteScalarQuantizer([2, 4], symmetric=True).double()
    rows = torch.tensor([[0.1, -0.1], [-0.1, 9.0], [-9.0, 0.9]], dtype=torch.float64)
    assert math.floor(3 * (math.tanh(0.9) + 1) / 2 + 0.5) == 3
    levels = torch.tensor([[1, 1], [0, 3], [0, 3]])
    values, codes, _, _ = quantizer(rows)
    assert torch.equal(codes, levels[:, 0] + 2 * levels[:, 1])
    torch.testing.assert_close(values, torch.tensor([[1, -1 / 3], [-1, 1], [-1, 1]], dtype=torch.float64))


def by_the_paper(row, levels):
    """Levels and value of a latent by appendix A.1 of the paper, feature by feature in Python's floats."""
    places = []
    for latent, number in zip(row, levels, strict=True):
        half, offset = (number - 1) * (1 - 1e-3) / 2, 0.5 * (number % 2 == 0)
        places.append(round(math.tanh(latent + math.tan(offset / half)) * half - offset))
    code, stride = 0, 1
    for place, number in zip(places, levels, strict=True):
        code, stride = code + (place + number // 2) * stride, stride * number
    return code, [place / (number // 2) for place, number in zip(places, levels, strict=True)]


@levels_lists
def test_codes_and_values_of_the_papers_bound_are_those_of_the_paper(levels):
    quantizer = FiniteScalarQuantizer(levels, bound="paper").double()
    rows = latents(2000, len(levels), dtype=torch.float64)
    values, codes, _, _ = quantizer(rows)
    expected = [by_the_paper(row, levels) for row in rows.tolist()]
    # half_range is in float32, where 1 of 1,000 levels is as wide as 10,000 steps of rounding
    same = codes == torch.tensor([code for code, _ in expected])
    assert same.sum() >= len(rows) - (max(levels) == 1000)
    torch.testing.assert_close(values[same], torch.tensor([value for _, value in expected]).double()[same])


@pytest.mark.parametrize(("levels", "share"), [([8, 5, 5, 5], 0.0102), ([8, 8, 8, 5, 5, 5], 0.0178)])
def test_so_many_codes_differ_between_the_bounds(levels, share):
    """The figures of the docs; a level differs by at most one."""
    rows = torch.randn(200_000, len(levels), generator=torch.Generator().manual_seed(0))
    ours, paper = (FiniteScalarQuantizer(levels, bound=bound) for bound in ("tanh", "paper"))
    codes = ours.encode(rows), paper.encode(rows)
    assert (codes[0] != codes[1]).float().mean().item() == pytest.approx(share, abs=0.001)
    values = ours.decode(codes[0]), paper.decode(codes[1])
    assert ((values[0] - values[1]).abs() * (torch.tensor(levels) // 2) <= 1.001).all()


@levels_lists
@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_codes_and_values_are_those_of_vector_quantize_pytorch(levels, symmetric, bound, dtype):
    peers = pytest.importorskip("vector_quantize_pytorch")
    theirs = peers.FSQ(list(levels), preserve_symmetry=symmetric, bound_hard_clamp=bound == "clamp").eval()
    ours = FiniteScalarQuantizer(levels, symmetric=symmetric, bound=bound).eval()
    rows = latents(1, 4000, len(levels), dtype=dtype)
    expected, indices = theirs(rows)
    values, codes, _, _ = ours(rows)
    assert torch.equal(codes, indices.long())
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(ours.decode(codes), theirs.indices_to_codes(indices).float())


@forms
def test_gradient_is_that_of_vector_quantize_pytorch(symmetric, bound):
    peers = pytest.importorskip("vector_quantize_pytorch")
    theirs = peers.FSQ([8, 5, 4], preserve_symmetry=symmetric, bound_hard_clamp=bound == "clamp").train()
    ours = FiniteScalarQuantizer([8, 5, 4], symmetric=symmetric, bound=bound)
    gradients = []
    for quantizer in (theirs, ours):
        rows = latents(1, 50, 3).requires_grad_()
        (quantizer(rows)[0] * latents(1, 50, 3, seed=1)).sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("dtype", "most"),
    # the 8 bits of bfloat16 cannot tell 1000 levels of one feature apart
    [(torch.float64, 1000), (torch.float32, 1000), (torch.float16, 1000), (torch.bfloat16, 300)],
    ids=str,
)
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 6, 4), (1000, 3)], ids=str)
@all_forms
def test_codes_enumerate_the_grid_in_every_dtype(levels, symmetric, bound, dtype, most):
    levels = [min(size, most) for size in levels]
    quantizer = FiniteScalarQuantizer(levels, symmetric=symmetric, bound=bound)
    codes = torch.arange(quantizer.codebook_size)
    assert len(quantizer.decode(codes).unique(dim=0)) == math.prod(levels)
    rows = quantizer.preimage(codes).to(dtype)
    assert torch.equal(quantizer(rows).codes, codes)
    assert torch.equal(quantizer.to(dtype).encode(rows), codes)  # a module in half precision, too


@pytest.mark.parametrize("size", range(3, 40))
@all_forms
def test_which_levels_round_trip(size, symmetric, bound):
    size -= symmetric
    quantizer = FiniteScalarQuantizer([size, 5], symmetric=symmetric, bound=bound)
    codes = torch.arange(quantizer.codebook_size)
    held = torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    assert held == quantizer.round_trips
    assert held == (bound == "clamp" or size in ((2, 3, 4, 5) if symmetric else (3, 5)))


def test_the_first_feature_counts_fastest():
    quantizer = FiniteScalarQuantizer([3, 5, 4], symmetric=True, bound="clamp")
    grid = torch.cartesian_prod(*(torch.linspace(-1, 1, size) for size in (4, 5, 3))).flip(-1)
    torch.testing.assert_close(quantizer.codebook, grid)
    assert torch.equal(quantizer.encode(grid), torch.arange(60))


@forms
def test_beyond_1000_levels_the_outermost_stay_inside(symmetric, bound):
    # the published slack of 1e-3 reaches past them: the code ran over into the next feature
    quantizer = FiniteScalarQuantizer([1003, 1100, 3], symmetric=symmetric, bound=bound)
    values, codes, _, _ = quantizer(torch.tensor([[50.0, 50.0, 0.0], [-50.0, -50.0, 0.0]]))
    assert torch.equal(codes, torch.tensor([1002 + 1003 * 1099 + 1003 * 1100, 1003 * 1100]))
    assert values.abs().max() <= 1


def test_straight_through_passes_the_slope_of_the_bound():
    quantizer = FiniteScalarQuantizer([5, 8])
    rows = latents(20, 2, dtype=torch.float64).requires_grad_()
    quantizer(rows).values.sum().backward()
    shift = torch.tensor([0.0, math.atanh(0.5 / 3.5035)])
    slopes = torch.tensor([2.002 / 2, 3.5035 / 4]) * (1 - torch.tanh(rows.detach() + shift).square())
    torch.testing.assert_close(rows.grad, slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_noise_takes_the_place_of_rounding(symmetric):
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer([8, 5], symmetric=symmetric, noise_dropout=0.25)
    rows = latents(20000, 2)
    noisy, plain = quantizer.train()(rows), quantizer.eval()(rows)
    assert torch.equal(noisy.codes, plain.codes)
    assert torch.equal(plain.values, quantizer.decode(plain.codes))
    drawn = noisy.values != plain.values
    assert drawn.double().mean().item() == pytest.approx(0.25, abs=0.01)
    smooth = FiniteScalarQuantizer([8, 5], symmetric=symmetric)
    noise = noisy.values - smooth._bounded(smooth._squashed(rows))
    for feature, width in enumerate((2 / 7, 2 / 4) if symmetric else (1 / 4, 1 / 2)):
        own = noise[:, feature][drawn[:, feature]]
        assert own.abs().max().item() == pytest.approx(width / 2, rel=0.01)
        assert own.std().item() == pytest.approx(width / 12**0.5, rel=0.03)


def test_issues_207_240_codes_stay_in_range_under_noise():
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer([8, 8, 8, 8], symmetric=True, noise_dropout=0.5)
    codes = quantizer(latents(5000, 4)).codes
    assert codes.min() >= 0
    assert codes.max() < 4096


def test_codes_of_a_huge_grid_are_exact():
    quantizer = FiniteScalarQuantizer([16] * 15)
    codes = torch.tensor([0, 2**60 - 1, 2**53 + 1, 123456789012345678])
    assert torch.equal(quantizer.encode(quantizer.preimage(codes)), codes)


def test_a_preimage_is_refused_for_what_is_no_code():
    quantizer = FiniteScalarQuantizer([3, 3], dim=5)
    assert torch.equal(quantizer.encode(quantizer.preimage(torch.arange(9))), torch.arange(9))
    for codes in ([-1], [9]):
        with pytest.raises(ValueError, match="must lie in"):
            quantizer.preimage(torch.tensor(codes))


@pytest.mark.parametrize(
    ("levels", "options", "reason"),
    [
        ([], {}, "'levels' must be integers"),
        (8, {}, "'levels' must be integers"),
        ([8, 5.0], {}, "'levels' must be integers"),
        ([8, 1], {}, "'levels' must be integers"),
        ([8, 2], {}, "'levels' must be at least 3"),
        ([1000] * 7, {}, "at most"),
        ([8, 5], {"dim": 1}, "'dim' must be at least"),
        ([8, 5], {"dim": 0}, "'dim' must be an integer"),
        ([8, 5], {"noise_dropout": 1.5}, "'noise_dropout'"),
        ([8, 5], {"bound": "sigmoid"}, "'bound' must be one of"),
        ([8, 5], {"bound": "paper", "symmetric": True}, "'bound' must be 'tanh' or 'clamp'"),
        ([1001, 5], {"bound": "paper"}, "'levels' must be at most 1000 with bound='paper'"),
    ],
)
def test_bad_arguments_get_a_reason(levels, options, reason):
    with pytest.raises(ValueError, match=reason):
        FiniteScalarQuantizer(levels, **options)


def scattered():
    """A latent quantizer whose values have learned out of order."""
    quantizer = LatentQuantizer([4, 3, 7]).double()
    with torch.no_grad():
        quantizer.values.copy_(latents(14, seed=3))
    return quantizer


def test_values_start_evenly_around_zero():
    values = LatentQuantizer([4, 5]).values
    torch.testing.assert_close(values, torch.tensor([-0.5, -0.25, 0.0, 0.25, -0.5, -0.25, 0.0, 0.25, 0.5]))


def test_each_feature_takes_the_nearest_of_its_values():
    quantizer, rows = scattered(), latents(200, 3, dtype=torch.float64)
    tables = quantizer.values.detach().split([4, 3, 7])
    levels = torch.stack([(rows[:, [j]] - tables[j]).abs().argmin(-1) for j in range(3)], -1)
    values, codes, _, _ = quantizer(rows)
    assert torch.equal(codes, levels @ torch.tensor([1, 4, 12]))
    assert torch.equal(values, torch.stack([tables[j][levels[:, j]] for j in range(3)], -1))
    every = torch.arange(84)
    assert torch.equal(quantizer.encode(quantizer.decode(every)), every)


def test_loss_is_that_of_the_paper():
    quantizer, rows = scattered(), latents(50, 3, dtype=torch.float64).requires_grad_()
    quantizer.commitment_weight, quantizer.quantization_weight = 0.2, 0.7
    out = quantizer(rows)
    difference = (rows - quantizer.decode(out.codes)).detach()
    torch.testing.assert_close(out.loss, 0.9 * difference.square().mean())
    out.loss.backward()
    torch.testing.assert_close(rows.grad, 0.2 * 2 * difference / 150)
    expected = torch.zeros(14, dtype=torch.float64)
    for feature, start in enumerate((0, 4, 7)):
        levels = out.codes // (1, 4, 12)[feature] % (4, 3, 7)[feature]
        expected.index_add_(0, start + levels, -0.7 * 2 * difference[:, feature] / 150)
    torch.testing.assert_close(quantizer.values.grad, expected)


def test_values_learn():
    torch.manual_seed(0)
    quantizer = LatentQuantizer([4], quantization_weight=1.0)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    rows = torch.tensor([3.0, 4.0, 5.0, 6.0]).repeat(50)[:, None] + 0.01 * torch.randn(200, 1)
    for _ in range(600):
        optimizer.zero_grad()
        quantizer(rows).loss.backward()
        optimizer.step()
    out = quantizer(rows)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    # the outermost value went to the mean of all latents, far from where values start, and is still the last code
    torch.testing.assert_close(quantizer.values.max(), torch.tensor(4.5), rtol=0, atol=0.05)
    assert (out.codes == 3).all()


def test_without_a_quantization_weight_values_stay():
    quantizer = LatentQuantizer([4, 3], quantization_weight=0.0)
    assert list(quantizer.parameters()) == []
    assert "values" in quantizer.state_dict()


@pytest.mark.parametrize("levels", [(5, 5, 8), (3,), (4, 7, 2, 9)], ids=str)
def test_codes_start_as_those_of_vector_quantize_pytorch(levels):
    peers = pytest.importorskip("vector_quantize_pytorch")
    rows = latents(1, 3000, len(levels))
    expected, indices, _ = peers.LatentQuantize(levels=list(levels), dim=len(levels)).eval()(rows.mT)
    values, codes, _, _ = LatentQuantizer(levels)(rows)
    assert torch.equal(codes, indices.long())
    torch.testing.assert_close(values, expected.mT)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"levels": [5, 1]}, "'levels'"),
        ({"levels": [5, 5], "dim": 1}, "'dim'"),
        ({"levels": [5, 5], "commitment_weight": -1.0}, "'commitment_weight'"),
        ({"levels": [5, 5], "quantization_weight": math.inf}, "'quantization_weight'"),
    ],
)
def test_bad_arguments_of_the_latent_quantizer_get_a_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        LatentQuantizer(**options)


@pytest.mark.parametrize("make", [lambda: FiniteScalarQuantizer([8] * 20), lambda: LatentQuantizer([8] * 20)])
def test_a_codebook_of_too_many_codes_is_not_written_out(make):
    quantizer = make()
    with pytest.raises(ValueError, match=r"at most 2\*\*24 to write out all codes"):
        _ = quantizer.codebook
    assert quantizer.decode(torch.tensor([8**20 - 1])).shape == (1, 20)
