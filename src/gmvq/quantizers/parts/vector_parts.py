r"""Parts of a vector quantizer beside its codebook.

- :class:`Affine`: codes as a shared affine map of free codes, which moves all of them with the latents.
- :class:`InPlaceStep`: the codebook takes its own gradient step, at once and not with the encoder's optimizer.
- :class:`Orthogonal` and :class:`Diversity`: losses that spread the codes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.distributed import broadcast, mean_over_ranks, sum_over_ranks
from gmvq.kernels import squared_distances
from gmvq.quantizers.parts.checks import non_negative
from gmvq.quantizers.parts.codebook import snapshot
from gmvq.quantizers.parts.divergences import divergence_from_uniform
from gmvq.quantizers.parts.rows import LARGEST, row_weights


@dataclass(frozen=True)
class Affine:
    r"""Codes are a shared affine map of free codes, from their moments to those of the latents.

    .. math:: \mu_c = m_z + \frac{s_z}{s_a} (a_c - m_a)

    :math:`m, s` are running means and standard deviations of each feature, of the latents z and of the free codes a.
    They are those of all batches together, so that latents which differ from batch to batch alone have a deviation. A
    code that no latent takes still moves with all others, so the codebook follows an encoder that drifts.

    Args:
        latents_decay: Share of the past in the latents' moments, in [0, 1).
        codes_decay: Share of the past in the codes' moments, in [0, 1).

    Shape:
        free codes ``(K, L)`` -> codes ``(K, L)``.

    Raises:
        ValueError: If a share is not in [0, 1).

    References:
        Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized
        Networks (Huh et al., 2023), https://arxiv.org/abs/2305.08842

    Example:
        >>> from gmvq import VectorQuantizer
        >>> VectorQuantizer(8, 32, decay=None, parts=[Affine()])(torch.randn(100, 8)).codes.shape
        torch.Size([100])
    """

    citations: ClassVar[tuple[str, ...]] = ("huh2023",)
    latents_decay: float = 0.99
    codes_decay: float = 0.9

    def __post_init__(self) -> None:
        for name in ("latents_decay", "codes_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"'{name}' must lie in [0, 1), got {getattr(self, name)}. Use 0.9 or 0.99.")


@dataclass(frozen=True)
class InPlaceStep:
    r"""The codebook takes its own steps down :math:`\frac1{N L} \sum_n |z_n - \mu_{c_n}|^2`, all else held fixed.

    The steps are taken from counts and sums of the latents of each code, over all ranks, before the next forward. So
    codes do not wait for the encoder's optimizer, and need no place in it.

    Args:
        learning_rate: Of a step. The gradient of a code is in proportion to its share of the latents, so numbers around
            the codebook size are the order of a full step to the mean.
        steps: Steps for each batch.

    Shape:
        codes ``(K, L)`` -> codes ``(K, L)``.

    Raises:
        ValueError: If the rate is not a finite number above 0, or ``steps`` not an integer of at least 1.

    References:
        Straightening Out the Straight-Through Estimator (Huh et al., 2023), https://arxiv.org/abs/2305.08842

    Example:
        >>> from gmvq import VectorQuantizer
        >>> quantizer = VectorQuantizer(8, 32, decay=None, parts=[InPlaceStep(learning_rate=16.0)])
        >>> list(quantizer.parameters())  # nothing for an optimizer
        []
    """

    citations: ClassVar[tuple[str, ...]] = ("huh2023",)
    learning_rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"'learning_rate' must be a finite number above 0, got {self.learning_rate}. Use 1.0.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"'steps' must be an integer of at least 1, got {self.steps!r}. Use 1.")


class AbstractRegularizer(ABC):
    """A loss of a codebook, of at least 0."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, codebook: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
        """The weighted loss ``()`` of codes ``(K, L)`` for latents ``(N, L)`` of which ``kept`` (N,) count."""


