import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmvq.quantizers import NoPosteriorError
from gmvq.quantizers.binary import (
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    product_distribution,
)
from gmvq.quantizers.parts.bits import bits_of_code, code_of_bits
from gmvq.quantizers.parts.schedules import Linear

MEMBERS = [LookupFreeQuantizer, BinarySphericalQuantizer]
members = pytest.mark.parametrize("member", MEMBERS)


def latents(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax_over_codes(quantizer, rows):
    """q(c | x) by its definition, with a distance to each of the K codes."""
    codes = quantizer.codebook.to(rows.dtype)
    if isinstance(quantizer, BinarySphericalQuantizer):
        rows = F.normalize(rows, dim=-1) * quantizer.codebook_scale
    distances = (rows[:, None] - codes).square().sum(-1)
    return (-distances / quantizer.temperature(0.0)).softmax(-1)


def entropy(probabilities):
    return torch.special.entr(probabilities).sum(-1)


def test_seed_voken_issue_10_the_first_feature_is_the_most_significant_bit():
    rows = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [0.0, -0.0, 1e-30]])
    quantizer = LookupFreeQuantizer(3)
    assert quantizer.encode(rows).tolist() == [1, 4, 6, 1]
    assert torch.equal(quantizer.decode(torch.tensor([6])), torch.tensor([[1.0, 1.0, -1.0]]))


@members
def test_in_the_order_of_the_paper_the_first_feature_is_the_least_significant_bit(member):
    """Equation 5 of MAGVIT-v2: Index(z) is the sum over i = 1, ..., L of 2^(i - 1) [z_i > 0]."""
    paper, big = member(5, bit_order="little"), member(5)
    rows = latents(200, 5, dtype=torch.float32)
    codes = paper.encode(rows)
    assert codes.tolist() == [sum(2 ** (i - 1) * (row[i - 1] > 0) for i in range(1, 6)) for row in rows.tolist()]
    # a code of one order is that of the other with its bits reversed
    assert codes.tolist() == [int(f"{code:05b}"[::-1], 2) for code in big.encode(rows).tolist()]
    one, other = paper(rows), big(rows)
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(paper.decode(codes), one.values)
    torch.testing.assert_close(paper.posterior(rows).responsibilities, softmax_over_codes(paper, rows))


def test_a_bit_order_is_big_or_little():
    with pytest.raises(ValueError, match="'bit_order' must be one of big, little, got 'middle'"):
        LookupFreeQuantizer(5, bit_order="middle")


@pytest.mark.parametrize("bits", [1, 2, 13, 31, 32, 53, 62])
@members
def test_bits_go_round(member, bits):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.cat([torch.randint(0, 2**bits, (100,), generator=generator), torch.tensor([0, 2**bits - 1])])
    assert torch.equal(code_of_bits(bits_of_code(codes, bits)), codes)
    assert torch.equal(code_of_bits(bits_of_code(codes, bits, "little"), "little"), codes)
    digits = [format(code, f"0{bits}b") for code in codes.tolist()]
    assert bits_of_code(codes, bits).int().tolist() == [[int(digit) for digit in number] for number in digits]
    quantizer = member(bits)
    assert quantizer.codebook_size == 2**bits
    values = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(values), codes)
    assert torch.equal(quantizer(values).values, values)


@pytest.mark.parametrize("bits", [1, 3, 8, 18])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@members
def test_codes_and_values_are_those_of_vector_quantize_pytorch(member, bits, scale):
    peers = pytest.importorskip("vector_quantize_pytorch")
    spherical = member is BinarySphericalQuantizer
    theirs = peers.LFQ(codebook_size=2**bits, spherical=spherical, codebook_scale=scale).eval()
    ours = member(codebook_size=2**bits, codebook_scale=scale).eval()
    rows = latents(1, 3000, bits, dtype=torch.float32)
    expected, indices, _ = theirs(rows)
    values, codes, _, _ = ours(rows)
    assert torch.equal(codes, indices.long())
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(ours.decode(codes), theirs.indices_to_codes(indices))


