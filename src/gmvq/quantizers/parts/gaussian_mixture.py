r"""The Gaussian mixture of one step, as a value: built once, then asked.

.. math:: p(c) = \pi_c, \qquad p(z \mid c) = \mathcal{N}(\mu_c, \sigma_c^2 / w), \qquad
          \log q(c \mid x) = \log \pi_c - e_c + \mathrm{const}, \quad
          e_c = \textstyle\sum_l w_l (\hat z_l - \mu_{cl})^2 / 2 \sigma_c^2

The kernels take it in units of :math:`\sigma`, as :class:`Components`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.kernels import MixtureStep, in_blocks, mixture_step, nearest_code, squared_distances
from gmvq.quantizers.parts.noise import AbstractNoise
from gmvq.types import Posterior, PosteriorSample


class Components(NamedTuple):
    """A mixture in units of sigma, for the kernels.

    Attributes:
        scale: What multiplies latents, ``(L,)``.
        codebook: Codes times ``scale``, ``(K, L)``.
        precisions: What multiplies half the squared distances, ``(K,)``.
        biases: log p(c), and the normalizers where they differ between codes, ``(K,)``.
    """

    scale: Tensor
    codebook: Tensor
    precisions: Tensor
    biases: Tensor

    def part(self, codes: Tensor) -> Components:
        """The components of some codes ``(M,)``."""
        return Components(self.scale, self.codebook[codes], self.precisions[codes], self.biases[codes])

    def log_joint(self, rows: Tensor) -> Tensor:
        """Log p(c) - e_c ``(N, K)``, but for what all codes share: for few codes or few rows."""
        return self.biases - self.precisions * squared_distances(rows * self.scale, self.codebook) / 2

    def energies_of(self, rows: Tensor, codes: Tensor) -> Tensor:
        """The energy e_c of a code for each row, in nats ``(N,)``."""
        return self.precisions[codes] * (rows * self.scale - self.codebook[codes]).square().sum(-1) / 2

    def step(self, rows: Tensor, **options: Any) -> MixtureStep:  # noqa: ANN401  those of the kernel
        """The kernel's results for rows ``(N, L)``."""
        parts = {"precisions": self.precisions, "biases": self.biases, **options}
        return mixture_step(rows * self.scale, self.codebook, **parts)


