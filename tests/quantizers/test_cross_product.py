"""Member x composition x layout x mask x mode x precision, eager and compiled, under the laws of a forward.

Eager, the product is complete: each test is a member in a composition, a mode and a precision, and goes through all
layouts with all masks. Tracing takes hundreds of times as long as running; so compiled, each member in each composition
and mode takes one layout, mask and precision, which rotate, and ``make test-slow`` takes all of them.
"""

import copy
import itertools
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from exceptions import EXCEPTIONS
from members import DIM, MEMBERS, Make, latents
from torch import Tensor, nn

from gmvq.quantizers import (
    AbstractQuantizer,
    ChannelFirst,
    Hierarchical,
    ImplicitResidual,
    Product,
    Projected,
    Residual,
)
from gmvq.types import Quantized

COMPOSITIONS: dict[str, Callable[[Make], AbstractQuantizer]] = {
    "alone": lambda make: make(),
    "residual": lambda make: Residual([make(), make()]),
    "residual-shared": lambda make: Residual(make(), 2),
    "product": lambda make: Product([make(), make()]),
    "product-shared": lambda make: Product(make(), heads=2),
    "projected": lambda make: Projected(make(), DIM + 2),
    "residual-of-product": lambda make: Residual([Product(make(), heads=2), Product(make(), heads=2)]),
    "implicit": lambda make: ImplicitResidual([make(), make()]),
    "hierarchical": lambda make: Hierarchical(make(), scales=(0.5, 1.0)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Layout(NamedTuple):
    """Leading axes, and whether channels come first."""

    shape: tuple[int, ...]
    channel_first: bool = False


LAYOUTS = {
    "vector": Layout(()),
    "rows": Layout((5,)),
    "empty": Layout((0,)),
    "sequence": Layout((3, 4)),
    "image": Layout((2, 2, 3)),
    "volume": Layout((2, 2, 1, 3)),
    "sequence-channel-first": Layout((3, 4), True),
    "image-channel-first": Layout((2, 2, 3), True),
    "volume-channel-first": Layout((2, 2, 1, 3), True),
}
MAPS = ("sequence", "image", "volume")
"""A hierarchical quantizer needs a grid, and has no code for each place."""

MASKS = ("all", "mask", "lengths")
SHAPES = [
    (layout, mask)
    for layout, mask in itertools.product(LAYOUTS, MASKS)
    if mask != "lengths" or layout.startswith("sequence")
]
PAIRS = list(itertools.product(COMPOSITIONS, MEMBERS))

pairs = pytest.mark.parametrize(("composition", "member"), PAIRS)
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@cache
def start(composition: str, member: str) -> AbstractQuantizer:
    torch.manual_seed(0)
    quantizer = COMPOSITIONS[composition](MEMBERS[member])
    for step in range(3):
        quantizer(latents(20, 2, 3, seed=step, dim=quantizer.dim))
    return quantizer


def pristine(composition: str, member: str, training: bool, dtype: torch.dtype) -> AbstractQuantizer:
    return copy.deepcopy(start(composition, member)).to(dtype).train(training)


class Case(NamedTuple):
    """A layout of latents with its mask."""

    given: Tensor
    options: dict[str, Tensor]
    rows: Tensor
    kept: Tensor | None

    @classmethod
    def make(cls, name: str, mask: str, dim: int, dtype: torch.dtype) -> "Case":
        layout = LAYOUTS[name]
        places = latents(*layout.shape, seed=7, dtype=dtype, dim=dim)
        given = places.movedim(-1, 1).contiguous() if layout.channel_first else places.clone()
        if mask == "all":
            return cls(given, {}, places.reshape(-1, dim), None)
        if mask == "lengths":
            lengths = torch.tensor([4, 1, 2])
            kept = torch.arange(4) < lengths[:, None]
            return cls(given, {"lengths": lengths}, places[kept], kept)
        number = torch.Size(layout.shape).numel()
        kept = (torch.arange(number) % 3 != 1).reshape(layout.shape)
        return cls(given, {"mask": kept}, places[kept].reshape(-1, dim), kept)


def run(
    module: nn.Module, call: Callable[..., Quantized], case: Case, training: bool
) -> tuple[Quantized, Tensor | None]:
    given = case.given.clone().requires_grad_(training)
    torch.manual_seed(1)
    out = call(given, **case.options)
    if training:
        (out.values.double().sum() + out.loss).backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()
    return out, given.grad


def check_laws(out: Quantized, module: nn.Module, case: Case, training: bool, maps: bool, first: bool):
    values, codes, loss, _ = out
    assert values.shape == case.given.shape
    assert values.dtype == case.given.dtype
    assert codes.dtype == torch.int64
    assert loss.shape == ()
    assert loss.isfinite()
    decoded = module.decode(codes, case.given.shape[1:-1]) if maps else module.decode(codes)
    assert torch.equal(values, decoded.to(values.dtype))
    if case.kept is not None:
        channels_last = values.movedim(1, -1) if first else values
        assert (channels_last[~case.kept] == 0).all()
        assert maps or (codes[~case.kept] == -1).all()
    if not training:
        assert torch.equal(codes, module.encode(case.given, **case.options))


def check_against_rows(out: Quantized, case: Case, quantizer: AbstractQuantizer):
    """A layout and a mask are nothing but a list of the rows that count."""
    torch.manual_seed(1)
    expected = quantizer(case.rows)
    codes = out.codes if case.kept is None else out.codes[case.kept]
    assert torch.equal(codes.reshape(expected.codes.shape), expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)


def check(composition: str, member: str, training: bool, dtype: torch.dtype, layout: str, mask: str, compiled: bool):
    quantizer = pristine(composition, member, training, dtype)
    maps, first = composition == "hierarchical", LAYOUTS[layout].channel_first
    if maps and layout not in MAPS:
        if layout == "empty" or first:
            return
        with pytest.raises(ValueError, match="maps"):
            quantizer(latents(*LAYOUTS[layout].shape, dim=quantizer.dim, dtype=dtype))
        return
    case = Case.make(layout, mask, quantizer.dim, dtype)
    module = ChannelFirst(quantizer) if first else quantizer
    out, gradient = run(module, module, case, training)
    if compiled:
        torch._dynamo.reset()
        other = pristine(composition, member, training, dtype)
        traced = ChannelFirst(other) if first else other
        graph = torch.compile(traced, fullgraph=True, backend="eager", dynamic=False)
        again, traced_gradient = run(traced, graph, case, training)
        assert torch.equal(again.codes, out.codes)
        assert torch.equal(again.values, out.values)
        torch.testing.assert_close(again.loss, out.loss)
        torch.testing.assert_close(traced_gradient, gradient)
        for name, tensor in quantizer.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor, msg=name)
        return
    check_laws(out, module, case, training, maps, first)
    drawn = training and member in EXCEPTIONS["masks"]
    if not maps and not (drawn and mask != "all"):
        check_against_rows(out, case, pristine(composition, member, training, dtype))


@dtypes
@modes
@pairs
def test_laws_of_a_forward(composition, member, training, dtype):
    for layout, mask in SHAPES:
        try:
            check(composition, member, training, dtype, layout, mask, compiled=False)
        except Exception as error:
            error.add_note(f"layout {layout}, mask {mask}")
            raise


def variants(composition: str) -> list[tuple[str, str, torch.dtype]]:
    shapes = [shape for shape in SHAPES if composition != "hierarchical" or shape[0] in MAPS]
    return [(*shape, dtype) for shape in shapes for dtype in DTYPES]


@modes
@pairs
def test_compiled_is_eager(composition, member, training):
    every = variants(composition)
    turn = 2 * PAIRS.index((composition, member)) + training
    check(composition, member, training, *reordered(every[turn * 11 % len(every)]), compiled=True)


@pytest.mark.slow
@modes
@pairs
def test_compiled_is_eager_in_all_layouts(composition, member, training):
    for variant in variants(composition):
        check(composition, member, training, *reordered(variant), compiled=True)


def reordered(variant: tuple[str, str, torch.dtype]) -> tuple[torch.dtype, str, str]:
    layout, mask, dtype = variant
    return dtype, layout, mask
