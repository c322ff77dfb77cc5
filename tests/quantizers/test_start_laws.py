"""Laws of members that start from data: they tell symbols apart, however rare some are."""

import pytest
import torch
from exceptions import EXCEPTIONS
from members import BLENDS, DIM, QUANTIZERS, SIZE, latents

from gmvq.quantizers import Affine, GaussianMixtureQuantizer, VectorQuantizer
from gmvq.quantizers.catalogue import QUANTIZERS as PRESETS
from gmvq.quantizers.catalogue import make_bottleneck
from gmvq.quantizers.parts.codebook import MovingAverageCodebook

FEW, MANY = 64, 1024
"""Latents of a batch; Zipf's law gives the rarest of 62 symbols 0.2 and 3.4 of them."""


def starts_from_data(quantizer):
    modules = list(quantizer.modules())
    starts = any(isinstance(module, MovingAverageCodebook) for module in modules)
    return starts and all(module.kmeans_start for module in modules if isinstance(module, VectorQuantizer))


def moves_all(quantizer):
    """True with Affine: its map gives the codes, each counted once, the moments of the latents, so all leave their
    symbols as far as a batch's moments differ from those."""
    return any(isinstance(module, VectorQuantizer) and module.affine is not None for module in quantizer.modules())


def zipf(points, number, seed):
    weights = 1 / torch.arange(1.0, len(points) + 1)
    drawn = torch.multinomial(weights, number, replacement=True, generator=torch.Generator().manual_seed(seed))
    return points[drawn]


def told_apart(quantizer, points, batch, steps):
    """Number of points that have a code of their own after training on batches in which most are missing."""
    for step in range(steps):
        quantizer(zipf(points, batch, step)[:, None])  # as maps of one place
    codes = quantizer.eval().encode(points[:, None]).flatten(1)
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())
    return len(codes.unique(dim=0))


MEMBERS = {
    name: make
    for name, make in {**QUANTIZERS, **BLENDS}.items()
    if starts_from_data(make()) and name not in EXCEPTIONS["symbols"]
}


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
def test_all_symbols_are_told_apart(make):
    torch.manual_seed(0)
    quantizer = make()
    points = latents(SIZE - 2, seed=3, dim=DIM)
    assert told_apart(quantizer, points, MANY if moves_all(quantizer) else SIZE, 50) == len(points)


# all codebooks of 64 codes
SIZES = {"product": 64**2, "residual": 64**2, "implicit-residual": 64**2, "hierarchical": 256}
LARGE = {
    **{name: lambda name=name: make_bottleneck(name, 8, SIZES.get(name, 64)) for name in PRESETS},
    "averages": lambda: VectorQuantizer(8, 64),
    "affine": lambda: VectorQuantizer(8, 64, decay=0.9, parts=[Affine()]),
    "projected": lambda: GaussianMixtureQuantizer(8, 64),
    "variance of a code": lambda: GaussianMixtureQuantizer(8, 64, variance="code"),
    "weights": lambda: GaussianMixtureQuantizer(8, 64, learned=("mixture_weights",)),
}
LARGE = {name: make for name, make in LARGE.items() if starts_from_data(make())}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_all_of_many_symbols_are_told_apart(make):
    torch.manual_seed(0)
    quantizer = make()
    points = torch.randn(62, 8, generator=torch.Generator().manual_seed(0))
    assert told_apart(quantizer, points, MANY if moves_all(quantizer) else FEW, 100) == 62


def test_a_start_goes_on_until_each_code_has_had_a_row():
    points = latents(5, dim=2)
    for make in (
        lambda: VectorQuantizer(2, 4),
        lambda: VectorQuantizer(2, 4, decay=None),
        lambda: GaussianMixtureQuantizer(2, 4, learned=("codebook",)),
    ):
        quantizer = make()
        quantizer(points[[0, 0, 1]])
        assert torch.equal(quantizer.code_vectors[:2], points[:2])
        quantizer(points[[1, 2, 0, 2]])
        assert torch.equal(quantizer.code_vectors[2], points[2])
        assert not quantizer.moving.is_complete
        quantizer(points[[3]])
        assert quantizer.moving.is_complete
        before = quantizer.code_vectors.clone()
        assert torch.equal(before[3], points[3])
        quantizer(points[[4]])
        assert torch.equal(quantizer.code_vectors, before)


@pytest.mark.parametrize("kind", [VectorQuantizer, GaussianMixtureQuantizer])
def test_equal_codes_are_split(kind):
    rows = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)  # whose mean both codes are
    quantizer = kind(1, 2, decay=0.5)
    quantizer.moving.place(torch.zeros(2, 1), torch.ones(2))
    for _ in range(30):
        quantizer(rows)
    torch.testing.assert_close(quantizer.code_vectors.sort(0).values, rows[:2])


def test_dead_codes_go_to_different_rows_and_not_to_places_of_codes():
    points = latents(6, dim=3)
    quantizer = VectorQuantizer(3, 8, decay=0.5, revive_below=2.0)
    quantizer.moving.place(torch.cat([points[:2], 50 + torch.arange(6.0)[:, None].expand(6, 3)]), torch.ones(8))
    for _ in range(4):
        quantizer(points[:4].repeat(2, 1))
    codes = quantizer.code_vectors
    assert (torch.cdist(points[:4], codes) < 1e-6).sum(1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())
def test_equal_rows_have_equal_codes_in_all_batches(make):
    torch.manual_seed(0)
    quantizer = make()
    points = latents(SIZE - 4, seed=3, dim=DIM)
    for step in range(10):
        quantizer(zipf(points, 4 * SIZE, step)[:, None])
    quantizer.eval()
    codes = torch.cat([quantizer.encode(point[None, None]) for point in points])
    for copies in (1, 7, 100):
        places = torch.randperm(copies * len(points), generator=torch.Generator().manual_seed(copies)) % len(points)
        assert torch.equal(quantizer.encode(points[places][:, None]), codes[places])
        assert torch.equal(quantizer(points[places][:, None]).codes, codes[places])
