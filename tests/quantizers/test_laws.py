"""One list of members, one test for each law (style.md, 8)."""

import copy
import pickle

import pytest
import torch
from exceptions import EXCEPTIONS
from members import BLENDS, BOTTLENECKS, DIM, QUANTIZERS, SIZE, latents, trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmvq.quantizers import (
    ALBO,
    AbstractBottleneck,
    GaussianMixtureQuantizer,
    NoPosteriorError,
)


def members(makes, law: str):
    """Parametrizes over members but those that the law does not hold for."""
    kept = {name: make for name, make in makes.items() if name not in EXCEPTIONS.get(law, {})}
    return pytest.mark.parametrize("make", kept.values(), ids=kept.keys())


quantizers = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())
bottlenecks = pytest.mark.parametrize("make", BOTTLENECKS.values(), ids=BOTTLENECKS.keys())


@members(QUANTIZERS, "round trip")
def test_codes_of_decoded_codes_are_the_codes(make):
    quantizer = trained(make).eval()
    each = [torch.arange(size) for size in quantizer.codebook_sizes]
    codes = each[0] if not quantizer.code_shape else torch.cartesian_prod(*each).reshape(-1, *quantizer.code_shape)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@members({**QUANTIZERS, **BLENDS}, "one value")
def test_values_equal_decoded_codes_in_training(make):
    check_values(make, True)


@pytest.mark.parametrize("make", [*QUANTIZERS.values(), *BLENDS.values()], ids=[*QUANTIZERS, *BLENDS])
def test_values_equal_decoded_codes_in_evaluation(make):
    check_values(make, False)


def check_values(make, training):
    quantizer = trained(make).train(training)
    out = quantizer(latents(50, seed=9))
    assert torch.equal(out.values, quantizer.decode(out.codes))


@bottlenecks
def test_shapes_types_and_a_fresh_loss(make):
    bottleneck = trained(make)
    for training in (True, False):
        out = bottleneck.train(training)(latents(2, 3, 4))
        assert out.values.shape == (2, 3, 4, DIM)
        assert out.codes.shape[:3] == (2, 3, 4)
        assert out.loss.shape == ()
        assert all(term.shape == () and not term.requires_grad for term in out.terms.values())
        before = out.loss.item()
        with torch.no_grad():
            out.loss.add_(1.0)
        assert bottleneck.eval()(latents(2, 3, 4)).loss.item() != pytest.approx(before + 1.0)
    values, codes, loss, _ = bottleneck(latents(4))
    assert (values.shape, loss.ndim) == ((4, DIM), 0)
    assert codes.dtype == torch.int64 or bottleneck.codebook_size is None


@bottlenecks
def test_permuting_rows_permutes_codes(make):
    bottleneck = trained(make).eval()
    rows, order = latents(40), torch.randperm(40)
    torch.testing.assert_close(bottleneck.encode(rows)[order], bottleneck.encode(rows[order]))


@bottlenecks
def test_batched_equals_single(make):
    bottleneck = trained(make).eval()
    rows = latents(12)
    singles = torch.stack([bottleneck.encode(row) for row in rows])
    torch.testing.assert_close(bottleneck.encode(rows), singles)


@members(BOTTLENECKS, "masks")
def test_a_mask_equals_a_shorter_input(make):
    torch.manual_seed(0)
    full, short = make(), make()
    short.load_state_dict(full.state_dict())
    rows = latents(3, 10)
    mask = torch.arange(10).expand(3, 10) < torch.tensor([[10], [4], [1]])
    spoiled = torch.where(mask[..., None], rows, 1e6)
    for _ in range(2):
        torch.manual_seed(1)
        out = full(spoiled, mask)
        torch.manual_seed(1)
        expected = short(rows[mask])
    if full.codebook_size is not None:
        assert (out.codes[~mask] == -1).all()
        torch.testing.assert_close(out.values[mask], expected.values)
        assert torch.equal(out.codes[mask], expected.codes)
    assert (out.values[~mask] == 0).all()
    torch.testing.assert_close(out.loss, expected.loss)
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(tensor, short.state_dict()[name], msg=name)


