r"""Codes by optimal transport: in training every code takes an equal share of the batch.

The nearest code is a local choice, and codes that start far from all latents are never chosen. Transport chooses for
the whole batch of N latents at once,

.. math:: \min_{P \ge 0}\ \sum_{nk} P_{nk} D_{nk} - \epsilon H(P), \qquad
          \sum_n P_{nk} = \frac1K, \quad \sum_k P_{nk} = \frac1N, \qquad c_n = \arg\max_k P_{nk}

whose solution is :math:`P_{nk} = \exp(f_n + g_k - D_{nk} / \epsilon)`. Sinkhorn's iteration sets g and f in turn so
that the sums over rows and over codes are right. So :math:`c_n = \arg\min_k D_{nk} - \epsilon g_k`: the nearest code at
prices that make crowded codes expensive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gmvq.distributed import logsumexp_over_ranks, sum_over_ranks
from gmvq.kernels import in_blocks, nearest_code, squared_distances
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator, non_negative, positive_integer
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.quantizers.parts.rows import mean_square
from gmvq.quantizers.parts.schedules import Schedule, as_schedule, temperature_at
from gmvq.types import Quantized

BLOCK_ELEMENTS = 1 << 20
"""Number of costs that one step of the iteration takes at a time: what fits a cache is four times as fast."""

TIE = 1e-3
"""Relative difference below which a latent's masses count as equal, so that it takes the nearest of their codes. With
more codes than latents, each code that a latent has for itself holds the mass 1 / K, and rounding would choose."""


class OptimalTransportQuantizer(AbstractQuantizer):
    r"""Assigns the latents of a batch to codes so that all codes take equal shares; in evaluation to the nearest code.

    .. math:: D_{nk} = (|z_n - \mu_k| - m) / s, \qquad
              \mathcal{L} = w\, |\mathrm{sg}[z] - \mu_c|^2 + \beta\, |z - \mathrm{sg}[\mu_c]|^2

    m and s are mean and standard deviation of all N x K distances, over all ranks, so that epsilon fits latents of any
    scale. The plan gives equal shares; those of the hard codes come near to them as epsilon falls and iterations rise.
    Training needs memory N x K.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        temperature: epsilon, a number above 0 or a schedule. Toward 0 the plan comes near to the transport without
            entropy, and needs more iterations. The reference code's ``epsilon: 10`` is its inverse.
        iterations: Rounds of Sinkhorn's iteration.
        commitment_weight: beta, what the latents pay for their distance.
        quantization_weight: w, what the codes pay for it: the loss that the codebook learns from.
        estimator: How the gradient passes the choice of a code.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Preventing Local Pitfalls in Vector Quantization via Optimal Transport (Zhang et al., 2024),
        https://arxiv.org/abs/2412.15195

    Example:
        >>> quantizer = OptimalTransportQuantizer(dim=8, codebook_size=32)
        >>> far = 10 + 0.1 * torch.randn(640, 8)
        >>> in_training = len(quantizer(far).codes.unique())
        >>> in_training > 2 * len(quantizer.encode(far).unique())
        True
    """

    citations: tuple[str, ...] = ("optvq_zhang2024",)

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        temperature: float | Schedule = 0.1,
        iterations: int = 5,
        commitment_weight: float = 1.0,
        quantization_weight: float = 0.25,
        estimator: AbstractEstimator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        self.temperature = as_schedule(temperature, "temperature")
        self.iterations = positive_integer("iterations", iterations)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.quantization_weight = non_negative("quantization_weight", quantization_weight)
        self.estimator = checked_estimator(estimator)
        # of the paper's size: transport needs no start near the latents
        self.learned = nn.Parameter(torch.randn(codebook_size, self.codebook_dim))

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        return self.learned

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        codebook = self.learned.to(rows.dtype)
        # not self.learning: a forward that checkpointing repeats must choose the same codes
        transports = self.training and not self.frozen
        codes = self._transported(rows, codebook, kept) if transports else nearest_code(rows, codebook)
        nearest = codebook[codes]
        commitment = mean_square(rows - nearest.detach(), kept)
        quantization = mean_square(rows.detach() - nearest, kept)
        loss = self.quantization_weight * quantization + self.commitment_weight * commitment
        return Quantized(self.estimator(rows, nearest), codes, loss, {"commitment": commitment.detach()})

    @torch.no_grad()
    def _transported(self, rows: Tensor, codebook: Tensor, kept: Tensor) -> Tensor:
        masks = in_blocks(kept, len(codebook), BLOCK_ELEMENTS)
        costs = [squared_distances(block, codebook).sqrt_() for block in in_blocks(rows, len(codebook), BLOCK_ELEMENTS)]
        normalize_over_ranks(costs, masks)
        temperature = temperature_at(self.temperature, self.training_progress)
        log_kernel = [block.div_(-temperature) for block in costs]
        g = code_potentials(log_kernel, masks, self.iterations)
        return torch.cat([_heaviest(block, g) for block in log_kernel])

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.learned.to(rows.dtype))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.learned[codes]


@torch.no_grad()
def normalize_over_ranks(distances: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Gives distances mean 0 and standard deviation 1 over the rows of all ranks that are kept, in place.

    Args:
        distances: Blocks ``(N_b, K)``.
        kept: Rows that count, for each block ``(N_b,)``.
    """
    weights = [mask.to(distances[0].dtype) for mask in kept]
    number = sum_over_ranks(torch.stack([weight.sum() for weight in weights]).sum()) * distances[0].shape[-1]

    def mean(values: Iterable[Tensor]) -> Tensor:
        sums = [(weight @ block).sum() for weight, block in zip(weights, values, strict=True)]
        return sum_over_ranks(torch.stack(sums).sum()) / number.clamp_min(1)

    center = mean(distances)
    for block in distances:
        block.sub_(center)
    deviation = mean(block.square() for block in distances).sqrt()
    for block in distances:
        block.div_(deviation.clamp_min(1e-12))


@torch.no_grad()
def code_potentials(log_kernel: Sequence[Tensor], kept: Sequence[Tensor], iterations: int) -> Tensor:
    """Logarithms g of the factors that give all codes equal mass, up to a constant.

    Works on logarithms: products of exponentials would vanish in float32 for rows far from all codes.

    Args:
        log_kernel: Costs over -epsilon, blocks ``(N_b, K)``.
        kept: Rows that have mass, for each block ``(N_b,)``.
        iterations: Rounds of setting g, and f from the g before.

    Returns:
        g for each code ``(K,)``, the same on all ranks; 0 where there is no mass at all.
    """
    g = log_kernel[0].new_zeros(log_kernel[0].shape[-1])
    for iteration in range(iterations):
        log_masses = []
        for block, mask in zip(log_kernel, kept, strict=True):
            f = block.new_zeros(len(block)) if iteration == 0 else -(block + g).logsumexp(-1)
            log_masses.append((block + f.masked_fill(~mask, -torch.inf)[:, None]).logsumexp(0))
        totals = logsumexp_over_ranks(torch.stack(log_masses).logsumexp(0))
        g = torch.where(totals.isfinite(), -totals, 0)
    return g


def _heaviest(log_kernel: Tensor, g: Tensor) -> Tensor:
    """Code of the largest mass of each row ``(N,)``, the nearest of those that are equal."""
    log_masses = log_kernel + g
    equal = log_masses >= log_masses.amax(-1, keepdim=True) - TIE
    return log_kernel.masked_fill(~equal, -torch.inf).argmax(-1)
