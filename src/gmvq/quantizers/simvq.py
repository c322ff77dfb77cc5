r"""A frozen random codebook behind one learned linear map.

.. math:: \mu_k = a_k W, \qquad c = \arg\min_k |z - \mu_k|^2

The codebook of a VQ-VAE collapses because a step moves only the codes that a latent chose; the others stay behind as
the encoder moves on. Here the coefficients :math:`a_k` never move and the basis W is shared, so that each step moves
all codes, the unused ones too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmvq.kernels import nearest_code
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator, non_negative, positive_integer
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.quantizers.parts.rows import mean_square
from gmvq.types import Quantized


class SimVQ(AbstractQuantizer):
    r"""Assigns each latent to the nearest of frozen random codes that a learned linear map has moved.

    .. math:: \mu_k = a_k W, \quad a_{kj} \sim \mathcal{N}(0, 1 / J), \qquad
              \mathcal{L} = w\, |\mathrm{sg}[z] - \mu_c|^2 + \beta\, |z - \mathrm{sg}[\mu_c]|^2

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codebook.
        frozen_codebook_dim: Features J of the frozen codes, L by default.
        transform: Module from frozen codes ``(K, J)`` to codes ``(K, L)``, in place of a linear map without bias. It
            must be deterministic, in training too: no dropout.
        commitment_weight: beta, what the latents pay for their distance.
        quantization_weight: w, what the codes pay for it: the only loss that W learns from.
        estimator: How the gradient passes the choice of a code.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()`` as a mean squared error.

    Raises:
        ValueError: If an argument is out of range, or ``transform`` does not give codes ``(K, L)``.

    References:
        Addressing Representation Collapse in Vector Quantized Models with One Linear Layer (Zhu et al., 2024),
        https://arxiv.org/abs/2411.02038

    Example:
        >>> quantizer = SimVQ(dim=8, codebook_size=32)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> values.shape, codes.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 10]))
        >>> [name for name, _ in quantizer.named_parameters()]
        ['transform.weight']
    """

    citations: tuple[str, ...] = ("simvq_zhu2024",)

    frozen_codebook: Tensor
    """Coefficients a, ``(K, J)``."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        frozen_codebook_dim: int | None = None,
        transform: nn.Module | None = None,
        commitment_weight: float = 0.25,
        quantization_weight: float = 1.0,
        estimator: AbstractEstimator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        frozen_dim = self.codebook_dim
        if frozen_codebook_dim is not None:
            frozen_dim = positive_integer("frozen_codebook_dim", frozen_codebook_dim)
        self.commitment_weight = non_negative("commitment_weight", commitment_weight)
        self.quantization_weight = non_negative("quantization_weight", quantization_weight)
        self.estimator = checked_estimator(estimator)
        self.transform = nn.Linear(frozen_dim, self.codebook_dim, bias=False) if transform is None else transform
        weight = next(self.transform.parameters(), self.training_progress)  # a transform may be on another device
        frozen = torch.randn(codebook_size, frozen_dim) / math.sqrt(frozen_dim)
        self.register_buffer("frozen_codebook", frozen.to(weight.device, weight.dtype))
        if transform is not None:
            self._check_transform()

    def _check_transform(self) -> None:
        expected = (self.codebook_size, self.codebook_dim)
        with torch.no_grad():
            shape = tuple(self.code_vectors.shape)
        if shape != expected:
            raise ValueError(
                f"'transform' must take frozen codes {tuple(self.frozen_codebook.shape)} to codes {expected}, "
                f"got {shape}. End it with a layer of {self.codebook_dim} features."
            )

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        # decode comes here outside of a forward, and under autocast would give other bits than the forward did
        with torch.autocast(self.frozen_codebook.device.type, enabled=False):
            return self.transform(self.frozen_codebook)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        codebook = self.code_vectors.to(rows.dtype)
        codes = nearest_code(rows, codebook)
        nearest = codebook[codes]
        commitment = mean_square(rows - nearest.detach(), kept)
        quantization = mean_square(rows.detach() - nearest, kept)
        loss = self.quantization_weight * quantization + self.commitment_weight * commitment
        return Quantized(self.estimator(rows, nearest), codes, loss, {"commitment": commitment.detach()})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.code_vectors.to(rows.dtype))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]
