import pytest
import torch

from gmvq.networks import Decoder, Encoder, Reach, SQVAEDecoder, SQVAEEncoder, WholeItemError
from gmvq.networks.reach import decoder_reach, encoder_reach
from gmvq.types import Signal

LOCAL = ("layer", "batch", "none")


def pair(axes, values="real", normalization="layer", halvings=2, blocks=1):
    signal = Signal("toy", axes, 2, values)
    widths = (4,) * max(1, halvings)
    given = (signal, 3, widths, blocks, normalization)
    return Encoder(*given, halves=halvings > 0), Decoder(*given, halves=halvings > 0)


PAIRS = {
    **{f"{axes} axes, {name}": lambda axes=axes, name=name: pair(axes, "real", name)
       for axes in (1, 2, 3) for name in LOCAL},
    **{f"{number} halvings": lambda number=number: pair(1, "real", "layer", number) for number in (0, 1, 3, 6)},
    **{f"{number} blocks": lambda number=number: pair(1, "real", "layer", 2, number) for number in (2, 5)},
    "symbols": lambda: pair(1, "symbols"),
    "sq-vae": lambda: (SQVAEEncoder(2, 3, (8, 8), 2), SQVAEDecoder(2, 3, (8, 8), 2)),
    "sq-vae of one halving": lambda: (SQVAEEncoder(2, 4, (4,), 1), SQVAEDecoder(2, 4, (4,), 1)),
}  # fmt: skip


def seen(network, places, middle, axis):
    """The first and last input place along an axis on which some outputs depend, by their gradient."""
    inputs = torch.randn(places).double().requires_grad_()
    outputs = network.double().eval()(inputs)
    chosen = outputs[(..., *(slice(part.start, part.stop) for part in middle))]
    (slope,) = torch.autograd.grad((chosen * torch.randn_like(chosen)).sum(), inputs)
    found = slope.movedim(2 + axis, 0).flatten(1).abs().sum(1).nonzero().flatten()
    return int(found[0]), int(found[-1])


@pytest.mark.parametrize("name", PAIRS)
def test_the_reach_is_that_of_the_gradient(name):
    torch.manual_seed(0)
    encoder, decoder = (network.eval() for network in PAIRS[name]())
    reach = encoder.reach()
    axes, stride = len(reach.stride), reach.stride[0]
    assert decoder.reach().stride == reach.stride == (stride,) * axes
    tokens = 17 if axes == 1 else 11
    middle = tokens // 2
    layers = encoder.layers  # behind the embedding of symbols, which has no gradient
    channels = 4 if name == "symbols" else 2
    for axis in range(axes):
        first, last = seen(layers, (4, channels, *[tokens * stride] * axes), [slice(middle, middle + 1)] * axes, axis)
        margin = max(middle - first // stride, last // stride - middle)
        assert margin == reach.margin[axis] < middle
        own = [slice(middle * stride, (middle + 1) * stride)] * axes
        dim = 4 if name == "sq-vae of one halving" else 3
        first, last = seen(decoder.layers, (4, dim, *[tokens] * axes), own, axis)
        assert max(middle - first, last - middle) == decoder.reach().margin[axis] < middle


def test_axes_may_differ():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, (5, 1), padding=(2, 0)),
        torch.nn.Conv2d(1, 1, (4, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    )
    assert encoder_reach(layers, 2) == Reach((2, 1), (2, 2))
    up = torch.nn.Sequential(torch.nn.ConvTranspose2d(1, 1, (4, 3), stride=(2, 1), padding=(1, 1)))
    assert decoder_reach(up, 2) == Reach((2, 1), (1, 1))


def test_networks_that_look_at_the_whole_say_so():
    for network in pair(2, "real", "group"):
        with pytest.raises(WholeItemError, match="GroupNorm depends on all places"):
            network.eval().reach()
    encoder = pair(2, "real", "batch")[0].train()
    with pytest.raises(WholeItemError, match="BatchNorm2d in training mode depends on all places"):
        encoder.reach()
    assert encoder.eval().reach().stride == (4, 4)
