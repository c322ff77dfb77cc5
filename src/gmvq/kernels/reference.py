r"""The definition of right results for all faster implementations, in plain PyTorch.

.. math:: d_{nc} = \sum_l w_l (z_{nl} - \mu_{cl})^2 = |z_n|^2 - 2 z_n \cdot \mu_c + |\mu_c|^2

The expanded form costs one matrix product. Rows are first taken relative to a point amid the codes
(:mod:`gmvq.kernels.origin`), so that rounding errors grow with the spread of most codes and not with their distance
from the origin. A code that is not finite, or too far for its square to be a number, is at an infinite distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmvq.kernels.mixture_types import MixtureStep
from gmvq.kernels.noise import exponential
from gmvq.kernels.origin import origin_of, within_reach

BLOCK_ELEMENTS = 1 << 22
"""Number of distances in memory at a time if only the best code is needed (16 MiB in float32)."""


def in_blocks(rows: Tensor, codebook_size: int, elements: int | None = None) -> tuple[Tensor, ...]:
    """Splits rows ``(N, *)`` into parts with ``elements`` distances to K codes, by default :data:`BLOCK_ELEMENTS`."""
    # an exported graph takes any number of rows, so blocks cannot be counted; torch 2.6 cannot tell it from compiling
    if getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
        return (rows,)
    return rows.split(max(1, (BLOCK_ELEMENTS if elements is None else elements) // codebook_size))


def squared_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """Squared Euclidean distance of each latent to each code.

    Args:
        latents: Rows ``(N, L)``.
        codebook: Codes ``(K, L)``.

    Returns:
        Distances ``(N, K)``, never negative.
    """
    latents, codebook, lengths = _around_origin(latents, codebook)
    squares = latents.square().sum(-1, keepdim=True) + lengths
    return torch.addmm(squares, latents, codebook.T, alpha=-2).clamp_min(0)


def weighted_squared_distances(latents: Tensor, codebook: Tensor, weights: Tensor) -> Tensor:
    r"""Squared distances with weights of the features for each latent, in memory O(N K).

    .. math:: d_{nc} = \sum_l w_{nl} (z_{nl} - \mu_{cl})^2

    Args:
        latents: Rows ``(N, L)``.
        codebook: Codes ``(K, L)``.
        weights: At least 0, ``(N, L)``.

    Returns:
        Distances ``(N, K)``, never negative.
    """
    latents, codebook, lengths = _around_origin(latents, codebook)
    weighted = weights * latents
    squares = (weighted * latents).sum(-1, keepdim=True)
    rows, columns = torch.cat([weighted, weights], dim=-1), torch.cat([-2 * codebook, codebook.square()], dim=-1)
    out_of_reach = torch.where(lengths.isinf(), torch.inf, 0.0)
    return torch.addmm(squares + out_of_reach, rows, columns.T).clamp_min(0)


def _around_origin(latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents and codes around the origin, and squared lengths of the codes; of one out of reach 0 and infinity."""
    origin = origin_of(codebook)
    codebook = codebook - origin
    reached = codebook.detach().square().sum(-1).isfinite()
    codebook = torch.where(reached[:, None], codebook, 0.0)
    return latents - origin, codebook, torch.where(reached, codebook.square().sum(-1), torch.inf)


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each latent, ties to the lowest index, in memory O(N + K).

    Args:
        latents: Rows ``(N, L)``.
        codebook: Codes ``(K, L)``.

    Returns:
        Indices ``(N,)``, int64.
    """
    latents, codebook, lengths = _around_origin(latents, codebook)
    half_norms = lengths / 2
    # |z|^2 is the same for all codes of a row, so |mu|^2 / 2 - z.mu has the same order
    blocks = in_blocks(latents, len(codebook))
    return torch.cat([torch.addmm(half_norms, block, codebook.T, alpha=-1).argmin(-1) for block in blocks])


@torch.no_grad()
def code_sums(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Weight and weighted sum of the latents of each code.

    Args:
        latents: Rows ``(N, L)``.
        codes: Code of each row ``(N,)``; -1 is allowed in rows of weight 0.
        weights: Weight of each row ``(N,)``, at least 0.
        codebook_size: Number of codes K.

    Returns:
        Weights ``(K,)`` and sums ``(K, L)``.
    """
    codes = codes.clamp_min(0)
    weights = weights.to(latents.dtype)
    counts = latents.new_zeros(codebook_size).index_add_(0, codes, weights)
    sums = latents.new_zeros(codebook_size, latents.shape[-1]).index_add_(0, codes, latents * weights[:, None])
    return counts, sums


