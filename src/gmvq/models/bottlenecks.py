"""The bottleneck that a configuration names: one line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from gmvq.quantizers import (
    ALBO,
    ELBO,
    AbstractBottleneck,
    AbstractComposite,
    AbstractQuantizer,
    AdaptiveNoise,
    Affine,
    BinarySphericalQuantizer,
    Constant,
    ConstantNoise,
    Cosine,
    DiVeQ,
    Diversity,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GaussianQuantizer,
    Geometric,
    GumbelSoftmax,
    Hierarchical,
    ImplicitResidual,
    IndexBackpropagationQuantizer,
    InPlaceStep,
    LatentQuantizer,
    Linear,
    LookupFreeQuantizer,
    NoGradient,
    OptimalTransportQuantizer,
    Orthogonal,
    Product,
    RandomProjectionQuantizer,
    Residual,
    Rotation,
    SimVQ,
    StochasticQuantizer,
    StraightThrough,
    VectorQuantizer,
)

QuantizerName = Literal[
    "gaussian-mixture",
    "vector",
    "vector-kmeans",
    "vector-ema",
    "vector-affine",
    "finite-scalar",
    "latent",
    "lookup-free",
    "binary-spherical",
    "simvq",
    "index-backpropagation",
    "stochastic",
    "optimal-transport",
    "gaussian-codes",
    "random-projection",
    "product",
    "residual",
    "implicit-residual",
    "hierarchical",
    "none",
]

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Grids of a hierarchical quantizer, as shares of the latents' grid."""

LARGEST_LEVEL = 8
"""Levels of a finite scalar quantizer are as even as the codebook size allows, and no more than this."""


class Recipe(NamedTuple):
    """What a name stands for.

    Attributes:
        quantizer: The class.
        arguments: Latents' features and codebook size -> arguments.
    """

    quantizer: Callable[..., AbstractBottleneck]
    arguments: Callable[[int, int], dict[str, Any]]


def _sized(**options: Any) -> Callable[[int, int], dict[str, Any]]:  # noqa: ANN401
    return lambda dim, size: {"dim": dim, "codebook_size": size, **options}


def _affine(dim: int, size: int) -> dict[str, Any]:
    """The strongest row of Huh et al. (2023): affine, alternating, replaced, of length 1."""
    # a hundredth of the step to the mean for a code with its fair share: a popular code is not overthrown
    parts = [Affine(), InPlaceStep(0.01 * dim * size / 2)]
    return {**_sized(decay=None, cosine=True, revive_below=1.0)(dim, size), "parts": parts}


