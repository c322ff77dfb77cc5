import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq.kernels import nearest, nearest_code, reference
from gmvq.kernels.compiled import library

PATHS = ["compiled", "torch"]


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    """Each test runs over the compiled and over the torch path, in blocks so small that there are several."""
    monkeypatch.setattr(nearest, "BLOCK_ELEMENTS", 1 << 8)
    if request.param == "torch":
        monkeypatch.setenv("GMVQ_KERNELS", "torch")
    elif library() is None:
        pytest.skip("no C++ compiler")
    return request.param


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scores(latents, codebook, cosine=False, feature_weights=None, offsets=None):
    """All scores in float64, ``(N, K)``."""
    latents, codebook = latents.double(), codebook.double()
    weights = torch.ones_like(codebook[0]) if feature_weights is None else feature_weights.double()
    if cosine:
        lengths = (codebook.square() * weights).sum(-1).sqrt().clamp_min(1e-12)
        return (latents * weights) @ codebook.T / lengths
    squares = ((latents[:, None] - codebook).square() * weights).sum(-1)
    return (0 if offsets is None else offsets.double()) - squares / 2


def check(codes, scores, latents, codebook):
    """The scores of the codes are the best but for the rounding of sums of L products around the codes' mean."""
    assert codes.dtype == torch.int64
    assert codes.shape == latents.shape[:1]
    if not len(latents):
        return
    spread = (codebook - codebook.mean(0)).norm(dim=-1).max() + (latents - codebook.mean(0)).norm(dim=-1).max()
    rounding = 1e-6 * (float(spread) ** 2 + float(scores.abs().max())) + 1e-30
    assert ((scores.amax(-1) - scores.gather(1, codes[:, None])[:, 0]) <= rounding).all()


shapes = given(
    n=st.one_of(st.integers(0, 20), st.integers(180, 210)),
    k=st.one_of(st.integers(1, 140), st.sampled_from([255, 256, 257, 1000])),
    dim=st.one_of(st.integers(1, 20), st.integers(120, 140), st.integers(250, 300)),
    seed=st.integers(0, 99),
)
# the fixture only chooses a path
random_shapes = settings(max_examples=40, deadline=None, suppress_health_check=["function_scoped_fixture"])


@random_shapes
@shapes
def test_it_takes_the_nearest_of_random_codes(n, k, dim, seed):
    latents, codebook = random(n, dim, seed=seed), random(k, dim, seed=seed + 100)
    check(nearest_code(latents, codebook), scores(latents, codebook), latents, codebook)
    exact = nearest_code(latents.double(), codebook.double())
    assert torch.equal(exact, reference.nearest_code(latents.double(), codebook.double()))


@random_shapes
@shapes
def test_weights_of_features_offsets_of_codes_and_directions(n, k, dim, seed):
    latents, codebook = random(n, dim, seed=seed), random(k, dim, seed=seed + 100)
    weights, offsets = random(dim, seed=seed).square(), 3 * random(k, seed=seed + 1)
    for options in (
        {"feature_weights": weights},
        {"offsets": offsets},
        {"feature_weights": weights, "offsets": offsets},
        {"cosine": True},
        {"cosine": True, "feature_weights": weights},
    ):
        check(nearest_code(latents, codebook, **options), scores(latents, codebook, **options), latents, codebook)


