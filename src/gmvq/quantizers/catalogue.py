"""Bottlenecks by name: one entry for each.

A name stands for a class with some of its options. Configurations, the command line and comparisons take these names.
Another bottleneck joins by one entry: ``QUANTIZERS["mine"] = Preset(MyQuantizer, "My quantizer")``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer
from gmvq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gmvq.quantizers.compositions.composite import AbstractComposite
from gmvq.quantizers.compositions.hierarchical import Hierarchical
from gmvq.quantizers.compositions.implicit import ImplicitResidual
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.quantizers.gaussian_quantizer import GaussianQuantizer
from gmvq.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from gmvq.quantizers.mixture import GaussianMixtureQuantizer
from gmvq.quantizers.parts.estimators import DiVeQ, GumbelSoftmax, NoGradient, Rotation, StraightThrough
from gmvq.quantizers.parts.noise import AdaptiveNoise, ConstantNoise
from gmvq.quantizers.parts.objectives import ALBO, ELBO
from gmvq.quantizers.parts.schedules import Constant, Cosine, Geometric, Linear
from gmvq.quantizers.parts.vector_parts import Affine, Diversity, InPlaceStep, Orthogonal
from gmvq.quantizers.random_projection import RandomProjectionQuantizer
from gmvq.quantizers.scalar import FiniteScalarQuantizer, LatentQuantizer
from gmvq.quantizers.simvq import SimVQ
from gmvq.quantizers.stochastic import StochasticQuantizer
from gmvq.quantizers.transport import OptimalTransportQuantizer
from gmvq.quantizers.vector import VectorQuantizer

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Grids of a hierarchical quantizer, as shares of the latents' grid."""

LARGEST_LEVEL = 8
"""Largest level of a finite scalar quantizer."""


Arguments = Callable[[int, int], dict[str, Any]]
"""Latents' features and codebook size -> arguments of a constructor."""


def _sized(**options: Any) -> Arguments:  # noqa: ANN401
    return lambda dim, size: {"dim": dim, "codebook_size": size, **options}


def _gridded(dim: int, size: int) -> dict[str, Any]:
    return {"levels": even_levels(size), "dim": dim}


class Preset(NamedTuple):
    """A named bottleneck: its maker, its title and its arguments.

    Attributes:
        make: A bottleneck's class, or a function that makes one.
        title: Its name for readers, in one line.
        arguments: Latents' features and codebook size -> arguments of ``make``; by default ``dim`` and
            ``codebook_size``.
        latent_dim: Features and codebook size that a model asks for -> features of its latents; by default as many as
            it asks for.
    """

    make: Callable[..., AbstractBottleneck]
    title: str
    arguments: Arguments = _sized()
    latent_dim: Callable[[int, int], int] = lambda dim, size: dim


def _affine(dim: int, size: int) -> dict[str, Any]:
    """The strongest row of Huh et al. (2023): affine, alternating, replaced, of length 1."""
    # a hundredth of the step to the mean for a code with its fair share: a popular code is not overthrown
    parts = [Affine(), InPlaceStep(0.01 * dim * size / 2)]
    return {**_sized(decay=None, cosine=True, revive_below=1.0)(dim, size), "parts": parts}


_OF_LEVELS = ("quantizer_dropout", "dropout_cutoff", "dropout_multiple_of", "beam_size")
"""Options of residual levels together; all others are those of each level."""


