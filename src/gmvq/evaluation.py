r"""Evaluation of a model on a set of items: one table of metrics, and the protocol of their measurement.

::

    items --encoder--> latents --+-- hard:    the most likely code --decoder--> the modality's distances
                                 +-- soft:    E_q[z]               --decoder--> the cheap ones of these, with _soft
                                 +-- sampled: z ~ q(z | x)         --decoder--> the same, with _sampled
                                 +-- codes, q(c | x)               -----------> use of the codebook, information
                                 +-- z_1 ... z_S ~ q(z | x)        --decoder--> log p(x | z_s): ELBO, IWAE, ALBO
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.checks import at_least
from gmvq.data import Items, batches_by_size, central
from gmvq.metrics import (
    CompositeStatistics,
    MixtureInformation,
    aggregated_bound,
    bits_per_dimension,
    categorical_divergence,
    countable,
    counted,
    evidence_lower_bound,
    importance_weighted_bound,
)
from gmvq.metrics.base import Distortion
from gmvq.metrics.precision import in_float64
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.quantizers import AbstractBottleneck, GaussianMixtureQuantizer
from gmvq.types import PosteriorSample

MAX_SAMPLES = 1 << 17
"""Samples of each channel decoded at a time, unless a single item has more: it bounds the memory."""

MAX_DISTANCES = 1 << 22
"""Distances of tokens to codes held at a time."""

MOST_ENUMERATED = 1 << 16
"""Largest codebook whose posterior is computed for each token: beyond it, that would take most of the time."""

BOUND_SAMPLES = 1 << 14
"""Samples of the central part by which bounds of a larger item are computed: 128 x 128 pixels."""

OnProgress = Callable[[float], None]
"""Function that takes the number of items done; an item with bounds counts half until they are done."""


class Evaluation(NamedTuple):
    """Result of :func:`evaluate`.

    Attributes:
        metrics: Metrics by name, finite or None where the model does not have a metric; JSON can hold them.
        statistics: Counts of the used codes, or None for a continuous bottleneck.
        protocol: Protocol of the measurement, in sentences.
        modality: Name of the items' modality.
        headline: Key of the main metric.
        higher_is_better: Whether a higher value of that metric is better.
    """

    metrics: dict[str, float | None]
    statistics: CompositeStatistics | None
    protocol: str
    modality: str
    headline: str
    higher_is_better: bool


class _Reconstructions(NamedTuple):
    """Metrics of one pass of encoder and decoder over all items."""

    hard: Distortion
    soft: Distortion
    sampled: Distortion
    statistics: CompositeStatistics | None
    information: MixtureInformation | None
    samples: int
    tokens: int
    seconds: float


class _Bounds(NamedTuple):
    """Bounds of the likelihood in bits per dimension; None where the model has none."""

    elbo: float | None = None
    iwae: float | None = None
    albo: float | None = None


def evaluate(
    model: Autoencoder,
    items: Items,
    *,
    samples: int = 16,
    batch_size: int = 64,
    limit: int | None = None,
    likelihood_limit: int = 256,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluates an autoencoder on items.

    All metrics are those of the given items alone: no rank of a distributed run waits for another, and each calling
    rank measures all items. The model's mode and the global random state do not change.

    Args:
        model: The model, on any device.
        items: Held-out items of its modality, of any sizes.
        samples: Draws of z for each item in the bounds.
        batch_size: Number of items at a time, fewer if they are large.
        limit: Measure the first ``limit`` items; None for all.
        likelihood_limit: Compute the bounds on the first ``likelihood_limit`` of these; 0 leaves the bounds out. For an
            item of more than 2^14 samples they are those of its central part.
        seed: Seed of all draws.
        on_progress: Called with the number of items done after each batch, and after each draw of the bounds: an item
            with bounds counts half until they are done.

    Returns:
        Metrics, by key:

        - those of the modality's distortion, from hard codes: ``psnr`` (dB), ``ssim``, ``mse`` and ``lpips`` of images;
          the cheap ones also with ``_soft``, from the posterior mean, and with ``_sampled``, from a draw.
        - ``usage``, ``used_codes``, ``perplexity``, ``code_entropy_bits``: of the hard codes, for each token; with
          several levels of their combinations, or beyond 2^24 combinations of all levels together.
        - ``bits_per_token`` (log2 K); ``bits_per_`` with the modality's name of a sample, as ``bits_per_pixel``: bits
          of all tokens over all samples; and ``bits_per_second`` where there is a clock.
        - ``posterior_entropy``, ``aggregated_posterior_entropy``, ``mutual_information``: nats for each token.
        - ``elbo_bits_per_dim``, ``iwae_bits_per_dim``, ``albo_bits_per_dim``: bits per dimension of what is stored,
          lower is better; ``likelihood_items`` is the number of items.
        - ``items``, ``seconds``, ``items_per_second``: of encoding and decoding hard codes.

    Raises:
        ValueError: If there is no item, an argument is out of range, or the model's output is not finite.
    """
    for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1), ("limit", limit, 1)):
        if value is not None:
            at_least(name, value, least, "Leave it out for the default.")
    at_least("likelihood_limit", likelihood_limit, 0, "Set 0 to skip the bounds.")
    if len(items) == 0:
        raise ValueError("'items' must hold at least 1 item, got 0. Check the path or the split.")
    items = _first(items, len(items) if limit is None else limit)
    bounded = min(likelihood_limit, len(items))
    with torch.no_grad(), evaluating(model):
        advance = on_progress or (lambda done: None)
        measured = _reconstruct(model, items, batch_size, seed, lambda done: advance(done - min(done, bounded) / 2))
        aggregated = None if measured.information is None else measured.information.aggregated_posterior
        bounds = _Bounds()
        if bounded > 0:
            some, before = _first(items, bounded), len(items) - bounded / 2
            bounds = _bound(model, some, aggregated, samples, batch_size, seed, lambda done: advance(before + done / 2))
    metrics = _table(model, measured, bounds, bounded)
    protocol = _protocol(model, measured.hard, metrics, samples, batch_size, seed)
    hard = measured.hard
    return Evaluation(metrics, measured.statistics, protocol, model.modality.kind, hard.headline, hard.higher_is_better)