@members
def test_loss_and_gradient_are_those_of_vector_quantize_pytorch_but_for_a_constant(member):
    peers = pytest.importorskip("vector_quantize_pytorch")
    spherical = member is BinarySphericalQuantizer
    theirs = peers.LFQ(codebook_size=32, spherical=spherical, commitment_loss_weight=0.25, diversity_gamma=0.7).train()
    ours = member(codebook_size=32, commitment_weight=0.25, diversity_gamma=0.7, temperature=2.0, group_bits=5)
    rows = [latents(1, 60, 5, dtype=torch.float32).requires_grad_() for _ in range(2)]
    expected = theirs(rows[0], inv_temperature=0.5)
    out = ours(rows[1])
    torch.testing.assert_close(out.loss - 0.1 * 0.7 * math.log(32), expected.entropy_aux_loss)
    weight = latents(1, 60, 5, seed=1, dtype=torch.float32)
    ((expected.quantized * weight).sum() + expected.entropy_aux_loss).backward()
    ((out.values * weight).sum() + out.loss).backward()
    torch.testing.assert_close(rows[1].grad, rows[0].grad)


@members
@pytest.mark.parametrize("temperature", [0.05, 0.7, 10.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_entropies_and_their_gradients_are_those_of_all_codes(member, temperature, scale):
    quantizer = member(6, temperature=temperature, group_bits=6, codebook_scale=scale, diversity_gamma=0.8).double()
    rows = latents(40, 6).requires_grad_()
    out = quantizer(rows)
    again = rows.detach().clone().requires_grad_()
    responsibilities = softmax_over_codes(quantizer, again)
    posterior_entropy = entropy(responsibilities.clamp_min(1e-300)).mean()
    aggregated_divergence = math.log(64) - entropy(responsibilities.mean(0))
    torch.testing.assert_close(out.terms["posterior_entropy"], posterior_entropy.detach())
    torch.testing.assert_close(out.terms["aggregated_divergence"], aggregated_divergence.detach())
    entropy_loss = 0.1 * (posterior_entropy + 0.8 * aggregated_divergence)
    torch.testing.assert_close(out.loss, entropy_loss + quantizer.commitment_weight * out.terms["commitment"])
    (out.loss - quantizer.commitment_weight * _commitment(quantizer, rows)).backward()
    entropy_loss.backward()
    torch.testing.assert_close(rows.grad, again.grad)


def _commitment(quantizer, rows):
    placed = F.normalize(rows, dim=-1) * quantizer.codebook_scale
    placed = placed if isinstance(quantizer, BinarySphericalQuantizer) else rows
    return (placed - quantizer.decode(quantizer.encode(rows))).square().mean()


@pytest.mark.parametrize("group_bits", [1, 2, 3, 4, 5, 7])
def test_groups_add_their_divergences_and_bound_the_whole_from_below(group_bits):
    exact, grouped = (LookupFreeQuantizer(5, temperature=1.0, group_bits=bits).double() for bits in (5, group_bits))
    mixing = torch.eye(5, dtype=torch.float64) + 0.7  # features that know of each other
    rows = latents(30, 5) @ mixing
    groups = math.ceil(5 / group_bits)
    size = math.ceil(5 / groups)
    joint = softmax_over_codes(grouped, rows).mean(0).reshape(2, 2, 2, 2, 2)
    expected = 0.0
    for start in range(0, 5, size):
        own = range(start, min(start + size, 5))
        marginal = joint.sum([axis for axis in range(5) if axis not in own]) if len(own) < 5 else joint
        expected += len(own) * math.log(2) - entropy(marginal.flatten())
    divergence, whole = (quantizer(rows).terms["aggregated_divergence"] for quantizer in (grouped, exact))
    torch.testing.assert_close(divergence, torch.as_tensor(expected))
    assert divergence <= whole + 1e-12
    assert groups == 1 or divergence < whole - 1e-3


@members
def test_issues_92_130_the_loss_is_never_negative(member):
    quantizer = member(4, group_bits=4, temperature=0.01).double()
    corners = quantizer.codebook
    assert quantizer(corners).loss.item() == pytest.approx(0.0, abs=1e-6)  # sure of each code, and all alike
    for scale in (1e-3, 0.1, 1.0, 30.0):
        assert quantizer(latents(50, 4) * scale).loss >= 0
    one_code = quantizer(corners[:1].repeat(9, 1))
    assert one_code.terms["aggregated_divergence"].item() == pytest.approx(4 * math.log(2))


@members
def test_a_mask_of_all_is_no_mask(member):
    # at a peer the mean over the batch was lost with any mask, and the diversity with it
    quantizer = member(6, temperature=1.0)
    rows = latents(2, 20, 6, dtype=torch.float32)
    torch.testing.assert_close(quantizer(rows, torch.ones(2, 20, dtype=torch.bool)).loss, quantizer(rows).loss)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_nothing_has_rows_times_codes_elements():
    quantizer, rows = LookupFreeQuantizer(16), latents(1000, 16, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        out = quantizer(rows)
        (out.loss + out.values.sum()).backward()
    assert largest.elements <= max(1000 * 2**8, 2**16)


@members
def test_60_bits_train(member):
    quantizer = member(60, temperature=0.5)
    rows = latents(100, 60, dtype=torch.float32).requires_grad_()
    out = quantizer(rows)
    out.loss.backward()
    assert out.loss.isfinite()
    assert (rows.grad.abs().sum(-1) > 0).all()
    assert torch.equal(quantizer.decode(out.codes), out.values)
    assert quantizer.bit_probabilities(rows).shape == (100, 60)
    assert not quantizer.has_posterior
    with pytest.raises(NoPosteriorError, match=r"no posterior .* bit_probabilities\(\)"):
        quantizer.posterior(rows)
    for attribute in ("codebook", "code_vectors"):
        with pytest.raises(ValueError, match=r"at most 2.* to write out all codes"):
            getattr(quantizer, attribute)


@members
def test_bit_probabilities_are_the_same_under_autocast(member):
    quantizer, rows = member(9, 32, temperature=1.0), latents(20, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = quantizer.bit_probabilities(rows)
    assert torch.equal(given, quantizer.bit_probabilities(rows))
    assert quantizer.has_posterior


@pytest.mark.parametrize("group_bits", [1, 2, 3, 4, 5])
def test_groups_that_do_not_divide_the_bits_measure_their_own(group_bits):
    quantizer = LookupFreeQuantizer(5, group_bits=group_bits, temperature=1.0).double()
    rows = latents(30, 5)
    aggregated = softmax_over_codes(quantizer, rows).mean(0).reshape([2] * 5)
    groups = math.ceil(5 / group_bits)
    parts = torch.arange(groups * math.ceil(5 / groups)).reshape(groups, -1)
    expected = 0.0
    for part in parts:
        own = [bit for bit in part.tolist() if bit < 5]
        others = [bit for bit in range(5) if bit not in own]
        joint = aggregated.sum(others) if others else aggregated
        expected += len(own) * math.log(2) - entropy(joint.flatten()).item()
    assert quantizer(rows).terms["aggregated_divergence"].item() == pytest.approx(expected)


@members
def test_posterior_is_the_softmax_of_distances(member):
    quantizer = member(5, temperature=0.6).double()
    rows = latents(30, 5)
    expected = softmax_over_codes(quantizer, rows)
    responsibilities, entropies, log_density = quantizer.posterior(rows)
    torch.testing.assert_close(responsibilities, expected)
    torch.testing.assert_close(entropies, entropy(expected))
    assert log_density is None
    assert torch.equal(responsibilities.argmax(-1), quantizer.encode(rows))
    torch.testing.assert_close(quantizer.posterior_mean(rows), expected @ quantizer.codebook)
    torch.testing.assert_close(quantizer.divergence(rows), math.log(32) - entropy(expected))
    ones = torch.stack([expected[:, bits_of_code(torch.arange(32), 5)[:, bit]].sum(-1) for bit in range(5)], -1)
    torch.testing.assert_close(quantizer.bit_probabilities(rows), ones)


@members
def test_draws_come_from_the_posterior(member):
    quantizer = member(3, temperature=0.6).double()
    row = latents(1, 3)
    draws = quantizer.sample_posterior(row.expand(20000, 3), torch.Generator().manual_seed(0))
    responsibilities = quantizer.posterior(row).responsibilities[0]
    codes = quantizer.encode(draws.values)
    shares = torch.bincount(codes, minlength=8) / len(codes)
    assert (shares - responsibilities).abs().max() < 0.015  # four standard errors of a share of a half
    torch.testing.assert_close(draws.log_posterior, responsibilities.log()[codes])
    torch.testing.assert_close(draws.log_prior, torch.full_like(draws.log_prior, -math.log(8)))


def test_a_product_of_coins_by_hand():
    coins = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(product_distribution(coins), torch.tensor([0.125, 0.125, 0.375, 0.375]))


def test_latents_and_codes_of_bsq_lie_on_the_sphere():
    quantizer = BinarySphericalQuantizer(7, codebook_scale=3.0)
    rows = latents(20, 7, dtype=torch.float32)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.full((128,), 3.0))
    assert torch.equal(quantizer.encode(rows * 100), quantizer.encode(rows))
    torch.testing.assert_close(quantizer(rows * 100).loss, quantizer(rows).loss)
    rows.requires_grad_()
    quantizer(rows).values[:, 0].sum().backward()
    unit = F.normalize(rows.detach(), dim=-1)
    expected = 3 * (F.one_hot(torch.tensor(0), 7) - unit * unit[:, :1]) / rows.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(rows.grad, expected)


def test_a_schedule_cools_the_posterior():
    quantizer, rows = LookupFreeQuantizer(4, temperature=Linear(2.0, 0.1)), latents(10, 4, dtype=torch.float32)
    warm = quantizer.posterior(rows).entropy
    quantizer.set_progress(1.0)
    assert (quantizer.posterior(rows).entropy < warm).all()


@members
def test_weights_of_zero_leave_terms_out(member):
    rows = latents(20, 4, dtype=torch.float32)
    bare = member(4, entropy_weight=0.0, commitment_weight=0.0)(rows)
    assert bare.loss == 0
    assert "aggregated_divergence" not in bare.terms
    out = member(4, diversity_gamma=0.0, commitment_weight=0.5)(rows)
    torch.testing.assert_close(out.loss, 0.1 * out.terms["posterior_entropy"] + 0.5 * out.terms["commitment"])


@members
def test_sizes_follow_from_each_other(member):
    assert member(5).codebook_size == 32
    assert member(codebook_size=32).dim == 5
    wide = member(9, 32)
    assert (wide.dim, wide.codebook_dim, wide.codebook_size) == (9, 5, 32)
    assert torch.equal(wide.encode(wide.decode(torch.arange(32))), torch.arange(32))


@members
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "'dim' or 'codebook_size'"),
        ({"codebook_size": 12}, "power of 2.*Use 16"),
        ({"codebook_size": 1}, "power of 2.*Use 2"),
        ({"codebook_size": 2**63}, "at most"),
        ({"dim": 3, "codebook_size": 16}, "'dim' must be at least"),
        ({"dim": 0}, "'dim' must be an integer"),
        ({"dim": 4, "codebook_scale": 0.0}, "'codebook_scale'"),
        ({"dim": 4, "entropy_weight": -1.0}, "'entropy_weight'"),
        ({"dim": 4, "diversity_gamma": math.nan}, "'diversity_gamma'"),
        ({"dim": 4, "commitment_weight": math.inf}, "'commitment_weight'"),
        ({"dim": 4, "temperature": 0.0}, "'temperature'"),
        ({"dim": 4, "group_bits": 0}, "'group_bits'"),
    ],
)
def test_bad_arguments_get_a_reason(member, options, reason):
    with pytest.raises(ValueError, match=reason):
        member(**options)
