"""Laws of the state at rest: it can be saved by safetensors, averaged over models, and cast."""

import copy

import pytest
import torch
from members import BOTTLENECKS, DIM, SIZE, latents, trained
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gmvq.quantizers import (
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GaussianQuantizer,
    IndexBackpropagationQuantizer,
    OptimalTransportQuantizer,
    SimVQ,
    StochasticQuantizer,
    VectorQuantizer,
)
from gmvq.quantizers.parts.codebook import MovingAverageCodebook

NARROW = {
    "gaussian": GaussianBottleneck,
    **{
        kind.__name__: lambda dim, codebook_dim, kind=kind: kind(dim, SIZE, codebook_dim=codebook_dim)
        for kind in (
            *(VectorQuantizer, GaussianMixtureQuantizer, SimVQ, IndexBackpropagationQuantizer),
            *(OptimalTransportQuantizer, StochasticQuantizer, GaussianQuantizer),
        )
    },
}
MAKES = {
    **BOTTLENECKS,
    **{f"{name}, {n} of {DIM}": lambda make=make, n=n: make(DIM, n) for name, make in NARROW.items() for n in (1, 4)},
}
bottlenecks = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())


@bottlenecks
def test_safetensors_takes_the_state(tmp_path, make):
    for bottleneck in (make(), trained(make)):
        save_file(bottleneck.state_dict(), tmp_path / "state.safetensors")
        other = make()
        other.load_state_dict(load_file(tmp_path / "state.safetensors"))
        for name, tensor in bottleneck.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


@bottlenecks
def test_an_average_over_models_is_a_model(make):
    bottleneck = make()
    averaged = AveragedModel(bottleneck, use_buffers=True)
    states = []
    for step in range(3):
        bottleneck(latents(200, seed=step))
        averaged.update_parameters(bottleneck)
        states.append({name: tensor.clone() for name, tensor in bottleneck.state_dict().items()})
    plain = make()
    plain.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)
    for each in (averaged.module, plain):
        out = each.eval()(latents(50))
        assert out.values.isfinite().all()
        assert torch.equal(out.values, each.decode(out.codes))
        assert all(part.has_started for part in each.modules() if isinstance(part, MovingAverageCodebook))


@bottlenecks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_cast_quantizer_rounds_what_it_shows_alone(make, dtype):
    plain = trained(make).eval()
    cast = copy.deepcopy(plain).to(dtype).to("cpu")
    rows = latents(50, dtype=dtype)
    expected, out = plain(rows.float()), cast(rows)
    assert out.values.dtype == dtype
    assert torch.equal(out.values, expected.values.to(dtype))
    assert torch.equal(out.codes, expected.codes)
    codes = cast.encode(rows)
    assert torch.equal(codes, plain.encode(rows.float()))
    assert cast.decode(codes).dtype == dtype
    assert torch.equal(cast.decode(codes), plain.decode(codes).to(dtype))
    assert torch.equal(cast.decode(out.codes), out.values)
    for name, tensor in cast.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name  # and of its type
    other = make()
    other.load_state_dict(cast.state_dict())
    assert torch.equal(other.decode(codes), plain.decode(codes))
    assert cast.float().decode(codes).dtype == torch.float32
    # inside of a model, too
    nn.Sequential(cast).to(dtype)
    assert cast.decode(codes).dtype == dtype
    assert cast.train()(rows).values.dtype == dtype


@bottlenecks
def test_a_cast_to_float64_decodes_to_float64(make):
    bottleneck = trained(make).double().eval()
    assert bottleneck.decode(bottleneck.encode(latents(9).double())).dtype == torch.float64