def _reconstruct(
    model: Autoencoder, items: Items, batch_size: int, seed: int, on_progress: OnProgress
) -> _Reconstructions:
    bottleneck, device = model.bottleneck, model.device
    hard, soft, sampled = (model.modality.distortion(quick=quick) for quick in (False, True, True))
    sizes = None if model.codebook_size is None else model.level_sizes
    statistics = None if sizes is None else CompositeStatistics(countable(sizes))
    enumerated = sizes is not None and not bottleneck.code_shape and bottleneck.has_posterior
    information = MixtureInformation(sizes[0]) if sizes and enumerated and sizes[0] <= MOST_ENUMERATED else None
    generator = torch.Generator(device).manual_seed(seed)
    samples, tokens, seconds, done = 0, 0, 0.0, 0
    for index, batch in enumerate(_batches(model, items, batch_size)):
        size, real = model.signal.size(batch), model.signal.checked(batch)
        if index == 0:
            model.decode(model.encode(batch[:1]), size)  # the first call includes set-up; the clock starts after it
        start = _clock(device)
        latents = model.latents(batch)
        codes = bottleneck.encode(latents)
        made = model.decode(codes, size)
        seconds += _clock(device) - start
        hard.update(made, real)
        means = _by_block(bottleneck.posterior_mean, latents, bottleneck)
        soft.update(model.mean(model.decode_values(means, size)), real)
        values = _sample(bottleneck, latents, generator).values
        sampled.update(model.mean(model.decode_values(values, size)), real)
        if statistics is not None and sizes is not None:
            statistics.update(levels_counted(model, codes))
        if information is not None:
            for block in _blocks(latents, bottleneck):
                information.update(bottleneck.posterior(block).responsibilities)
        samples += len(batch) * math.prod(size)
        tokens += latents.shape[:-1].numel() if statistics is None else codes.numel() // max(1, _levels(model))
        done += len(batch)
        on_progress(done)
    return _Reconstructions(hard, soft, sampled, statistics, information, samples, tokens, seconds)


def levels_counted(model: Autoencoder, codes: Tensor) -> Tensor:
    """Converts a model's codes to those its statistics count: ``(B, *grid[, levels])`` -> ``(B, *grid, places)``."""
    inner = len(model.bottleneck.code_shape) if model.has_code_maps else 0
    return counted(codes[..., None] if inner == 0 else codes.flatten(-inner), model.level_sizes)


def _levels(model: Autoencoder) -> int:
    """Returns the number of codes of a token."""
    return math.prod(model.bottleneck.code_shape) if model.has_code_maps else 1


