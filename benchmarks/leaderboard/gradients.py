r"""Bias and variance of gradient estimators against the exact gradient, for a decoder small enough to enumerate.

An autoencoder of 4x4 gray patches of the photographs that come with gmvq (two layers, 32 hidden units, 4 latent
features) is trained with Adam on ALBO's loss and the mean squared error: either the exact one expected under
q(c | x), codes included (`enumeration`), or that of gmvq's defaults (`straight-through`). Then it is fixed. At
new patches of the same photographs the exact gradient of the expected error, by enumeration of all codes in float64,
is compared with the estimates of each estimator in independent draws, one per patch. Sigma is set so that the
posteriors have a given mean entropy, from near one-hot to soft. Bias is the norm of the mean estimate's difference from
the exact gradient, variance the trace of a draw's covariance, both relative to the exact gradient's norm or its square.
The standard error is the bias, as a root mean square, that an unbiased estimator would show with these draws; about
half its square is subtracted by their noise from the cosine of the mean estimate to the exact gradient. The hard cosine
is to the slope of the most likely code's error, smoothed by a normal distribution whose root-mean-square radius is
half the median distance of a code to its nearest. Gradients of the encoder are those of all its parameters, the
latents' through the chain rule. Values are medians over independent trainings, spreads the median deviations from
them. The straight-through estimator gives the chosen code the decoder's own gradient; the rotation gives codes none,
and has no row for them. DiVeQ perturbs by its default share. REINFORCE uses each patch's exact expected error as
baseline.

    OMP_NUM_THREADS=1 python benchmarks/leaderboard/gradients.py --out benchmarks/leaderboard/results/gradients.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmvq.data import Items
from gmvq.data.writing import write_json
from gmvq.modalities import Data, Image
from gmvq.quantizers import DiVeQ, GaussianMixtureQuantizer, GumbelSoftmax, Rotation, StraightThrough
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.training.provenance import commit, hardware, versions

SIDE = 4
PIXELS = SIDE * SIDE
HIDDEN = 32
LATENT_DIM = 4
FRESH = 1024
TRAININGS = ("enumeration", "straight-through")
SPREAD = ("bias", "variance", "cosine", "hard_cosine")
METRICS = ("sigma", "posterior_entropy", "standard_error", *SPREAD)


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Attributes:
        codebook_sizes: Numbers of codes K.
        temperatures: Temperatures of the Gumbel estimators.
        entropies: Mean entropies of the posteriors at the patches, in nats.
        states: Independent trainings.
        training_steps: Steps of Adam, on batches of ``batch_size`` patches.
        batch_size: Patches per step.
        patches: Number N of new patches at which gradients are computed.
        blocks: Blocks of draws; the variance is estimated from their means.
        block_draws: Draws in a block.
        slope_draws: Pairs of draws per patch for the smoothed slope.
    """

    codebook_sizes: tuple[int, ...] = (16, 64)
    temperatures: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
    entropies: tuple[float, ...] = (0.05, 0.3, 1.0, 2.0)
    states: int = 5
    training_steps: int = 300
    batch_size: int = 256
    patches: int = 32
    blocks: int = 32
    block_draws: int = 64
    slope_draws: int = 1 << 14


class State(NamedTuple):
    """A trained autoencoder, and the points at which gradients are computed.

    Attributes:
        patches: x, ``(N, PIXELS)`` in [0, 1].
        latents: The encoder's output for them, ``(N, L)``.
        codebook: Means mu, ``(K, L)``.
        decoder: Latents ``(*, L)`` to pixels ``(*, PIXELS)``.
        jacobian: Jacobian of all latents with respect to all the encoder's parameters, ``(N L, P)``.
        sigma: Sigma at the end of training.
        mse: Mean squared error of the most likely codes, over new patches and pixels.
    """

    patches: Tensor
    latents: Tensor
    codebook: Tensor
    decoder: nn.Module
    jacobian: Tensor
    sigma: float
    mse: float

    def to(self, dtype: torch.dtype) -> State:
        """Returns a copy in another precision."""
        tensors = (part.to(dtype) for part in self[:3])
        return State(*tensors, copy.deepcopy(self.decoder).to(dtype), *self[4:])


class Gradient(NamedTuple):
    """Gradient of the mean squared error over patches and pixels, ``(*, N, L)`` and ``(*, K, L)``."""

    latents: Tensor
    codebook: Tensor


Terms = Callable[[State, GaussianMixtureQuantizer, Tensor, Tensor], Tensor]
"""Function of patches ``(M, PIXELS)`` and latents ``(M, L)`` to terms ``(M,)``, whose gradient is the estimate."""


