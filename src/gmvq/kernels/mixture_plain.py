"""The sweeps of a block of a mixture step, in torch operations: for any device and precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.kernels.mixture_types import CodeSums, Problem, Results, Upstream
from gmvq.kernels.noise import exponential

FAINTEST = -60.0
"""Logarithm of the smallest probability above 0."""


class _Joint(NamedTuple):
    unclamped: Tensor
    energies: Tensor
    log_joint: Tensor


def makes_products(block: Problem) -> bool:
    """False, since the sweep reads the products."""
    return False


def forward(
    block: Problem, prices: Tensor, products: Tensor, relaxed: Tensor | None, results: Results, aggregated: Tensor
) -> Tensor:
    """Writes all results except ``relaxed``, and the unnormalized y to ``relaxed``.

    Args:
        block: The problem of these rows.
        prices: Prices of the codes ``(K,)``.
        products: z.mu ``(N, K)``, overwritten.
        relaxed: Memory for y up to a factor per row ``(N, K)``; None without draws.
        results: Results of these rows, written.
        aggregated: Sums over rows ``(threads, K)``, added to.

    Returns:
        The sum of each row of ``relaxed`` ``(N,)``, NaN for a row that is not finite; empty without draws.
    """
    finite = block.half_squares.isfinite()
    _, energies, log_joint = _joint(block, products)
    results.codes.copy_(log_joint.argmax(-1) * finite)
    results.priced.copy_((log_joint - prices).argmax(-1) * finite)
    log_posterior = _normalized(log_joint, results.peak, results.normalizer)
    posterior = _exponential(log_posterior)
    log_density = results.peak + results.normalizer
    sums = [(posterior * energies).sum(-1), _negative_entropies(posterior, log_posterior).neg_(), log_density]
    outputs = [results.energy, results.entropy, results.log_density]
    if block.floor > 0:
        sums.append((posterior * energies.clamp_min(block.floor).log()).sum(-1))
        outputs.append(results.log_energy)
    else:
        results.log_energy.copy_(torch.where(finite, 0.0, torch.nan))
    for output, value in zip(outputs, sums, strict=True):
        output.copy_(torch.where(finite, value, torch.nan))
    aggregated[0] += torch.where(finite, block.weights, 0.0) @ posterior
    if relaxed is None:
        return results.relaxed_normalizer
    perturbed = _perturbed(block, log_joint)
    results.drawn.copy_(perturbed.argmax(-1) * finite)
    relaxed.copy_(_exponential(_normalized(perturbed, results.relaxed_peak, results.relaxed_normalizer)))
    results.relaxed_energy.copy_(torch.where(finite, (relaxed * energies).sum(-1), torch.nan))
    return torch.where(finite, torch.ones_like(block.half_squares), torch.nan)


def backward(
    block: Problem, results: Results, upstream: Upstream, products: Tensor, relaxed: Tensor | None, sums: CodeSums
) -> Tensor:
    """Overwrites the products with D = p de, and ``relaxed`` with y.

    Args:
        block: The problem of these rows.
        results: Results of these rows.
        upstream: Gradients of these rows' results.
        products: z.mu ``(N, K)``, overwritten.
        relaxed: Gradients of y through the values ``(N, K)``, overwritten; None without draws.
        sums: Sums over rows, added to.

    Returns:
        Sums of D over codes ``(N,)``, NaN for a row that is not finite.
    """
    finite = block.half_squares.isfinite()
    unclamped, energies, log_joint = _joint(block, products)
    # of large energies, which are rounded otherwise when computed again, it could be above 0
    log_posterior = (log_joint - results.peak[:, None] - results.normalizer[:, None]).clamp_max(0)
    posterior = _exponential(log_posterior) * finite[:, None]
    above = upstream.energy[:, None] * energies + block.weights[:, None] * upstream.aggregated
    above -= upstream.entropy[:, None] * torch.where(posterior > 0, log_posterior, 0.0)
    direct = upstream.energy[:, None]
    if block.floor > 0:
        above += upstream.log_energy[:, None] * energies.clamp_min(block.floor).log()
        direct = direct + torch.where(energies > block.floor, upstream.log_energy[:, None] / energies, 0.0)
    expectations = (posterior * above).sum(-1, keepdim=True)
    of_joint = posterior * (above - expectations + upstream.log_density[:, None])
    of_energies = posterior * direct
    if relaxed is not None and block.temperature is not None:
        exponents = _perturbed(block, log_joint) - results.relaxed_peak[:, None] - results.relaxed_normalizer[:, None]
        y = _exponential(exponents.clamp_max(0)) * finite[:, None]
        of_y = relaxed + upstream.relaxed_energy[:, None] * energies
        of_joint += y * (of_y - (y * of_y).sum(-1, keepdim=True)) / block.temperature
        of_energies = of_energies + y * upstream.relaxed_energy[:, None]
        relaxed.copy_(y)
    of_energies = torch.where(unclamped > 0, of_energies - of_joint, 0.0)
    torch.mul(of_energies, block.precisions, out=products)
    sums.scaled[0] += products.sum(0)
    if sums.biases is not None and sums.precisions is not None:
        sums.biases[0] += of_joint.sum(0)
        sums.precisions[0] += (of_energies * unclamped).sum(0)
    return torch.where(finite, products.sum(-1), torch.nan)


def _joint(block: Problem, products: Tensor) -> _Joint:
    half_squares = torch.where(block.half_squares.isfinite(), block.half_squares, 0.0)[:, None]
    unclamped = block.precisions * (half_squares - products) + block.half_norms
    energies = unclamped.clamp_min(0)
    return _Joint(unclamped, energies, block.biases - energies)


def _perturbed(block: Problem, log_joint: Tensor) -> Tensor:
    assert block.seed is not None
    assert block.temperature is not None
    numbers = torch.arange(block.first_row, block.first_row + len(log_joint), device=log_joint.device)
    draws = exponential(block.seed, numbers, log_joint.shape[-1], log_joint.dtype)
    return (log_joint - draws.log_()) / block.temperature


def _normalized(logarithms: Tensor, peak: Tensor, normalizer: Tensor) -> Tensor:
    """Log-softmax over codes; writes its peak, and its normalizer relative to the peak."""
    peak.copy_(logarithms.amax(-1))
    relative = logarithms - peak[:, None]
    normalizer.copy_(relative.logsumexp(-1))
    return relative - normalizer[:, None]


def _exponential(logarithms: Tensor) -> Tensor:
    # products of smaller numbers are denormal, with which a CPU takes ten times as long
    return logarithms.clamp_min(FAINTEST).exp_().masked_fill_(logarithms < FAINTEST, 0.0)


def _negative_entropies(posterior: Tensor, log_posterior: Tensor) -> Tensor:
    return (posterior * torch.where(posterior > 0, log_posterior, 0.0)).sum(-1)