@random_shapes
@shapes
def test_the_nearest_codes_come_in_order(n, k, dim, seed):
    latents, codebook, top = random(n, dim, seed=seed), random(k, dim, seed=seed + 100), min(k, 5)
    codes = nearest_code(latents, codebook, top=top)
    assert codes.shape == (n, top)
    expected = scores(latents, codebook)
    torch.testing.assert_close(expected.gather(1, codes), expected.topk(top).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    latents, codebook = random(50, 8).to(dtype), random(30, 8, seed=1).to(dtype)
    assert torch.equal(nearest_code(latents, codebook), nearest_code(latents.float(), codebook.float()))
    assert torch.equal(nearest_code(latents, codebook.float()), nearest_code(latents.float(), codebook.float()))
    with torch.autocast("cpu"):
        latents = random(50, 8)
        assert torch.equal(nearest_code(latents, codebook.float()), nearest_code(latents.double(), codebook.double()))


def test_ties_go_to_the_lowest_index():
    assert nearest_code(torch.zeros(3, 2), torch.ones(500, 2)).tolist() == [0, 0, 0]
    codebook = random(40, 5).repeat(8, 1)
    latents = codebook[torch.randperm(320, generator=torch.Generator().manual_seed(0))]
    codes = nearest_code(latents, codebook)
    assert int(codes.max()) < 40
    assert torch.equal(codebook[codes], latents)


def test_a_place_far_from_the_origin_costs_no_precision():
    # exact in float32 at either place
    latents, codebook = ((random(*shape, seed=1) * 64).round() / 64 for shape in ((300, 3), (200, 3)))
    distances = (latents[:, None].double() - codebook.double()).square().sum(-1)
    codes = nearest_code(latents + 4096, codebook + 4096)
    # the mean itself is rounded, so that only near ties may differ
    assert (distances.gather(1, codes[:, None])[:, 0] - distances.amin(-1)).max() < 1e-2
    offset = nearest_code(latents + 1e5, codebook)
    assert (distances_of(latents + 1e5, codebook, offset) <= 1e-6 * 1e10).all()


def distances_of(latents, codebook, codes):
    """How much farther than the nearest code each chosen one is, in squared distance."""
    distances = (latents[:, None].double() - codebook.double()).square().sum(-1)
    return distances.gather(1, codes[:, None])[:, 0] - distances.amin(-1)


def test_rows_that_are_not_finite_have_code_0_and_change_no_other():
    latents, codebook = random(50, 4), random(300, 4, seed=1) + 5
    expected = nearest_code(latents, codebook)
    latents[3, 1], latents[10, 0], latents[11], latents[49, 3] = math.nan, math.inf, -math.inf, math.nan
    broken = torch.tensor([3, 10, 11, 49])
    expected[broken] = 0
    assert torch.equal(nearest_code(latents, codebook), expected)
    assert torch.equal(nearest_code(latents, codebook, cosine=True)[broken], torch.zeros(4, dtype=torch.int64))
    assert nearest_code(latents, codebook, top=3)[broken].tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize("far", [1e4, 1e6, 1e8, -1e10, 1e20, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("single", [True, False], ids=["one feature", "all features"])
def test_a_far_code_costs_the_others_nothing(far, single):
    latents, codebook = random(1000, 8), random(32, 8, seed=1)
    broken = codebook.clone()
    broken[5, 2 if single else slice(None)] = far
    weights, offsets, others = random(8, seed=2).square() + 0.1, random(32, seed=3), torch.arange(32) != 5
    for options in ({}, {"feature_weights": weights}, {"offsets": offsets}):
        expected = scores(latents, codebook, **options)
        expected[:, ~others] = -math.inf
        assert torch.equal(nearest_code(latents, broken, **options), expected.argmax(-1)), options
        assert torch.equal(nearest_code(latents, broken, top=3, **options), expected.topk(3).indices), options
    if not math.isfinite(far):
        expected = scores(latents, codebook, cosine=True)
        expected[:, ~others] = -math.inf
        assert torch.equal(nearest_code(latents, broken, cosine=True), expected.argmax(-1))


def test_latents_at_a_far_code_take_it():
    latents, codebook = random(10, 8), random(32, 8, seed=1)
    latents[3], codebook[5] = 1e10, 1e10
    assert nearest_code(latents, codebook).tolist()[3] == 5


@pytest.mark.parametrize("length", [1e-30, 1e-6, 1e6, 1e30])
def test_directions_do_not_depend_on_lengths(length):
    latents, codebook = random(100, 8), random(32, 8, seed=1)
    expected = scores(latents, codebook, cosine=True).argmax(-1)
    assert torch.equal(nearest_code(latents, codebook * length, cosine=True), expected)


def test_codes_that_offsets_rule_out_are_never_taken():
    latents, codebook = random(50, 4), random(300, 4, seed=1)
    offsets = torch.full((300,), -math.inf)
    offsets[70::64] = 0.0
    codes = nearest_code(latents, codebook, offsets=offsets)
    assert torch.equal(codes, nearest_code(latents, codebook[70::64]) * 64 + 70)
    assert nearest_code(latents, codebook, offsets=torch.full((300,), -math.inf)).tolist() == [0] * 50


@pytest.mark.parametrize(("n", "k", "dim"), [(401, 777, 300), (13, 5000, 7), (1, 64, 16)])
def test_codes_of_a_row_depend_neither_on_the_batch_nor_on_the_threads(n, k, dim, path):
    latents, codebook = random(n, dim), random(k, dim, seed=1)
    # with this many near ties, sums in another order would change some codes
    latents, codebook = latents.round(decimals=1), codebook.round(decimals=1)
    codes = nearest_code(latents, codebook)
    if path == "compiled":  # the matrix product of the torch path may sum in another order
        assert torch.equal(torch.cat([nearest_code(row[None], codebook) for row in latents]), codes)
        assert torch.equal(nearest_code(latents.flip(0), codebook).flip(0), codes)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            if path == "compiled":
                assert torch.equal(nearest_code(latents, codebook), codes)
    finally:
        torch.set_num_threads(threads)
    assert distances_of(latents, codebook, codes).max() < 1e-4


def test_strides_and_empty_inputs():
    latents, codebook = random(8, 40).T, random(8, 30, seed=1).T
    assert torch.equal(nearest_code(latents, codebook), nearest_code(latents.contiguous(), codebook.contiguous()))
    assert nearest_code(latents[:0], codebook).shape == (0,)
    assert nearest_code(latents[:0], codebook, top=2).shape == (0, 2)
    assert nearest_code(torch.zeros(3, 0), torch.zeros(4, 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": torch.zeros(3)}, "'latents' must be floats of shape .N, L."),
        ({"latents": torch.zeros(3, 4, dtype=torch.int64)}, "'latents' must be floats"),
        ({"codebook": torch.zeros(2, 3, 4)}, "'codebook' must be floats of shape .K, L."),
        ({"codebook": torch.zeros(5, 3)}, "'latents' must have the 3 features"),
        ({"codebook": torch.zeros(0, 4)}, "'codebook' must have at least one code"),
        ({"codebook": torch.zeros(5, 4, device="meta")}, "'codebook' must lie on the latents' device"),
        ({"feature_weights": torch.ones(5)}, "'feature_weights' must be floats of shape .L,. = .4,."),
        ({"offsets": torch.ones(4)}, "'offsets' must be floats of shape .K,. = .5,."),
        ({"offsets": torch.ones(5, dtype=torch.bool)}, "'offsets' must be floats"),
        ({"offsets": torch.ones(5), "cosine": True}, "Leave one out"),
        ({"top": 0}, "'top' must lie in .1, K = 5., got 0"),
        ({"top": 6}, "'top' must lie in .1, K = 5., got 6"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(**({"latents": torch.zeros(3, 4), "codebook": torch.zeros(5, 4)} | changes))


def test_the_operator_keeps_the_rules_of_torch():
    inputs = (random(9, 4), random(7, 4, seed=1), None, random(7), False)
    torch.library.opcheck(nearest._nearest_code, (*inputs, 0))
    torch.library.opcheck(nearest._nearest_code, (*inputs, 3))


class Codes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codebook = torch.nn.Parameter(random(30, 4, seed=1))

    def forward(self, latents):
        return nearest_code(latents, self.codebook), nearest_code(latents, self.codebook, top=2)


def test_compiled_and_exported_graphs_hold_one_operator():
    module, latents = Codes(), random(20, 4)
    expected = module(latents)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(latents), expected))
    exported = torch.export.export(module, (latents[:5],), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    operators = [node for node in exported.graph.nodes if "gmvq.nearest_code" in str(node.target)]
    assert len(operators) == 2
    assert all(map(torch.equal, exported.module()(latents), expected))


def test_all_modes_of_autograd_give_the_same_codes():
    latents, codebook = random(20, 4).requires_grad_(), random(30, 4, seed=1).requires_grad_()
    expected = nearest_code(latents, codebook)
    assert not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(nearest_code(latents, codebook), expected)

    def shown(rows):
        return codebook[nearest_code(rows, codebook)] * rows

    torch.utils.checkpoint.checkpoint(shown, latents, use_reentrant=False).sum().backward()
    torch.testing.assert_close(latents.grad, codebook.detach()[expected])


@pytest.fixture
def threads_of_its_own():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return nearest_code(random(200, 4, seed=index), random(300, 4, seed=9))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on a machine of one core
def test_it_works_in_workers_that_were_forked(threads_of_its_own):
    torch.set_num_threads(2)  # what was forked must not wait for threads that stayed behind
    expected = torch.stack([Data()[index] for index in range(4)])
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=2, num_workers=2, multiprocessing_context=torch.multiprocessing.get_context("fork")
    )
    assert torch.equal(torch.cat(list(loader)), expected)


PEAK = """
import resource, torch
from gmvq.kernels import nearest_code
latents, codebook = torch.randn(65536, 32), torch.randn(16384, 32)
nearest_code(latents[:1000], codebook[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_code(latents, codebook)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes on Linux alone")
def test_memory_grows_with_rows_plus_codes_and_not_with_their_product():
    kilobytes = int(subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True).stdout)
    assert kilobytes < 200 * 1024  # the scores alone are 4 GiB; torch's own product takes room, too