@dataclass(frozen=True)
class Orthogonal(AbstractRegularizer):
    r"""Pulls the directions of codes toward right angles.

    .. math:: \frac{w}{K^2} \sum_{i \ne j} (\hat\mu_i \cdot \hat\mu_j)^2

    Args:
        weight: w.
        max_codes: Number of codes to compare, drawn anew for each batch; by default all, in memory K x K.

    Shape:
        codes ``(K, L)`` -> ``()``.

    Raises:
        ValueError: If ``weight`` is not a finite number of at least 0, or ``max_codes`` is less than 1.

    References:
        Translation-equivariant Image Quantizer for Bi-directional Image-Text Generation (Shin et al., 2021),
        https://arxiv.org/abs/2112.00384

    Example:
        >>> loss = Orthogonal(weight=1.0)(torch.eye(4), torch.randn(9, 4), torch.ones(9, dtype=torch.bool))
        >>> float(loss)
        0.0
    """

    citations: ClassVar[tuple[str, ...]] = ("orthogonal_shin2021",)
    name: ClassVar[str] = "orthogonality"
    weight: float = 1.0
    max_codes: int | None = None

    def __post_init__(self) -> None:
        non_negative("weight", self.weight)
        if self.max_codes is not None and self.max_codes < 1:
            raise ValueError(f"'max_codes' must be at least 1, got {self.max_codes}. Leave it out for all codes.")

    def __call__(self, codebook: Tensor, rows: Tensor, kept: Tensor) -> Tensor:  # noqa: D102
        if self.max_codes is not None and self.max_codes < len(codebook):
            codebook = codebook[broadcast(torch.randperm(len(codebook), device=rows.device))[: self.max_codes]]
        directions = F.normalize(codebook, dim=-1)
        cosines = directions @ directions.T
        return self.weight * (cosines.square().sum() - cosines.diagonal().square().sum()) / len(codebook) ** 2


@dataclass(frozen=True)
class Diversity(AbstractRegularizer):
    r"""Pulls the mean assignment of a batch toward an even one.

    .. math:: w\, \mathrm{KL}\big(\bar q \,\|\, \mathrm{uniform}\big) = w \big(\log K - H(\bar q)\big), \quad
              \bar q = \frac1N \sum_n \mathrm{softmax}_c(-\tau |z_n - \mu_c|^2)

    Written as a divergence it is at least 0; its gradient is that of the negative entropy. It needs memory N x K.

    Args:
        weight: w.
        sharpness: tau, the inverse temperature of the soft assignment.

    Shape:
        codes ``(K, L)``, latents ``(N, L)`` -> ``()``, in nats.

    Raises:
        ValueError: If ``weight`` or ``sharpness`` is not a finite number of at least 0.

    References:
        Language Model Beats Diffusion - Tokenizer is Key to Visual Generation (Yu et al., 2023),
        https://arxiv.org/abs/2310.05737

    Example:
        >>> codes, kept = torch.tensor([[-1.0], [1.0]]), torch.ones(2, dtype=torch.bool)
        >>> round(float(Diversity()(codes, torch.tensor([[-1.0], [1.0]]), kept)), 4)  # even
        0.0
        >>> round(float(Diversity()(codes, torch.tensor([[1.0], [1.0]]), kept)), 4)  # one code for all
        0.6931
    """

    citations: ClassVar[tuple[str, ...]] = ("lfq_yu2023",)
    name: ClassVar[str] = "diversity"
    weight: float = 1.0
    sharpness: float = 100.0

    def __post_init__(self) -> None:
        non_negative("weight", self.weight)
        non_negative("sharpness", self.sharpness)

    def __call__(self, codebook: Tensor, rows: Tensor, kept: Tensor) -> Tensor:  # noqa: D102
        probabilities = (-self.sharpness * squared_distances(rows, codebook)).softmax(-1)
        mean = mean_over_ranks(row_weights(kept, rows.dtype) @ probabilities)
        return self.weight * divergence_from_uniform(mean)


Part = Affine | InPlaceStep | AbstractRegularizer


