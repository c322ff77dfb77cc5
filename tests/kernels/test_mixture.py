"""The mixture step against its definition: results, gradients, noise, and what goes wrong."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gmvq
from gmvq.kernels import MixtureStep, compiled, mixture_blocks, mixture_step, random_seed, reference

INTEGERS = ("codes", "priced", "drawn")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(params=["compiled", "torch"])
def sweep(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("GMVQ_KERNELS", "torch")
    elif compiled.library() is None:
        pytest.skip("no C++ compiler")
    return request.param


class Case(NamedTuple):
    rows: int = 37
    codes: int = 101
    features: int = 5
    values: int = 7
    spread: float = 1.0
    offset: float = 3.0
    draws: bool = True
    floor: float = 0.0
    seed: int = 0

    def inputs(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        latents, codebook = normal(self.rows, self.features), normal(self.codes, self.features)
        precisions = (normal(self.codes) / 2).exp() * self.spread
        others = {"prices": normal(self.codes), "weights": normal(self.rows).abs()}
        values, biases = normal(self.codes, self.values), normal(self.codes)
        # in numbers that float32 holds: the comparison is of arithmetic, not of what went in
        inputs = [latents + self.offset, codebook + self.offset, values, precisions, biases]
        return [x.float().double() for x in inputs], {name: x.float().double() for name, x in others.items()}


def run(case: Case, dtype: torch.dtype, defined: bool) -> tuple[MixtureStep, list[Tensor | None]]:
    """Results and gradients of all inputs under random gradients from above."""
    inputs, others = case.inputs()
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    others = {name: x.to(dtype) for name, x in others.items()}
    latents, codebook, values, precisions, biases = inputs
    options = {"precisions": precisions, "biases": biases, "floor": case.floor, **others}
    if case.draws:
        options |= {"temperature": torch.tensor(0.7, dtype=dtype), "seed": torch.tensor(12345678901234)}
    step = (reference.mixture_step if defined else mixture_step)(latents, codebook, values, **options)
    generator = torch.Generator().manual_seed(1)
    loss = latents.new_zeros(())
    for result in step[len(INTEGERS) :]:
        loss = loss + (result * torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
    return step, list(torch.autograd.grad(loss, inputs, allow_unused=True))


def assert_agrees(case: Case, dtype: torch.dtype) -> None:
    """Within the tolerance, or four times the definition's own error where energies are too large for float32."""
    expected, expected_gradients = run(case, torch.float64, defined=True)
    rounded, rounded_gradients = run(case, dtype, defined=True)
    step, gradients = run(case, dtype, defined=False)
    for name, value in expected._asdict().items():
        found, inexact = getattr(step, name), getattr(rounded, name)
        assert found.shape == value.shape, name
        if name in INTEGERS:
            assert (found != value).sum() <= (0.02 * len(value) if dtype == torch.float32 else 0), name
        else:
            assert_close(found, inexact, value, TOLERANCE[dtype], name)
    for name, *parts in zip("zmvpb", gradients, rounded_gradients, expected_gradients, strict=True):
        present = next((part for part in parts if part is not None), torch.zeros(()))
        found, inexact, value = (torch.zeros_like(present) if part is None else part for part in parts)
        assert_close(found, inexact, value, TOLERANCE[dtype], name)


def assert_close(found: Tensor, inexact: Tensor, value: Tensor, tolerance: float, name: str) -> None:
    error, inherent = (found.double() - value).norm(), (inexact.double() - value).norm()
    assert error <= max(tolerance * max(value.norm(), 1e-3), 4 * inherent), name