class Mixture(NamedTuple):
    """The mixture as it stands in a step, in the type of the step's rows.

    Attributes:
        codes: mu, ``(K, L)``.
        scales: Square roots of the precisions w_l / sigma^2, ``(1 or K, L)``.
        feature_weights: w, ``(L,)``.
        log_prior: log pi in nats, ``(K,)``.
        components: The same in units of sigma.
    """

    codes: Tensor
    scales: Tensor
    feature_weights: Tensor
    log_prior: Tensor
    components: Components

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, feature_weights: Tensor, log_prior: Tensor) -> Mixture:
        """The mixture of parameters of one type, as the attributes say."""
        if len(scales) == 1:
            components = Components(scales[0], codes * scales, torch.ones_like(log_prior), log_prior)
        else:
            # a variance for each code: the precision is a factor of the distance, and the normalizers differ
            scale = feature_weights.sqrt()
            log_volumes = scales.log().sum(-1)
            precisions = (scales / scale).square().mean(-1)
            components = Components(scale, codes * scale, precisions, log_prior + log_volumes - log_volumes.mean())
        return cls(codes, scales, feature_weights, log_prior, components)

    def most_likely(self, rows: Tensor) -> Tensor:
        """Most likely code of each row, ``(N, L)`` -> ``(N,)``."""
        scale, codebook, _, biases = self.components
        if len(self.scales) > 1:
            return self.components.step(rows).codes
        return nearest_code(rows * scale, codebook, offsets=biases)

    def posterior(self, rows: Tensor) -> Posterior:
        """q(c | x) of rows ``(N, L)``, its entropies and the log-density of the rows in nats."""
        log_joint = self.components.log_joint(rows)
        log_posterior = log_joint.log_softmax(-1)
        probabilities = log_posterior.exp()
        entropy = -(probabilities * log_posterior).sum(-1)
        # the part of the log-density that all codes share
        log_normalizer = self.scales.log().sum(-1).mean() - self.codes.shape[-1] / 2 * math.log(2 * math.pi)
        return Posterior(probabilities, entropy, log_joint.logsumexp(-1) + log_normalizer)

    def posterior_mean(self, rows: Tensor) -> Tensor:
        """E_q[mu_c] of rows, ``(N, L)`` -> ``(N, L)``."""
        return self.components.log_joint(rows).softmax(-1) @ self.codes

    def divergence(self, rows: Tensor, noise: AbstractNoise) -> Tensor:
        """KL(q(c, z | x) || p(c, z)) in nats, ``(N, L)`` -> ``(N,)``."""
        code_dim = rows.shape[-1]
        floor = noise.least_energy(code_dim)
        parts = []
        for block in in_blocks(rows, len(self.codes)):
            log_joint = self.components.log_joint(block)
            log_posterior = log_joint.log_softmax(-1)
            energies = self.components.biases - log_joint
            log_energies = energies.clamp_min(max(floor, 1e-30)).log()
            latent = noise.divergence(energies, log_energies, code_dim)
            parts.append((log_posterior.exp() * (log_posterior - self.log_prior + latent)).sum(-1))
        return torch.cat(parts).clamp_min(0)

    def sample(self, number: int, noise: AbstractNoise, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws values ``(number, L)`` from p(z | c) and codes ``(number,)`` from p(c)."""
        codes = torch.multinomial(self.log_prior.exp(), number, replacement=True, generator=generator)
        values = self.codes[codes]
        if not noise.is_none:
            deviation = self.scales.reciprocal().expand(len(self.codes), -1)[codes]
            values = values + deviation * torch.randn(values.shape, generator=generator, device=values.device)
        return values, codes

    def sample_posterior(
        self, rows: Tensor, noise: AbstractNoise, generator: torch.Generator | None
    ) -> PosteriorSample:
        """Draws z from q(z | x) for each row, with the densities of the draws in nats."""
        log_joint = self.components.log_joint(rows)
        log_posterior = log_joint.log_softmax(-1)
        codes = _draw(log_posterior, generator)
        values = self.codes[codes[:, 0]]
        if noise.is_none:  # q(z | x, c) and p(z | c) shrink to the code together: z is discrete
            return PosteriorSample(values, self.log_prior[codes[:, 0]], log_posterior.gather(-1, codes)[:, 0])
        ratios = noise.ratio(self.components.biases - log_joint, rows.shape[-1])
        deviation = ratios.gather(-1, codes).sqrt() / self.scales.expand(len(self.codes), -1)[codes[:, 0]]
        epsilon = torch.randn(values.shape, generator=generator, dtype=rows.dtype, device=rows.device)
        values = values + deviation * epsilon
        return PosteriorSample(values, *self._log_densities(values, log_posterior, ratios))

    def _log_densities(self, values: Tensor, log_posterior: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(z) and log q(z | x), with c summed out of both, so that duplicate codes cost nothing."""
        code_dim = values.shape[-1]
        exponents = self.components.biases - self.components.log_joint(values)
        normalizer = self.scales.log().sum(-1) - code_dim / 2 * math.log(2 * math.pi)
        prior = (self.log_prior + normalizer - exponents).logsumexp(-1)
        log_widths = code_dim / 2 * ratios.log()
        return prior, (log_posterior + normalizer - log_widths - exponents / ratios).logsumexp(-1)

    def squared_error_of_a_nat(self) -> Tensor:
        r"""A nat per token as a squared error of each feature, :math:`2 \sigma^2 / L`, ``()``.

        The scale of the latents is free, and a term in units of sigma keeps pulling it down at a constant rate. In
        units of the latents the pull fades with the scale, which settles where codes and data balance.
        """
        return 2 / (self.codes.shape[-1] * self.scales.detach().square().mean())

    def deviation(self) -> Tensor:
        """The geometric mean of sigma / sqrt(w), detached, ``()``."""
        return self.scales.detach().log().mean().neg().exp()


def _draw(log_posterior: Tensor, generator: torch.Generator | None) -> Tensor:
    """One code for each row ``(N, 1)``, by inversion: one random number for a row and not one for a code."""
    cumulated = log_posterior.exp().cumsum(-1)
    uniform = torch.rand(len(cumulated), 1, generator=generator, dtype=cumulated.dtype, device=cumulated.device)
    # the total is 1 up to rounding; scaling by it keeps the index below K
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).clamp_max(cumulated.shape[-1] - 1)
