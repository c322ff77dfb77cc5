r"""Binary quantization: a code is the signs of L features, so the codebook has :math:`K = 2^L` codes and is not stored.

With latents x of L features, bits :math:`b_l = [x_l > 0]` and the half width s,

.. math::
    c = \sum_{l=1}^{L} b_l 2^{L-l}, \qquad \mu_c = s\,(2 b - 1), \qquad
    q(c \mid x) \propto \exp(-|x - \mu_c|^2 / \tau) = \prod_l q_l(b_l), \qquad q_l(1) = \sigma(4 s x_l / \tau)

so the first feature is the most significant bit, and the posterior over all K codes is a product of L coins. With
``bit_order="little"`` it is the least significant bit, :math:`c = \sum_l b_l 2^{l-1}`. Training wants each latent sure
of its code and all codes in use:

.. math::
    \mathcal{L} = w\, \big( E_x H(q(c \mid x)) + \gamma\, \mathrm{KL}(q_B(c) \,\|\, \mathrm{uniform}) \big) +
                  \beta\, |x - \mathrm{sg}[\mu_c]|^2, \qquad q_B(c) = E_x\, q(c \mid x)

The papers write :math:`-\gamma H(q_B)` where :math:`\gamma (\log K - H(q_B))` stands here. The gradient is the same,
but the loss is never negative, and its entropy part is 0 when every latent is sure and all codes are equally frequent.

No step needs N x K numbers. The entropy of a product is the sum of the entropies of its factors, exactly. And the mean
of products is a product of matrices: with the bits cut into a first half a and a second half b,
:math:`q_B(a, b) = \frac1N \sum_n q_n(a)\, q_n(b)`, from matrices N x :math:`\sqrt K`. Where K itself is too large, the
bits are cut into groups whose distributions are taken as independent; the sum of their divergences is a lower bound on
the whole one, by the subadditivity of the entropy. Groups of one bit are the factorized form of BSQ.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.checks import one_of
from gmvq.distributed import mean_over_ranks
from gmvq.quantizers.base import AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.parts.bits import BitOrder, bits_of_code, code_of_bits
from gmvq.quantizers.parts.checks import MOST_LISTED_CODES, non_negative, positive_integer
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.divergences import divergence_from_uniform
from gmvq.quantizers.parts.estimators import StraightThrough
from gmvq.quantizers.parts.rows import mean_square, row_mean, row_weights
from gmvq.quantizers.parts.schedules import Schedule, as_schedule, temperature_at
from gmvq.types import Posterior, PosteriorSample, Quantized

MOST_BITS = 62
"""A code is an int64."""

MOST_ENUMERATED_BITS = MOST_LISTED_CODES.bit_length() - 1
"""Largest L for which :meth:`posterior` writes out all :math:`2^L` responsibilities of a latent."""


def coins_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of coins that show 1 with probability sigmoid(logits), element by element."""
    distance = logits.abs()  # both terms are small where the coin is sure: no difference of large numbers
    return F.softplus(-distance) + distance * torch.sigmoid(-distance)


def product_distribution(coins: Tensor) -> Tensor:
    """Probabilities of all outcomes of independent coins, the first the most significant.

    Args:
        coins: Probabilities of 0 and 1 for each coin, ``(*, L, 2)``.

    Returns:
        ``(*, 2^L)``.
    """
    joint = coins.new_ones(*coins.shape[:-2], 1)
    for coin in coins.unbind(-2):
        joint = (joint[..., :, None] * coin[..., None, :]).flatten(-2)
    return joint