class Estimator(NamedTuple):
    """A gradient estimator: the differentiated terms, and the estimator of the quantizer's values."""

    name: str
    terms: Terms
    path: AbstractEstimator | None = None
    temperature: float | None = None
    draws: bool = True  # False if it is deterministic
    trains_codes: bool = True


def draw_patches(images: Items, number: int) -> Tensor:
    """Draws gray patches at random places of random images, ``(number, PIXELS)`` in [0, 1]."""
    found = []
    for index in torch.randint(len(images), (number,)).tolist():
        image = images[index]
        top, left = (int(torch.randint(length - SIDE + 1, ())) for length in image.shape[1:])
        found.append(image[:, top : top + SIDE, left : left + SIDE].double().mean(0).flatten() / 255)
    return torch.stack(found)


def code_errors(decoder: nn.Module, codebook: Tensor, patches: Tensor) -> Tensor:
    """Computes the mean squared error of each code for each patch, ``(N, K)``."""
    return (patches[:, None] - decoder(codebook)).square().mean(-1)


def trained_state(data: Data, codebook_size: int, trained_by: str, seed: int, settings: Settings) -> State:
    """Trains encoder, codes and decoder, in float64, by one of ``TRAININGS``."""
    torch.manual_seed(seed)
    enumerated = trained_by == "enumeration"
    pool = draw_patches(data.train, 16 * settings.batch_size)
    fresh = draw_patches(data.train, max(FRESH, settings.patches))
    encoder, decoder = (
        nn.Sequential(nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, PIXELS + LATENT_DIM - width)).double()
        for width in (PIXELS, LATENT_DIM)
    )
    learned = ("codebook",) if enumerated else ()
    quantizer = GaussianMixtureQuantizer(LATENT_DIM, codebook_size, learned=learned).double()
    networks = nn.ModuleList([encoder, decoder, quantizer])
    optimizer = torch.optim.Adam(networks.parameters(), lr=5e-3)
    for _ in range(settings.training_steps):
        x = pool[torch.randint(len(pool), (settings.batch_size,))]
        z = encoder(x)
        values, _, bound, _ = quantizer(z)  # before the posterior, since the first forward initializes the codes
        if enumerated:
            error = (quantizer.posterior(z).responsibilities * code_errors(decoder, quantizer.code_vectors, x)).sum(-1)
        else:
            error = (x - decoder(values)).square().mean(-1)
        loss = error.mean() + bound
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, z = fresh[: settings.patches], encoder(fresh[: settings.patches])
    jacobian = torch.autograd.grad(
        z.flatten(), tuple(encoder.parameters()), torch.eye(z.numel(), dtype=z.dtype), is_grads_batched=True
    )
    networks.requires_grad_(False).eval()
    values, _, _, terms = quantizer(encoder(fresh))
    mse = float((decoder(values) - fresh).square().mean())
    jacobian = torch.cat([part.flatten(1) for part in jacobian], dim=1)
    return State(x, z.detach(), quantizer.code_vectors.clone(), decoder, jacobian, float(terms["sigma"]), mse)


def log_posterior(latents: Tensor, codebook: Tensor, sigma: float) -> Tensor:
    """Computes log q(c | x) of equation (4), with uniform weights: ``(N, K)``."""
    distance = (latents[:, None] - codebook).square().sum(-1)
    return (-distance / (2 * sigma**2)).log_softmax(-1)  # (4)


def mean_entropy(state: State, sigma: float) -> float:
    """Computes the mean entropy of the posteriors at the patches, in nats."""
    logarithms = log_posterior(state.latents, state.codebook, sigma)
    return float(-(logarithms.exp() * logarithms).sum(-1).mean())


def sigma_of_entropy(state: State, entropy: float) -> float:
    """Finds the sigma whose posteriors have a mean entropy, in nats, by bisection: it grows with sigma.

    Raises:
        ValueError: If the codebook is too small for that entropy.
    """
    most = math.log(len(state.codebook))
    if not 0 < entropy < most:
        raise ValueError(f"'entropies' must lie between 0 and log(K) = {most:.3f}, got {entropy}. Lower it.")
    low, high = -12.0, 12.0  # log2 of sigma relative to the spread of the codes
    spread = float(state.codebook.std())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_entropy(state, spread * 2**middle) < entropy else (low, middle)
    return spread * 2**high


def exact_gradient(state: State, sigma: float) -> Gradient:
    """Computes the exact gradient by enumerating the codes, in plain PyTorch without the tested code."""
    z, mu = (tensor.clone().requires_grad_() for tensor in (state.latents, state.codebook))
    posterior = log_posterior(z, mu, sigma).exp()
    loss = (posterior * code_errors(state.decoder, mu, state.patches)).sum(-1).mean()
    return Gradient(*torch.autograd.grad(loss, (z, mu)))


