"""Random configurations of all quantizers, and random latents for them; a key gives the same case again."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq import quantizers

DIMS = (1, 2, 3, 4, 6, 8, 16)
SIZES = (1, 2, 3, 5, 16, 40, 100)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
LATENTS = (
    *("ordinary", "scaled", "scaled", "mixed", "outlier", "duplicates", "zeros", "constant", "equal rows"),
    *("offset", "integers", "sparse", "largest"),
)
EXACT = ("StraightThrough()", "StraightThrough(0.5)", "Rotation()", "DiVeQ()", "NoGradient()")
DRAWN = ("GumbelSoftmax(0.5)", "GumbelSoftmax(0.02)", "GumbelSoftmax(1.0, hard=True)")
WEIGHTS = (0.0, 0.25, 3.0)

Chance = random.Random


class Case(NamedTuple):
    """One try, as it is printed.

    Attributes:
        make: The quantizer, as Python has it.
        latents: What they are like.
        shape: Their leading axes.
        dtype: Their type.
        cast: Whether the quantizer is cast to that type.
        autocast: Whether it is called under autocast to bfloat16.
        mask: What the mask is like, or None.
        steps: Training steps before the latents are quantized.
        starts: Whether training is on these latents, and not on ordinary ones.
        far: Factor of one code, once it is trained.
        seed: Of torch.
    """

    make: str
    latents: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    cast: bool
    autocast: bool
    mask: str | None
    steps: int
    starts: bool
    far: float
    seed: int


def case_of(name: str, key: str) -> Case:
    """The case of a family's name with a key."""
    chance = Chance(f"{name}/{key}")
    count = chance.choice((0, 1, 1, 2, 5, 20, 64, 64, 64))
    shape = (2, count // 2, 1) if name in ("channel-first", "hierarchical") else (count,)
    if name == "hierarchical":
        shape = (2, chance.choice((1, 3, 4, 8)))
    elif count == 64:
        shape = chance.choice(((64,), (4, 16), (2, 4, 8)))
    return Case(
        make=MAKES[name](chance, chance.choice(DIMS)),
        latents=chance.choice(LATENTS),
        shape=shape,
        dtype=chance.choice(DTYPES),
        cast=chance.random() < 0.5,
        autocast=chance.random() < 0.2,
        mask=chance.choice((None, None, None, "random", "none", "all")),
        steps=chance.choice((0, 1, 2, 4)),
        starts=chance.random() < 0.5,
        far=chance.choice((1.0,) * 9 + (1e5,)),
        seed=chance.randrange(2**31),
    )


def made(case: Case) -> quantizers.AbstractBottleneck:
    """The quantizer of a case."""
    return eval(case.make, vars(quantizers).copy())  # of this file's own text


def latents_of(case: Case, dim: int, generator: torch.Generator) -> Tensor:
    """Latents ``(*shape, dim)`` of a case: finite in its type."""
    rows = _rows(case.latents, torch.Size(case.shape).numel(), dim, generator)
    largest = torch.finfo(case.dtype).max
    if case.latents == "largest":
        rows = rows * (largest / 2)
    return rows.clamp(-largest, largest).to(case.dtype).reshape(*case.shape, dim)


def _rows(kind: str, number: int, dim: int, generator: torch.Generator) -> Tensor:
    """Rows ``(number, dim)`` in float64."""

    def powers(low: float, high: float, *shape: int) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))

    rows = torch.randn(number, dim, generator=generator, dtype=torch.float64)
    if kind == "scaled":
        return rows * powers(-30, 30, 1, 1)
    if kind == "mixed":
        return rows * powers(-8, 8, number, 1)
    if kind == "outlier":
        return rows * torch.where(torch.rand(number, 1, generator=generator) < 0.05, powers(2, 10, 1, 1), 1.0)
    if kind == "duplicates":
        return rows[torch.randint(max(number, 1), (number,), generator=generator) % 3] if number > 3 else rows
    if kind == "zeros":
        return torch.zeros_like(rows)
    if kind == "constant":
        return torch.ones_like(rows) * powers(-6, 6, 1, 1)
    if kind == "equal rows":
        return rows[:1].expand_as(rows) * powers(-3, 3, 1, 1)
    if kind == "offset":
        return rows + powers(1, 5, 1, 1)
    if kind == "integers":
        return rows.round()
    if kind == "sparse":
        return rows * (torch.rand(rows.shape, generator=generator) < 0.5)
    return rows


def mask_of(case: Case, generator: torch.Generator) -> Tensor | None:
    """Booleans of the leading axes, or None."""
    if case.mask is None:
        return None
    shares = {"random": 0.6, "none": 0.0, "all": 1.0}
    return torch.rand(case.shape, generator=generator) < shares[case.mask]


