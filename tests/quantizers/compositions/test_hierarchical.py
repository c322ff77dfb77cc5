import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gmvq.quantizers import (
    ChannelFirst,
    FiniteScalarQuantizer,
    GaussianMixtureQuantizer,
    NoPosteriorError,
    Product,
    Residual,
    StochasticQuantizer,
    VectorQuantizer,
)
from gmvq.quantizers.compositions.hierarchical import Hierarchical

DIM, SIZE = 4, 16
SCALES = (1, 0.5, 1.0)

MAKE = {
    "shared": lambda: Hierarchical(VectorQuantizer(DIM, SIZE, decay=None), SCALES),
    "shared-ema": lambda: Hierarchical(VectorQuantizer(DIM, SIZE, decay=0.9, revive_below=0.5), SCALES),
    "own": lambda: Hierarchical([VectorQuantizer(DIM, k, decay=None) for k in (4, 8, 16)], SCALES),
    "cubic": lambda: Hierarchical(VectorQuantizer(DIM, SIZE, decay=0.9), SCALES, interpolation="cubic"),
    "finite-scalar": lambda: Hierarchical(FiniteScalarQuantizer([4, 4, 3, 3]), SCALES),
    "projected": lambda: Hierarchical(VectorQuantizer(DIM, SIZE, codebook_dim=2), SCALES),
    "mixture": lambda: Hierarchical(GaussianMixtureQuantizer(DIM, SIZE), SCALES),
    "product": lambda: Hierarchical(Product(VectorQuantizer(2, SIZE, decay=0.9), heads=2), SCALES),
    "residual": lambda: Hierarchical(Residual(VectorQuantizer(DIM, SIZE, decay=0.9), 2), SCALES),
    "one": lambda: Hierarchical(VectorQuantizer(DIM, SIZE), (1.0,)),
}
LEARNS = [name for name in MAKE if name != "finite-scalar"]
makes = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
SHAPES = {"1d": (3, 9), "2d": (3, 6, 5), "3d": (2, 4, 3, 4)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def maps(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64).to(dtype)


def some(*shape, seed=0):
    """A mask of which the first sample has a whole corner left out, and the last all but one place."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0][tuple(slice(0, (n + 1) // 2) for n in shape[1:])] = False
    mask[-1] = False
    mask[-1].view(-1)[-1] = True
    return mask


def trained(make, *shape, dtype=torch.float32):
    torch.manual_seed(0)
    quantizer = make().to(dtype)
    for seed in range(3):
        quantizer(maps(*(shape or (8, 6, 5)), seed=seed, dtype=dtype))
    return quantizer


# what it computes


def test_a_sequence_by_hand():
    member = VectorQuantizer(1, 4, decay=None, kmeans_start=False, commitment_weight=0.5)
    quantizer = Hierarchical(member, (1, 2, 1.0), commitment_weight=0.5).double()
    with torch.no_grad():
        member.learned.copy_(torch.tensor([[2.0], [1.0], [-1.0], [0.0]]))
    z = torch.tensor([2.4, 2.8, 0.2, 0.6]).double()[None, :, None]
    out = quantizer(z)
    # mean 1.5: a tie of 2 and 1, to the first; then residuals 0.4 0.8 -1.8 -1.4, of which the halves have 0.6 and -1.6
    # codes 1, -1 enlarged: 1, 0.5, -0.5, -1; then residuals -0.6 0.3 -1.3 -0.4
    assert out.codes.tolist() == [[0, 1, 2, 2, 3, 2, 3]]
    assert out.values.flatten().tolist() == [2.0, 2.5, 0.5, 1.0]
    errors = [torch.tensor(part).square().mean() for part in ([0.5], [0.4, 0.6], [0.4, 0.3, 0.3, 0.4])]
    expected = 1.5 * sum(errors) + 0.5 * sum(errors[1:])
    torch.testing.assert_close(out.loss, expected.double())


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(7, 10), (8, 8), (16, 16)])
def test_equals_torch_interpolation(interpolation, size):
    scales = (1, 2, (3, 4), 5, 1.0)
    torch.manual_seed(0)
    member = VectorQuantizer(DIM, 32, decay=None, kmeans_start=False)
    quantizer = Hierarchical(member, scales, interpolation=interpolation).double()
    with torch.no_grad():
        member.learned.normal_()
    z = maps(2, *size, dtype=torch.float64)
    residual, total, codes = z.movedim(-1, 1), 0, []
    for grid in quantizer.grids(size):
        coarse = F.interpolate(residual, size=grid, mode="area").movedim(1, -1)
        codes.append(torch.cdist(coarse, member.learned.detach()).argmin(-1))
        mode = "bilinear" if interpolation == "linear" else "bicubic"
        enlarged = F.interpolate(member.learned[codes[-1]].movedim(-1, 1), size=size, mode=mode)
        residual, total = residual - enlarged, total + enlarged
    out = quantizer(z)
    assert all(torch.equal(part, code) for part, code in zip(quantizer.split(out.codes, size), codes, strict=True))
    torch.testing.assert_close(out.values, total.movedim(1, -1))


def test_full_grids_alone_are_a_residual_quantizer():
    torch.manual_seed(0)
    hierarchical = Hierarchical([VectorQuantizer(DIM, 8, decay=None) for _ in range(3)], (1.0, 1.0, 1.0))
    residual = Residual([VectorQuantizer(DIM, 8, decay=None) for _ in range(3)])
    residual.load_state_dict(hierarchical.state_dict())
    for seed in range(2):
        z = maps(3, 5, 4, seed=seed)
        first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
        weights = maps(3, 5, 4, seed=9)
        out, expected = hierarchical(first), residual(second)
        ((out.values * weights).sum() + out.loss).backward()
        ((expected.values * weights).sum() + expected.loss).backward()
        torch.testing.assert_close(out.values, expected.values)
        assert torch.equal(out.codes, expected.codes.movedim(-1, 1).flatten(1))
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(first.grad, second.grad)
    for one, other in zip(hierarchical.parameters(), residual.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_one_full_scale_is_its_member():
    quantizer = trained(MAKE["one"])
    member = copy.deepcopy(quantizer.places[0])
    member.updates_itself = True  # the composite's update was its
    z = maps(3, 6, 5, seed=7)
    out, expected = quantizer(z), member(z)
    assert torch.equal(out.values, expected.values)
    assert torch.equal(out.codes, expected.codes.flatten(1))
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@shapes
def test_the_gradient_of_values_is_the_identity(shape, interpolation):
    member = VectorQuantizer(DIM, SIZE, commitment_weight=0.0)
    quantizer = Hierarchical(member, SCALES, interpolation=interpolation, commitment_weight=0.0).double()
    for mask in (None, some(*shape)):
        z, weights = maps(*shape, dtype=torch.float64).requires_grad_(), maps(*shape, seed=3, dtype=torch.float64)
        (quantizer(z, mask).values * weights).sum().backward()
        kept = torch.ones(shape) if mask is None else mask
        torch.testing.assert_close(z.grad, weights * kept[..., None])


def test_the_commitment_counts_once():
    beta, size = 0.3, (6, 4)
    member = VectorQuantizer(DIM, 8, commitment_weight=beta)
    quantizer = Hierarchical(member, (1, 2, (3, 4), 1.0), commitment_weight=beta).double()
    z = maps(2, *size, dtype=torch.float64).requires_grad_()
    out = quantizer(z)
    out.loss.backward()
    # each scale pulls the means of what the scales before it have left, all else held fixed, to its codes
    free, loss = z.detach().clone().requires_grad_(), 0
    for scale, part in enumerate(quantizer.split(out.codes, size)):
        before = quantizer.decode(out.codes, size, scales=scale) if scale else torch.zeros_like(free)
        coarse = F.interpolate((free - before).movedim(-1, 1), size=part.shape[1:], mode="area").movedim(1, -1)
        loss = loss + beta * F.mse_loss(coarse, member.decode(part))
    loss.backward()
    torch.testing.assert_close(z.grad, free.grad)


def test_a_shared_codebook_starts_from_all_scales():
    torch.manual_seed(0)
    quantizer = Hierarchical(VectorQuantizer(DIM, 64, decay=None), (1, 2, 1.0))
    out = quantizer(maps(2, 16, 16))
    # two maps have two places of the coarsest scale; a start from those alone leaves all codes at two points
    assert len(out.codes.unique()) > 48


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [VectorQuantizer, GaussianMixtureQuantizer])
def test_the_first_batch_counts_once(make, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    member = make(DIM, 8)
    quantizer = Hierarchical(member, (1, 2, 1.0))
    forward = torch.compile(quantizer, fullgraph=True, backend="eager") if compiled else quantizer
    out = forward(maps(3, 4, 4))
    # a mixture feeds codes that starve with a little more
    assert member.moving.pending_counts.sum().item() == pytest.approx(out.codes.numel(), abs=2)  # 63
    if isinstance(member, VectorQuantizer):
        assert torch.equal(member.moving.pending_counts, out.codes.flatten().bincount(minlength=8).float())
    state = {name: tensor.clone() for name, tensor in member.moving.state_dict().items()}
    quantizer.update()
    assert not torch.equal(member.moving.codes, state["codes"])


def test_the_first_batch_of_nested_levels_counts_once():
    torch.manual_seed(0)
    member = Residual([VectorQuantizer(DIM, 8) for _ in range(2)], quantizer_dropout=True)
    Hierarchical(member, (1, 2, 1.0))(maps(3, 4, 4))
    assert [part.moving.pending_counts.sum().item() for part in member.members] == [63, 63]
    assert member.pending_start


def test_the_commitment_is_the_members_own():
    z = maps(3, 6, 4)
    own = trained(lambda: Hierarchical([VectorQuantizer(DIM, 8, commitment_weight=b) for b in (0.3, 0.1)], (0.5, 1.0)))
    out = own.eval()(z)
    first, second = (own.places[scale].commitment_weight * out.terms[f"{scale}.commitment"] for scale in (0, 1))
    torch.testing.assert_close(out.loss, first + second + 0.1 * out.terms["commitment"])
    given = Hierarchical(list(own.places), (0.5, 1.0), commitment_weight=0.7).eval()
    torch.testing.assert_close(given(z).loss, first + second + 0.7 * out.terms["commitment"])
    assert MAKE["finite-scalar"]()(z).loss == 0
    torch.manual_seed(0)
    nats = Hierarchical([StochasticQuantizer(DIM, 8) for _ in range(2)], (0.5, 1.0)).eval()
    coarse = F.interpolate(z.movedim(-1, 1), size=(3, 2), mode="area").movedim(1, -1)
    rest = z - nats.decode(nats.encode(z), (6, 4), scales=1)
    torch.testing.assert_close(nats(z).loss, nats.places[0](coarse).loss + nats.places[1](rest).loss)
    with pytest.raises(ValueError, match="whose loss is in nats"):
        Hierarchical(StochasticQuantizer(DIM, 8), (0.5, 1.0), commitment_weight=0.25)


# codes


@makes
@shapes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_equal_decoded_codes(make, shape, masked, dtype):
    quantizer = trained(make, *shape)
    quantizer = quantizer.double() if dtype == torch.float64 else quantizer
    z, mask = maps(*shape, seed=5, dtype=dtype), some(*shape) if masked else None
    for training in (True, False):
        out = quantizer.train(training)(z, mask)
        assert out.values.dtype == dtype
        assert torch.equal(out.values, quantizer.decode(out.codes, shape[1:]).to(dtype))
    assert torch.equal(out.codes, quantizer.encode(z, mask))


def test_values_of_float64_in_a_float32_quantizer_equal_decoded_codes():
    quantizer = trained(MAKE["shared"])
    out = quantizer(maps(3, 6, 5, dtype=torch.float64))
    assert torch.equal(out.values, quantizer.decode(out.codes, (6, 5)).double())


def test_first_scales_decode_alone():
    quantizer = trained(MAKE["own"])
    codes = quantizer.encode(maps(3, 6, 5))
    ends = [1, 1 + 3 * 2, 1 + 6 + 30]
    assert codes.shape == (3, ends[-1])
    for scales, end in enumerate(ends, start=1):
        coarse = quantizer.decode(codes, (6, 5), scales=scales)
        assert torch.equal(quantizer.decode(codes[:, :end], (6, 5)), coarse)
        assert len(quantizer.split(codes[:, :end], (6, 5))) == scales
    errors = [(quantizer.decode(codes, (6, 5), scales=n) - maps(3, 6, 5)).square().mean() for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_split_puts_coarse_first_in_reading_order():
    quantizer = Hierarchical(VectorQuantizer(DIM, 64), (1, 2, (2, 4)))
    parts = quantizer.split(torch.arange(13)[None])
    assert [part[0].tolist() for part in parts] == [[[0]], [[1, 2], [3, 4]], [[5, 6, 7, 8], [9, 10, 11, 12]]]


def test_sizes_of_grids():
    quantizer = Hierarchical(VectorQuantizer(DIM, 8), (1, 0.25, (2, 0.5), 1.0))
    assert quantizer.grids((8, 8)) == ((1, 1), (2, 2), (2, 4), (8, 8))
    assert quantizer.grids((4, 12)) == ((1, 1), (1, 3), (2, 6), (4, 12))
    assert Hierarchical(VectorQuantizer(DIM, 8), (1, 1.0)).grids(5) == ((1,), (5,))
    with pytest.raises(ValueError, match="none may be finer"):
        quantizer.grids((1, 8))
    with pytest.raises(ValueError, match="2 axes"):
        Hierarchical(VectorQuantizer(DIM, 8), ((1, 1, 1), 1.0)).grids((4, 4))


def test_code_shape_and_sizes_are_those_of_a_place():
    assert MAKE["own"]().code_shape == ()
    assert MAKE["own"]().codebook_sizes == (16,)
    assert MAKE["product"]().code_shape == (2,)
    assert trained(MAKE["product"]).encode(maps(2, 6, 5)).shape == (2, 37, 2)


# masks


@makes
@shapes
def test_what_stands_in_masked_places_changes_nothing(make, shape):
    torch.manual_seed(0)
    first, second = make(), make()
    second.load_state_dict(first.state_dict())
    mask = some(*shape)
    for seed in range(3):
        z = maps(*shape, seed=seed)
        spoiled = torch.where(mask[..., None], z, 1e6 * maps(*shape, seed=99))
        spoiled[0].view(-1, DIM)[0] = torch.nan
        torch.manual_seed(seed)
        out = first(z, mask)
        torch.manual_seed(seed)
        other = second(spoiled, mask)
        assert torch.equal(out.values, other.values)
        assert torch.equal(out.codes, other.codes)
        assert torch.equal(out.loss, other.loss)
    assert (out.values[~mask] == 0).all()
    finest = first.split(out.codes, shape[1:])[-1]
    assert torch.equal(finest.reshape(*shape, -1).amin(-1) == -1, ~mask)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, second.state_dict()[name], rtol=0, atol=0, msg=name)


def test_a_coarse_place_counts_what_counts_in_it():
    quantizer = trained(MAKE["shared"])
    z, mask = maps(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 3, 2] = True
    codes = quantizer.split(quantizer.encode(z, mask), (4, 4))
    assert (codes[1][0] >= 0).tolist() == [[True, False], [False, True]]
    mean = (z[0, 0, 1] + z[0, 3, 2]) / 2
    first = quantizer.places[0].decode(quantizer.places[0].encode(mean))
    assert torch.equal(codes[0].flatten(), quantizer.places[0].encode(mean[None]))
    assert torch.equal(codes[1][0, 0, 0], quantizer.places[0].encode(z[0, 0, 1] - first))
    # each enlarged from the one coarse neighbour that counts
    second = quantizer.places[0].decode(codes[1][0, 0, 0])
    torch.testing.assert_close(
        quantizer.decode(torch.cat([c.flatten(1) for c in codes], 1), (4, 4), scales=2)[0, 0, 1], first + second
    )


def test_channels_may_come_first():
    quantizer = ChannelFirst(Hierarchical(VectorQuantizer(DIM, SIZE), (1, (6, 5))))
    out = quantizer(maps(3, 6, 5).movedim(-1, 1))
    assert torch.equal(out.values, quantizer.decode(out.codes))
    assert out.values.shape == (3, DIM, 6, 5)


def test_a_map_without_places_leaves_the_others_alone():
    quantizer = trained(MAKE["shared"]).eval()
    z, mask = maps(3, 6, 5), torch.ones(3, 6, 5, dtype=torch.bool)
    mask[1] = False
    out, expected = quantizer(z, mask), quantizer(z[[0, 2]])
    assert (out.codes[1] == -1).all()
    assert torch.equal(out.codes[[0, 2]], expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)


def test_lengths_are_a_mask():
    quantizer = trained(MAKE["shared"], 3, 9).eval()
    z, lengths = maps(3, 9), torch.tensor([9, 4, 1])
    out, expected = quantizer(z, lengths=lengths), quantizer(z, torch.arange(9) < lengths[:, None])
    assert torch.equal(out.values, expected.values)
    assert torch.equal(out.codes, quantizer.encode(z, lengths=lengths))


def test_a_latent_that_is_not_finite_is_as_masked_and_says_so():
    quantizer = trained(MAKE["shared"]).eval()
    z, mask = maps(2, 6, 5), torch.ones(2, 6, 5, dtype=torch.bool)
    mask[1, 2, 3] = False
    broken = z.clone()
    broken[1, 2, 3, 0] = torch.inf
    out, expected = quantizer(broken), quantizer(z, mask)
    assert out.values[1, 2, 3].isnan().all()
    assert torch.equal(out.values[mask], expected.values[mask])
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)


# the laws of all members


@makes
def test_batched_equals_single_and_permuting_permutes(make):
    quantizer = trained(make).eval()
    z, order = maps(6, 6, 5), torch.randperm(6)
    codes = quantizer.encode(z)
    assert torch.equal(torch.cat([quantizer.encode(part[None]) for part in z]), codes)
    assert torch.equal(quantizer.encode(z[order]), codes[order])


@makes
def test_bfloat16_and_autocast_agree(make):
    quantizer = trained(make).eval()
    z = maps(4, 6, 5, dtype=torch.bfloat16)
    low, high = quantizer(z), quantizer(z.float())
    assert low.loss.dtype == torch.float32
    assert torch.equal(low.codes, high.codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(z.float()).values, high.values)
        assert torch.equal(quantizer.decode(high.codes, (6, 5)), high.values)
    state = {name: tensor.dtype for name, tensor in quantizer.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in quantizer.bfloat16().state_dict().items()} == state


@makes
def test_gradient_reaches_all(make):
    quantizer = trained(make)
    z = maps(4, 6, 5, seed=4).requires_grad_()
    out = quantizer(z)
    (out.values.square().sum() + out.loss).backward()
    assert (z.grad.abs().sum(-1) > 0).all()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@makes
def test_state_survives_save_and_load(make):
    quantizer, other = trained(make), make()
    quantizer.set_progress(0.5)
    other.load_state_dict(quantizer.state_dict())
    torch.manual_seed(3)
    first = quantizer(maps(4, 6, 5))
    torch.manual_seed(3)
    second = other(maps(4, 6, 5))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.loss, second.loss)
    assert other.places[0].progress == 0.5


def test_a_shared_codebook_is_stored_and_updated_once():
    quantizer = trained(MAKE["shared-ema"])
    assert sum(name.endswith("moving.codes") for name in quantizer.state_dict()) == 1
    moving = quantizer.places[0].moving
    expected, pending = moving.counts.clone(), moving.pending_counts.clone()
    assert pending.sum() == 8 * (1 + 6 + 30)
    quantizer.update()
    alive = moving.counts != 0.5  # not revived
    torch.testing.assert_close(moving.counts[alive], (0.9 * expected + 0.1 * pending)[alive])


@makes
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_checkpointed_forward_leaves_the_same_state(make, reentrant, fresh):
    torch.manual_seed(0)
    plain = make() if fresh else trained(make)
    again = copy.deepcopy(plain)
    layer, gradients = nn.Linear(DIM, DIM), []
    for quantizer, wrapped in ((plain, False), (again, True)):
        for step in range(3):
            torch.manual_seed(step)
            layer.zero_grad()

            def run(z, quantizer=quantizer):
                out = quantizer(layer(z))
                return out.values, out.loss

            z = maps(4, 6, 5, seed=20 + step).requires_grad_()
            values, loss = checkpoint(run, z, use_reentrant=reentrant) if wrapped else run(z)
            (values.square().mean() + loss).backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@makes
def test_evaluation_and_freezing_change_nothing(make):
    quantizer = trained(make)
    quantizer.update()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()(maps(4, 6, 5))
    quantizer.encode(maps(4, 6, 5))
    quantizer.train().freeze()(maps(4, 6, 5, seed=8))
    quantizer.update()
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(not parameter.requires_grad for parameter in quantizer.parameters())


EXTREMES = {
    "far": lambda: maps(4, 4, 4) * 1e6,
    "very-far": lambda: maps(4, 4, 4) * 1e30,
    "tiny": lambda: maps(4, 4, 4) * 1e-20,
    "zero": lambda: torch.zeros(4, 4, 4, DIM),
    "equal": lambda: torch.ones(4, 4, 4, DIM) * 3,
    "one": lambda: maps(1, 2, 2),
    "none": lambda: maps(0, 4, 4),
    "duplicates": lambda: maps(1, 1, 1).repeat(4, 4, 4, 1),
}


@makes
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES.keys())
def test_nothing_finite_makes_nan(make, extreme):
    torch.manual_seed(0)
    quantizer = make()
    for z in (extreme(), maps(4, 4, 4), extreme(), extreme()):
        z = z.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = quantizer(z)
        (out.values.clamp(-1e3, 1e3).sum() + out.loss).backward()
        assert out.values.isfinite().all()
        assert out.loss.isfinite()
        assert not z.grad.isnan().any()
        assert all(parameter.grad is None or not parameter.grad.isnan().any() for parameter in quantizer.parameters())
    for name, tensor in quantizer.state_dict().items():
        assert not tensor.isnan().any(), name


def test_an_empty_batch_and_a_batch_without_places_start_nothing():
    quantizer = MAKE["shared-ema"]()
    assert quantizer(maps(0, 4, 4)).codes.shape == (0, 21)
    quantizer(maps(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    assert not quantizer.places[0].moving.has_started
    quantizer(maps(2, 4, 4))
    assert quantizer.places[0].moving.has_started


def test_posterior_reads_as_a_deterministic_quantizer():
    quantizer = trained(MAKE["own"]).eval()
    z = maps(3, 6, 5)
    sample, divergence = quantizer.sample_posterior(z), quantizer.divergence(z)
    assert torch.equal(quantizer.posterior_mean(z), quantizer(z).values)
    assert torch.equal(sample.values, quantizer(z).values)
    torch.testing.assert_close(sample.log_posterior - sample.log_prior, divergence)
    nats = torch.tensor([4.0, 8.0, 16.0]).log() @ torch.tensor([1.0, 6.0, 30.0])
    torch.testing.assert_close(divergence.sum((1, 2)), nats.expand(3))
    with pytest.raises(NoPosteriorError):
        quantizer.posterior(z)


# compilation and ranks


@pytest.mark.parametrize(("name", "training"), [("shared-ema", True), ("own", True), ("cubic", False)])
def test_compiles_without_a_break(name, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    quantizer = MAKE[name]().train(training)
    plain = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for seed in range(3):
        z, mask = maps(3, 6, 5, seed=seed), some(3, 6, 5)
        torch.manual_seed(seed)
        out = compiled(z, mask)
        torch.manual_seed(seed)
        expected = plain(z, mask)
        assert torch.equal(out.codes, expected.codes)
        torch.testing.assert_close(out.values, expected.values)
        torch.testing.assert_close(out.loss, expected.loss)
    for key, tensor in quantizer.state_dict().items():
        if "revivals" not in key:  # the draws of the first forward differ: only eager ones are kept apart
            torch.testing.assert_close(tensor, plain.state_dict()[key], msg=key)


class Verbs(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z):
        codes = self.quantizer.encode(z)
        return codes, self.quantizer.decode(codes, z.shape[1:-1])


def test_exports():
    quantizer = trained(MAKE["cubic"]).eval()
    batch = ({0: torch.export.Dim("batch", min=2, max=1000)},)
    z, example = maps(3, 6, 5), maps(4, 6, 5)
    exported = torch.export.export(quantizer, (example,), dynamic_shapes=batch).module()(z)
    assert torch.equal(exported.codes, quantizer(z).codes)
    assert torch.equal(exported.values, quantizer(z).values)
    codes, values = torch.export.export(Verbs(quantizer), (example,), dynamic_shapes=batch).module()(z)
    assert torch.equal(codes, quantizer.encode(z))
    assert torch.equal(values, quantizer.decode(codes, (6, 5)))


def run(name, rank):
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    for seed in range(3):
        z = maps(8, 6, 5, seed=seed)
        z = (z if rank is None else z.chunk(2)[rank]).requires_grad_()
        quantizer.zero_grad()
        out = quantizer(z)
        (out.loss + out.values.square().mean()).backward()
    gradients = {key: value.grad for key, value in quantizer.named_parameters()}
    return {**quantizer.state_dict()}, gradients, z.grad, out.loss.detach()


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in ("shared", "shared-ema", "own", "mixture"):
        torch.save(run(name, rank), f"{folder}/{name}-{rank}")
    dist.destroy_process_group()
    # threads of gloo may still drop their tensors, which aborts an interpreter that is being taken down
    os._exit(0)


def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    for name in ("shared", "shared-ema", "own", "mixture"):
        state, gradients, latents, loss = run(name, None)
        first, second = (torch.load(tmp_path / f"{name}-{rank}") for rank in range(2))
        for key, value in state.items():
            torch.testing.assert_close(first[0][key], second[0][key], rtol=0, atol=0, msg=key)
            torch.testing.assert_close(first[0][key], value, rtol=1e-4, atol=1e-5, msg=key)
        for key, value in gradients.items():
            torch.testing.assert_close((first[1][key] + second[1][key]) / 2, value, rtol=1e-4, atol=1e-6, msg=key)
        torch.testing.assert_close(torch.cat([first[2], second[2]]) / 2, latents, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close((first[3] + second[3]) / 2, loss)


# bad arguments


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scales": ()}, "'scales' must have at least one"),
        ({"scales": 4}, "'scales' must have at least one"),
        ({"scales": "12"}, "'scales' must have at least one"),
        ({"scales": (0, 1.0)}, "'scales' must be integers"),
        ({"scales": (1, 1.5)}, "'scales' must be integers"),
        ({"scales": (True, 1.0)}, "'scales' must be integers"),
        ({"scales": ((1, 0.0), 1.0)}, "'scales' must be integers"),
        ({"scales": ((), 1.0)}, "'scales' must have at least one"),
        ({"scales": (4, 2, 1.0)}, "from coarse to fine"),
        ({"scales": (0.5, 0.25, 1.0)}, "from coarse to fine"),
        ({"scales": (1.0, 0.5)}, "from coarse to fine"),
        ({"scales": (4, 0.5, 2, 8)}, "from coarse to fine"),
        ({"scales": (2, (4, 1), 8)}, "from coarse to fine"),
        ({"scales": ((2, 0.5), (4, 0.25), 1.0)}, "from coarse to fine"),
        ({"scales": ((1, 1), (2, 2, 2), 1.0)}, "one number of axes"),
        ({"scales": (1, 0.5)}, "must end with the full grid"),
        ({"scales": (1, (4, 0.5))}, "must end with the full grid"),
        ({"interpolation": "nearest"}, "'interpolation'"),
        ({"commitment_weight": -1.0}, "'commitment_weight'"),
        ({"quantizers": [VectorQuantizer(DIM, 8)]}, "one for each of the 2 scales"),
        ({"quantizers": []}, "'quantizers' must be a quantizer or a list"),
        ({"quantizers": [VectorQuantizer(DIM, 8), VectorQuantizer(DIM + 1, 8)]}, "same 'dim'"),
        ({"quantizers": [VectorQuantizer(DIM, 8), Product(VectorQuantizer(2, 8), 2)]}, "codes of one shape"),
    ],
)
def test_bad_arguments_get_a_reason(arguments, reason):
    member = VectorQuantizer(DIM, 8)
    with pytest.raises(ValueError, match=reason):
        Hierarchical(**{"quantizers": member, "scales": (1, 1.0), **arguments})
    assert member.updates_itself


@pytest.mark.parametrize("scales", [(1, 1, 1.0), (1.0, 1.0), (0.5, 4, 1.0), (4, 0.5, 8), (1.0, 4), ((1, 0.5), 1.0)])
def test_scales_that_may_be_coarse_to_fine_are_taken(scales):
    assert Hierarchical(VectorQuantizer(DIM, 8), scales).scales == scales


def test_bad_input_gets_a_reason():
    quantizer = Hierarchical(VectorQuantizer(DIM, 8), (1, 2, 4))
    for z, reason in (
        (torch.randn(3, DIM), "must be maps"),
        (torch.randn(1, 2, 2, 2, 2, DIM), "must be maps"),
        (maps(2, 4, 5), "full grid"),
        (torch.randn(2, 4, 4, DIM + 1), "last axis"),
        (torch.zeros(2, 4, 4, DIM, dtype=torch.int64), "must be floats"),
    ):
        with pytest.raises(ValueError, match=reason):
            quantizer(z)
        with pytest.raises(ValueError, match=reason):
            quantizer.encode(z)
    with pytest.raises(ValueError, match="at least 1 place"):
        Hierarchical(VectorQuantizer(DIM, 8), (1.0,))(maps(2, 0))
    with pytest.raises(ValueError, match="'mask' must be boolean"):
        quantizer(maps(2, 4, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="'lengths' must be integers"):
        quantizer(maps(2, 4, 4), lengths=torch.tensor([1, 2]))


def test_decode_refuses_what_is_no_code():
    quantizer = Hierarchical([VectorQuantizer(DIM, 4), VectorQuantizer(DIM, 8)], (1, 1.0))
    codes = torch.zeros(2, 17, dtype=torch.int64)
    assert quantizer.decode(codes, (4, 4)).shape == (2, 4, 4, DIM)
    assert (quantizer.decode(codes - 1, (4, 4)) == 0).all()
    for bad, reason in ((codes + 8, "must lie in"), (codes + 5, "must lie in"), (codes - 2, "must lie in")):
        with pytest.raises(ValueError, match=reason):
            quantizer.decode(bad, (4, 4))
    with pytest.raises(ValueError, match="must be integers"):
        quantizer.decode(codes.float(), (4, 4))
    with pytest.raises(ValueError, match="must have shape"):
        quantizer.decode(codes[:, :5], (4, 4))
    with pytest.raises(ValueError, match="must have shape"):
        quantizer.decode(codes[0], (4, 4))
    with pytest.raises(ValueError, match="'size' must be given"):
        quantizer.decode(codes)
    for scales in (0, 3, True, 1.0):
        with pytest.raises(ValueError, match="'scales' must lie in"):
            quantizer.decode(codes, (4, 4), scales=scales)
    with pytest.raises(ValueError, match="'scales' must lie in"):
        quantizer.decode(codes[:, :1], (4, 4), scales=2)