@torch.no_grad()
def smoothed_slope(state: State, pairs: int) -> Tensor:
    """Computes d E[error of the most likely code of z + radius * noise] / dz over N patches, ``(N, L)``."""
    distances = torch.cdist(state.codebook, state.codebook).fill_diagonal_(torch.inf).amin(1)
    radius = float(distances.median()) / 2 / math.sqrt(LATENT_DIM)
    errors = code_errors(state.decoder, state.codebook, state.patches)
    slope = torch.zeros_like(state.latents)
    for row, z in enumerate(state.latents):
        noise = torch.randn(pairs, LATENT_DIM, dtype=z.dtype)
        above, below = (
            errors[row, torch.cdist(z + way * noise, state.codebook).argmin(1)] for way in (radius, -radius)
        )
        slope[row] = (above - below) @ noise / (2 * radius * pairs)  # antithetic pairs: common terms cancel
    return slope / len(slope)


def from_values(state: State, quantizer: GaussianMixtureQuantizer, patches: Tensor, latents: Tensor) -> Tensor:
    """Computes the error of the values that the decoder receives in training."""
    return (patches - state.decoder(quantizer(latents).values)).square().mean(-1)


def from_posterior_mean(state: State, quantizer: GaussianMixtureQuantizer, patches: Tensor, latents: Tensor) -> Tensor:
    """Computes the error of the posterior mean."""
    mean = quantizer.posterior(latents).responsibilities @ quantizer.code_vectors
    return (patches - state.decoder(mean)).square().mean(-1)


