r"""One code for each latent, where a composite has several.

A token of a residual or product quantizer has n codes; a file of tokens, a prior or a count of used codes often wants
one number. Read as the digits of a number, the first the most significant, the n codes are one of as many as they have
combinations:

.. math:: c = \sum_{i=1}^n c_i \prod_{j>i} K_j, \qquad K = \prod_{i=1}^n K_i

Nothing else changes: values, loss and what learns are those of the quantizer inside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmvq.quantizers.base import AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.compositions.wrapper import AbstractWrapper, check_inside
from gmvq.quantizers.parts.checks import check_listing, checked_codes, checked_tensor
from gmvq.quantizers.scalar import MOST_CODES, Grid
from gmvq.types import Posterior, Quantized

MOST_ENUMERATED = 2**16
"""Largest K whose posterior is written out; beyond it the quantizer inside says the same in far less memory."""


class Joined(AbstractWrapper, AbstractQuantizer):  # pyright: ignore[reportIncompatibleVariableOverride]
    r"""Joins the codes of a composite's token into one.

    .. math:: c = c_1 K_2 \cdots K_n + c_2 K_3 \cdots K_n + \dots + c_n

    Usage and perplexity then count combinations: 32 x 32 codes compare with one codebook of 1,024. The posterior, where
    the quantizer inside has one and K is at most 2^16, is that of all combinations.

    Args:
        quantizer: A quantizer with several codes for each latent: ``Residual``, ``Product``, ``ImplicitResidual``, or
            compositions of them.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)`` in [0, K) with K the product of the codebook sizes,
        loss ``()`` of the quantizer.

    Raises:
        ValueError: If ``quantizer`` does not quantize rows, has one code for each latent already, drops levels at
            random, or K is more than 2^62.

    References:
        Product Quantization for Nearest Neighbor Search (Jégou et al., 2011), https://doi.org/10.1109/TPAMI.2010.57

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> quantizer = Joined(Residual([VectorQuantizer(8, 64), VectorQuantizer(8, 16)]))
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> codes.shape, quantizer.codebook_size
        (torch.Size([2, 10]), 1024)
        >>> levels = quantizer.split(codes)
        >>> torch.equal(codes, levels[..., 0] * 16 + levels[..., 1])
        True
        >>> quantizer.quantizer.decode(levels[..., :1]).shape  # coarser
        torch.Size([2, 10, 8])
    """

    citations: tuple[str, ...] = ("product_jegou2011",)

    def __init__(self, quantizer: AbstractQuantizer) -> None:
        _check(quantizer)
        super().__init__(quantizer)
        self.digits = Grid(quantizer.codebook_sizes[::-1])  # whose first feature counts fastest

    @property
    def codebook_size(self) -> int:
        """Number of codes K, the product of the quantizer's codebook sizes."""
        return math.prod(self.quantizer.codebook_sizes)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one latent: none."""
        return ()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes K, as ``(K,)``."""
        return (self.codebook_size,)

    @property
    def code_vectors(self) -> Tensor:
        """Codes as the decoder sees them, ``(K, dim)``.

        Raises:
            ValueError: If K is more than 2^24.
        """
        check_listing(self.codebook_size)
        return self._look_up(torch.arange(self.codebook_size, device=self.training_progress.device))

    @property
    def has_posterior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the quantizer has a posterior, and all K codes can be written out for each latent."""
        return self.quantizer.has_posterior and self.codebook_size <= MOST_ENUMERATED

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over all combinations of codes, as :meth:`AbstractBottleneck.posterior` says.

        Raises:
            NoPosteriorError: If the quantizer inside has none, or K is more than 2^16.
        """
        if not self.has_posterior:
            raise NoPosteriorError(
                f"Joined has no posterior over its {self.codebook_size} codes together. Use .quantizer.posterior(), "
                "where that has one."
            )
        return super().posterior(latents)

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.quantizer._look_up(self.split(codes), dtype)

    def split(self, codes: Tensor) -> Tensor:
        """Splits codes into those that they join: int64 ``(*)`` -> ``(*, *quantizer.code_shape)``; -1 gives -1 in all.

        Raises:
            ValueError: If codes are not integers or lie outside [-1, K).
        """
        codes = checked_codes(codes, self.codebook_size)
        return self._split(codes.reshape(-1)).reshape(*codes.shape, *self.quantizer.code_shape)

    def join(self, parts: Tensor) -> Tensor:
        """Joins codes, the inverse of :meth:`split`: int64 ``(*, *quantizer.code_shape)`` -> ``(*)``; -1 gives -1.

        Raises:
            ValueError: If the last axes are not those of the quantizer's codes, or a code lies outside its codebook.
        """
        axes, parts = self.quantizer.code_shape, checked_tensor("parts", parts)
        if parts.is_floating_point() or parts.dtype == torch.bool or tuple(parts.shape[-len(axes) :]) != axes:
            raise ValueError(
                f"'parts' must be integers of shape (*, {', '.join(map(str, axes))}), got {parts.dtype} "
                f"{tuple(parts.shape)}. Pass what split() returned."
            )
        rows, sizes = parts.reshape(-1, *axes).long(), self.quantizer.codebook_sizes
        flat = rows.flatten(1)
        wrong = (flat >= torch.tensor(sizes, device=rows.device)) | (flat < -1)
        if bool(wrong.any()):
            raise ValueError(
                f"'parts' must lie in [-1, {', '.join(map(str, sizes))}), got {int(flat[wrong][0])}. Check them."
            )
        return self._join(rows).reshape(parts.shape[: -len(axes)])

    def _split(self, codes: Tensor) -> Tensor:
        parts = self.digits.levels(codes.clamp_min(0)).flip(-1).masked_fill(codes[:, None] < 0, -1)
        return parts.reshape(-1, *self.quantizer.code_shape)

    def _join(self, codes: Tensor) -> Tensor:
        parts = codes.flatten(1)
        return self.digits.codes(parts.flip(-1)).masked_fill((parts < 0).any(-1), -1)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        out = self.quantizer(rows, kept)
        return out._replace(codes=self._join(out.codes))

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._join(self.quantizer.encode(rows))

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        inside, sizes = self.quantizer.posterior(rows), self.quantizer.codebook_sizes
        joint = rows.new_ones(rows.shape[0], 1)
        # places are independent, or their quantizer has no posterior
        for shares, size in zip(inside.responsibilities.flatten(1, -2).unbind(1), sizes, strict=True):
            joint = (joint[:, :, None] * shares[:, None, :size]).flatten(1)
        return inside._replace(responsibilities=joint)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape == ()


def _check(quantizer: AbstractQuantizer) -> None:
    check_inside(quantizer, "Residual(VectorQuantizer(8, 32), 2)")
    if not quantizer.code_shape:
        raise ValueError(
            f"'quantizer' must have several codes for each latent, got a {type(quantizer).__name__} with one. Use it "
            "as it is."
        )
    if any(isinstance(module, Residual) and module.quantizer_dropout for module in quantizer.modules()):
        raise ValueError(
            "'quantizer' must use all its levels, got one with 'quantizer_dropout': a code has no number without its "
            "last levels. Make it with quantizer_dropout=False."
        )
    size = math.prod(quantizer.codebook_sizes)
    if size > MOST_CODES:
        raise ValueError(
            f"'quantizer' must have at most 2**62 codes in all, got {size} of {quantizer.codebook_sizes}. Keep its "
            "codes apart, or use fewer places."
        )