class AbstractBinaryQuantizer(AbstractQuantizer):
    """Signs of latents, with the entropy loss.

    Args:
        dim: Features of a latent, L by default.
        codebook_size: Number of codes K, a power of 2; :math:`2^{dim}` by default.
        codebook_scale: Size of the codes.
        entropy_weight: w.
        diversity_gamma: gamma.
        commitment_weight: beta.
        temperature: tau, in units of a squared distance: a number above 0 or a schedule.
        group_bits: Largest number of bits whose joint distribution over the batch is enumerated.
        bit_order: ``"big"`` or ``"little"``.
    """

    def __init__(
        self,
        dim: int | None,
        codebook_size: int | None,
        codebook_scale: float,
        entropy_weight: float,
        diversity_gamma: float,
        commitment_weight: float,
        temperature: float | Schedule,
        group_bits: int,
        bit_order: BitOrder,
    ) -> None:
        dim, bits = _dim_and_bits(dim, codebook_size)
        super().__init__(dim, 2**bits, bits)
        if not (math.isfinite(codebook_scale) and codebook_scale > 0):
            raise ValueError(f"'codebook_scale' must be a finite number above 0, got {codebook_scale}. Use 1.0.")
        self.codebook_scale = codebook_scale
        self.entropy_weight = non_negative("entropy_weight", entropy_weight)
        self.diversity_gamma = non_negative("diversity_gamma", diversity_gamma)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.temperature = as_schedule(temperature, "temperature")
        self.group_bits = positive_integer("group_bits", group_bits)
        self.bit_order: BitOrder = one_of("bit_order", bit_order, get_args(BitOrder))  # pyright: ignore

    @property
    def has_posterior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if all responsibilities of a latent can be written out; :meth:`bit_probabilities` has no limit."""
        return self.codebook_dim <= MOST_ENUMERATED_BITS

    @property
    @abstractmethod
    def half_width(self) -> float:
        """s: codes have features -s and s."""

    @abstractmethod
    def _placed(self, rows: Tensor) -> Tensor:
        """The x of the equations for rows ``(N, L)``: where they are compared with codes."""

    def bit_probabilities(self, latents: Tensor) -> Tensor:
        """The posterior by its factors: probability that each bit is 1, ``(*, dim)`` -> ``(*, L)``, for any L."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self._logits(self._placed(rows)).sigmoid().reshape(*latents.shape[:-1], self.codebook_dim)

    def posterior(self, latents: Tensor) -> Posterior:
        """Responsibilities of all codes and their entropy; no log-density, since nothing models the latents.

        Args:
            latents: Shape ``(*, dim)``.

        Raises:
            NoPosteriorError: If K is more than 2^24.
        """
        if not self.has_posterior:
            raise NoPosteriorError(
                f"{type(self).__name__} has no posterior that can be written out over more than "
                f"2**{MOST_ENUMERATED_BITS} codes, got 2**{self.codebook_dim}. Use bit_probabilities(), whose product "
                "it is."
            )
        return super().posterior(latents)

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        logits = self._logits(self._placed(rows))
        ordered = logits if self.bit_order == "big" else logits.flip(-1)
        return Posterior(product_distribution(_coins(ordered)), coins_entropy(logits).sum(-1), None)

    def _logits(self, placed: Tensor) -> Tensor:
        """Log-odds of the bits, ``(N, L)``."""
        return 4 * self.half_width * placed / temperature_at(self.temperature, self.training_progress)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        placed = self._placed(rows)
        codes = self._encode_rows(rows)
        nearest = self._decode_rows(codes).to(rows.dtype)
        commitment = mean_square(placed - nearest, kept)
        logits = self._logits(placed)
        entropy = row_mean(coins_entropy(logits).sum(-1), kept)
        loss = self.commitment_weight * commitment + self.entropy_weight * entropy
        terms = {"commitment": commitment.detach(), "posterior_entropy": entropy.detach()}
        if self.entropy_weight * self.diversity_gamma > 0:
            divergence = self._aggregated_divergence(logits, kept)
            loss = loss + self.entropy_weight * self.diversity_gamma * divergence
            terms["aggregated_divergence"] = divergence.detach()
        return Quantized(StraightThrough()(placed, nearest), codes, loss, terms)

    def _aggregated_divergence(self, logits: Tensor, kept: Tensor) -> Tensor:
        """KL(q_B || uniform) in nats over all ranks, a sum over groups of bits, ``()``."""
        groups = math.ceil(self.codebook_dim / self.group_bits)
        size = math.ceil(self.codebook_dim / groups)
        first = math.ceil(size / 2)
        coins = _coins(logits)
        # bits that are always 0 fill the last group: they add nothing to an entropy
        fill = coins.new_tensor([1.0, 0.0]).expand(coins.shape[0], groups * size - self.codebook_dim, 2)
        coins = torch.cat([coins, fill], 1).unflatten(1, (groups, size))
        one, other = product_distribution(coins[:, :, :first]), product_distribution(coins[:, :, first:])
        one = one * row_weights(kept, one.dtype)[:, None, None]
        aggregated = mean_over_ranks(torch.einsum("nga,ngb->gab", one, other)).flatten(1)
        # each bit that fills the last group is log 2 away from an even coin
        filled = (groups * size - self.codebook_dim) * math.log(2)
        return (divergence_from_uniform(aggregated).sum() - filled).clamp_min(0)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return code_of_bits(rows > 0, self.bit_order)

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self._values(bits_of_code(codes, self.codebook_dim, self.bit_order))

    def _values(self, bits: Tensor) -> Tensor:
        width = torch.full_like(self.training_progress, self.half_width)
        return torch.where(bits, width, -width)

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self.half_width * torch.tanh(self._logits(self._placed(rows)) / 2)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        entropies = coins_entropy(self._logits(self._placed(rows))).sum(-1)
        return (self.codebook_dim * math.log(2) - entropies).clamp_min(0)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        logits = self._logits(self._placed(rows))
        uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        bits = uniform < logits.sigmoid()
        log_posterior = F.logsigmoid(torch.where(bits, logits, -logits)).sum(-1)
        log_prior = torch.full_like(log_posterior, -self.codebook_dim * math.log(2))
        return PosteriorSample(self._values(bits).to(rows.dtype), log_prior, log_posterior)