def from_scores(state: State, quantizer: GaussianMixtureQuantizer, patches: Tensor, latents: Tensor) -> Tensor:
    """Computes the terms of REINFORCE: the drawn code's error, and its advantage times log q(c | x)."""
    posterior = quantizer.posterior(latents).responsibilities
    errors = code_errors(state.decoder, quantizer.code_vectors, state.patches)
    errors = errors.repeat(len(patches) // len(errors), 1)  # the patches are repeated
    code = torch.multinomial(posterior.detach(), 1)
    error, score = errors.gather(1, code)[:, 0], posterior.gather(1, code)[:, 0].log()
    baseline = (posterior * errors).sum(-1)
    return error + (error - baseline).detach() * score


def from_enumeration(state: State, quantizer: GaussianMixtureQuantizer, patches: Tensor, latents: Tensor) -> Tensor:
    """Computes the expected error under gmvq's own posterior."""
    errors = code_errors(state.decoder, quantizer.code_vectors, patches)
    return (quantizer.posterior(latents).responsibilities * errors).sum(-1)


def estimators(temperatures: tuple[float, ...]) -> list[Estimator]:
    """Returns all estimators of the comparison."""
    gumbel = [
        Estimator(name, from_values, GumbelSoftmax(temperature, hard=hard), temperature)
        for name, hard in (("gumbel-softmax", False), ("gumbel-straight-through", True))
        for temperature in temperatures
    ]
    return [
        Estimator("exact", from_enumeration, draws=False),
        *gumbel,
        Estimator("reinforce", from_scores),
        Estimator("posterior-mean", from_posterior_mean, draws=False),
        Estimator("straight-through", from_values, StraightThrough(synchronization=1.0), draws=False),
        Estimator("rotation", from_values, Rotation(), draws=False, trains_codes=False),
        Estimator("diveq", from_values, DiVeQ()),
    ]


def resting_quantizer(state: State, sigma: float, path: AbstractEstimator | None) -> Any:  # noqa: ANN401
    """Creates a mixture with the state's codes, in training but without statistics; only its codes take a gradient."""
    quantizer = GaussianMixtureQuantizer(
        LATENT_DIM, len(state.codebook), variance=sigma**2, estimator=path, learned=("codebook",)
    ).to(state.codebook.dtype)
    quantizer.freeze()
    quantizer.variance.sums.fill_(sigma**2)  # it was initialized in float32
    quantizer.learned_codes.data.copy_(state.codebook)
    quantizer.learned_codes.requires_grad_()
    return quantizer.train()


def block_means(state: State, sigma: float, estimator: Estimator, blocks: int, draws: int) -> Gradient:
    """Computes means of ``draws`` estimates each, ``blocks`` in the first axis, in the state's precision."""
    quantizer, found = resting_quantizer(state, sigma, estimator.path), []
    x = state.patches.repeat(draws, 1)
    for _ in range(blocks):
        z = state.latents.repeat(draws, 1).requires_grad_()
        loss = estimator.terms(state, quantizer, x, z).mean()
        of_latents, of_codes = torch.autograd.grad(loss, (z, quantizer.learned_codes), materialize_grads=True)
        found.append((of_latents.reshape(draws, *state.latents.shape).sum(0), of_codes))
    return Gradient(*(torch.stack(parts).double() for parts in zip(*found, strict=True)))


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Returns the cosine of the angle between two gradients of one shape; None if one is 0."""
    lengths = float(one.norm() * other.norm())
    return float((one * other).sum()) / lengths if lengths > 0 else None


def compared(estimates: Tensor, draws: int, exact: Tensor, slope: Tensor | None) -> dict[str, float | None]:
    """Compares block means ``(B, *)``, of ``draws`` estimates each, with the exact gradient ``(*)``."""
    mean, length, blocks = estimates.mean(0), float(exact.norm()), len(estimates)
    trace = draws * float((estimates - mean).square().sum()) / (blocks - 1) if blocks > 1 else 0.0
    return {
        "bias": float((mean - exact).norm()) / length,
        "variance": trace / length**2,
        "cosine": cosine(mean, exact),
        "hard_cosine": None if slope is None else cosine(mean, slope),
        "standard_error": math.sqrt(trace / (blocks * draws)) / length,
    }


def rows_of(state: State, sigma: float, slope: Tensor, settings: Settings) -> list[dict[str, Any]]:
    """Computes the rows of one state at one sigma: draws in float32, as in training, the rest in float64."""
    exact, single = exact_gradient(state, sigma), state.to(torch.float32)
    where = {"codebook_size": len(state.codebook), "sigma": sigma, "posterior_entropy": mean_entropy(state, sigma)}
    rows = []
    for estimator in estimators(settings.temperatures):
        blocks, draws = (settings.blocks, settings.block_draws) if estimator.draws else (1, 1)
        estimates = block_means(single if estimator.draws else state, sigma, estimator, blocks, draws)
        # the chain rule is linear
        on_encoder = [part.flatten(-2) @ state.jacobian for part in (estimates.latents, exact.latents, slope)]
        found = {
            "latents": compared(estimates.latents, draws, exact.latents, slope),
            "encoder": compared(on_encoder[0], draws, *on_encoder[1:]),
            "codebook": compared(estimates.codebook, draws, exact.codebook, None),
        }
        if not estimator.trains_codes:
            del found["codebook"]
        key = {"estimator": estimator.name, "temperature": estimator.temperature}
        rows += [{**key, "with_respect_to": name, **where, **metrics} for name, metrics in found.items()]
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Combines the same row of all states to one row."""
    found = dict(rows[0])
    for name in METRICS:
        values = [row[name] for row in rows if row[name] is not None]
        middle = statistics.median(values) if values else None
        found[name] = rounded(middle)
        if name in SPREAD:
            found[f"{name}_spread"] = rounded(statistics.median(abs(v - middle) for v in values) if values else None)
    return found


def rounded(value: float | None) -> float | None:
    """Rounds to six digits, which is finer than the noise of the draws."""
    return None if value is None else float(f"{value:.6g}")


def study(settings: Settings) -> dict[str, Any]:
    """Trains, compares and averages."""
    data, rows, trained = Image().load("bundled:photographs"), [], []
    for codebook_size, trained_by in itertools.product(settings.codebook_sizes, TRAININGS):
        states = [trained_state(data, codebook_size, trained_by, seed, settings) for seed in range(settings.states)]
        slopes = [smoothed_slope(state, settings.slope_draws) for state in states]
        about = {"codebook_size": codebook_size, "trained_by": trained_by}
        trained += [{**about, "seed": seed, "mse": state.mse, "sigma": state.sigma,
                     "posterior_entropy": mean_entropy(state, state.sigma)}
                    for seed, state in enumerate(states)]  # fmt: skip
        for entropy in settings.entropies:
            found = [
                rows_of(state, sigma_of_entropy(state, entropy), slope, settings)
                for state, slope in zip(states, slopes, strict=True)
            ]
            rows += [{"trained_by": trained_by, **summary(list(same))} for same in zip(*found, strict=True)]
            print(f"K = {codebook_size}, trained by {trained_by}, {entropy} nats")
    return {"states": trained, "rows": rows}


def main() -> None:
    """Runs the study and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gradients.json"))
    arguments = parser.parse_args()
    settings = Settings()
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    protocol = {"sentence": sentence, "latent_dim": LATENT_DIM, "pixels": PIXELS, "hidden": HIDDEN, **asdict(settings)}
    where = {"hardware": hardware(), "versions": versions(), "commit": commit()}
    write_json(
        arguments.out, {"format": "gmvq.gradients", "version": 1, "protocol": protocol, **study(settings), **where}
    )


if __name__ == "__main__":
    main()
