r"""Labels from nothing learned: a random projection and a random codebook.

.. math:: c = \arg\max_k \frac{x A}{|x A|} \cdot \mu_k, \qquad |\mu_k| = 1

Nearby inputs get the same label more often than distant ones do, and that is all that a self-supervised model needs of
its targets: BEST-RQ trains speech encoders to predict such labels of masked frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.kernels import nearest_code
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.checks import checked_estimator
from gmvq.quantizers.parts.clustering import finest_type
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.quantizers.parts.rows import mean_square
from gmvq.types import Quantized


class RandomProjectionQuantizer(AbstractQuantizer):
    r"""Assigns each latent to the code of the nearest direction after a frozen random projection.

    .. math:: z = \frac{n(x) A}{|n(x) A|}, \quad A \sim \mathrm{Xavier}, \qquad c = \arg\min_k |z - \mu_k|, \quad
              \mu_k = \frac{m_k}{|m_k|}, \quad m_k \sim \mathcal{N}(0, I), \qquad x' = \mu_c A^+

    n takes from each latent its mean over the features; the variance of 1 that it has in the paper would go with the
    length. A code is shown to a decoder as the shortest vector
    that A takes to it. Projection and codebook are buffers: nothing learns, and the loss is 0, without a gradient.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of the projection; 16 in the paper. Less than ``dim`` if latents are normalized.
        normalize: Take the mean of its features from each latent, without which some latents may all get few labels.
            False for latents of mean 0 over the data set.
        estimator: How the gradient passes the choice of a code; straight-through by default, so that the quantizer can
            stand between networks. ``NoGradient()`` gives constants.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Self-supervised Learning with Random-projection Quantizer for Speech Recognition (Chiu et al., 2022),
        https://arxiv.org/abs/2202.01855

    Example:
        >>> quantizer = RandomProjectionQuantizer(dim=80, codebook_size=1024, codebook_dim=16)
        >>> labels = quantizer.encode(torch.randn(2, 100, 80))
        >>> labels.shape, len(list(quantizer.parameters()))
        (torch.Size([2, 100]), 0)
    """

    citations: tuple[str, ...] = ("bestrq_chiu2022",)

    random_projection: Tensor
    """A, ``(dim, L)``."""
    random_codes: Tensor
    """m, ``(K, L)``; only their directions count."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int,
        normalize: bool = True,
        estimator: AbstractEstimator | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, codebook_dim)
        if normalize and codebook_dim == dim:
            raise ValueError(
                f"'codebook_dim' must be less than 'dim' = {dim}, got {codebook_dim}, since normalized latents lose a "
                "dimension. Lower it, or set normalize=False."
            )
        self.projection = None  # the random one takes the place of the learned one
        self.normalize = normalize
        self.estimator = checked_estimator(estimator)
        self.register_buffer("random_projection", nn.init.xavier_uniform_(torch.empty(dim, codebook_dim)))
        self.register_buffer("random_codes", direction(torch.randn(codebook_size, codebook_dim)))

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        return direction(self.random_codes)

    def _inside(self, rows: Tensor, kept: Tensor) -> Tensor:
        rows = super()._inside(rows, kept)
        if self.normalize:
            rows = rows - rows[:, :1].detach()  # equal features then have a mean without a rounding error
            rows = rows - rows.mean(-1, keepdim=True)
        return direction(rows @ self.random_projection.to(rows.dtype))

    def _outside(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            # nearly as many directions as features: their products have lost float32's digits
            projection = self.random_projection.to(finest_type(values.device))
            if self.normalize:  # the mean of features is lost on the way in; without it the way out stays clear of it
                projection = projection - projection.mean(0)
            return values @ torch.linalg.solve(projection.T @ projection, projection.T).to(values.dtype)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        codebook = self.code_vectors.to(rows.dtype)
        codes = nearest_code(rows, codebook)
        nearest = codebook[codes]
        error = mean_square(rows.detach() - nearest, kept)
        return Quantized(self.estimator(rows, nearest), codes, rows.new_zeros(()), {"quantization_error": error})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.code_vectors.to(rows.dtype))

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.code_vectors[codes]
