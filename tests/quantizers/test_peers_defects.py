"""What breaks at the peers must not break here: one test for each defect of peers.md, section 1, under its name.

"Ran" means that the defect was seen in vector-quantize-pytorch 1.32.0; numbers are those of its issues.
"""

import copy
import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gmvq
from gmvq.metrics import CodebookStatistics, CompositeStatistics
from gmvq.quantizers import (
    Affine,
    BinarySphericalQuantizer,
    ChannelFirst,
    Diversity,
    FiniteScalarQuantizer,
    GaussianMixtureQuantizer,
    LookupFreeQuantizer,
    Orthogonal,
    Product,
    Projected,
    Residual,
    SimVQ,
    VectorQuantizer,
)

PLAIN = {
    "gradient": lambda: VectorQuantizer(8, 32, decay=None),
    "averages": lambda: VectorQuantizer(8, 32, decay=0.8),
    "mixture": lambda: GaussianMixtureQuantizer(8, 32),
}
plain = pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN.keys())


def started(quantizer, *shape):
    torch.manual_seed(0)
    quantizer(torch.randn(*(shape or (200,)), quantizer.dim))
    return quantizer


@pytest.mark.parametrize("heads", [1, 2])
def test_ran_issues_62_149_masks_with_codebook_dim_or_heads(heads):
    member = VectorQuantizer(8 // heads, 32, codebook_dim=3)
    quantizer = started(Product(member, heads=heads) if heads > 1 else member)
    latents, mask = torch.randn(2, 10, 8), torch.rand(2, 10) < 0.5
    out = quantizer(latents, mask)
    assert (out.codes[~mask] == -1).all()
    assert (out.values[~mask] == 0).all()
    assert (out.codes[mask] >= 0).all()


def test_ran_images_in_residual_quantizers():
    quantizer = ChannelFirst(started(Residual(VectorQuantizer(8, 32), 4)))
    out = quantizer(torch.randn(2, 8, 5, 7))
    assert out.values.shape == (2, 8, 5, 7)
    assert out.codes.shape == (2, 5, 7, 4)


def test_issue_63_perplexity_and_usage():
    quantizer = started(VectorQuantizer(8, 32)).eval()
    statistics = CodebookStatistics(32)
    for _ in range(3):
        statistics.update(quantizer.encode(torch.randn(500, 8)))
    assert 16 < statistics.perplexity <= 32
    assert statistics.usage > 0.9
    residual = started(Residual(VectorQuantizer(8, 32), 3)).eval()
    levels = CompositeStatistics(residual.codebook_sizes)
    levels.update(residual.encode(torch.randn(500, 8)))
    assert len(levels.perplexities) == 3


def test_issue_108_posterior_entropy_likelihood_and_information():
    quantizer = started(GaussianMixtureQuantizer(8, 32)).eval()
    latents = torch.randn(300, 8)
    posterior = quantizer.posterior(latents)
    statistics = CodebookStatistics(32)
    statistics.update(quantizer.encode(latents), responsibilities=posterior.responsibilities)
    assert posterior.log_density.isfinite().all()
    assert 0 < statistics.mutual_information < statistics.entropy


@plain
def test_ran_issue_224_values_are_codes_in_training(make):
    quantizer = make()
    for _ in range(5):
        out = quantizer(torch.randn(100, 8))
        assert torch.equal(out.values, quantizer.codebook[out.codes])


@plain
def test_ran_activation_checkpointing_leaves_the_codebook_alone(make):
    quantizer = started(make())
    again = copy.deepcopy(quantizer)
    rows = torch.randn(100, 8, requires_grad=True)
    quantizer(rows).values.square().mean().backward()
    checkpoint(lambda x: again(x).values, rows, use_reentrant=False).square().mean().backward()
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@plain
def test_ran_torch_compile_has_no_graph_break_in_training(make):
    quantizer = started(make())
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for _ in range(2):
        compiled(torch.randn(50, 8)).loss.backward() if list(quantizer.parameters()) else compiled(torch.randn(50, 8))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("training", [True, False])
def test_ran_issue_64_memory_is_not_latents_times_codes(training):
    number, size = 1 << 15, 1 << 11
    quantizer = VectorQuantizer(4, size, decay=0.9, kmeans_start=False).train(training)
    latents = torch.randn(number, 4)
    with LargestTensor() as largest:
        quantizer(latents)
        quantizer.encode(latents)
    assert largest.elements <= 1 << 22 < number * size / 8


def test_ran_ranks_are_counted_at_the_call_and_not_at_construction():
    quantizer = VectorQuantizer(3, 4, decay=0.5, kmeans_start=False)  # before the group exists
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=0, world_size=1)
    calls = []
    try:
        original, original_size = dist.all_reduce, dist.get_world_size
        dist.get_world_size = lambda *group: 2  # as if another rank had come, with the same sums
        dist.all_reduce = lambda tensor, *rest: (calls.append(tensor.shape), tensor.mul_(2))
        quantizer(torch.randn(20, 3))
        quantizer.update()
    finally:
        dist.all_reduce, dist.get_world_size = original, original_size
        dist.destroy_process_group()
    assert calls
    torch.testing.assert_close(quantizer.moving.counts.sum(), torch.tensor(0.5 * 4 + 0.5 * 40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make",
    [
        *PLAIN.values(),
        lambda: VectorQuantizer(8, 32, cosine=True, codebook_dim=4),
        lambda: Residual(VectorQuantizer(8, 32), 2),
        lambda: LookupFreeQuantizer(8, 16),
        lambda: BinarySphericalQuantizer(8, 16),
        lambda: SimVQ(8, 32),
        lambda: FiniteScalarQuantizer((8, 5, 5), dim=8),
    ],
)
def test_issues_114_145_229_half_precision(make, dtype):
    quantizer = started(make()).to(dtype)
    latents = torch.randn(2, 30, 8, dtype=dtype, requires_grad=True)
    out = quantizer(latents)
    assert out.values.dtype == dtype
    (out.values.float().mean() + out.loss).backward()
    assert latents.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ran_finite_scalar_codes_are_all_reached_in_every_precision(dtype):
    quantizer = FiniteScalarQuantizer((8, 8, 8)).to(dtype).eval()
    values = torch.linspace(-4, 4, 200)
    grid = torch.cartesian_prod(values, values[::2], values[::2]).to(dtype)
    assert len(quantizer.encode(grid).unique()) == 512


def test_ran_the_returned_loss_is_no_buffer_of_the_module():
    for make in (*PLAIN.values(), lambda: FiniteScalarQuantizer((4, 4), dim=8), lambda: LookupFreeQuantizer(8, 16)):
        quantizer = started(make()).eval()
        latents = torch.randn(10, 8)
        with torch.no_grad():
            first = quantizer(latents).loss
            before = first.clone()
            first += 100
            assert torch.equal(quantizer(latents).loss, before)


def test_ran_round_trip_of_indices_for_images_with_codebook_dim():
    quantizer = ChannelFirst(started(Projected(VectorQuantizer(3, 32), 8))).eval()
    out = quantizer(torch.randn(2, 8, 4, 5))
    assert torch.equal(quantizer.decode(out.codes), out.values)
    tied = ChannelFirst(started(VectorQuantizer(8, 32, codebook_dim=3))).eval()
    out = tied(torch.randn(2, 8, 4, 5))
    assert torch.equal(tied.decode(out.codes), out.values)


@plain
def test_issues_97_110_236_it_is_said_what_moves_the_codebook(make):
    """Averages and mixture: no parameter; gradient: the codebook is one, and the loss reaches it."""
    quantizer = started(make())
    out = quantizer(torch.randn(50, 8, requires_grad=True))
    out.loss.backward()
    learned = [name for name, parameter in quantizer.named_parameters() if parameter.grad is not None]
    is_gradient = isinstance(quantizer, VectorQuantizer) and not quantizer.averages
    assert ("learned" in learned) == is_gradient
    assert "moving average" in VectorQuantizer.__doc__


@pytest.mark.parametrize(
    "make",
    [
        *PLAIN.values(),
        lambda: LookupFreeQuantizer(8, 16),
        lambda: BinarySphericalQuantizer(8, 16),
        lambda: VectorQuantizer(8, 32, decay=None, parts=[Diversity(), Orthogonal(), Affine()]),
    ],
)
def test_issues_92_130_no_loss_is_negative(make):
    quantizer = make()
    for scale in (1e-3, 1.0, 1e3):
        assert quantizer(torch.randn(100, 8) * scale).loss >= 0


def test_issue_93_a_level_freezes():
    quantizer = started(Residual([VectorQuantizer(8, 32, decay=0.5) for _ in range(3)]))
    quantizer.members[0].freeze()
    before = [member.codebook.clone() for member in quantizer.members]
    for _ in range(2):
        quantizer(torch.randn(100, 8))
    quantizer.update()
    moved = [not torch.equal(member.codebook, old) for member, old in zip(quantizer.members, before, strict=True)]
    assert moved == [False, True, True]
    quantizer.members[0].unfreeze()
    quantizer(torch.randn(100, 8))
    quantizer.update()
    assert not torch.equal(quantizer.members[0].codebook, before[0])


@plain
def test_issue_60_checkpoints_hold_all_that_training_needs(make):
    first, second = started(make()), make()
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(1)
        quantizer(torch.randn(100, 8))
        quantizer.update()
    assert torch.equal(first.codebook, second.codebook)


@pytest.mark.parametrize("cosine", [False, True])
def test_issue_221_gradient_accumulation_equals_one_large_batch(cosine):
    whole = started(VectorQuantizer(8, 32, decay=0.8, cosine=cosine))
    parts = copy.deepcopy(whole)
    rows = torch.randn(100, 8)
    for quantizer in (whole, parts):
        quantizer.updates_itself = False
        quantizer.update()
    whole(rows)
    for half in rows.chunk(2):
        parts(half)
    for quantizer in (whole, parts):
        quantizer.update()
    torch.testing.assert_close(whole.moving.counts, parts.moving.counts)
    torch.testing.assert_close(whole.codebook, parts.codebook)


def test_issues_130_190_which_quantizer_with_which_knobs():
    """The page exists and names every member."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "which-quantizer.md").read_text()
    for name in ("GaussianMixtureQuantizer", "VectorQuantizer", "FiniteScalarQuantizer", "Residual"):
        assert name in page
        assert hasattr(gmvq, name)


def test_vqtorch_counts_twice_under_checkpointing():
    quantizer = started(VectorQuantizer(4, 8, decay=0.5))
    layer = nn.Linear(4, 4)
    rows = torch.randn(64, 4, requires_grad=True)
    checkpoint(lambda x: quantizer(layer(x)).values, rows, use_reentrant=True).sum().backward()
    assert quantizer.moving.pending_counts.sum() == 64


def test_rotation_is_no_silent_default():
    assert isinstance(VectorQuantizer(8, 32).estimator, gmvq.StraightThrough)


def test_residual_levels_may_differ_in_size():
    quantizer = started(Residual([VectorQuantizer(8, size) for size in (32, 8, 2)]))
    assert quantizer.codebook_sizes == (32, 8, 2)
    assert quantizer(torch.randn(20, 8)).codes.amax(0).lt(torch.tensor([32, 8, 2])).all()


def test_the_gradient_of_a_residual_quantizer_counts_once():
    quantizer = started(Residual(VectorQuantizer(8, 32), 4))
    rows = torch.randn(20, 8, requires_grad=True)
    quantizer(rows).values.sum().backward()
    torch.testing.assert_close(rows.grad, torch.ones(20, 8))


def test_distances_of_far_latents_keep_their_order():
    """A product form without centring loses them: |z|^2 swallows the difference."""
    quantizer = VectorQuantizer(2, 2, kmeans_start=False)
    quantizer.moving.place(torch.tensor([[1000.0, 0.0], [1000.01, 0.0]]), torch.ones(2))
    assert quantizer.eval().encode(torch.tensor([[1000.009, 0.0], [1000.001, 0.0]])).tolist() == [1, 0]
    assert math.isfinite(F.mse_loss(quantizer.codebook, quantizer.codebook).item())