@bottlenecks
def test_bfloat16_and_float32_agree_but_for_ties(make):
    bottleneck = trained(make).eval()
    rows = latents(500, dtype=torch.bfloat16)
    low, high = bottleneck(rows), bottleneck(rows.float())
    assert low.values.dtype == torch.bfloat16
    assert low.loss.dtype == torch.float32
    torch.testing.assert_close(low.codes, high.codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(bottleneck(rows.float()).values, high.values)
        torch.testing.assert_close(bottleneck(rows.float()).loss, high.loss)
        torch.testing.assert_close(bottleneck.decode(high.codes), bottleneck.decode(high.codes.clone()))


@bottlenecks
def test_float64_stays_float64(make):
    bottleneck = trained(make).double()
    out = bottleneck(latents(20, dtype=torch.float64))
    assert out.values.dtype == out.loss.dtype == torch.float64


@quantizers
@pytest.mark.parametrize("double", [False, True])
def test_latents_of_another_type_than_the_state_have_one_code(make, double):
    quantizer = trained(make).eval()
    quantizer = quantizer.double() if double else quantizer
    rows = latents(50, dtype=torch.float32 if double else torch.float64) + 1e3
    out = quantizer(rows)
    assert torch.equal(quantizer.encode(rows), out.codes)
    torch.testing.assert_close(out.values, quantizer._look_up(out.codes, rows.dtype), rtol=0, atol=0)


@members(BOTTLENECKS, "gradients")
def test_gradient_reaches_the_latents_and_all_parameters(make):
    bottleneck = trained(make)
    rows = latents(100, seed=4).requires_grad_()
    out = bottleneck(rows)
    # a linear form: a square would have no gradient at values of 0
    ((out.values * latents(100, seed=5)).sum() + out.loss).backward()
    assert rows.grad is not None
    assert (rows.grad.abs().sum(-1) > 0).all()
    for name, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@members(BOTTLENECKS, "gradients")
def test_gradient_reaches_the_latents_in_evaluation(make):
    """So that an encoder is tuned behind a quantizer that stays."""
    bottleneck = trained(make).eval()
    rows = latents(100, seed=4).requires_grad_()
    (bottleneck(rows).values * latents(100, seed=5)).sum().backward()
    assert rows.grad is not None
    assert (rows.grad.abs().sum(-1) > 0).all()


@bottlenecks
def test_a_pickled_copy_goes_on_as_the_first(make):
    bottleneck = trained(make)
    other = pickle.loads(pickle.dumps(bottleneck))
    for each in (bottleneck, other):
        torch.manual_seed(3)
        each(latents(30))
    for name, tensor in bottleneck.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@bottlenecks
def test_state_survives_save_and_load(make):
    bottleneck = trained(make)
    bottleneck.set_progress(0.5)
    other = make()
    other.load_state_dict(bottleneck.state_dict())
    assert other.progress == 0.5
    torch.manual_seed(3)
    first = bottleneck(latents(30))
    torch.manual_seed(3)
    second = other(latents(30))
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=0)
    torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0)


@bottlenecks
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_forward_leaves_the_same_state(make, reentrant):
    plain = trained(make)
    again = copy.deepcopy(plain)
    again.load_state_dict(plain.state_dict())
    layer = nn.Linear(DIM, DIM)
    gradients = []
    for bottleneck, wrapped in ((plain, False), (again, True)):
        for step in range(3):
            torch.manual_seed(step)
            layer.zero_grad()
            rows = latents(60, seed=20 + step).requires_grad_()

            def run(rows: Tensor, bottleneck: AbstractBottleneck = bottleneck) -> tuple[Tensor, Tensor]:
                out = bottleneck(layer(rows))
                return out.values, out.loss

            values, loss = checkpoint(run, rows, use_reentrant=reentrant) if wrapped else run(rows)
            (values.square().mean() + loss).backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], rtol=0, atol=0, msg=name)


@bottlenecks
def test_evaluation_changes_nothing(make):
    bottleneck = trained(make).eval()
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    bottleneck(latents(30))
    bottleneck.encode(latents(30))
    bottleneck.sample_posterior(latents(30))
    for name, tensor in bottleneck.state_dict().items():
        assert torch.equal(tensor, before[name]), name


EXTREMES = {
    "far": lambda: latents(64) * 1e6,
    "very-far": lambda: latents(64) * 1e30,
    "tiny": lambda: latents(64) * 1e-20,
    "zero": lambda: torch.zeros(64, DIM),
    "equal": lambda: torch.ones(64, DIM) * 3,
    "one": lambda: latents(1),
    "few": lambda: latents(5),
    "duplicates": lambda: latents(4).repeat(16, 1),
    "none": lambda: latents(0),
    "outlier": lambda: torch.cat([latents(63), torch.full((1, DIM), 1e6)]),
}


@bottlenecks
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("first", ["extreme", "normal"])
def test_nothing_finite_makes_nan(make, extreme, first):
    torch.manual_seed(0)
    bottleneck = make()
    batches = (
        [extreme(), latents(64), extreme(), extreme()] if first == "extreme" else [latents(64), extreme(), extreme()]
    )
    for rows in batches:
        rows = rows.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = bottleneck(rows)
        (out.values.clamp(-1e3, 1e3).sum() + out.loss).backward()
        assert out.values.isfinite().all()
        assert out.loss.isfinite()
        assert rows.grad is not None
        assert not rows.grad.isnan().any()
        assert all(parameter.grad is None or not parameter.grad.isnan().any() for parameter in bottleneck.parameters())
    bottleneck.eval()
    for name, tensor in bottleneck.state_dict().items():
        assert not tensor.isnan().any(), name
    if len(rows):
        sample = bottleneck.sample_posterior(rows)
        assert all(not part.isnan().any() for part in sample)
        assert not bottleneck.divergence(rows).isnan().any()
        assert not bottleneck.posterior_mean(rows).isnan().any()