def mixture_step(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor,
    precisions: Tensor,
    biases: Tensor,
    prices: Tensor,
    weights: Tensor,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    floor: float = 0.0,
) -> MixtureStep:
    r"""Posterior of a Gaussian mixture, a relaxed sample of it and its sums, in memory O(N K).

    .. math::
        e_{nc} = p_c |z_n - \mu_c|^2 / 2, \quad j_{nc} = b_c - e_{nc}, \quad
        q_n = \mathrm{softmax}_c(j_{nc}), \quad y_n = \mathrm{softmax}_c((j_{nc} + g_{nc}) / \tau)

    A row that is not finite has NaN in its own results, and is left out of sums over rows. A code that is not finite
    has probability 0.

    Args:
        latents: z, ``(N, L)``.
        codebook: mu, ``(K, L)``.
        values: Vectors that y mixes, ``(K, V)``.
        precisions: p, above 0, ``(K,)``.
        biases: b, ``(K,)``.
        prices: Cost of each code in ``priced``, in nats ``(K,)``.
        weights: Weight of each row in ``aggregated``, ``(N,)``.
        temperature: tau ``()``, above 0; None for no relaxed sample.
        seed: Seed of the noise ``()``, int64, at least 0.
        floor: Lower bound of energies in ``log_energy``, in nats; 0 leaves ``log_energy`` out.
    """
    finite = latents.isfinite().all(-1)
    latents = torch.where(finite[:, None], latents, 0.0)
    origin = origin_of(codebook)
    latents, codebook = latents - origin, codebook - origin
    reached = within_reach(precisions * codebook.square().sum(-1) / 2)
    codebook, values = (torch.where(reached[:, None], part, 0.0) for part in (codebook, values))
    biases = torch.where(reached, biases, -torch.inf)
    squares = latents.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    distances = torch.addmm(squares, latents, codebook.T, alpha=-2)
    energies = (precisions * distances / 2).clamp_min(0)
    joint = biases - energies
    log_posterior = joint.log_softmax(-1)
    posterior = log_posterior.exp()
    logarithms = energies.clamp_min(floor).log() if floor > 0 else torch.zeros_like(energies)
    if temperature is None or seed is None:
        drawn, relaxed, relaxed_energy = finite.new_empty(0, dtype=torch.int64), values[:0], energies[:0, 0]
    else:
        numbers = torch.arange(len(latents), device=latents.device)
        perturbed = joint - exponential(seed, numbers, len(codebook), joint.dtype).log()
        relaxation = (perturbed / temperature).softmax(-1)
        drawn = perturbed.argmax(-1) * finite
        relaxed = torch.where(finite[:, None], relaxation @ values, torch.nan)
        relaxed_energy = torch.where(finite, (relaxation * energies).sum(-1), torch.nan)

    def of_finite(value: Tensor) -> Tensor:
        return torch.where(finite, value, torch.nan)

    return MixtureStep(
        codes=joint.argmax(-1) * finite,
        priced=(joint - prices).argmax(-1) * finite,
        drawn=drawn,
        energy=of_finite((posterior * energies).sum(-1)),
        log_energy=of_finite((posterior * logarithms).sum(-1)),
        entropy=of_finite(-(posterior * torch.where(posterior > 0, log_posterior, 0.0)).sum(-1)),
        log_density=of_finite(joint.logsumexp(-1)),
        aggregated=torch.where(finite, weights, 0.0) @ posterior,
        relaxed=relaxed,
        relaxed_energy=relaxed_energy,
    )
