r"""A model over a set of images -> one table of figures, and the protocol they were measured by.

::

    images --encoder--> latents --+-- hard:    the most likely code --decoder--> psnr, ssim, mse, lpips (of a file)
                                  +-- soft:    E_q[z]               --decoder--> psnr_soft, mse_soft
                                  +-- sampled: z ~ q(z | x)         --decoder--> psnr_sampled, mse_sampled
                                  +-- codes, q(c | x)               -----------> use of the codebook, information
                                  +-- z_1 ... z_S ~ q(z | x)        --decoder--> log p(x | z_s): ELBO, IWAE, ALBO
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gmvq.data import Images, batches_by_size
from gmvq.metrics import (
    CodebookStatistics,
    Distortion,
    MixtureInformation,
    aggregated_bound,
    bits_per_dimension,
    categorical_divergence,
    evidence_lower_bound,
    importance_weighted_bound,
    load_lpips,
)
from gmvq.metrics.distortion import PSNR_CAP
from gmvq.metrics.perceptual import Distance, can_compare
from gmvq.metrics.precision import in_float64
from gmvq.models import Autoencoder
from gmvq.models.modes import evaluating
from gmvq.quantizers import AbstractBottleneck, GaussianMixtureQuantizer
from gmvq.types import PosteriorSample

MAX_PIXELS = 1 << 17
"""Pixels decoded at a time, unless a single image has more: it bounds the memory."""

MAX_DISTANCES = 1 << 22
"""Distances of tokens to codes held at a time."""

MOST_ENUMERATED = 1 << 16
"""Largest codebook whose posterior is written out for each token: beyond it, that would be most of the time."""

BOUND_SIDE = 128
"""Side in pixels of the central crop that stands for a larger image in the bounds."""


class Evaluation(NamedTuple):
    """What :func:`evaluate` measured.

    Attributes:
        metrics: Figures by name, finite or None where the model has no such figure; JSON can hold them.
        statistics: How often each code was used, or None for a continuous bottleneck.
        protocol: How the figures were measured, in sentences.
    """

    metrics: dict[str, float | None]
    statistics: CodebookStatistics | None
    protocol: str


class _Reconstructions(NamedTuple):
    """Sums over all images of what one pass of encoder and decoder shows."""

    hard: Distortion
    soft: Distortion
    sampled: Distortion
    lpips: float | None
    statistics: CodebookStatistics | None
    information: MixtureInformation | None
    pixels: int
    tokens: int
    seconds: float


class _Bounds(NamedTuple):
    """Bounds of the likelihood in bits per dimension; None where the model has none."""

    elbo: float | None = None
    iwae: float | None = None
    albo: float | None = None


def evaluate(
    model: Autoencoder,
    images: Images,
    *,
    samples: int = 16,
    batch_size: int = 64,
    limit: int | None = None,
    likelihood_limit: int = 256,
    seed: int = 0,
) -> Evaluation:
    """Measure an autoencoder on images.

    All figures are those of the given images alone: no rank of a distributed run waits for another, and each that
    calls measures all images. The model's mode and the global random state are left as they were.

    Args:
        model: What to measure, on any device.
        images: Held-out images, of any sizes.
        samples: Draws of z for each image in the bounds.
        batch_size: Images at a time, fewer if they are large.
        limit: Measure the first ``limit`` images; None for all.
        likelihood_limit: Compute the bounds on the first ``likelihood_limit`` of these; 0 leaves the bounds out. Of an
            image with a side over 128 pixels they are those of its central crop.
        seed: Of all draws.

    Returns:
        Metrics, by key:

        - ``psnr`` (dB), ``ssim``, ``mse``: of the hard codes; ``psnr_soft``, ``mse_soft``, ``psnr_sampled``,
          ``mse_sampled``: of the posterior mean and of a draw; means over images of each image's figure.
        - ``lpips``: of the hard codes, the mean over images; None where :func:`gmvq.metrics.load_lpips` finds no
          weights, or an image has a side below 31 pixels or neither 1 nor 3 channels.
        - ``usage``, ``used_codes``, ``perplexity``, ``code_entropy_bits``: of the hard codes, for each token.
        - ``bits_per_token`` (log2 K) and ``bits_per_pixel`` (that for all tokens, over all pixels).
        - ``posterior_entropy``, ``aggregated_posterior_entropy``, ``mutual_information``: nats for each token.
        - ``elbo_bits_per_dim``, ``iwae_bits_per_dim``, ``albo_bits_per_dim``: bits per dimension of the 8-bit data,
          lower is better; ``likelihood_images`` says of how many images.
        - ``images``, ``seconds``, ``images_per_second``: of encoding and decoding hard codes.

    Raises:
        ValueError: If there is no image, an argument is out of range, or the model's output is not finite.
    """
    for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"'{name}' must be at least {least}, got {value}. Leave it out for the default.")
    if likelihood_limit < 0:
        raise ValueError(f"'likelihood_limit' must be at least 0, got {likelihood_limit}. Set 0 to skip the bounds.")
    if len(images) == 0:
        raise ValueError("'images' must hold at least 1 image, got 0. Check the path or the split.")
    images = _first(images, len(images) if limit is None else limit)
    bounded = min(likelihood_limit, len(images))
    with torch.no_grad(), evaluating(model):
        measured = _reconstruct(model, images, batch_size, seed)
        aggregated = None if measured.information is None else measured.information.aggregated_posterior
        bounds = _Bounds()
        if bounded > 0:
            bounds = _bound(model, _first(images, bounded), aggregated, samples, batch_size, seed)
    metrics = _table(measured, bounds, bounded)
    return Evaluation(metrics, measured.statistics, _protocol(model, metrics, samples, batch_size, seed))


def _reconstruct(model: Autoencoder, images: Images, batch_size: int, seed: int) -> _Reconstructions:
    bottleneck, device = model.bottleneck, _device(model)
    size = bottleneck.codebook_size
    hard, soft, sampled = Distortion(), Distortion(structure=False), Distortion(structure=False)
    statistics = None if size is None else CodebookStatistics(size)
    enumerated = size is not None and bottleneck.has_posterior and size <= MOST_ENUMERATED
    information = MixtureInformation(size) if size is not None and enumerated else None
    generator = torch.Generator(device).manual_seed(seed)
    lpips, distance = load_lpips(), 0.0
    pixels, tokens, seconds = 0, 0, 0.0
    for index, batch in enumerate(_batches(images, batch_size, device)):
        shape = (batch.shape[2], batch.shape[3])
        if index == 0:
            model.decode(model.encode(batch[:1]), shape)  # the first call pays for set-up; the clock starts after it
        start = _clock(device)
        latents = model.latents(batch)
        codes = bottleneck.encode(latents)
        reconstructed = model.decode(codes, shape)
        seconds += _clock(device) - start
        hard.update(reconstructed, batch)
        distance = _added(distance, lpips, reconstructed, batch)
        means = _by_block(bottleneck.posterior_mean, latents, bottleneck)
        soft.update(model.likelihood.mean(model.decode_values(means, shape)), batch)
        values = _sample(bottleneck, latents, generator).values
        sampled.update(model.likelihood.mean(model.decode_values(values, shape)), batch)
        if statistics is not None:
            statistics.update(codes)
        if information is not None:
            for block in _blocks(latents, bottleneck):
                information.update(bottleneck.posterior(block).responsibilities)
        pixels += batch.shape[0] * shape[0] * shape[1]
        tokens += latents.shape[:-1].numel() if size is None else codes.numel()
    distance = None if distance is None else distance / len(images)
    return _Reconstructions(hard, soft, sampled, distance, statistics, information, pixels, tokens, seconds)


def _added(total: float | None, lpips: Distance | None, images: Tensor, targets: Tensor) -> float | None:
    """A sum of LPIPS over images; None from where it cannot be measured on."""
    if total is None or lpips is None or not can_compare(images.shape):
        return None
    return total + float(in_float64(lpips(images, targets)).sum())


def _bound(
    model: Autoencoder, images: Images, aggregated: Tensor | None, samples: int, batch_size: int, seed: int
) -> _Bounds:
    """Bounds in bits per dimension: the sum of all images' nats over the sum of their dimensions."""
    bottleneck, device = model.bottleneck, _device(model)
    generator = torch.Generator(device).manual_seed(seed)
    elbo, iwae, albo, dimensions = 0.0, 0.0, 0.0, 0
    for batch in _batches(images, batch_size, device, side=BOUND_SIDE):
        latents = model.latents(batch)
        log_likelihood, log_prior, log_posterior = _draws(model, batch, latents, samples, generator)
        divergence = _by_block(bottleneck.divergence, latents, bottleneck)
        elbo += float(evidence_lower_bound(log_likelihood, _over_tokens(divergence)).sum())
        iwae += float(importance_weighted_bound(log_likelihood, log_prior, log_posterior).sum())
        if isinstance(bottleneck, GaussianMixtureQuantizer) and aggregated is not None:
            distance, categorical = _aggregated_terms(bottleneck, latents, aggregated)
            albo += float(aggregated_bound(log_likelihood, distance, categorical).sum())
        dimensions += batch.numel()
    has_albo = isinstance(bottleneck, GaussianMixtureQuantizer)
    return _Bounds(
        bits_per_dimension(elbo, dimensions),
        bits_per_dimension(iwae, dimensions),
        bits_per_dimension(albo, dimensions) if has_albo else None,
    )