HALVES = {
    "large": lambda: (torch.rand(32, DIM, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 65504,
    "equal": lambda: torch.full((32, DIM), 6e4),
    "zero": lambda: torch.zeros(32, DIM),
    "one": lambda: torch.full((1, DIM), -6e4),
}


@bottlenecks
@pytest.mark.parametrize("rows", HALVES.values(), ids=HALVES.keys())
def test_finite_latents_of_float16_stay_finite(make, rows):
    torch.manual_seed(0)
    bottleneck = make().half()
    for training in (True, True, False):
        latents = rows().half().requires_grad_()
        out = bottleneck.train(training)(latents)
        assert out.values.isfinite().all()
        (out.values.float() * torch.randn(out.values.shape)).sum().add(out.loss).backward()
        assert latents.grad.isfinite().all()
    assert torch.equal(bottleneck.decode(out.codes), out.values) or bottleneck.codebook_size is None
    assert bottleneck.posterior_mean(rows().half()).isfinite().all()
    assert bottleneck.sample_posterior(rows().half()).values.isfinite().all()


@bottlenecks
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_latent_that_is_not_finite_marks_its_own_row_only(make, bad):
    torch.manual_seed(0)
    clean, spoiled = make(), make()
    spoiled.load_state_dict(clean.state_dict())
    rows = latents(40)
    broken = rows.clone()
    broken[7, 2] = bad
    kept = torch.arange(40) != 7
    for seed in range(2):
        torch.manual_seed(seed)
        out = spoiled(broken)
        torch.manual_seed(seed)
        clean(rows[kept])
    assert out.values[7].isnan().all()
    assert out.values[kept].isfinite().all()
    assert out.loss.isfinite()
    if spoiled.codebook_size is not None:
        assert (out.codes[7] == -1).all()
        assert (spoiled.encode(broken)[7] == -1).all()
    for name, tensor in spoiled.state_dict().items():
        torch.testing.assert_close(tensor, clean.state_dict()[name], msg=name)


@bottlenecks
def test_bad_input_gets_a_reason(make):
    bottleneck = make()
    with pytest.raises(ValueError, match="last axis of 'latents'"):
        bottleneck(torch.randn(3, DIM + 1))
    with pytest.raises(ValueError, match="must be floats"):
        bottleneck(torch.zeros(3, DIM, dtype=torch.int64))
    with pytest.raises(ValueError, match="'mask' must be boolean"):
        bottleneck(latents(3), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="'progress'"):
        bottleneck.set_progress(1.5)


@quantizers
def test_decode_refuses_what_is_no_code(make):
    quantizer = make()
    shape = quantizer.code_shape
    for code in (quantizer.codebook_size, -2):
        with pytest.raises(ValueError, match="must lie in"):
            quantizer.decode(torch.full((1, *shape), code))
    with pytest.raises(ValueError, match="must be integers"):
        quantizer.decode(torch.zeros(1, *shape))
    assert (quantizer.decode(torch.full((1, *shape), -1)) == 0).all()


@bottlenecks
def test_posterior_or_a_plain_error(make):
    bottleneck = trained(make).eval()
    if not bottleneck.has_posterior:
        with pytest.raises(NoPosteriorError, match="no posterior"):
            bottleneck.posterior(latents(3))
        return
    responsibilities, entropy, log_density = bottleneck.posterior(latents(5, 3))
    shape = (5, 3, *bottleneck.code_shape)
    assert responsibilities.shape == (*shape, bottleneck.codebook_size)
    assert entropy.shape == (5, 3)
    assert log_density is None or log_density.shape == (5, 3)
    torch.testing.assert_close(responsibilities.sum(-1), torch.ones(shape))
    assert torch.equal(responsibilities.argmax(-1), bottleneck.encode(latents(5, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck.posterior(latents(5, 3)).responsibilities, responsibilities)
    assert bottleneck.posterior(latents(2, 0)).entropy.shape == (2, 0)


@bottlenecks
def test_sample_posterior_is_reproducible_and_consistent(make):
    bottleneck = trained(make).eval()
    rows = latents(2, 7)
    first, second = (bottleneck.sample_posterior(rows, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert first.log_prior.shape == first.log_posterior.shape == (2, 7)
    # E_q[log q - log p] is the divergence, or less where the code is summed out
    many = rows[:1, :1].expand(4000, 1, DIM)
    draws = bottleneck.sample_posterior(many, torch.Generator().manual_seed(6))
    estimate = (draws.log_posterior - draws.log_prior).mean().item()
    exact = bottleneck.divergence(rows)[0, 0].item()
    tolerance = (
        4 * (draws.log_posterior - draws.log_prior).std().item() / 4000**0.5 + 3e-3
    )  # of codes too rare to be drawn
    assert estimate <= exact + tolerance
    if not (isinstance(bottleneck, GaussianMixtureQuantizer) and not bottleneck.noise.is_none):
        assert estimate == pytest.approx(exact, abs=tolerance)


def test_a_second_objective_weight_changes_the_loss():
    rows = latents(50)
    losses = []
    for weight in (1.0, 2.0):
        torch.manual_seed(0)
        losses.append(GaussianMixtureQuantizer(DIM, SIZE, objective=ALBO(distance_weight=weight))(rows).loss.item())
    assert losses[1] > losses[0]
