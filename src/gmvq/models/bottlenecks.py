"""The bottleneck that a configuration names: one line for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from gmvq.quantizers import (
    AbstractBottleneck,
    Affine,
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GaussianQuantizer,
    IndexBackpropagationQuantizer,
    InPlaceStep,
    LookupFreeQuantizer,
    OptimalTransportQuantizer,
    SimVQ,
    StochasticQuantizer,
    VectorQuantizer,
)

QuantizerName = Literal[
    "gaussian-mixture",
    "vector",
    "vector-kmeans",
    "vector-ema",
    "vector-affine",
    "finite-scalar",
    "lookup-free",
    "binary-spherical",
    "simvq",
    "index-backpropagation",
    "stochastic",
    "optimal-transport",
    "gaussian-codes",
    "none",
]

LARGEST_LEVEL = 8
"""Levels of a finite scalar quantizer are as even as the codebook size allows, and no more than this."""


def make_bottleneck(name: QuantizerName, dim: int, codebook_size: int) -> AbstractBottleneck:
    """The bottleneck of a name for latents of ``dim`` features.

    Raises:
        ValueError: If there is none of that name, or it cannot have a codebook of that size.
    """
    makers: dict[str, Callable[[], AbstractBottleneck]] = {
        "gaussian-mixture": lambda: GaussianMixtureQuantizer(dim, codebook_size, codebook_dim=dim),
        "vector": lambda: VectorQuantizer(dim, codebook_size, decay=None, kmeans_start=False),
        "vector-kmeans": lambda: VectorQuantizer(dim, codebook_size, decay=None),
        "vector-ema": lambda: VectorQuantizer(dim, codebook_size, decay=0.99, revive_below=1.0),
        # the strongest row of Huh et al. (2023): affine, alternating, replaced, of length 1
        "vector-affine": lambda: VectorQuantizer(
            dim,
            codebook_size,
            decay=None,
            cosine=True,
            revive_below=1.0,
            # a hundredth of the step to the mean for a code with its fair share: a popular code is not overthrown
            parts=[Affine(), InPlaceStep(0.01 * dim * codebook_size / 2)],
        ),
        "finite-scalar": lambda: FiniteScalarQuantizer(even_levels(codebook_size), dim=dim),
        "lookup-free": lambda: LookupFreeQuantizer(dim, codebook_size),
        "binary-spherical": lambda: BinarySphericalQuantizer(dim, codebook_size),
        "simvq": lambda: SimVQ(dim, codebook_size),
        # the authors' weights stand beside perceptual and adversarial losses, and their latents have 256 features;
        # beside a bare likelihood and in few features one code would take all
        "index-backpropagation": lambda: IndexBackpropagationQuantizer(
            dim, codebook_size, cosine=True, temperature=0.1, entropy_weight=1e-3
        ),
        "stochastic": lambda: StochasticQuantizer(dim, codebook_size),
        "optimal-transport": lambda: OptimalTransportQuantizer(dim, codebook_size),
        "gaussian-codes": lambda: GaussianQuantizer(dim, codebook_size),
        "none": lambda: GaussianBottleneck(dim),
    }
    if name not in makers:
        raise ValueError(f"'quantizer' must be one of {', '.join(get_args(QuantizerName))}, got {name!r}.")
    return makers[name]()


def latent_dim(name: QuantizerName, dim: int, codebook_size: int) -> int:
    """Features of the latents: as many as the codebook needs where each feature is a digit, ``dim`` otherwise."""
    if name == "finite-scalar":
        return len(even_levels(codebook_size))
    if name in ("lookup-free", "binary-spherical"):
        return (codebook_size - 1).bit_length()
    return dim


def even_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels whose product is the codebook size, as few and as even as they can be, largest first.

    Raises:
        ValueError: If the size has a prime factor above 8, or needs a feature of less than 3 levels.

    Example:
        >>> even_levels(512), even_levels(1000), even_levels(1024)
        ((8, 8, 8), (8, 5, 5, 5), (8, 8, 4, 4))
    """
    levels, rest = [], codebook_size
    while rest > 1:
        level = next((level for level in range(LARGEST_LEVEL, 1, -1) if rest % level == 0), None)
        if level is None:
            raise ValueError(
                f"'codebook_size' of a finite scalar quantizer must be a product of numbers from 3 to "
                f"{LARGEST_LEVEL}, got {codebook_size}. Use for example 512 or 1000."
            )
        levels.append(level)
        rest //= level
    while len(levels) > 1 and levels[-1] * 2 < levels[-2] and levels[-2] % 2 == 0:
        levels[-2:] = sorted((levels[-2] // 2, levels[-1] * 2), reverse=True)
    if min(levels, default=1) < 3:
        raise ValueError(
            f"'codebook_size' of a finite scalar quantizer must be a product of numbers from 3 to {LARGEST_LEVEL}, got "
            f"{codebook_size}. Use for example 512 or 1000."
        )
    return tuple(sorted(levels, reverse=True))
