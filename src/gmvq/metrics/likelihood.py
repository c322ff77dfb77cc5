r"""Bounds of the likelihood of data under a latent variable model, from terms in nats.

For one image x of T tokens, with z_s drawn from q(z | x):

.. math::
    \text{ELBO} &= \mathbb{E}_{q(z | x)} \log p(x | z) - \text{KL}(q(z, c | x) \,\|\, p(z, c))
        \le \log p(x)                                                                          \quad (8) \\
    \text{IWAE}_S &= \mathbb{E} \log \frac{1}{S} \sum_{s=1}^{S} \frac{p(x | z_s) p(z_s)}{q(z_s | x)}
        \le \log p(x), \text{ rising to it with } S                                            \quad (10) \\
    \text{ALBO} &= \mathbb{E}_{q(z | x)} \log p(x | z)
        - \sum_{t=1}^{T} \mathbb{E}_{q(c | x)} \frac{d_{tc}}{2 \sigma^2} - T\, \text{KL}(q_B(c) \,\|\, p(c)) \quad (7)

ALBO is *not* always a bound: it leaves out the mutual information of x and c and the entropy of q(z | x), so it may lie
above log p(x). GM-VQ is trained with it; the other two serve for comparison with other models.

The functions take tensors of nats, not models, and compute in float64.

References:
    Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
    https://arxiv.org/abs/2410.10180
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmvq.metrics.precision import distributions, in_float64


def evidence_lower_bound(log_likelihood: Tensor, divergence: Tensor) -> Tensor:
    """Computes a lower bound of log p(x) (8), with the expectation over S draws.

    Args:
        log_likelihood: log p(x | z_s) in nats for each draw and image, ``(S, B)``.
        divergence: KL(q(z, c | x) || p(z, c)) in nats for each image, summed over its tokens, ``(B,)``.

    Returns:
        Nats for each image, float64 ``(B,)``.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """
    log_likelihood = _draws("log_likelihood", log_likelihood)
    return log_likelihood.mean(dim=0) - _per_image("divergence", divergence, log_likelihood.shape[1])


def importance_weighted_bound(log_likelihood: Tensor, log_prior: Tensor, log_posterior: Tensor) -> Tensor:
    """Computes the importance-weighted lower bound of log p(x) (10).

    It is above the evidence lower bound in expectation and tighter with every draw. The draws must come from the
    q(z | x) whose density is ``log_posterior``, with any discrete variable summed out of both densities.

    Args:
        log_likelihood: log p(x | z_s) in nats for each draw and image, ``(S, B)``.
        log_prior: log p(z_s) in nats, summed over tokens, ``(S, B)``.
        log_posterior: log q(z_s | x) in nats, summed over tokens, ``(S, B)``.

    Returns:
        Nats for each image, float64 ``(B,)``.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.

    Example:
        >>> nats = torch.log(torch.tensor([[0.2], [0.4]]))
        >>> importance_weighted_bound(nats, torch.zeros(2, 1), torch.zeros(2, 1)).exp().round(decimals=6)
        tensor([0.3000], dtype=torch.float64)
    """
    log_likelihood = _draws("log_likelihood", log_likelihood)
    shape = log_likelihood.shape
    log_weights = log_likelihood + _draws("log_prior", log_prior, shape) - _draws("log_posterior", log_posterior, shape)
    return log_weights.logsumexp(dim=0) - math.log(shape[0])


def aggregated_bound(log_likelihood: Tensor, distance: Tensor, categorical: Tensor) -> Tensor:
    """Computes ALBO (7), the objective of GM-VQ in nats; it is not always a bound of log p(x).

    Args:
        log_likelihood: log p(x | z_s) in nats for each draw and image, ``(S, B)``.
        distance: E_q(c|x) d_c / (2 sigma^2) in nats for each image, summed over its tokens, ``(B,)``.
        categorical: T KL(q_B(c) || p(c)) in nats for each image, ``(B,)``.

    Returns:
        Nats for each image, float64 ``(B,)``.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """
    return evidence_lower_bound(log_likelihood, distance) - _per_image(
        "categorical", categorical, log_likelihood.shape[1]
    )


def categorical_divergence(probabilities: Tensor, log_prior: Tensor) -> Tensor:
    """Computes KL(q(c) || p(c)) in nats, with 0 log 0 = 0.

    Args:
        probabilities: q(c), sums to 1 over the last axis, ``(*, K)``.
        log_prior: log p(c), ``(K,)``.

    Returns:
        Nats, float64 ``(*)``, at least 0; infinite where p(c) = 0 and q(c) > 0.

    Raises:
        ValueError: If ``probabilities`` is not a distribution or its K is not that of ``log_prior``.
    """
    probabilities, log_prior = distributions("probabilities", probabilities), in_float64(log_prior)
    if log_prior.shape != probabilities.shape[-1:] or log_prior.isnan().any():
        raise ValueError(
            f"'log_prior' must hold log p(c) of each of {probabilities.shape[-1]} codes without NaN, "
            f"got shape {tuple(log_prior.shape)}. Give the prior of the same codebook."
        )
    cross_entropy = torch.where(probabilities > 0, -probabilities * log_prior, 0.0).sum(dim=-1)
    return (cross_entropy - torch.special.entr(probabilities).sum(dim=-1)).clamp(min=0)


def bits_per_dimension(nats: Tensor | float, dimensions: float) -> float:
    r"""Converts a log-likelihood to bits for each dimension: ``-nats / (D log 2)``.

    Args:
        nats: log p(x), or a bound of it, in nats; summed over images if a tensor.
        dimensions: Dimensions D = C H W of all these images together.

    Returns:
        Bits; 8 for 8-bit data under the uniform distribution.

    Raises:
        ValueError: If the nats are not finite or there is no dimension.

    Example:
        >>> bits_per_dimension(-3072 * math.log(256), 3072)
        8.0
    """
    if not dimensions > 0:
        raise ValueError(f"'dimensions' must be positive, got {dimensions}. Give C x H x W of all images together.")
    total = float(nats.double().sum()) if isinstance(nats, Tensor) else float(nats)
    if not math.isfinite(total):
        raise ValueError(f"'nats' must be finite, got {total}. Find the image whose likelihood is 0 or not a number.")
    return -total / (dimensions * math.log(2))


def _draws(name: str, nats: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Checks the nats of draws ``(S, B)`` and returns them in float64."""
    if nats.ndim != 2 or len(nats) == 0 or (shape is not None and nats.shape != shape):
        wanted = "(S, B) with S >= 1" if shape is None else f"{tuple(shape)} like 'log_likelihood'"
        raise ValueError(
            f"'{name}' must have the shape {wanted}, got {tuple(nats.shape)}. Give one row for each draw, "
            "summed over tokens."
        )
    return _finite(name, nats)


def _per_image(name: str, nats: Tensor, images: int) -> Tensor:
    """Checks the nats of images ``(B,)`` and returns them in float64."""
    if nats.shape != (images,):
        raise ValueError(
            f"'{name}' must have the shape ({images},), one number for each image, got {tuple(nats.shape)}. "
            "Sum over tokens with .flatten(1).sum(1)."
        )
    return _finite(name, nats)


def _finite(name: str, nats: Tensor) -> Tensor:
    if not nats.isfinite().all():
        wrong = nats[~nats.isfinite()].flatten()[0]
        raise ValueError(f"'{name}' must be finite, got {float(wrong)}. Check the model's weights and likelihood.")
    return in_float64(nats)