def _bound(
    model: Autoencoder,
    items: Items,
    aggregated: Tensor | None,
    samples: int,
    batch_size: int,
    seed: int,
    on_progress: OnProgress,
) -> _Bounds:
    """Computes bounds in bits per dimension: the sum of all items' nats over the sum of their dimensions."""
    bottleneck = model.bottleneck
    generator = torch.Generator(model.device).manual_seed(seed)
    elbo, iwae, albo, dimensions, done = 0.0, 0.0, 0.0, 0, 0
    for batch in _batches(model, items, batch_size, most=BOUND_SAMPLES):
        batch = model.prepared(batch)
        latents = model.latents_of(batch)
        share, before = len(batch) / samples, done
        nats = _draws(model, batch, latents, samples, generator, lambda n, a=before, b=share: on_progress(a + n * b))
        log_likelihood, log_prior, log_posterior = nats
        done += len(batch)
        divergence = _by_block(bottleneck.divergence, latents, bottleneck)
        elbo += float(evidence_lower_bound(log_likelihood, _over_tokens(divergence)).sum())
        iwae += float(importance_weighted_bound(log_likelihood, log_prior, log_posterior).sum())
        if isinstance(bottleneck, GaussianMixtureQuantizer) and aggregated is not None:
            distance, categorical = _aggregated_terms(bottleneck, latents, aggregated)
            albo += float(aggregated_bound(log_likelihood, distance, categorical).sum())
        dimensions += batch.numel()
    has_albo = isinstance(bottleneck, GaussianMixtureQuantizer) and aggregated is not None
    bounds = (bits_per_dimension(nats, dimensions) for nats in (elbo, iwae, albo))
    return _Bounds(*bounds) if has_albo else _Bounds(*bounds)._replace(albo=None)