def _combined(
    combine: Callable[[list[AbstractQuantizer]], AbstractComposite], *, split: bool = False
) -> Callable[..., AbstractComposite]:
    """Several codebooks of the root of the size, each with moving averages and revival; two by default."""

    def make(dim: int, codebook_size: int, levels: int = 2, **options: Any) -> AbstractComposite:  # noqa: ANN401
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"'levels' must be an integer of at least 2, got {levels!r}. Use 2.")
        parts = levels if split else 1
        side = round(codebook_size ** (1 / levels))
        if side**levels != codebook_size or side < 2 or dim % parts:
            raise ValueError(
                f"'codebook_size' of {levels} codebooks must be the power {levels} of a number and 'code_dim' a "
                f"multiple of {parts}, got {codebook_size} and {dim}. Use for example {32**levels} and {32 * levels}."
            )
        settings = {"decay": 0.99, "revive_below": 1.0, **options}
        return combine([VectorQuantizer(dim // parts, side, **settings) for _ in range(levels)])

    return make


def _hierarchical(dim: int, codebook_size: int, **options: Any) -> Hierarchical:  # noqa: ANN401
    """VAR's scales with one codebook for all, of moving averages and revival, in about the bits of one code a place.

    A place has a code, a quarter of one, a sixteenth and so on: four thirds of a code, each of three quarters of the
    bits. On grids whose side is no power of two it is more: 7 percent on 7x7 places.
    """
    size = max(2, round(codebook_size**0.75))
    return Hierarchical(VectorQuantizer(dim, size, **{"decay": 0.99, "revive_below": 1.0, **options}), SHARES)


RECIPES: dict[str, Recipe] = {
    "gaussian-mixture": Recipe(
        GaussianMixtureQuantizer, lambda dim, size: {**_sized()(dim, size), "codebook_dim": dim}
    ),
    "vector": Recipe(VectorQuantizer, _sized(decay=None, kmeans_start=False)),
    "vector-kmeans": Recipe(VectorQuantizer, _sized(decay=None)),
    "vector-ema": Recipe(VectorQuantizer, _sized(decay=0.99, revive_below=1.0)),
    "vector-affine": Recipe(VectorQuantizer, _affine),
    "finite-scalar": Recipe(FiniteScalarQuantizer, lambda dim, size: {"levels": even_levels(size), "dim": dim}),
    "latent": Recipe(LatentQuantizer, lambda dim, size: {"levels": even_levels(size), "dim": dim}),
    "lookup-free": Recipe(LookupFreeQuantizer, _sized()),
    "binary-spherical": Recipe(BinarySphericalQuantizer, _sized()),
    "simvq": Recipe(SimVQ, _sized()),
    # the authors' weights stand beside perceptual and adversarial losses, and their latents have 256 features; beside a
    # bare likelihood and in few features one code would take all
    "index-backpropagation": Recipe(
        IndexBackpropagationQuantizer, _sized(cosine=True, temperature=0.1, entropy_weight=1e-3)
    ),
    "stochastic": Recipe(StochasticQuantizer, _sized()),
    "optimal-transport": Recipe(OptimalTransportQuantizer, _sized()),
    "gaussian-codes": Recipe(GaussianQuantizer, _sized()),
    "random-projection": Recipe(
        RandomProjectionQuantizer, lambda dim, size: {**_sized()(dim, size), "codebook_dim": max(1, min(16, dim - 1))}
    ),
    "product": Recipe(_combined(Product, split=True), _sized()),
    "residual": Recipe(_combined(Residual), _sized()),
    "implicit-residual": Recipe(_combined(ImplicitResidual), _sized()),
    "hierarchical": Recipe(_hierarchical, _sized()),
    "none": Recipe(GaussianBottleneck, lambda dim, size: {"dim": dim}),
}

KINDS = {
    kind.__name__: kind
    for kind in (
        *(ALBO, ELBO, AdaptiveNoise, ConstantNoise, StraightThrough, Rotation, DiVeQ, NoGradient, GumbelSoftmax),
        *(Constant, Cosine, Geometric, Linear, Affine, InPlaceStep, Diversity, Orthogonal),
    )
}
"""Objects that a quantizer takes, by the names that JSON calls them."""


def make_bottleneck(
    name: QuantizerName, dim: int, codebook_size: int, options: Mapping[str, Any] | None = None
) -> AbstractBottleneck:
    """The bottleneck of a name for latents of ``dim`` features.

    Args:
        name: What it is.
        dim: Features of a latent.
        codebook_size: Number of codes.
        options: Arguments beside or instead of those that the name stands for, as JSON has them.

    Raises:
        ValueError: If there is none of that name, it cannot have a codebook of that size, or it has no such option.
    """
    if name not in RECIPES:
        raise ValueError(f"'quantizer' must be one of {', '.join(get_args(QuantizerName))}, got {name!r}.")
    quantizer, arguments = RECIPES[name]
    given = {key: from_json(value) for key, value in (options or {}).items()}
    try:
        return quantizer(**{**arguments(dim, codebook_size), **given})
    except TypeError as error:
        raise ValueError(
            f"'quantizer_options' must be arguments of {name}, got {dict(options or {})}: {error}."
        ) from error


def from_json(value: Any) -> Any:  # noqa: ANN401
    """An argument as JSON has it: ``{"kind": "GumbelSoftmax", "temperature": 0.5}`` is that object, others themselves.

    Raises:
        ValueError: If there is no object of that kind, or it has no such argument.

    Example:
        >>> from_json({"kind": "ALBO", "prior_weight": 0.1})
        ALBO(distance_weight=1.0, prior_weight=0.1)
    """
    if isinstance(value, (list, tuple)):
        return [from_json(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    arguments = {key: from_json(one) for key, one in value.items() if key != "kind"}
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise ValueError(f"'kind' of an option must be one of {', '.join(KINDS)}, got {value.get('kind')!r}.")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"'{value['kind']}' has no such arguments: {error}. See its documentation.") from error


def latent_dim(name: QuantizerName, dim: int, codebook_size: int) -> int:
    """Features of the latents: as many as the codebook needs where each feature is a digit, ``dim`` otherwise."""
    if name in ("finite-scalar", "latent"):
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
