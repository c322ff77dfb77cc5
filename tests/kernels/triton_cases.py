"""The Triton kernels agree with the reference: on a GPU, or in the interpreter, as test_triton.py runs this."""

import functools

import pytest
import torch

pytest.importorskip("triton")

from gmvq.kernels import nearest as nearest_module
from gmvq.kernels import (
    noise,
    reference,
    triton_mixture,
    triton_mixture_parts,
    triton_nearest,
    triton_noise,
    triton_tiles,
)
from gmvq.kernels.mixture_types import Needs, Problem, Upstream

if not triton_noise.INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1: test_triton.py runs it", allow_module_level=True)

DEVICE = "cpu" if triton_noise.INTERPRETED else "cuda"
RESULTS = ("energy", "log_energy", "entropy", "log_density", "aggregated", "relaxed", "relaxed_energy")
INPUTS = ("latents", "codebook", "values", "precisions", "biases")


@pytest.fixture(autouse=True)
def _precision():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(params=["exact", "fused"])
def products(request, monkeypatch):
    """Products by torch, or in the kernels, which matrix units would round, and the interpreter does not."""
    if request.param == "fused":
        monkeypatch.setattr(triton_tiles.Units, "exact", property(lambda _: False))


def random(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    # of float32's precision, so that all see the same numbers
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def nearest(latents, codes, offsets):
    return (latents.double() @ codes.double().T + offsets.double()).argmax(-1)


@pytest.mark.parametrize("first_row", [0, 7, 2**32 - 8, 2**40 + 3])
@pytest.mark.parametrize("seed", [0, 123456789123, 2**62 - 3])
def test_words_agree_bit_for_bit(seed, first_row):
    number = torch.tensor(seed, device=DEVICE)
    rows = torch.arange(first_row, first_row + 16, device=DEVICE)
    assert torch.equal(triton_noise.words(number, 16, 192, first_row), noise.random_words(number, rows, 192))


@pytest.mark.parametrize(
    ("n", "k", "dim"), [(1, 1, 1), (37, 100, 32), (20, 257, 200), (9, 65, 300), (50, 5, 3), (0, 3, 4)]
)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_nearest_code(n, k, dim, precision):
    latents, codes, offsets = (x.float().to(DEVICE) for x in random(n, (n, dim), (k, dim), (k,)))
    torch.set_float32_matmul_precision(precision)
    found = triton_nearest.nearest_code(latents, codes, offsets)
    scores = latents.double() @ codes.double().T + offsets.double()
    lost = scores.amax(-1) - scores.gather(-1, found[:, None])[:, 0]
    # of a product of rounded factors, with which codes compete; 2^-9 of them is what bfloat16 rounds by
    tolerance = {"highest": 1e-6, "high": 2**-10, "medium": 2**-7}[precision]
    assert found.dtype == torch.int64
    assert (lost <= tolerance * latents.norm(dim=-1) * codes.norm(dim=-1).amax()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nearest_code_of_16_bits_has_the_order_of_its_inputs(dtype):
    latents, codes, offsets = random(0, (33, 64), (100, 64), (100,))
    latents, codes = latents.to(DEVICE, dtype), codes.to(DEVICE, dtype)
    offsets = offsets.to(DEVICE)
    assert torch.equal(triton_nearest.nearest_code(latents, codes, offsets), nearest(latents, codes, offsets))


def test_ties_go_to_the_lowest_index_and_rows_that_are_not_finite_to_code_0():
    # small integers: products are exact, so that equal codes tie
    latents, codes = (x.float().round().to(DEVICE) for x in random(1, (40, 8), (16, 8)))
    order = torch.randperm(208, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    codes = codes.repeat(13, 1)[order]
    offsets = torch.zeros(208, device=DEVICE)
    expected = nearest(latents, codes, offsets)
    for row, value in ((3, float("nan")), (5, float("inf")), (39, -float("inf"))):
        latents[row, row % 8], expected[row] = value, 0
    assert torch.equal(triton_nearest.nearest_code(latents, codes, offsets), expected)
    assert triton_nearest.nearest_code(torch.zeros_like(latents), codes, offsets).tolist() == [0] * 40


@pytest.mark.parametrize("far", [1e6, 1e10, float("inf"), float("nan")])
def test_a_far_code_costs_the_others_nothing(far):
    latents, codes = (x.float().to(DEVICE) for x in random(2, (200, 8), (32, 8)))
    distances = (latents[:, None].double() - codes.double()).square().sum(-1)
    codes[5], distances[:, 5] = far, float("inf")
    origin, prepared, starts = nearest_module._prepared(codes, None, None, False)
    assert torch.equal(triton_nearest.nearest_code(latents - origin, prepared, starts), distances.argmin(-1))


@pytest.mark.parametrize("far", [1e5, 1e10, float("inf"), float("nan")])
@pytest.mark.usefixtures("products")
def test_a_far_code_has_no_probability_in_a_mixture_step(far):
    case = mixture(20, 40, 4, 3, seed=7, floor=0.5)
    case[0][1][5] = far
    assert_agree(case)
    results, gradients = found(*case)
    assert results.aggregated[5] == 0
    assert all(part.isfinite().all() for part in (*results, *gradients))


@pytest.mark.parametrize(("n", "k", "dim"), [(300, 37, 5), (64, 3, 300), (5, 70, 1), (0, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_code_sums(n, k, dim, dtype, monkeypatch):
    monkeypatch.setattr(triton_nearest, "ROWS_OF_A_PART", 100)
    (latents,) = random(2, (n, dim))
    generator = torch.Generator().manual_seed(n)
    codes, weights = torch.randint(0, k, (n,), generator=generator), torch.rand(n, generator=generator)
    codes[::7], weights[::7] = -1, 0.0
    inputs = latents.to(DEVICE, dtype), codes.to(DEVICE), weights.to(DEVICE)
    for found, expected in zip(triton_nearest.code_sums(*inputs, k), reference.code_sums(*inputs, k), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_row_of_weight_0_has_no_part_in_sums():
    latents = torch.tensor([[float("nan")], [2.0]], device=DEVICE)
    codes, weights = torch.tensor([0, 0], device=DEVICE), torch.tensor([False, True], device=DEVICE)
    assert [x.tolist() for x in triton_nearest.code_sums(latents, codes, weights, 1)] == [[1.0], [[2.0]]]


def mixture(n, k, dim, features, *, sampled=True, floor=0.0, spread=1.0, precisions=None, seed=0):
    """Inputs in float64, and upstream gradients."""
    latents, codebook, values, biases, prices, weights, logarithms = random(
        seed, (n, dim), (k, dim), (k, features), (k,), (k,), (n,), (k,)
    )
    widths = logarithms.exp() if precisions is None else 10.0 ** torch.linspace(*precisions, k).double()
    inputs = [latents * spread, codebook * spread, values, widths.float().double(), biases]
    noise_of = (torch.tensor(0.7).double(), torch.tensor(1234567)) if sampled else (None, None)
    upstream = random(seed + 1, (n,), (n,), (n,), (n,), (k,), (n, features), (n,))
    if not sampled:
        upstream[5:] = [torch.zeros(0, features), torch.zeros(0)]
    return inputs, prices, weights.abs(), noise_of, floor, upstream


def expected(inputs, prices, weights, noise_of, floor, upstream):
    inputs = [x.clone().requires_grad_() for x in inputs]
    step = reference.mixture_step(*inputs, prices, weights, *noise_of, floor)
    found = [getattr(step, name) for name in RESULTS]
    loss = sum((result * above).sum() for result, above in zip(found, upstream, strict=True))
    return step, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def problem_of(inputs, weights, noise_of, floor):
    place = functools.partial(torch.Tensor.to, device=DEVICE)
    temperature, seed = noise_of
    parts = (place(x, dtype=torch.float32) for x in (*inputs, weights))
    return Problem.of(*parts, temperature and place(temperature.float()), None if seed is None else place(seed), floor)


def found(inputs, prices, weights, noise_of, floor, upstream, needs=(True,) * 5):
    problem = problem_of(inputs, weights, noise_of, floor)
    results = triton_mixture.forward(problem, prices.float().to(DEVICE))
    above = Upstream(*(x.float().to(DEVICE) for x in upstream))
    return results, triton_mixture.backward(problem, results, above, Needs(*needs))


def assert_agree(case, tolerance=1e-4):
    step, gradients = expected(*case)
    results, computed = found(*case)
    for name in ("codes", "priced", "drawn"):
        assert torch.equal(getattr(results, name).cpu(), getattr(step, name)), name
    pairs = [(name, getattr(results, name), getattr(step, name)) for name in RESULTS]
    pairs += zip((f"gradient of {name}" for name in INPUTS), computed, gradients, strict=True)
    for name, one, other in pairs:
        assert one.shape == other.shape, name
        if other.numel():
            assert (one.cpu() - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-6), name


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize(
    ("n", "k", "dim", "features"), [(1, 1, 1, 1), (5, 37, 3, 4), (20, 100, 32, 20), (3, 257, 64, 64), (17, 70, 200, 8)]
)
@pytest.mark.usefixtures("products")
def test_mixture_step(n, k, dim, features, floor, sampled):
    assert_agree(mixture(n, k, dim, features, sampled=sampled, floor=floor, spread=1 / dim**0.5, seed=n))


@pytest.mark.parametrize("precisions", [(-3, 3), (-3, -3), (3, 3)])
@pytest.mark.usefixtures("products")
def test_mixture_step_of_extreme_variances(precisions):
    assert_agree(
        mixture(18, 70, 6, 5, precisions=precisions, floor=1e-3), tolerance=3e-4 if precisions[0] > 0 else 1e-4
    )


@pytest.mark.parametrize(("n", "k"), [(1, 1), (20, 40)])
@pytest.mark.usefixtures("products")
def test_of_large_energies_the_small_differences_count(n, k):
    assert_agree(mixture(n, k, 9, 4, spread=30.0, seed=k), tolerance=3e-4)


@pytest.mark.usefixtures("products")
def test_mixture_step_of_ties_goes_to_the_lowest_index():
    case = mixture(30, 96, 4, 4, seed=5)
    inputs = case[0]
    # few digits, and a mean of 0: products are exact, so that equal codes tie wherever they lie in a tile
    half = inputs[1][:4].mul(2).round()
    inputs[0], inputs[1] = inputs[0].mul(64).round() / 64, torch.cat([half, -half]).repeat(12, 1)
    inputs[3], inputs[4] = torch.ones(96).double(), torch.zeros(96).double()
    assert_agree((inputs, torch.zeros(96).double(), *case[2:]))


@pytest.mark.usefixtures("products")
def test_a_row_that_is_not_finite_marks_its_own_results_only():
    inputs, prices, weights, noise_of, floor, upstream = case = mixture(20, 40, 4, 3, seed=6)
    inputs[0][7, 2], inputs[0][11, 0] = float("nan"), float("inf")
    bad, good = torch.tensor([7, 11]), torch.tensor([row for row in range(20) if row not in (7, 11)])
    results, gradients = found(*case)
    inputs[0][bad], weights[bad] = 0.0, 0.0
    for above in (*upstream[:4], *upstream[5:]):
        above[bad] = 0.0
    others, clean = found(inputs, prices, weights, noise_of, floor, upstream)
    for name in (*RESULTS, "codes", "priced", "drawn"):
        own, other = getattr(results, name), getattr(others, name)
        if name == "aggregated":
            torch.testing.assert_close(own, other)
        else:
            assert torch.equal(own[good], other[good]), name
            assert own[bad].isnan().all() if own.is_floating_point() else (own[bad] == 0).all(), name
    assert gradients.latents[bad].isnan().all()
    torch.testing.assert_close(gradients.latents[good], clean.latents[good])
    for own, other in zip(gradients[1:], clean[1:], strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.usefixtures("products")
def test_a_code_without_weight_is_never_chosen():
    case = mixture(20, 40, 4, 3, seed=7)
    case[0][4][::2] = -float("inf")
    results, gradients = found(*case)
    assert all((getattr(results, name) % 2 == 1).all() for name in ("codes", "priced", "drawn"))
    assert results.aggregated[::2].eq(0).all()
    assert all(part.isfinite().all() for part in (*results, *gradients))


@pytest.mark.usefixtures("products")
def test_blocks_and_parts_of_rows_change_nothing(monkeypatch):
    case = mixture(100, 130, 5, 3, seed=8)
    results, gradients = found(*case)
    monkeypatch.setattr(triton_mixture_parts, "BLOCK_BYTES", 1)
    for one, other in zip((*results, *gradients), (*(parts := found(*case))[0], *parts[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_noise_is_drawn_by_the_number_of_the_row():
    inputs, prices, weights, noise_of, floor, _ = mixture(50, 70, 4, 3, seed=9)
    problem = problem_of(inputs, weights, noise_of, floor)
    whole = triton_mixture.forward(problem, prices.float().to(DEVICE))
    part = triton_mixture.forward(problem.block(20, 50), prices.float().to(DEVICE))
    assert torch.equal(part.drawn, whole.drawn[20:])
    torch.testing.assert_close(part.relaxed, whole.relaxed[20:])


def test_only_gradients_that_are_needed_are_given():
    case = mixture(10, 20, 4, 3, seed=10)
    _, gradients = found(*case)
    for place in range(5):
        _, some = found(*case, needs=[other == place for other in range(5)])
        assert [part is None for part in some] == [other != place for other in range(5)]
        torch.testing.assert_close(some[place], gradients[place])


@pytest.mark.parametrize("sampled", [True, False])
def test_no_rows(sampled):
    results, gradients = found(*mixture(0, 5, 3, 2, sampled=sampled))
    assert results.aggregated.tolist() == [0.0] * 5
    assert [part.shape for part in gradients] == [(0, 3), (5, 3), (5, 2), (5,), (5,)]
    assert all(part.eq(0).all() for part in gradients)


@pytest.mark.parametrize(("precision", "tolerance"), [("highest", 1e-5), ("high", 5e-3), ("medium", 4e-2)])
@pytest.mark.parametrize(("dim", "features"), [(16, 12), (16, 300), (520, 12)])
def test_mixture_step_in_the_precision_of_matrix_units(precision, tolerance, dim, features):
    torch.set_float32_matmul_precision(precision)
    case = mixture(40, 100, dim, features, spread=1 / dim**0.5, seed=11)
    step, gradients = expected(*case)
    results, computed = found(*case)
    pairs = [(getattr(results, name), getattr(step, name)) for name in RESULTS]
    for one, other in (*pairs, *zip(computed, gradients, strict=True)):
        assert (one.cpu() - other).norm() <= tolerance * other.norm()
