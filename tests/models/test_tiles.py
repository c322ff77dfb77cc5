"""Tiles give what the whole gives, for each network, number of axes, and kind of value."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gmvq
from gmvq.modalities import Image
from gmvq.models import tiles as tiling
from gmvq.models.tiles import tiles
from gmvq.networks import WholeItemError
from gmvq.types import Signal


@dataclass(frozen=True)
class Toy(Image):
    """Items of any signal."""

    axes: int = 1
    values: str = "unit"
    downsampling = 4

    @property
    def signal(self):
        return Signal("toy", self.axes, self.channels, self.values)


def made(axes=2, values="unit", quantizer="gaussian-mixture", **options):
    """A model in float64, where rounding by the shape of a tile does not reach a tie between codes."""
    torch.manual_seed(0)
    modality = Toy(3 if values != "symbols" else 11, axes=axes, values=values)
    settings = {"width": 8, "blocks": 1, "codebook_size": 16, **options}
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(quantizer=quantizer, modality=modality, **settings)).double()
    items = drawn(axes, values, (16,) * axes, number=4)
    model.standardize([items])
    for _ in range(2):  # statistics of batch normalization that are not 0 and 1
        model(items)
    return model.eval()


def drawn(axes, values, size, number=2):
    torch.manual_seed(1)
    if values == "symbols":
        return torch.randint(0, 11, (number, *size))
    items = torch.rand(number, 3, *size, dtype=torch.float64)
    return {"unit": items, "signed": 2 * items - 1, "real": 7 + 30 * items}[values]


MODELS = {
    **{f"{axes} axes of {values}": lambda axes=axes, values=values: made(axes, values)
       for axes, values in [*itertools.product((1, 2, 3), ("unit", "real")), (1, "signed"), (1, "symbols")]},
    **{name: lambda name=name: made(normalization=name) for name in ("batch", "none")},
    "sequences, batch": lambda: made(1, normalization="batch"),
    "sq-vae": lambda: made(network="sq-vae"),
    "tokens of one sample": lambda: made(1, "symbols", downsampling=1),
    "tokens of 16 samples": lambda: made(1, "signed", downsampling=16),
    **{name: lambda name=name: made(quantizer=name) for name in ("residual", "finite-scalar", "hierarchical", "none")},
    "sequences, none": lambda: made(1, quantizer="none"),
    "sequences, hierarchical": lambda: made(1, quantizer="hierarchical"),
}  # fmt: skip
SIZES = {1: [(5,), (83,)], 2: [(3, 5), (17, 14), (41, 30), (9, 97)], 3: [(13, 10, 22)]}


def check(model, items, tile, lengths=None):
    codes = model.encode(items, lengths, tile=None)
    again = model.encode(items, lengths, tile=tile)
    assert again.dtype == codes.dtype
    if codes.is_floating_point():
        torch.testing.assert_close(again, codes)
    else:
        assert torch.equal(again, codes)
    size = model.signal.size(items)
    whole = model.decode(codes, size, tile=None)
    parts = model.decode(codes, size, tile=tile)
    assert parts.dtype == whole.dtype
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(model.reconstruct(items, lengths, tile=tile), whole, atol=1e-9, rtol=1e-9)
    assert model.decode(codes, size, tile=tile).shape == items.shape


@pytest.mark.parametrize("name", MODELS)
def test_tiles_give_what_the_whole_gives(name):
    model = MODELS[name]()
    for size in SIZES[model.signal.axes]:
        items = drawn(model.signal.axes, model.signal.values, size)
        for tile in (1, math.prod(size) // 3) if math.prod(size) < 500 else (math.prod(size) // 5,):
            check(model, items, tile)


@pytest.mark.parametrize("name", ["1 axes of unit", "1 axes of symbols", "tokens of 16 samples", "sequences, none"])
def test_sequences_end_in_any_tile(name):
    model = MODELS[name]()
    items, lengths = drawn(1, model.signal.values, (103,), number=5), torch.tensor([103, 102, 57, 1, 0])
    for tile in (1, 60):
        check(model, items, tile, lengths)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_picture_of_many_tiles_has_the_codes_of_the_whole_in_float32(dtype):
    torch.manual_seed(0)
    model = gmvq.Autoencoder(gmvq.AutoencoderConfig(width=16, codebook_size=64)).eval()
    items = (torch.rand(1, 3, 391, 605) * 255).to(torch.uint8)
    items = items if dtype == torch.uint8 else items.to(dtype) / 255
    codes = model.encode(items, tile=None)
    assert torch.equal(model.encode(items, tile=1 << 16), codes)
    assert codes.unique().numel() > 8
    parts = model.decode(codes, (391, 605), tile=1 << 16)
    torch.testing.assert_close(parts, model.decode(codes, (391, 605), tile=None), atol=1e-5, rtol=1e-5)


def test_items_that_are_not_large_go_the_old_way(monkeypatch):
    model, items = made(), drawn(2, "unit", (40, 30), number=3)
    expected = model.reconstruct(items, tile=None)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("gmvq.models.autoencoder.encode_tiles", never)
    monkeypatch.setattr("gmvq.models.autoencoder.decode_tiles", never)
    assert torch.equal(model.reconstruct(items), expected)
    assert torch.equal(model.reconstruct(items, tile=1200), expected)  # it is the size of an item that counts
    with pytest.raises(AssertionError):
        model.encode(items, tile=1199)


def test_no_tile_passes_that_is_larger_than_allowed(monkeypatch):
    model, items = made(), drawn(2, "unit", (200, 300), number=2)
    seen = []
    for name in ("encoder", "decoder"):
        network, scale = getattr(model, name), 1 if name == "encoder" else 16
        forward = network.forward
        counted = lambda x, f=forward, s=scale: seen.append(s * x[:, 0].numel()) or f(x)  # noqa: E731
        monkeypatch.setattr(network, "forward", counted)
    model.reconstruct(items, tile=10_000)
    assert 5_000 < max(seen) <= 10_000
    assert len(seen) > 2 * 2 * 6


def test_parts_cover_each_item_once():
    model, items = made(), drawn(2, "unit", (41, 30))
    codes, count = model.encode(items), torch.zeros(2, 3, 41, 30)
    for places, part in model.decode_parts(codes, (41, 30), tile=500):
        count[places] += 1
        assert part.shape == count[places].shape
    assert (count == 1).all()
    ((places, part),) = model.decode_parts(codes, (41, 30))
    assert places is ...
    assert torch.equal(part, model.decode(codes, (41, 30)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=1, max_size=3), st.integers(1, 3000))
def test_tiles_cover_a_grid_once_and_keep_their_margins(axes, most):
    grid, margin = [length for length, _ in axes], [beside for _, beside in axes]
    count = torch.zeros(grid)
    least = math.prod(min(length, 2 * beside + 1) for length, beside in axes)
    chosen = tiles(grid, margin, most)
    assert len({count[tile.seen].shape for tile in chosen}) == 1  # one shape: memory is used again
    for tile in chosen:
        count[tile.kept] += 1
        for kept, seen, inner, length, beside in zip(tile.kept, tile.seen, tile.inner, grid, margin, strict=True):
            assert 0 <= seen.start <= max(0, kept.start - beside)
            assert length >= seen.stop >= min(length, kept.stop + beside)
            assert (inner.start + seen.start, inner.stop + seen.start) == (kept.start, kept.stop)
        assert torch.zeros(grid)[tile.seen].numel() <= max(most, least) or len(grid) > 1
    assert (count == 1).all()


def test_a_network_that_looks_at_the_whole_gets_it_or_a_reason(monkeypatch):
    model, items = made(normalization="group"), drawn(2, "unit", (40, 30))
    expected = model.reconstruct(items, tile=None)
    assert torch.equal(model.reconstruct(items, tile=100), expected)
    monkeypatch.setattr(tiling, "MOST_WHOLE", 1199)
    codes = model.encode(items, tile=None)
    for verb in (model.encode, model.reconstruct, lambda items, tile: model.decode(codes, (40, 30), tile=tile)):
        with pytest.raises(WholeItemError, match=r"at most 1,199 samples .*, got 40 x 30: GroupNorm depends on .*GB"):
            verb(items, tile=100)
    assert torch.equal(model.reconstruct(items, tile=None), expected)


def test_bad_arguments_get_a_reason_before_tiles_are_made():
    model = made()
    with pytest.raises(ValueError, match="'tile' must be an integer of at least 1, got 0"):
        model.encode(drawn(2, "unit", (8, 8)), tile=0)
    with pytest.raises(ValueError, match=r"must have shape .*got \(1, 1, 30, 30\)"):
        model.encode(torch.rand(1, 1, 30, 30), tile=10)
    with pytest.raises(ValueError, match="must be finite"):
        model.encode(torch.full((1, 3, 30, 30), torch.nan), tile=10)
    with pytest.raises(ValueError, match="must lie in"):
        model.decode(torch.full((1, 9, 9), 16), tile=10)
    with pytest.raises(ValueError, match="3 axes"):
        model.decode(torch.zeros(20, 20, dtype=torch.int64), tile=10)
    assert model.encode(torch.rand(0, 3, 30, 30), tile=10).shape == (0, 8, 8)
    assert model.decode(torch.zeros(0, 8, 8, dtype=torch.int64), tile=10).shape == (0, 3, 32, 32)
