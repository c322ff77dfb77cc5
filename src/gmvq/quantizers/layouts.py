"""Channels first: sequences, images and volumes as convolutions give them.

::

    (B, dim, *spatial) --> (B, *spatial, dim) --quantizer--> values (B, dim, *spatial), codes (B, *spatial, *code_shape)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer
from gmvq.types import Posterior, PosteriorSample, Quantized


class ChannelFirst(nn.Module):
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
        super().__init__()
        if not isinstance(quantizer, AbstractBottleneck):
            raise ValueError(
                f"'quantizer' must be a bottleneck, got {type(quantizer).__name__}. "
                "Pass for example VectorQuantizer(64, 512)."
            )
        self.quantizer = quantizer

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
        return _channels_first(self.quantizer.decode(codes, **options))

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over codes, with the axes of tokens first: responsibilities ``(B, *spatial, K)``."""
        return self.quantizer.posterior(self._channels_last(latents))

    def posterior_mean(self, latents: Tensor) -> Tensor:
        """Soft decoding: ``(B, dim, *spatial)`` -> ``(B, dim, *spatial)``."""
        return _channels_first(self.quantizer.posterior_mean(self._channels_last(latents)))

    def sample_posterior(self, latents: Tensor, generator: torch.Generator | None = None) -> PosteriorSample:
        """Draws values ``(B, dim, *spatial)``, with log-densities in nats for each token ``(B, *spatial)``."""
        draw = self.quantizer.sample_posterior(self._channels_last(latents), generator)
        return draw._replace(values=_channels_first(draw.values))

    def divergence(self, latents: Tensor) -> Tensor:
        """KL divergence of the posterior from the prior, in nats for each token: ``(B, *spatial)``."""
        return self.quantizer.divergence(self._channels_last(latents))

    def update(self) -> None:
        """Folds the statistics of past forwards into the codebook."""
        self.quantizer.update()

    def set_progress(self, progress: float) -> None:
        """Tells the schedules how far training has come, in [0, 1]."""
        self.quantizer.set_progress(progress)

    def freeze(self) -> Self:
        """Stops all learning."""
        self.quantizer.freeze()
        return self

    def unfreeze(self) -> Self:
        """Lets it learn again."""
        self.quantizer.unfreeze()
        return self

    def loss_weight(self, squared_error_weight: Tensor, tokens_per_dimension: float) -> Tensor:
        """What the loss weighs beside a likelihood in nats for each data dimension, ``()``."""
        return self.quantizer.loss_weight(squared_error_weight, tokens_per_dimension)

    @property
    def dim(self) -> int:
        """Features of a latent, the second axis."""
        return self.quantizer.dim

    @property
    def codebook_size(self) -> int | None:
        """Number of codes K, None for a continuous bottleneck."""
        return self.quantizer.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened.

        Raises:
            TypeError: If the bottleneck is continuous.
        """
        return self._discrete("codebook_sizes").codebook_sizes

    @property
    def codebook(self) -> Tensor:
        """What the decoder sees for each code, ``(K, dim)``.

        Raises:
            TypeError: If the bottleneck is continuous, or a composite with a codebook for each member.
        """
        return self._discrete("codebook").codebook

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one latent."""
        return self.quantizer.code_shape

    @property
    def has_posterior(self) -> bool:
        """True if :meth:`posterior` gives a distribution over codes."""
        return self.quantizer.has_posterior

    @property
    def progress(self) -> float:
        """How far training has come, in [0, 1]."""
        return self.quantizer.progress

    @property
    def frozen(self) -> bool:
        """True after :meth:`freeze`."""
        return self.quantizer.frozen

    @property
    def updates_itself(self) -> bool:
        """True if a forward in training begins with :meth:`update`; a trainer that calls it sets this to False."""
        return self.quantizer.updates_itself

    @updates_itself.setter
    def updates_itself(self, updates: bool) -> None:
        self.quantizer.updates_itself = updates

    def _discrete(self, name: str) -> AbstractQuantizer:
        if not isinstance(self.quantizer, AbstractQuantizer):
            raise TypeError(f"{type(self.quantizer).__name__} is continuous and has no {name}. Take a quantizer.")
        return self.quantizer

    def _channels_last(self, latents: Tensor) -> Tensor:
        if latents.ndim == 0 or latents.shape[min(1, latents.ndim - 1)] != self.dim:
            raise ValueError(
                f"'latents' must be (B, {self.dim}, *spatial), got shape {tuple(latents.shape)}. "
                "Call the quantizer inside for latents with channels last."
            )
        return latents.movedim(1, -1) if latents.ndim > 2 else latents


def _channels_first(values: Tensor) -> Tensor:
    return values.movedim(-1, 1) if values.ndim > 2 else values