class AffineCodebook(nn.Module):
    """The running moments of :class:`Affine`, and its map.

    Args:
        part: The decays.
        code_dim: Features L.
    """

    latents_mean: Tensor
    latents_variance: Tensor
    codes_mean: Tensor
    codes_variance: Tensor
    pending_moments: Tensor

    def __init__(self, part: Affine, code_dim: int) -> None:
        super().__init__()
        self.part = part
        for name in ("latents", "codes"):
            self.register_buffer(f"{name}_mean", torch.zeros(code_dim))
            self.register_buffer(f"{name}_variance", torch.ones(code_dim))
        # number, sum and sum of squares of the latents since the last update, about the running mean
        self.register_buffer("pending_moments", torch.zeros(3, code_dim))

    @property
    def scale(self) -> Tensor:
        """s_z / s_a for each feature, ``(L,)``."""
        return (self.latents_variance.clamp_min(1e-10) / self.codes_variance.clamp_min(1e-10)).sqrt()

    def forward(self, free_codes: Tensor) -> Tensor:
        """Takes free codes ``(K, L)`` to codes ``(K, L)``."""
        offset, scale, center = (
            snapshot(moment, self.training) for moment in (self.latents_mean, self.scale, self.codes_mean)
        )
        return offset + scale * (free_codes - center)

    def inverse(self, codes: Tensor) -> Tensor:
        """Takes codes, or latents, ``(N, L)`` to where the free codes are."""
        # a spread far above the running one goes into that of the free codes, and from there into the next inverse
        return (self.codes_mean + (codes - self.latents_mean) / self.scale).clamp(-LARGEST, LARGEST)

    @torch.no_grad()
    def start(self, rows: Tensor, weights: Tensor) -> None:
        """Begins with the moments of a batch ``(N, L)`` on both sides: the map is the identity.

        Args:
            rows: Latents ``(N, L)``.
            weights: How much each counts ``(N,)``.
        """
        _, mean, variance = self._moments(self._summed(rows, weights))
        for name in ("latents", "codes"):
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_variance").copy_(variance)
        self.pending_moments.zero_()

    @torch.no_grad()
    def collect(self, rows: Tensor, weights: Tensor) -> None:
        """Adds latents ``(N, L)`` with weights ``(N,)`` to what the next update folds in."""
        self.pending_moments.add_(self._summed(rows, weights))

    @torch.no_grad()
    def update(self, free_codes: Tensor) -> None:
        """Folds in the collected latents and the codes as they stand."""
        any_rows, mean, variance = self._moments(self.pending_moments)
        self._fold(self.latents_mean, self.latents_variance, mean, variance, (1 - self.part.latents_decay) * any_rows)
        codes_share = (1 - self.part.codes_decay) * any_rows
        self._fold(
            self.codes_mean, self.codes_variance, free_codes.mean(0), free_codes.var(0, correction=0), codes_share
        )
        self.pending_moments.zero_()

    def _summed(self, rows: Tensor, weights: Tensor) -> Tensor:
        centered = rows - self.latents_mean.to(rows.dtype)
        number = weights.sum().expand(rows.shape[-1])
        return sum_over_ranks(torch.stack([number, weights @ centered, weights @ centered.square()])).to(
            self.pending_moments.dtype
        )

    def _moments(self, summed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        number, total, squares = summed
        mean = total / number.clamp_min(1)
        variance = (squares / number.clamp_min(1) - mean.square()).clamp_min(0)
        return (number[0] > 0).to(mean.dtype), self.latents_mean + mean, variance

    def _fold(
        self, running_mean: Tensor, running_variance: Tensor, mean: Tensor, variance: Tensor, share: Tensor
    ) -> None:
        """Makes running moments ``(L,)`` those of a mixture that has a share ``()`` of new ones."""
        # means that differ add to the variance: without this part it is 0 for batches of one latent
        between = share * (1 - share) * (mean - running_mean).square()
        running_variance.lerp_(variance, share).add_(between)
        running_mean.lerp_(mean, share)