class LookupFreeQuantizer(AbstractBinaryQuantizer):
    r"""Keeps the sign of each feature: codes at the corners of a cube.

    .. math:: \mu_c = s\, \mathrm{sign}(x)

    The loss keeps latents sure of their codes and codes in use (the module's equation); a sign of 0 counts as -1. For
    up to 18 bits the distribution over the batch is exact; beyond, it is that of independent groups of bits, which
    bounds its divergence from below.

    Args:
        dim: Features of a latent, L by default; more puts a learned projection around the signs.
        codebook_size: Number of codes :math:`K = 2^L`; :math:`2^{dim}` by default. One of the two is needed.
        codebook_scale: s.
        entropy_weight: w, of both parts of the entropy loss, which are in nats per token.
        diversity_gamma: gamma, of the divergence of the batch's distribution from the uniform one.
        commitment_weight: beta.
        temperature: tau of the posterior, in units of a squared distance: a number above 0 or a schedule. At 0.01 a
            feature 0.02 from 0 is almost sure of its bit.
        group_bits: Largest number of bits whose joint distribution over the batch is enumerated.
        bit_order: ``"big"`` numbers codes with the first feature as the most significant bit, like
            vector-quantize-pytorch; ``"little"`` as the least, like the paper and Open-MAGVIT2. Values and loss are the
            same, and a code of one order is that of the other with its L bits reversed.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``, at least 0.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (Yu et al., 2023),
        https://arxiv.org/abs/2310.05737

    Example:
        >>> quantizer = LookupFreeQuantizer(codebook_size=256)
        >>> quantizer.encode(torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0]))
        tensor(2)
        >>> LookupFreeQuantizer(codebook_size=256, bit_order="little").decode(torch.tensor(64))
        tensor([-1., -1., -1., -1., -1., -1.,  1., -1.])
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape, bool(loss >= 0)
        (torch.Size([2, 10, 8]), torch.Size([2, 10]), True)
    """

    citations: tuple[str, ...] = ("lfq_yu2023",)

    def __init__(
        self,
        dim: int | None = None,
        codebook_size: int | None = None,
        *,
        codebook_scale: float = 1.0,
        entropy_weight: float = 0.1,
        diversity_gamma: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float | Schedule = 0.01,
        group_bits: int = 18,
        bit_order: BitOrder = "big",
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            codebook_scale,
            entropy_weight,
            diversity_gamma,
            commitment_weight,
            temperature,
            group_bits,
            bit_order,
        )

    @property
    def half_width(self) -> float:
        """s: codes have features -s and s."""
        return self.codebook_scale

    def _placed(self, rows: Tensor) -> Tensor:
        return rows