def _draws(
    model: Autoencoder, images: Tensor, latents: Tensor, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats log p(x | z_s), log p(z_s) and log q(z_s | x), each ``(S, B)``, one draw after the other."""
    shape = (images.shape[2], images.shape[3])
    figures: list[tuple[Tensor, Tensor, Tensor]] = []
    values: Tensor | None = None
    for _ in range(samples):
        draw = _sample(model.bottleneck, latents, generator)
        # The one-hot posterior of plain vector quantization draws the same z each time: decode it once.
        if values is None or not torch.equal(draw.values, values):
            values = draw.values
            log_likelihood = model.likelihood.log_prob(model.decode_values(values, shape), images)
        else:
            log_likelihood = figures[-1][0]
        figures.append((log_likelihood, _over_tokens(draw.log_prior), _over_tokens(draw.log_posterior)))
    first, second, third = zip(*figures, strict=True)
    return torch.stack(first), torch.stack(second), torch.stack(third)


def _aggregated_terms(
    bottleneck: GaussianMixtureQuantizer, latents: Tensor, aggregated: Tensor
) -> tuple[Tensor, Tensor]:
    """Expected distance and T KL(q_B || p) of each image in nats, both ``(B,)``."""
    distance = _by_block(lambda rows: bottleneck.expected_distance(rows), latents, bottleneck)
    divergence = categorical_divergence(aggregated, bottleneck.log_prior.cpu())
    tokens = latents.shape[1:-1].numel()
    return _over_tokens(distance), (tokens * divergence).expand(len(latents)).to(latents.device)


def _table(measured: _Reconstructions, bounds: _Bounds, bounded: int) -> dict[str, float | None]:
    statistics, information = measured.statistics, measured.information
    number = measured.hard.images
    bits = None if statistics is None else math.log2(statistics.codebook_size)
    return {
        "psnr": measured.hard.psnr,
        "ssim": measured.hard.ssim,
        "mse": measured.hard.mse,
        "lpips": measured.lpips,
        "psnr_soft": measured.soft.psnr,
        "mse_soft": measured.soft.mse,
        "psnr_sampled": measured.sampled.psnr,
        "mse_sampled": measured.sampled.mse,
        "usage": None if statistics is None else statistics.usage,
        "used_codes": None if statistics is None else statistics.used,
        "perplexity": None if statistics is None else statistics.perplexity,
        "code_entropy_bits": None if statistics is None else statistics.entropy / math.log(2),
        "bits_per_token": bits,
        "bits_per_pixel": None if bits is None else bits * measured.tokens / measured.pixels,
        "posterior_entropy": None if information is None else information.posterior_entropy,
        "aggregated_posterior_entropy": None if information is None else information.aggregated_posterior_entropy,
        "mutual_information": None if information is None else information.mutual_information,
        "elbo_bits_per_dim": bounds.elbo,
        "iwae_bits_per_dim": bounds.iwae,
        "albo_bits_per_dim": bounds.albo,
        "likelihood_images": bounded,
        "images": number,
        "seconds": measured.seconds,
        "images_per_second": number / max(measured.seconds, 1e-9),
    }


def _protocol(model: Autoencoder, metrics: dict[str, float | None], samples: int, batch_size: int, seed: int) -> str:
    device = _device(model)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    sentences = [
        f"{metrics['images']} images.",
        "MSE, PSNR and SSIM are means over images of each image's figure, of float reconstructions in [0, 1] from hard "
        f"codes; an image's PSNR counts as at most {PSNR_CAP:g} dB.",
        f"Soft decodes the posterior mean, sampled one draw of z (seed {seed}).",
    ]
    if metrics["lpips"] is not None:
        sentences.append("LPIPS is that of AlexNet, version 0.1: the mean over images, from hard codes.")
    if metrics["bits_per_token"] is not None:
        sentences.append("Use of the codebook is counted over the hard codes of all tokens of these images.")
    if metrics["elbo_bits_per_dim"] is not None:
        sentences.append(
            f"Bounds are of the 8-bit data of the first {metrics['likelihood_images']} images, of larger ones the "
            f"central crop of at most {BOUND_SIDE} x {BOUND_SIDE} pixels, with {samples} draws of z for each "
            f"(seed {seed}): nats of all over dimensions of all."
        )
    if metrics["albo_bits_per_dim"] is not None:
        sentences.append("ALBO takes the aggregated posterior of all images, and is not always a bound.")
    sentences.append(
        f"Time is that of encoding and decoding hard codes in batches of up to {batch_size} images on {where}, "
        f"{torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}."
    )
    return " ".join(sentences)


def _batches(images: Images, batch_size: int, device: torch.device, side: int | None = None) -> Iterator[Tensor]:
    """All images in batches of one size, as floats in [0, 1] ``(B, C, H, W)``.

    Args:
        images: What to take them from.
        batch_size: Most images of a batch; fewer where they have more than ``MAX_PIXELS`` together.
        device: Where to put them.
        side: Most pixels of a side, larger images are cropped to their centre; None for no crop.
    """
    for indices in batches_by_size(images, batch_size):
        crops = [images[index] if side is None else _central_crop(images[index], side) for index in indices]
        for part in torch.stack(crops).split(max(1, MAX_PIXELS // crops[0][0].numel())):
            yield part.to(device).float() / 255


def _central_crop(image: Tensor, side: int) -> Tensor:
    height, width = (min(length, side) for length in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def _first(images: Images, number: int) -> Images:
    return images if number >= len(images) else images.subset(range(number))


def _blocks(latents: Tensor, bottleneck: AbstractBottleneck) -> tuple[Tensor, ...]:
    """Rows ``(n, dim)``, few enough that their posterior over all codes fits in memory; all if there is none."""
    assert bottleneck.quantizes_rows
    codebook_size = bottleneck.codebook_size if bottleneck.has_posterior else None
    return latents.flatten(0, -2).split(max(1, MAX_DISTANCES // (codebook_size or 1)))


def _by_block(function: Callable[[Tensor], Tensor], latents: Tensor, bottleneck: AbstractBottleneck) -> Tensor:
    """The function of all tokens ``(B, h, w, dim)``, a block of rows at a time where rows stand for themselves."""
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
    """Sum over the tokens of each image, in float64: ``(B, h, w)`` -> ``(B,)``."""
    return in_float64(nats).flatten(1).sum(dim=1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _clock(device: torch.device) -> float:
    if device.type == "cuda":  # kernels run on after their calls return
        torch.cuda.synchronize(device)
    return time.perf_counter()