def _options(chance: Chance, **choices: tuple[object, ...]) -> str:
    """About half of the options, each with one of its choices; a string is taken as Python."""
    given = {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.5}
    return "".join(f", {name}={value}" for name, value in given.items())


def _less(chance: Chance, dim: int) -> tuple[int, ...]:
    return (chance.randint(1, dim),)


def _vector(chance: Chance, dim: int) -> str:
    affine = chance.choice(("", "", "Affine(0.9)", "Affine()"))
    common = _options(
        chance,
        codebook_dim=_less(chance, dim),
        cosine=(True,),
        kmeans_start=(False,),
        revive_below=(1.0, 3.0),
        commitment_weight=WEIGHTS,
        estimator=EXACT + DRAWN,
    )
    if chance.random() < 0.5:
        parts = f"[{affine}]"
        decay = chance.choice(("0.0", "0.9", "0.99"))
    else:
        beside = chance.choice(("", "", "InPlaceStep(2.0)", "Orthogonal()", "Diversity()", "Orthogonal(max_codes=2)"))
        parts, decay = f"[{', '.join(filter(None, (affine, beside)))}]", "None"
    return f"VectorQuantizer({dim}, {chance.choice(SIZES)}, decay={decay}, parts={parts}{common})"


def _mixture(chance: Chance, dim: int) -> str:
    options = _options(
        chance,
        codebook_dim=_less(chance, dim),
        objective=("'elbo'", "ALBO(0.5, 2.0)"),
        variance=(0.5, 1e-4, 1e4, "'code'", "'feature'"),
        estimator=EXACT + DRAWN,
        sharpening=(0.5, "Linear(1.0, 0.1)"),
        noise=(1.0, "ConstantNoise(0.5)"),
        decay=(0.0, 0.5),
        learned=("('codebook',)", "('feature_weights',)", "('mixture_weights', 'feature_weights')"),
    )
    return f"GaussianMixtureQuantizer({dim}, {chance.choice(SIZES)}{options})"


def _levels(chance: Chance, dim: int, least: int) -> tuple[int, ...]:
    return tuple(chance.randint(least, 9) for _ in range(chance.randint(1, min(dim, 3))))


def _finite_scalar(chance: Chance, dim: int) -> str:
    symmetric = chance.random() < 0.5
    levels = _levels(chance, dim, 2 if symmetric else 3)
    options = _options(chance, noise_dropout=(0.5,), bound=("'clamp'",))
    return f"FiniteScalarQuantizer({levels}, dim={dim}, symmetric={symmetric}{options})"


def _latent(chance: Chance, dim: int) -> str:
    options = _options(chance, commitment_weight=WEIGHTS, quantization_weight=WEIGHTS)
    return f"LatentQuantizer({_levels(chance, dim, 2)}, dim={dim}{options})"


def _binary(kind: str) -> Callable[[Chance, int], str]:
    def make(chance: Chance, dim: int) -> str:
        options = _options(
            chance,
            codebook_scale=(0.1, 3.0),
            entropy_weight=WEIGHTS,
            diversity_gamma=WEIGHTS,
            commitment_weight=WEIGHTS,
            temperature=(0.01, 1.0, 30.0),
            group_bits=(1, 2, 3),
        )
        return f"{kind}({dim}, {2 ** chance.randint(1, min(dim, 8))}{options})"

    return make


def _simvq(chance: Chance, dim: int) -> str:
    options = _options(
        chance,
        codebook_dim=_less(chance, dim),
        frozen_codebook_dim=(1, 3),
        commitment_weight=WEIGHTS,
        quantization_weight=WEIGHTS,
        estimator=EXACT,
    )
    return f"SimVQ({dim}, {chance.choice(SIZES)}{options})"


def _index(chance: Chance, dim: int) -> str:
    options = _options(
        chance,
        codebook_dim=_less(chance, dim),
        cosine=(True,),
        temperature=(0.02, 1.0),
        entropy_weight=WEIGHTS,
        index_weight=WEIGHTS,
    )
    return f"IndexBackpropagationQuantizer({dim}, {chance.choice(SIZES)}{options})"


def _stochastic(chance: Chance, dim: int) -> str:
    kind = chance.choice(("variance='feature'", "variance='sample'", "variance='token'", "variance='shared'"))
    if "feature" not in kind and chance.random() < 0.4:
        kind += ", distribution='von-mises-fisher'"
    options = _options(chance, codebook_dim=_less(chance, dim), initial_variance=(1e-6, 0.1, 1e4), estimator=DRAWN)
    return f"StochasticQuantizer({dim}, {chance.choice(SIZES)}, {kind}{options})"


