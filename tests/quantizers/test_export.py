"""Each member leaves by torch.export in evaluation, and is compiled without a graph break in training."""

import copy

import pytest
import torch
import torch._inductor.config
from members import BOTTLENECKS, QUANTIZERS, latents, trained

quantizers = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())
bottlenecks = pytest.mark.parametrize("make", BOTTLENECKS.values(), ids=BOTTLENECKS.keys())


class Encode(torch.nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latents):
        return self.quantizer.encode(latents)


class Decode(Encode):
    def forward(self, codes):
        return self.quantizer.decode(codes)


@quantizers
def test_forward_encode_and_decode_are_exported_for_any_batch(make):
    quantizer = trained(make).eval()
    example, other = latents(4, 5, dim=quantizer.dim), latents(7, 5, seed=1, dim=quantizer.dim)
    batch = ({0: torch.export.Dim("batch", min=2)},)
    forward = torch.export.export(quantizer, (example,), dynamic_shapes=batch).module()
    expected = quantizer(other)
    given = forward(other)
    torch.testing.assert_close(given.values, expected.values)
    assert torch.equal(given.codes, expected.codes)
    encode = torch.export.export(Encode(quantizer), (example,), dynamic_shapes=batch).module()
    assert torch.equal(encode(other), expected.codes)
    codes = quantizer.encode(example)
    decode = torch.export.export(Decode(quantizer), (codes,), dynamic_shapes=batch).module()
    torch.testing.assert_close(decode(expected.codes), expected.values)


@bottlenecks
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compiled_steps_are_the_eager_ones(make, training):
    check_steps(make, training, "aot_eager" if training else "eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own
@bottlenecks
def test_steps_of_inductor_are_the_eager_ones(make):
    """It computes parts of the forward again in the backward pass, when statistics have changed."""
    # the random numbers of eager mode, not of inductor's own generator
    with torch._inductor.config.patch(fallback_random=True):
        check_steps(make, True, "inductor")


def check_steps(make, training, backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = make() if training else trained(make).eval()
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for step in range(3 if training else 1):
        for bottleneck in (eager, other):
            bottleneck.zero_grad()
        rows, same = (latents(64, seed=step, dim=eager.dim).requires_grad_(training) for _ in range(2))
        outs = []
        for bottleneck, given in ((eager, rows), (compiled, same)):
            torch.manual_seed(step)
            out = bottleneck(given)
            if training:
                (out.values.square().mean() + out.loss).backward()
            outs.append(out)
        assert torch.equal(outs[0].codes, outs[1].codes) or outs[0].codes.dtype != torch.int64
        torch.testing.assert_close(outs[0].values, outs[1].values)
        torch.testing.assert_close(outs[0].loss, outs[1].loss)
        torch.testing.assert_close(rows.grad, same.grad)
        for (name, parameter), twin in zip(eager.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, twin.grad, msg=lambda text, name=name: f"{name}: {text}")
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], msg=lambda text, name=name: f"{name}: {text}")
