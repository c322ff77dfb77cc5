"""The list of all quantizers, once: every law is tested on each of them (style.md, 8)."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmvq.quantizers import (
    AbstractBottleneck,
    AbstractQuantizer,
    Affine,
    BinarySphericalQuantizer,
    DiVeQ,
    Diversity,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GaussianQuantizer,
    GumbelSoftmax,
    ImplicitResidual,
    IndexBackpropagationQuantizer,
    InPlaceStep,
    Joined,
    LatentQuantizer,
    LookupFreeQuantizer,
    OptimalTransportQuantizer,
    Orthogonal,
    Product,
    Projected,
    RandomProjectionQuantizer,
    Residual,
    Rotation,
    SimVQ,
    StochasticQuantizer,
    StraightThrough,
    VectorQuantizer,
)

DIM, SIZE = 6, 16
Make = Callable[[], AbstractQuantizer]

MEMBERS: dict[str, Make] = {
    "vector": lambda: VectorQuantizer(DIM, SIZE, decay=None),
    "vector-ema": lambda: VectorQuantizer(DIM, SIZE, decay=0.9, revive_below=1.0),
    "vector-huh": lambda: VectorQuantizer(
        DIM, SIZE, decay=None, cosine=True, revive_below=1.0, parts=[Affine(), InPlaceStep(4.0, steps=2)]
    ),
    "mixture": lambda: GaussianMixtureQuantizer(DIM, SIZE),
    "finite-scalar": lambda: FiniteScalarQuantizer((4, 4), dim=DIM),
    "latent": lambda: LatentQuantizer((4, 4), dim=DIM),
    "lookup-free": lambda: LookupFreeQuantizer(DIM, SIZE),
    "binary-spherical": lambda: BinarySphericalQuantizer(DIM, SIZE),
    "simvq": lambda: SimVQ(DIM, SIZE),
    "index-backpropagation": lambda: IndexBackpropagationQuantizer(DIM, SIZE, cosine=True),
    "stochastic": lambda: StochasticQuantizer(DIM, SIZE, estimator=GumbelSoftmax(1.0, hard=True)),
    "optimal-transport": lambda: OptimalTransportQuantizer(DIM, SIZE),
    "random-projection": lambda: RandomProjectionQuantizer(DIM, SIZE, codebook_dim=4),
}
"""One for each class that quantizes a latent by itself, with one code: what the cross product runs over."""

VARIANTS: dict[str, Make] = {
    "lookup-free-little": lambda: LookupFreeQuantizer(DIM, SIZE, bit_order="little"),
    "finite-scalar-paper": lambda: FiniteScalarQuantizer((4, 4), dim=DIM, bound="paper"),
    "finite-scalar-clamp": lambda: FiniteScalarQuantizer((4, 4), dim=DIM, bound="clamp"),
    "finite-scalar-symmetric": lambda: FiniteScalarQuantizer((4, 4), dim=DIM, symmetric=True),
    "index-plain": lambda: IndexBackpropagationQuantizer(DIM, SIZE),
    "gaussian-hard": lambda: GaussianQuantizer(DIM, SIZE, hard=True),
    "gaussian-groups": lambda: GaussianQuantizer(DIM, SIZE, group_dim=3, hard=True),
    "vector-random-start": lambda: VectorQuantizer(DIM, SIZE, decay=None, kmeans_start=False),
    "vector-average": lambda: VectorQuantizer(DIM, SIZE, decay=0.9),
    "vector-cosine": lambda: VectorQuantizer(DIM, SIZE, cosine=True),
    "vector-gradient-revival": lambda: VectorQuantizer(DIM, SIZE, decay=None, revive_below=3.0),
    "vector-rotation": lambda: VectorQuantizer(DIM, SIZE, estimator=Rotation()),
    "vector-diveq": lambda: VectorQuantizer(DIM, SIZE, decay=None, estimator=DiVeQ()),
    "vector-synchronized": lambda: VectorQuantizer(DIM, SIZE, decay=None, estimator=StraightThrough(0.5)),
    "vector-gumbel": lambda: VectorQuantizer(DIM, SIZE, decay=None, estimator=GumbelSoftmax(0.5, hard=True)),
    "vector-affine": lambda: VectorQuantizer(DIM, SIZE, decay=None, parts=[Affine()]),
    "vector-affine-ema": lambda: VectorQuantizer(DIM, SIZE, decay=0.9, parts=[Affine(0.9)]),
    "vector-spread": lambda: VectorQuantizer(DIM, SIZE, decay=None, parts=[Orthogonal(), Diversity()]),
    "vector-projected": lambda: VectorQuantizer(DIM, SIZE, codebook_dim=3),
    "mixture-rates": lambda: GaussianMixtureQuantizer(DIM, 32, codebook_dim=2),
    "mixture-elbo": lambda: GaussianMixtureQuantizer(DIM, SIZE, objective="elbo"),
    "mixture-fixed": lambda: GaussianMixtureQuantizer(DIM, SIZE, variance=0.5),
    "mixture-feature": lambda: GaussianMixtureQuantizer(DIM, SIZE, variance="feature", learned=("feature_weights",)),
    "mixture-code": lambda: GaussianMixtureQuantizer(DIM, SIZE, variance="code"),
    "mixture-weights": lambda: GaussianMixtureQuantizer(DIM, SIZE, learned=("mixture_weights",)),
    "mixture-gradient": lambda: GaussianMixtureQuantizer(DIM, SIZE, learned=("codebook",)),
    "mixture-full-dim": lambda: GaussianMixtureQuantizer(DIM, SIZE, codebook_dim=DIM),
    "mixture-gumbel-hard": lambda: GaussianMixtureQuantizer(DIM, SIZE, estimator=GumbelSoftmax(0.5, hard=True)),
}
"""Options of the members."""

COMPOSITES: dict[str, Make] = {
    "residual": lambda: Residual([VectorQuantizer(DIM, SIZE, decay=0.9, revive_below=1.0) for _ in range(3)]),
    "residual-shared": lambda: Residual(VectorQuantizer(DIM, SIZE, decay=0.9), 3),
    "residual-sizes": lambda: Residual([VectorQuantizer(DIM, size, decay=None) for size in (16, 4, 2)]),
    "residual-dropout": lambda: Residual(
        [GaussianMixtureQuantizer(DIM, SIZE) for _ in range(2)], quantizer_dropout=True
    ),
    "residual-dropout-shared": lambda: Residual(
        VectorQuantizer(DIM, SIZE, decay=0.9, revive_below=1.0), 4, quantizer_dropout=0.7, dropout_multiple_of=2
    ),
    "residual-beam": lambda: Residual([VectorQuantizer(DIM, SIZE) for _ in range(2)], beam_size=3),
    "product": lambda: Product([VectorQuantizer(2, SIZE), FiniteScalarQuantizer((4, 4), dim=4, symmetric=True)]),
    "product-shared": lambda: Product(GaussianMixtureQuantizer(3, SIZE), heads=2),
    "projected": lambda: Projected(VectorQuantizer(3, SIZE, decay=0.9), DIM),
    "projected-untied": lambda: Projected(LookupFreeQuantizer(4, SIZE), DIM, tied=False),
    "implicit": lambda: ImplicitResidual([VectorQuantizer(DIM, SIZE, decay=None) for _ in range(2)]),
    "residual-of-product": lambda: Residual([Product(VectorQuantizer(3, SIZE), heads=2) for _ in range(2)]),
    "product-of-residual": lambda: Product([Residual(VectorQuantizer(3, SIZE), 2) for _ in range(2)]),
    "projected-residual": lambda: Projected(Residual(VectorQuantizer(3, SIZE), 2), DIM),
    "joined-residual": lambda: Joined(Residual([VectorQuantizer(DIM, size, decay=0.9) for size in (8, 3)])),
    "joined-product": lambda: Joined(Product([GaussianMixtureQuantizer(2, 8), GaussianMixtureQuantizer(4, 2)])),
    "joined-nested": lambda: Joined(
        Projected(Product([Product(VectorQuantizer(1, size, decay=None), heads=2) for size in (2, 5)]), DIM)
    ),
}
"""Quantizers made of quantizers."""

BLENDS: dict[str, Make] = {
    "mixture-gumbel": lambda: GaussianMixtureQuantizer(DIM, SIZE, estimator=GumbelSoftmax(0.5)),
    "mixture-paper": lambda: GaussianMixtureQuantizer(
        DIM, SIZE, estimator=GumbelSoftmax(), noise=1.0, learned=("codebook",)
    ),
    "stochastic-paper": lambda: StochasticQuantizer(DIM, SIZE),
    "finite-scalar-noise": lambda: FiniteScalarQuantizer((4, 4), dim=DIM, symmetric=True, noise_dropout=0.5),
    "gaussian-codes": lambda: GaussianQuantizer(DIM, SIZE),
}
"""Those that show the decoder a blend of codes, or a noisy one, in training."""

CONTINUOUS: dict[str, Callable[[], AbstractBottleneck]] = {
    "gaussian": lambda: GaussianBottleneck(DIM),
    "gaussian-projected": lambda: GaussianBottleneck(DIM, 2),
}

SINGLE: dict[str, Make] = {**MEMBERS, **VARIANTS}
QUANTIZERS: dict[str, Make] = {**SINGLE, **COMPOSITES}
BOTTLENECKS: dict[str, Callable[[], AbstractBottleneck]] = {**QUANTIZERS, **BLENDS, **CONTINUOUS}


def latents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dim, generator=generator, dtype=torch.float64).to(dtype)


def trained(make: Callable[[], AbstractBottleneck], steps: int = 3) -> AbstractBottleneck:
    torch.manual_seed(0)
    bottleneck = make()
    for step in range(steps):
        bottleneck(latents(200, seed=step, dim=bottleneck.dim))
    return bottleneck
