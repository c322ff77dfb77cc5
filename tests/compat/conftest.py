"""Compares a module of vector-quantize-pytorch with ours, which has loaded its state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.quantizers import AbstractQuantizer

SEQUENCE = (2, 10, 8)

BESIDE = ("shape", "call", "dtype", "round_trips")
"""What a case says beside the options of the class."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a case by its options."""
    if argname != "case" or not isinstance(val, dict):
        return None
    named = {name: getattr(value, "__name__", value) for name, value in val.items()}
    named |= {"call": "+".join(named["call"])} if "call" in named else {}
    return ",".join(f"{name}={value}" for name, value in named.items()).replace(" ", "") or "defaults"


def build(library: Any, kind: str, options: dict[str, Any]) -> Any:
    """A module by the name of its class; a network is made anew for each."""
    network = {name: make() for name, make in options.items() if name == "codebook_transform"}
    return getattr(library, kind)(**options | network)


def latents(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Takes a few steps of training, with statistics and with gradients."""
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    for step in range(4):
        x = latents(shape, 100 + step, dtype).requires_grad_()
        quantized, _, *loss = module(x)
        total = quantized.float().square().mean() + sum(part.sum() for part in loss)
        if optimizer is not None and total.requires_grad:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    # values of size 1 after a few float32 operations in another order; bfloat16 has 8 bits
    return {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {"atol": 2e-6, "rtol": 1e-4}


def assert_same(answer: Any, expected: Any, dtype: torch.dtype) -> None:
    """Same length, same shapes, same numbers to rounding."""
    assert len(answer) == len(expected)
    for place, (one, other) in enumerate(zip(answer, expected, strict=True)):
        if isinstance(other, tuple):
            assert_same(one, other, dtype)
        elif other is None:
            assert one is None
        elif other.is_floating_point():
            assert one.shape == other.shape
            # their loss is in float32 for latents in float64, too
            torch.testing.assert_close(one, other, check_dtype=place == 0, **_tolerance(dtype))
        else:
            assert torch.equal(one, other.long())


@pytest.fixture
def compare() -> Callable[..., None]:
    """Whether ours gives what theirs gives in evaluation.

    A case has the options of the class, and beside them ``shape`` and ``dtype`` of x, ``call`` of the forward, and
    ``round_trips``, whether theirs gets what it gave back from its indices.
    """
    theirs = pytest.importorskip("vector_quantize_pytorch")

    def compared(kind: str, case: dict[str, Any], defaults: dict[str, Any], state: str = "fresh") -> None:
        torch.manual_seed(0)
        options = defaults | {name: value for name, value in case.items() if name not in BESIDE}
        shape, dtype = case.get("shape", SEQUENCE), case.get("dtype", torch.float32)
        call, round_trips = case.get("call", {}), case.get("round_trips", True)
        module = build(theirs, kind, options)
        if state == "trained":
            trained(module, shape, dtype)
        module.eval()
        x = latents(shape, 0, dtype)
        with torch.no_grad():
            expected = module(x, **call)  # before its state is read: some of its options change it in evaluation, too
            dropin = build(ours, kind, options)
            dropin.load_state_dict(module.state_dict())
            dropin.eval()
            answer = dropin(x, **call)
            tensors = expected[0] if isinstance(expected[0], tuple) else expected
            assert_same(_without_terms(answer, call), _without_terms(expected, call), dtype)
            if round_trips:
                _assert_same_lookup(dropin, module, tensors[1], dtype)
            _assert_converted(module, x, call, tensors)
            _assert_own_state_loads(build(ours, kind, options), dropin, x, call)

    return compared


def _without_terms(answer: Any, call: dict[str, Any]) -> Any:
    """The part of an answer that both define: the parts of the loss are 0 in their evaluation, and metrics in ours."""
    if "return_loss_breakdown" not in call:
        return answer
    return answer[0] if isinstance(answer[0], tuple) else answer[:-1]


def _assert_same_lookup(dropin: nn.Module, module: nn.Module, indices: Tensor, dtype: torch.dtype) -> None:
    for method in ("get_codes_from_indices", "get_output_from_indices", "indices_to_codes"):
        if hasattr(module, method):
            expected = getattr(module, method)(indices)
            torch.testing.assert_close(getattr(dropin, method)(indices), expected, atol=2e-6, rtol=1e-4)


def _assert_converted(module: nn.Module, x: Tensor, call: dict[str, Any], expected: Any) -> None:
    quantizer = ours.convert(module)
    assert not quantizer.training
    kind = type(module).__name__
    is_first = not isinstance(quantizer, AbstractQuantizer) or (kind in ("FSQ", "LFQ", "ResidualLFQ") and x.ndim > 3)
    latents = x.movedim(1, -1) if is_first and x.ndim > 2 else x
    inner = quantizer if isinstance(quantizer, AbstractQuantizer) else quantizer.quantizer
    masks = {{"lens": "lengths"}.get(name, name): value for name, value in call.items() if name in ("mask", "lens")}
    values, codes, _, _ = inner(latents, **masks)
    values = values.movedim(-1, 1) if is_first and x.ndim > 2 else values
    mask = call.get("mask", torch.ones(codes.shape[: x.ndim - 1], dtype=torch.bool))
    if "lens" in call:
        mask = torch.arange(x.shape[1]) < call["lens"][:, None]
    channels_last = values.movedim(1, -1) if is_first and x.ndim > 2 else values
    expected_last = expected[0].movedim(1, -1) if is_first and x.ndim > 2 else expected[0]
    torch.testing.assert_close(channels_last[mask], expected_last[mask], **_tolerance(x.dtype))
    if expected[1] is not None:
        theirs = expected[1].long()
        theirs = theirs.movedim(0, -2) if kind.startswith("Grouped") else theirs
        theirs = theirs.movedim(1, -1) if kind == "ResidualFSQ" and is_first else theirs
        assert torch.equal(codes, theirs)
        assert torch.equal(codes, inner.encode(latents, **masks))


def _assert_own_state_loads(another: nn.Module, dropin: nn.Module, x: Tensor, call: dict[str, Any]) -> None:
    another.load_state_dict(dropin.state_dict())
    assert_same(_without_terms(another.eval()(x, **call), call), _without_terms(dropin(x, **call), call), x.dtype)
