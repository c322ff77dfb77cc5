r"""GM-VQ as a direct transcription of its equations: the reference for avoidable costs of its step.

.. math::
    q(c \mid x) = \mathrm{softmax}_c(-d_c / 2 \sigma^2), \quad y = \mathrm{softmax}_c((\log q(c \mid x) + g_c) / \tau),
    \quad z = \sum_c y_c \mu_c, \quad
    \mathcal{L} = E_{q(c \mid x)}[d_c / 2 \sigma^2] + \mathrm{KL}(q_B(c) \,\|\, p(c))

Each quantity is a tensor of N x K numbers, and autograd stores those that the backward pass needs.

Source: Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
https://arxiv.org/abs/2410.10180
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class NaiveMixture(nn.Module):
    """The training step of GaussianMixtureQuantizer with a codebook learned by gradient, and nothing else.

    Args:
        codes: Codebook ``(K, L)``.
        variance: sigma^2, fixed.
        temperature: tau.
        weight: Factor of the loss.

    Shape:
        latents ``(*, L)`` -> values ``(*, L)``, codes ``(*)``, loss ``()``.
    """

    def __init__(self, codes: Tensor, variance: float, temperature: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.clone())
        self.variance, self.temperature, self.weight = variance, temperature, weight

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, most likely codes and the loss."""
        rows = latents.reshape(-1, latents.shape[-1])
        squares = rows.square().sum(-1, keepdim=True) + self.codes.square().sum(-1)
        energies = (squares - 2 * rows @ self.codes.T) / (2 * self.variance)
        log_posterior = (-energies).log_softmax(-1)
        gumbel = -torch.empty_like(log_posterior).exponential_().log()
        y = ((log_posterior + gumbel) / self.temperature).softmax(-1)
        posterior = log_posterior.exp()
        distance = (posterior * energies).sum(-1).mean()
        aggregated = posterior.mean(0)
        divergence = torch.xlogy(aggregated, aggregated).sum() + math.log(len(self.codes))
        values = (y @ self.codes).reshape(latents.shape)
        return values, log_posterior.argmax(-1).reshape(latents.shape[:-1]), self.weight * (distance + divergence)
