"""What a user types and reads: inputs that are no tensors, and what print says."""

import pytest
import torch
from members import BOTTLENECKS, DIM, SIZE, latents

from gmvq.quantizers import (
    ChannelFirst,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    Hierarchical,
    Joined,
    Product,
    Residual,
    VectorQuantizer,
)

MAKES = {
    **BOTTLENECKS,
    "channel-first": lambda: ChannelFirst(VectorQuantizer(DIM, SIZE)),
    "hierarchical": lambda: Hierarchical(VectorQuantizer(DIM, SIZE), (2, 1.0)),
}
bottlenecks = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
others = pytest.mark.parametrize("given", [lambda x: x.tolist(), lambda x: x.numpy()], ids=["list", "array"])


def reason(name, value):
    return pytest.raises(
        ValueError, match=rf"'{name}' must be a tensor, got {type(value).__name__}. Use torch.as_tensor\({name}\)"
    )


@bottlenecks
@others
def test_what_is_no_tensor_gets_a_reason(make, given):
    bottleneck = make()
    maps = isinstance(bottleneck, Hierarchical)
    rows = latents(2, 4)
    rows = rows.movedim(-1, 1) if isinstance(bottleneck, ChannelFirst) else rows
    verbs = ["__call__", "encode", "posterior_mean", "divergence", "sample_posterior"]
    for verb in [*verbs, "posterior"] if bottleneck.has_posterior else verbs:
        with reason("latents", given(rows)):
            getattr(bottleneck, verb)(given(rows))
    for options in ({"mask": torch.ones(2, 4, dtype=torch.bool)}, {"lengths": torch.tensor([1, 2])}):
        ((name, value),) = options.items()
        for verb in (bottleneck, bottleneck.encode):
            with reason(name, given(value)):
                verb(rows, **{name: given(value)})
    codes = bottleneck.encode(rows)
    with reason("codes", given(codes)):
        bottleneck.decode(given(codes), **({"size": 4} if maps else {}))


@others
def test_split_and_join_take_tensors_too(given):
    joined = Joined(Residual(VectorQuantizer(DIM, 4), 2))
    codes = torch.tensor([1, 2])
    for verb, name in ((joined.split, "codes"), (joined.join, "parts")):
        with reason(name, given(codes)):
            verb(given(codes))
    with reason("codes", given(codes)):
        Hierarchical(VectorQuantizer(DIM, SIZE), (2, 1.0)).split(given(codes), 4)


@bottlenecks
def test_print_shows_features_and_codes(make):
    bottleneck = make()
    size = "" if bottleneck.codebook_size is None else f", codebook_size={bottleneck.codebook_size}"
    assert bottleneck.extra_repr().startswith(f"dim={DIM}{size}")
    assert "\n" not in bottleneck.extra_repr()
    assert bottleneck.extra_repr() in repr(bottleneck)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (VectorQuantizer(8, 32), "VectorQuantizer(dim=8, codebook_size=32)"),
        (VectorQuantizer(codebook_size=32, dim=8), "VectorQuantizer(dim=8, codebook_size=32)"),
        (
            VectorQuantizer(8, 32, decay=None, codebook_dim=4),
            "VectorQuantizer(dim=8, codebook_size=32, codebook_dim=4, decay=None)",
        ),
        (
            GaussianMixtureQuantizer(64, 512, estimator=GumbelSoftmax(0.5), objective="albo"),
            "GaussianMixtureQuantizer(dim=64, codebook_size=512, codebook_dim=4, "
            "estimator=GumbelSoftmax(temperature=0.5, hard=False))",
        ),
        (GaussianBottleneck(8), "GaussianBottleneck(dim=8)"),
    ],
)
def test_print_shows_what_is_no_default(made, shown):
    assert repr(made) == shown


def test_print_shows_the_members():
    product = Product([Residual(VectorQuantizer(4, 8), num_quantizers=2) for _ in range(2)])
    assert repr(product).splitlines()[1] == "  dim=8, codebook_size=8"
    assert "\n      dim=4, codebook_size=8, num_quantizers=2\n" in repr(product)
    assert "(0): VectorQuantizer(dim=4, codebook_size=8)" in repr(product)


def test_wrong_arguments_are_explained_by_the_constructor():
    with pytest.raises(TypeError, match="hue"):
        VectorQuantizer(8, 32, hue=1)
    with pytest.raises(TypeError, match="codebook_size"):
        VectorQuantizer(8)