def _transport(chance: Chance, dim: int) -> str:
    options = _options(
        chance,
        codebook_dim=_less(chance, dim),
        temperature=(0.01, 1.0),
        iterations=(1, 20),
        commitment_weight=WEIGHTS,
        quantization_weight=WEIGHTS,
        estimator=EXACT,
    )
    return f"OptimalTransportQuantizer({dim}, {chance.choice(SIZES)}{options})"


def _random_projection(chance: Chance, dim: int) -> str:
    normalize = dim > 1 and chance.random() < 0.6
    inside = chance.randint(1, dim - 1 if normalize else dim)
    options = _options(chance, estimator=EXACT)
    return (
        f"RandomProjectionQuantizer({dim}, {chance.choice(SIZES)}, codebook_dim={inside}, "
        f"normalize={normalize}{options})"
    )


def _gaussian_codes(chance: Chance, dim: int) -> str:
    inside = chance.randint(1, dim)
    group = chance.choice([part for part in range(1, inside + 1) if inside % part == 0])
    options = _options(chance, hard=(True,), prior_weight=(0.0, 0.5), margin=(0.0,))
    size = chance.choice(SIZES)
    return f"GaussianQuantizer({dim}, {size}, codebook_dim={inside}, group_dim={group}{options})"


def _gaussian(chance: Chance, dim: int) -> str:
    return f"GaussianBottleneck({dim}, {chance.randint(1, dim)})"


SINGLE = {
    "vector": _vector,
    "mixture": _mixture,
    "finite-scalar": _finite_scalar,
    "latent": _latent,
    "lookup-free": _binary("LookupFreeQuantizer"),
    "binary-spherical": _binary("BinarySphericalQuantizer"),
    "simvq": _simvq,
    "index-backpropagation": _index,
    "optimal-transport": _transport,
    "random-projection": _random_projection,
}
"""Members that have one code and a squared error for their loss: what compositions are made of."""


def _some(chance: Chance, dim: int) -> str:
    return SINGLE[chance.choice(list(SINGLE))](chance, dim)


def _places(chance: Chance, dim: int, number: str) -> str:
    """Separate members, or one shared."""
    count = chance.randint(1, 3)
    if chance.random() < 0.3:
        return f"{_some(chance, dim)}, {number}={count}"
    return f"[{', '.join(_some(chance, dim) for _ in range(count))}]"


def _residual(chance: Chance, dim: int) -> str:
    options = _options(chance, quantizer_dropout=(0.5, True), beam_size=(2, 5), commitment_weight=WEIGHTS)
    return f"Residual({_places(chance, dim, 'num_quantizers')}{options})"


def _product(chance: Chance, dim: int) -> str:
    if chance.random() < 0.3:
        return f"Product({_some(chance, dim)}, heads={chance.randint(1, 3)})"
    return f"Product([{', '.join(_some(chance, chance.choice(DIMS[:5])) for _ in range(chance.randint(1, 3)))}])"


def _projected(chance: Chance, dim: int) -> str:
    options = _options(chance, normalize=(True,), tied=(False,))
    return f"Projected({_some(chance, chance.randint(1, dim))}, {dim}{options})"


def _implicit(chance: Chance, dim: int) -> str:
    options = _options(chance, hidden_dim=(4, 8), blocks=(0, 1), commitment_weight=WEIGHTS, estimator=EXACT)
    return f"ImplicitResidual({_places(chance, min(dim, 4), 'num_quantizers')}{options})"


def _joined(chance: Chance, dim: int) -> str:
    inside = chance.choice(("Residual", "Product"))
    return f"Joined({inside}([{', '.join(_some(chance, min(dim, 4)) for _ in range(2))}]))"


def _nested(chance: Chance, dim: int) -> str:
    dim = min(dim, 4)
    inner = [f"Product([{_some(chance, dim)}, {_some(chance, 2)}])" for _ in range(2)]
    return f"Residual([{', '.join(inner)}])"


def _channel_first(chance: Chance, dim: int) -> str:
    return f"ChannelFirst({_some(chance, dim)})"


def _hierarchical(chance: Chance, dim: int) -> str:
    scales = chance.choice(("(1, 1.0)", "(0.5, 1.0)", "(0.25, 0.5, 1.0)"))
    options = _options(chance, interpolation=("'cubic'",), commitment_weight=WEIGHTS)
    return f"Hierarchical({_some(chance, min(dim, 6))}, {scales}{options})"


MAKES: dict[str, Callable[[Chance, int], str]] = {
    **SINGLE,
    "stochastic": _stochastic,
    "gaussian-codes": _gaussian_codes,
    "gaussian": _gaussian,
    "residual": _residual,
    "product": _product,
    "projected": _projected,
    "implicit": _implicit,
    "joined": _joined,
    "nested": _nested,
    "channel-first": _channel_first,
    "hierarchical": _hierarchical,
}
"""A random constructor for each class."""