def _combined(combine: Callable[..., AbstractComposite], *, split: bool = False) -> Callable[..., AbstractComposite]:
    """Codebooks of one kind, two by default, whose sizes multiply to the codebook size."""

    def make(
        dim: int,
        codebook_size: int,
        levels: int = 2,
        member: str = "vector-ema",
        **options: Any,  # noqa: ANN401
    ) -> AbstractComposite:
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"'levels' must be an integer of at least 2, got {levels!r}. Use 2.")
        parts = levels if split else 1
        side = round(codebook_size ** (1 / levels))
        if side**levels != codebook_size or side < 2 or dim % parts:
            raise ValueError(
                f"'codebook_size' of {levels} codebooks must be the power {levels} of a number and 'code_dim' a "
                f"multiple of {parts}, got {codebook_size} and {dim}. Use for example {32**levels} and {32 * levels}."
            )
        preset, own = preset_of(member), {name: options.pop(name) for name in _OF_LEVELS if name in options}
        members = [preset.make(**{**preset.arguments(dim // parts, side), **options}) for _ in range(levels)]
        if not all(isinstance(each, AbstractQuantizer) for each in members):
            raise ValueError(f"'member' must be a quantizer, got {member!r}. Use 'vector-ema' or 'gaussian-mixture'.")
        return combine(members, **own)

    return make


def _hierarchical(dim: int, codebook_size: int, **options: Any) -> Hierarchical:  # noqa: ANN401
    """VAR's scales with one codebook for all, of moving averages and revival, in about the bits of one code a place.

    A place has a code, a quarter of one, a sixteenth and so on: four thirds of a code, each of three quarters of the
    bits. On grids whose side is no power of two it is more: 7 percent on 7x7 places.
    """
    size = max(2, round(codebook_size**0.75))
    return Hierarchical(VectorQuantizer(dim, size, **{"decay": 0.99, "revive_below": 1.0, **options}), SHARES)


def _digits(dim: int, size: int) -> int:
    """Features of latents each of which is a digit of the code."""
    return len(even_levels(size))


def _bits(dim: int, size: int) -> int:
    """Features of latents each of which is a bit of the code."""
    return (size - 1).bit_length()


QUANTIZERS: dict[str, Preset] = {
    "gaussian-mixture": Preset(
        GaussianMixtureQuantizer,
        "GM-VQ, Gaussian-mixture vector quantization",
        lambda dim, size: {**_sized()(dim, size), "codebook_dim": dim},
    ),
    "vector": Preset(
        VectorQuantizer,
        "VQ-VAE as published, its codebook by gradient from a small random start",
        _sized(decay=None, kmeans_start=False),
    ),
    "vector-kmeans": Preset(VectorQuantizer, "VQ-VAE, its codebook by gradient from k-means", _sized(decay=None)),
    "vector-ema": Preset(
        VectorQuantizer,
        "VQ-VAE, moving averages from k-means, dead codes revived",
        _sized(decay=0.99, revive_below=1.0),
    ),
    "vector-affine": Preset(
        VectorQuantizer, "VQ-VAE, affine codes of length 1, steps in place, dead codes revived", _affine
    ),
    "finite-scalar": Preset(FiniteScalarQuantizer, "FSQ, finite scalar quantization", _gridded, _digits),
    "latent": Preset(LatentQuantizer, "Latent quantization", _gridded, _digits),
    "lookup-free": Preset(LookupFreeQuantizer, "LFQ, lookup-free quantization", latent_dim=_bits),
    "binary-spherical": Preset(BinarySphericalQuantizer, "BSQ, binary spherical quantization", latent_dim=_bits),
    "simvq": Preset(SimVQ, "SimVQ, frozen codes behind a learned linear map"),
    # the authors' weights stand beside perceptual and adversarial losses, and their latents have 256 features; beside a
    # bare likelihood and in few features one code would take all
    "index-backpropagation": Preset(
        IndexBackpropagationQuantizer,
        "IBQ, index backpropagation quantization",
        _sized(cosine=True, temperature=0.1, entropy_weight=1e-3),
    ),
    "stochastic": Preset(StochasticQuantizer, "SQ-VAE, stochastic quantization"),
    "optimal-transport": Preset(OptimalTransportQuantizer, "OptVQ, vector quantization by optimal transport"),
    "gaussian-codes": Preset(GaussianQuantizer, "Gaussian Quant, codes of a Gaussian VAE"),
    "random-projection": Preset(
        RandomProjectionQuantizer,
        "BEST-RQ, a random projection and a random codebook",
        lambda dim, size: {**_sized()(dim, size), "codebook_dim": max(1, min(16, dim - 1))},
    ),
    "product": Preset(_combined(Product, split=True), "Product quantization"),
    "residual": Preset(_combined(Residual), "Residual quantization"),
    "implicit-residual": Preset(_combined(ImplicitResidual), "QINCo, residual quantization with implicit codebooks"),
    "hierarchical": Preset(_hierarchical, "Multi-scale residual quantization, as in VAR"),
    "none": Preset(GaussianBottleneck, "VAE, a variational autoencoder without codes", lambda dim, size: {"dim": dim}),
}
"""All presets by name."""

KINDS = {
    kind.__name__: kind
    for kind in (
        *(ALBO, ELBO, AdaptiveNoise, ConstantNoise, StraightThrough, Rotation, DiVeQ, NoGradient, GumbelSoftmax),
        *(Constant, Cosine, Geometric, Linear, Affine, InPlaceStep, Diversity, Orthogonal),
    )
}
"""Objects that options in JSON may name as their ``kind``."""


def preset_of(name: str) -> Preset:
    """Looks up what a name stands for.

    Raises:
        ValueError: If there is no bottleneck of that name.
    """
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise ValueError(f"'quantizer' must be one of {', '.join(QUANTIZERS)}, got {name!r}. Check the spelling.")
    return QUANTIZERS[name]


def make_bottleneck(
    name: str, dim: int, codebook_size: int, options: Mapping[str, Any] | None = None
) -> AbstractBottleneck:
    """Makes the bottleneck of a name for latents of ``dim`` features.

    Args:
        name: One of :data:`QUANTIZERS`.
        dim: Features of a latent.
        codebook_size: Number of codes.
        options: Arguments in addition to those of the preset, or in their place, as JSON has them.

    Raises:
        ValueError: If the name is unknown, the bottleneck cannot have a codebook of that size, or it has no such
            option.

    Example:
        >>> make_bottleneck("vector-ema", dim=8, codebook_size=32, options={"decay": 0.9}).code_vectors.shape
        torch.Size([32, 8])
    """
    preset = preset_of(name)
    given = {key: from_json(value) for key, value in (options or {}).items()}
    try:
        return preset.make(**{**preset.arguments(dim, codebook_size), **given})
    except TypeError as error:
        raise ValueError(
            f"'quantizer_options' must be arguments of {name}, got {dict(options or {})}: {error}."
        ) from error


def from_json(value: Any) -> Any:  # noqa: ANN401
    """Makes an argument from JSON: ``{"kind": "GumbelSoftmax", "temperature": 0.5}`` becomes that object.

    Raises:
        ValueError: If the kind is unknown, or has no such argument.

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
