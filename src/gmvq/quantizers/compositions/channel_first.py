"""Channels first: sequences, images and volumes as convolutions give them.

::

    (B, dim, *spatial) --> (B, *spatial, dim) --quantizer--> values (B, dim, *spatial), codes (B, *spatial, *code_shape)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmvq.quantizers.base import AbstractBottleneck
from gmvq.quantizers.compositions.wrapper import AbstractWrapper, kind
from gmvq.quantizers.parts.checks import checked_tensor
from gmvq.types import Posterior, PosteriorSample, Quantized


class ChannelFirst(AbstractWrapper):
    """A quantizer for latents ``(B, dim, *spatial)``: sequences, images, volumes.

    All verbs are those of the quantizer inside. Codes, masks and figures of a token have no channels and keep their
    shapes. A vector ``(dim,)`` or a batch of them ``(B, dim)`` passes unchanged.

    Args:
        quantizer: Any bottleneck.

    Shape:
        latents ``(B, dim, *spatial)`` -> values ``(B, dim, *spatial)``, codes ``(B, *spatial, *code_shape)``, of
        ``Hierarchical`` ``(B, T, *code_shape)``, loss ``()``; mask ``(B, *spatial)``.

    Raises:
        ValueError: If the second axis of the latents is not ``dim``, or mask or lengths do not fit.

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> quantizer = ChannelFirst(VectorQuantizer(dim=8, codebook_size=32))
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 8, 16, 16))
        >>> values.shape, codes.shape
        (torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 16]))
        >>> quantizer.decode(codes).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(self, quantizer: AbstractBottleneck) -> None:
        if not isinstance(quantizer, AbstractBottleneck):
            raise ValueError(
                f"'quantizer' must be a bottleneck, got {kind(quantizer)}. Pass for example VectorQuantizer(64, 512)."
            )
        super().__init__(quantizer)

    def forward(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Quantized:
        """Quantizes latents ``(B, dim, *spatial)``.

        Args:
            latents: Any float type.
            mask: Booleans ``(B, *spatial)``; a False place has code -1, value 0 and no part in any statistic.
            lengths: Instead of a mask, for ``(B, dim, T)``: the number of places that count in each sequence, ``(B,)``.
        """
        out = self.quantizer(self._channels_last(latents), mask, lengths)
        return out._replace(values=_channels_first(out.values))

    def encode(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Codes ``(B, *spatial, *code_shape)`` of latents ``(B, dim, *spatial)``, -1 where masked or not finite."""
        return self.quantizer.encode(self._channels_last(latents), mask, lengths)

    def decode(self, codes: Tensor, size: Sequence[int] | int | None = None, scales: int | None = None) -> Tensor:
        """Values ``(B, dim, *spatial)`` of codes ``(B, *spatial, *code_shape)``; a code of -1 gives 0.

        Args:
            codes: What encode() returned.
            size: For ``Hierarchical`` alone: places of the full grid along each spatial axis.
            scales: For ``Hierarchical`` alone: number of scales to add up.

        Raises:
            TypeError: If the quantizer inside takes no ``size`` or ``scales``.
        """
        options = {name: value for name, value in (("size", size), ("scales", scales)) if value is not None}
        return self._cast(_channels_first(self.quantizer.decode(codes, **options)))

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over codes, with the axes of tokens first: responsibilities ``(B, *spatial, K)``."""
        return self.quantizer.posterior(self._channels_last(latents))

    def posterior_mean(self, latents: Tensor) -> Tensor:
        """Soft decoding: ``(B, dim, *spatial)`` -> ``(B, dim, *spatial)``."""
        return _channels_first(self.quantizer.posterior_mean(self._channels_last(latents)))

    def sample_posterior(self, latents: Tensor, generator: torch.Generator | None = None) -> PosteriorSample:
        """Draws values ``(B, dim, *spatial)``, with log-densities in nats per token ``(B, *spatial)``."""
        draw = self.quantizer.sample_posterior(self._channels_last(latents), generator)
        return draw._replace(values=_channels_first(draw.values))

    def divergence(self, latents: Tensor) -> Tensor:
        """KL divergence of the posterior from the prior, in nats per token: ``(B, *spatial)``."""
        return self.quantizer.divergence(self._channels_last(latents))

    def _channels_last(self, latents: Tensor) -> Tensor:
        checked_tensor("latents", latents)
        if latents.ndim == 0 or latents.shape[min(1, latents.ndim - 1)] != self.dim:
            raise ValueError(
                f"'latents' must be (B, {self.dim}, *spatial), got shape {tuple(latents.shape)}. "
                "Call the quantizer inside for latents with channels last."
            )
        return latents.movedim(1, -1) if latents.ndim > 2 else latents


def _channels_first(values: Tensor) -> Tensor:
    return values.movedim(-1, 1) if values.ndim > 2 else values