class BinarySphericalQuantizer(AbstractBinaryQuantizer):
    r"""Projects latents onto a sphere and keeps the sign of each feature: codes at the corners of an inscribed cube.

    .. math:: x = r \frac{z}{|z|}, \qquad \mu_c = \frac{r}{\sqrt L}\, \mathrm{sign}(x)

    No latent is far from its code, so the loss needs no commitment. The distribution over the batch is taken as
    independent from bit to bit by default, as in the paper, which bounds its divergence from below and costs only L
    numbers; ``group_bits`` makes it joint over groups.

    Args:
        dim: Features of a latent, L by default; more puts a learned projection around the sphere.
        codebook_size: Number of codes :math:`K = 2^L`; :math:`2^{dim}` by default. One of the two is needed.
        codebook_scale: r, the radius.
        entropy_weight: w, of both parts of the entropy loss, which are in nats per token.
        diversity_gamma: gamma, of the divergence of the batch's distribution from the uniform one.
        commitment_weight: beta.
        temperature: tau of the posterior, in units of a squared distance: a number above 0 or a schedule. The
            paper's factor on the scalar product of latent and code is 2 / tau. At 1, as in the authors' configuration,
            a bit is never sure, so that its gradient does not vanish.
        group_bits: Largest number of bits whose joint distribution over the batch is enumerated.
        bit_order: ``"big"`` numbers codes with the first feature as the most significant bit, like the authors' code
            and vector-quantize-pytorch; ``"little"`` as the least. Values and loss are the same.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``, at least 0.

    Raises:
        ValueError: If an argument is out of range, or the last axis of the latents is not ``dim``.

    References:
        Image and Video Tokenization with Binary Spherical Quantization (Zhao et al., 2024),
        https://arxiv.org/abs/2406.07548

    Example:
        >>> quantizer = BinarySphericalQuantizer(codebook_size=2**36)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 36))
        >>> values.square().sum(-1).allclose(torch.ones(2, 10)), torch.equal(quantizer.encode(values), codes)
        (True, True)
    """

    citations: tuple[str, ...] = ("bsq_zhao2024",)

    def __init__(
        self,
        dim: int | None = None,
        codebook_size: int | None = None,
        *,
        codebook_scale: float = 1.0,
        entropy_weight: float = 0.1,
        diversity_gamma: float = 1.0,
        commitment_weight: float = 0.0,
        temperature: float | Schedule = 1.0,
        group_bits: int = 1,
        bit_order: BitOrder = "big",
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            codebook_scale,
            entropy_weight,
            diversity_gamma,
            commitment_weight,
            temperature,
            group_bits,
            bit_order,
        )

    @property
    def half_width(self) -> float:
        """s: codes have features -s and s."""
        return self.codebook_scale / math.sqrt(self.codebook_dim)

    def _placed(self, rows: Tensor) -> Tensor:
        return self.codebook_scale * direction(rows)


def _coins(logits: Tensor) -> Tensor:
    """Probabilities of 0 and 1, ``(*, L, 2)``."""
    return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)


def _dim_and_bits(dim: int | None, codebook_size: int | None) -> tuple[int, int]:
    if dim is None and codebook_size is None:
        raise ValueError("'dim' or 'codebook_size' must be given, got neither. Give for example codebook_size=2**18.")
    if codebook_size is None:
        bits = positive_integer("dim", dim if dim is not None else 0)
    else:
        bits = positive_integer("codebook_size", codebook_size).bit_length() - 1
        if bits < 1 or codebook_size != 2**bits:
            raise ValueError(
                f"'codebook_size' must be a power of 2, of at least 2, got {codebook_size}. "
                f"Use {2 ** max(1, (codebook_size - 1).bit_length())}."
            )
    if bits > MOST_BITS:
        raise ValueError(f"'codebook_size' must be at most 2**{MOST_BITS}, got 2**{bits}. Use Product for more bits.")
    if dim is not None and isinstance(dim, int) and 0 < dim < bits:
        raise ValueError(
            f"'dim' must be at least log2 of 'codebook_size', {bits}, got {dim}. "
            "Widen the latents with a linear layer before the quantizer, or take fewer codes."
        )
    return bits if dim is None else dim, bits