def _draws(
    model: Autoencoder, items: Tensor, latents: Tensor, samples: int, generator: torch.Generator, on_draw: OnProgress
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes log p(x | z_s), log p(z_s) and log q(z_s | x) in nats, each ``(S, B)``, one draw after the other."""
    size = model.signal.size(items)
    nats: list[tuple[Tensor, Tensor, Tensor]] = []
    values: Tensor | None = None
    for number in range(samples):
        draw = _sample(model.bottleneck, latents, generator)
        # The one-hot posterior of plain vector quantization draws the same z each time: decode it once.
        if values is None or not torch.equal(draw.values, values):
            values = draw.values
            log_likelihood = model.likelihood.log_prob(model.decode_values(values, size), items)
        else:
            log_likelihood = nats[-1][0]
        nats.append((log_likelihood, _over_tokens(draw.log_prior), _over_tokens(draw.log_posterior)))
        on_draw(number + 1)
    first, second, third = zip(*nats, strict=True)
    return torch.stack(first), torch.stack(second), torch.stack(third)


def _aggregated_terms(
    bottleneck: GaussianMixtureQuantizer, latents: Tensor, aggregated: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes expected distance and T KL(q_B || p) of each item in nats, both ``(B,)``."""
    distance = _by_block(lambda rows: bottleneck.expected_distance(rows), latents, bottleneck)
    divergence = categorical_divergence(aggregated, bottleneck.log_prior.cpu())
    tokens = latents.shape[1:-1].numel()
    return _over_tokens(distance), (tokens * divergence).expand(len(latents)).to(latents.device)


def _table(model: Autoencoder, measured: _Reconstructions, bounds: _Bounds, bounded: int) -> dict[str, float | None]:
    information, number = measured.information, measured.hard.items
    bits = None if measured.statistics is None else sum(math.log2(size) for size in model.level_sizes)
    per_sample = None if bits is None else bits * measured.tokens / measured.samples
    rate = model.signal.rate
    return {
        **measured.hard.metrics(),
        **{f"{name}_soft": value for name, value in measured.soft.metrics().items()},
        **{f"{name}_sampled": value for name, value in measured.sampled.metrics().items()},
        **use_of(measured.statistics),
        "bits_per_token": bits,
        f"bits_per_{model.modality.sample}": per_sample,
        **({} if rate is None else {"bits_per_second": None if per_sample is None else per_sample * rate}),
        "posterior_entropy": None if information is None else information.posterior_entropy,
        "aggregated_posterior_entropy": None if information is None else information.aggregated_posterior_entropy,
        "mutual_information": None if information is None else information.mutual_information,
        "elbo_bits_per_dim": bounds.elbo,
        "iwae_bits_per_dim": bounds.iwae,
        "albo_bits_per_dim": bounds.albo,
        "likelihood_items": bounded,
        "items": number,
        "seconds": measured.seconds,
        "items_per_second": number / max(measured.seconds, 1e-9),
    }


def use_of(statistics: CompositeStatistics | None) -> dict[str, float | None]:
    """Returns the use of the codebook, by key; None for a continuous bottleneck."""
    if statistics is None:
        return dict.fromkeys(("usage", "used_codes", "perplexity", "code_entropy_bits"))
    bits = statistics.bits_per_token
    return {
        "usage": statistics.usage,
        "used_codes": sum(place.used for place in statistics.places),
        "perplexity": 2 ** (bits / len(statistics.places))
        if len(statistics.places) > 1
        else statistics.perplexities[0],
        "code_entropy_bits": bits,
    }


def _protocol(
    model: Autoencoder, hard: Distortion, metrics: dict[str, float | None], samples: int, batch_size: int, seed: int
) -> str:
    device, modality, items = model.device, model.modality, model.modality.items
    bounded, threads = int(metrics["likelihood_items"] or 0), torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    sentences = [
        f"{modality.counted(hard.items)}.",
        hard.protocol,
        f"Soft decodes the posterior mean, sampled one draw of z (seed {seed}).",
    ]
    if metrics["bits_per_token"] is not None:
        sentences.append(f"Use of the codebook is counted over the hard codes of all tokens of these {items}.")
    if metrics["elbo_bits_per_dim"] is not None:
        sentences.append(
            f"Bounds are those of the stored values of the first {modality.counted(bounded)}, of larger ones the "
            f"central part of at most {BOUND_SAMPLES:,} samples, with {samples} draws of z for each (seed {seed}): "
            "the sum of nats over the sum of dimensions."
        )
    if model.standardization is not None:
        sentences.append("They are those of a density in units of each channel's deviation in training.")
    if metrics["albo_bits_per_dim"] is not None:
        sentences.append(f"ALBO takes the aggregated posterior of all {items}, and is not always a bound.")
    sentences.append(
        f"Time is that of encoding and decoding hard codes in batches of up to {batch_size} {items} on {where}, "
        f"{threads} CPU thread{'' if threads == 1 else 's'}, PyTorch {torch.__version__}."
    )
    return " ".join(sentences)


def _batches(model: Autoencoder, items: Items, batch_size: int, most: int | None = None) -> Iterator[Tensor]:
    """Yields all items in batches of one size, as they are stored ``(B, C, *S)``, on the model's device.

    Args:
        model: The model of the items.
        items: The items.
        batch_size: Largest number of items in a batch; fewer if they have more than ``MAX_SAMPLES`` together.
        most: Largest number of samples of an item, larger ones are cut to their central part; None for no cut.
    """
    axes = model.signal.axes
    side = None if most is None or not axes else round(most ** (1 / axes))
    for indices in batches_by_size(items, batch_size):
        parts = [items[index] if side is None else central(items[index], axes, side) for index in indices]
        number = math.prod(model.signal.size(parts[0]))
        for part in torch.stack(parts).split(max(1, MAX_SAMPLES // number)):
            yield part.to(model.device)


def _first(items: Items, number: int) -> Items:
    return items if number >= len(items) else items.subset(range(number))


def _blocks(latents: Tensor, bottleneck: AbstractBottleneck) -> tuple[Tensor, ...]:
    """Splits latents to rows ``(n, dim)``, so few that their posterior over all codes, if any, fits in memory."""
    assert bottleneck.quantizes_rows
    codebook_size = bottleneck.codebook_size if bottleneck.has_posterior else None
    return latents.flatten(0, -2).split(max(1, MAX_DISTANCES // (codebook_size or 1)))


def _by_block(function: Callable[[Tensor], Tensor], latents: Tensor, bottleneck: AbstractBottleneck) -> Tensor:
    """Applies a function to all tokens ``(B, *grid, dim)``, by blocks of rows if rows are quantized independently."""
    if not bottleneck.quantizes_rows:
        return function(latents)
    return torch.cat([function(block) for block in _blocks(latents, bottleneck)]).unflatten(0, latents.shape[:-1])


def _sample(bottleneck: AbstractBottleneck, latents: Tensor, generator: torch.Generator) -> PosteriorSample:
    if not bottleneck.quantizes_rows:
        return bottleneck.sample_posterior(latents, generator)
    blocks = _blocks(latents, bottleneck)
    draws = [bottleneck.sample_posterior(block, generator) for block in blocks]
    return PosteriorSample(*(torch.cat(parts).unflatten(0, latents.shape[:-1]) for parts in zip(*draws, strict=True)))


def _over_tokens(nats: Tensor) -> Tensor:
    """Sums over the tokens of each item, in float64: ``(B, *grid)`` -> ``(B,)``."""
    return in_float64(nats).reshape(len(nats), -1).sum(dim=1)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":  # kernels run on after their calls return
        torch.cuda.synchronize(device)
    return time.perf_counter()