CASES = [
    Case(),
    Case(draws=False),
    Case(floor=1e-2),
    Case(draws=False, floor=1e-2),
    Case(rows=1, codes=1, features=1, values=1),
    Case(rows=1, codes=300),
    Case(rows=200, codes=1),
    Case(rows=130, codes=64, features=32, values=32),
    Case(rows=3, codes=1025, features=70, values=1),
    Case(spread=1e-4),
    Case(spread=1e3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_definition(case, dtype, sweep):
    assert_agrees(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_agrees_where_rows_fill_many_blocks(dtype, sweep, monkeypatch):
    monkeypatch.setattr(mixture_blocks, "BLOCK_ELEMENTS", 700)
    monkeypatch.setattr(mixture_blocks, "LEAST_ROWS", 1)
    assert_agrees(Case(rows=53, codes=101), dtype)


@settings(max_examples=60, deadline=None)
@given(
    case=st.builds(
        Case,
        rows=st.integers(1, 70),
        codes=st.integers(1, 140),
        features=st.integers(1, 20),
        values=st.integers(1, 20),
        spread=st.sampled_from([1e-3, 1.0, 30.0]),
        offset=st.sampled_from([0.0, 10.0]),
        draws=st.booleans(),
        # far lower, 1 / e of (e > floor) asks for digits that float32 has lost in the squares
        floor=st.sampled_from([0.0, 0.1, 1.0]),
        seed=st.integers(0, 1000),
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_agrees_for_any_shape(case, dtype):
    assert_agrees(case, dtype)


def test_extreme_variances_are_finite_and_right(sweep):
    for spread in (1e-12, 1e8):
        inputs, _ = Case(draws=False).inputs()
        latents, codebook, _, precisions, _ = (x.float().requires_grad_() for x in inputs)
        step = mixture_step(latents, codebook, precisions=precisions.detach() * spread)
        (step.energy.sum() + step.log_density.sum() - step.entropy.sum() + step.aggregated.square().sum()).backward()
        assert latents.grad is not None
        assert latents.grad.isfinite().all()
        distances = torch.cdist(latents.double(), codebook.double()).square() * precisions.double()
        assert (step.entropy.detach() >= -1e-5).all()
        if spread > 1:
            best = distances.gather(1, step.codes[:, None])[:, 0]
            torch.testing.assert_close(best, distances.amin(1), rtol=1e-3, atol=1e-4)


def test_ties_go_to_the_lowest_index(sweep):
    codebook = torch.randn(5, 3).repeat(40, 1)
    step = mixture_step(torch.randn(50, 3), codebook)
    assert (step.codes < 5).all()
    assert (step.priced < 5).all()
    torch.testing.assert_close(step.aggregated[:5], step.aggregated[-5:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_marks_itself_alone(bad, sweep):
    torch.manual_seed(0)
    latents, codebook, seed = torch.randn(40, 3), torch.randn(70, 3), torch.tensor(5)
    options = {"temperature": torch.tensor(0.5), "seed": seed, "floor": 1e-3}
    results = []
    for value in (0.0, bad):
        spoiled = latents.clone()
        spoiled[7, 1] = value
        spoiled.requires_grad_()
        codes = codebook.clone().requires_grad_()
        weights = torch.ones(40).index_fill_(0, torch.tensor([7]), 0.0)
        step = mixture_step(spoiled, codes, weights=weights, **options)
        others = torch.arange(40) != 7
        of_rows = [step.energy, step.log_energy, step.entropy, step.log_density, step.relaxed_energy]
        loss = sum((x[others].sum() for x in of_rows), step.relaxed[others].square().sum())
        loss = loss + step.aggregated.square().sum()
        results.append((step, *torch.autograd.grad(loss, (spoiled, codes))))
    (clean, *clean_gradients), (marked, of_latents, of_codes) = results
    assert of_latents[7].isnan().all()
    torch.testing.assert_close(of_latents[others], clean_gradients[0][others])
    torch.testing.assert_close(of_codes, clean_gradients[1])
    torch.testing.assert_close(marked.aggregated, clean.aggregated)
    for name in INTEGERS:
        assert getattr(marked, name)[7] == 0
    for name in ("energy", "log_energy", "entropy", "log_density", "relaxed_energy", "relaxed"):
        assert getattr(marked, name)[7].isnan().all(), name
        torch.testing.assert_close(getattr(marked, name)[others], getattr(clean, name)[others])


@pytest.mark.parametrize("far", [1e5, 1e10, torch.inf, torch.nan])
@pytest.mark.parametrize("transformed", [True, False])
def test_a_far_code_has_no_probability_and_costs_the_others_nothing(far, transformed, sweep):
    inputs, others = Case(floor=0.5, values=5, draws=False).inputs()
    step = reference.mixture_step if transformed else mixture_step

    def found(keep: Tensor, dtype: torch.dtype) -> tuple[MixtureStep, Tensor]:
        latents, codebook, _, precisions, biases = (x.to(dtype) for x in inputs)
        parts = [codebook, precisions, biases, others["prices"].to(dtype)]
        if keep.all():
            codebook[5] = far
        codebook, precisions, biases, prices = (part[keep].requires_grad_() for part in parts)
        options = {"precisions": precisions, "biases": biases, "prices": prices, "floor": 0.5}
        out = step(latents, codebook, codebook, weights=others["weights"].to(dtype), **options)
        loss = sum(part.sin().sum() for part in (out.energy, out.log_energy, out.entropy, out.log_density))
        (gradient,) = torch.autograd.grad(loss, codebook)
        return out, gradient

    keep = torch.arange(101) != 5
    with_far, gradient = found(torch.ones(101, dtype=torch.bool), torch.float32)
    without, expected = found(keep, torch.float64)
    numbers = keep.nonzero()[:, 0]
    assert torch.equal(with_far.codes, numbers[without.codes])
    assert torch.equal(with_far.priced, numbers[without.priced])
    for name in ("energy", "log_energy", "entropy", "log_density"):
        torch.testing.assert_close(getattr(with_far, name).double(), getattr(without, name), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(with_far.aggregated[keep].double(), without.aggregated, rtol=1e-4, atol=1e-4)
    assert with_far.aggregated[5] == 0
    torch.testing.assert_close(gradient[keep].double(), expected, rtol=1e-3, atol=1e-3)
    assert gradient[5].tolist() == [0] * 5


def test_no_rows(sweep):
    latents = torch.randn(0, 3, requires_grad=True)
    step = mixture_step(latents, torch.randn(5, 3), temperature=torch.tensor(1.0))
    (step.relaxed.sum() + step.aggregated.sum()).backward()
    assert step.codes.shape == (0,)
    assert step.relaxed.shape == (0, 3)
    assert (step.aggregated == 0).all()
    assert latents.grad is not None


def test_the_same_seed_draws_the_same(sweep):
    latents, codebook, temperature = torch.randn(30, 4), torch.randn(50, 4), torch.tensor(1.0)
    first, second, third = (
        mixture_step(latents, codebook, temperature=temperature, seed=torch.tensor(seed)).drawn for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != third).any()
    torch.manual_seed(3)
    fixed = mixture_step(latents, codebook, temperature=temperature).drawn
    torch.manual_seed(3)
    assert (
        mixture_step(latents, codebook, temperature=temperature, seed=random_seed(latents.device)).drawn == fixed
    ).all()


def test_codes_are_drawn_by_the_posterior(sweep):
    latents, codebook = torch.zeros(20000, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    step = mixture_step(latents, codebook, temperature=torch.tensor(0.5), seed=torch.tensor(11))
    frequencies = torch.bincount(step.drawn, minlength=3) / 20000
    torch.testing.assert_close(frequencies, step.aggregated / 20000, rtol=0, atol=0.018)


def test_sums_do_not_depend_on_threads():
    def results() -> list[Tensor]:
        step, gradients = run(Case(rows=64), torch.float32, defined=False)
        return [*step, *(x for x in gradients if x is not None)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        three = results()
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(one, three, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_the_operator_is_well_defined(sweep):
    latents, codebook = torch.randn(6, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    parts = [torch.ones(9), torch.zeros(9), torch.zeros(9), torch.ones(6)]
    for draws in ((None, None), (torch.tensor(0.8), torch.tensor(5))):
        arguments = (latents, codebook, codebook, *parts, *draws, 0.0)
        # its check of compiled gradients adds up all results, and cannot add floats to the first, which are codes
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.gmvq.mixture_step.default, arguments, test_utils=checks)


def test_compiles_and_exports_as_one_operator(sweep):
    class Step(torch.nn.Module):
        def forward(self, latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
            step = mixture_step(latents, codebook, temperature=torch.ones(()), seed=torch.tensor(3))
            return step.relaxed, step.codes

    latents, codebook = torch.randn(12, 3), torch.randn(20, 3)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Step(), (latents, codebook), dynamic_shapes=({0: rows}, None))
    assert sum("mixture_step" in str(node.target) for node in program.graph.nodes) == 1
    more, codebook = torch.randn(31, 3, requires_grad=True), codebook.requires_grad_()
    expected, codes = Step()(more, codebook)
    gradients = torch.autograd.grad(expected.square().sum(), (more, codebook))
    compiled_step = torch.compile(Step(), backend="aot_eager", fullgraph=True)
    for found in (program.module(), compiled_step):
        relaxed, found_codes = found(more, codebook)
        torch.testing.assert_close(relaxed, expected)
        torch.testing.assert_close(found_codes, codes)
    found_gradients = torch.autograd.grad(compiled_step(more, codebook)[0].square().sum(), (more, codebook))
    torch.testing.assert_close(found_gradients, gradients)


def test_a_nan_among_the_components_is_not_swallowed(sweep):
    for name in ("precisions", "biases"):
        part = torch.ones(9)
        part[4] = torch.nan
        step = mixture_step(torch.randn(6, 3), torch.randn(9, 3), **{name: part})
        assert step.energy.isnan().all(), name
        assert step.log_density.isnan().all(), name


def test_autocast_changes_nothing(sweep):
    latents, codebook = torch.randn(6, 3, requires_grad=True), torch.randn(9, 3)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = mixture_step(latents, codebook)
        gradients.append((step.aggregated, *torch.autograd.grad(step.aggregated.square().sum(), latents)))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at the first tangent
def test_function_transforms_go_through_the_definition():
    latents, codebook = torch.randn(6, 3), torch.randn(9, 3)

    def density(rows: Tensor) -> Tensor:
        return mixture_step(rows, codebook).log_density.sum()

    expected = torch.autograd.grad(density(latents.requires_grad_()), latents)[0]
    latents = latents.detach()
    torch.testing.assert_close(torch.func.grad(density)(latents), expected)
    tangent = torch.func.jvp(density, (latents,), (torch.ones_like(latents),))[1]
    torch.testing.assert_close(tangent, expected.sum())


def test_what_is_not_asked_for_costs_nothing():
    latents = torch.randn(6, 3, requires_grad=True)
    codebook = torch.randn(9, 3)
    mixture_step(latents, codebook).energy.sum().backward()
    assert latents.grad is not None
    assert codebook.grad is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3), torch.zeros(2, 3)), {}, "'latents' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 4)), {}, "'latents' must be"),
        ((torch.zeros(4, 3), torch.zeros(0, 3)), {}, "'latents' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(3, 3)), {}, "'values' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3).double()), {}, "one precision"),
        ((torch.zeros(4, 3).half(), torch.zeros(2, 3).half()), {}, "one precision"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"weights": torch.ones(3)}, "'weights' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"biases": torch.ones(2, 1)}, "'biases' must be"),
        (
            (torch.zeros(4, 3), torch.zeros(2, 3)),
            {"seed": torch.tensor(1)},
            "'temperature' must be given",
        ),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"floor": -1.0}, "'floor' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"temperature": 1.0}, "'temperature' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"temperature": torch.ones(4, 1)}, "'temperature' must be"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"temperature": torch.tensor(0.0)}, "'temperature' must be above 0"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"temperature": torch.ones(()), "seed": torch.ones(())}, "'seed'"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"biases": torch.zeros(2, device="meta")}, "'biases' must lie on"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        mixture_step(*arguments, **options)


def test_rows_and_codes_of_any_layout_are_the_same_step():
    # channels of a single sequence, moved last, are no copy
    rows, codes = torch.randn(4, 22).T, torch.randn(4, 16).T
    quantizer = gmvq.GaussianMixtureQuantizer(4, 16, codebook_dim=4)
    quantizer(torch.randn(64, 4))
    quantizer.eval()
    assert torch.equal(quantizer.encode(rows), quantizer.encode(rows.contiguous()))
    quantizer.train()
    quantizer.moving.codes.copy_(codes)
    loss = [quantizer.freeze()(latents).loss for latents in (rows, rows.contiguous())]
    torch.testing.assert_close(*loss)
