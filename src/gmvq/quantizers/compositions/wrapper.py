"""A bottleneck around one other bottleneck.

::

    latents --wrapper--> rows (N, dim) --quantizer--> Quantized --wrapper--> Quantized

A wrapper changes what goes in or what comes out; all else is the quantizer's: codebook, losses, statistics, posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer
from gmvq.types import Posterior, PosteriorSample, Quantized


class AbstractWrapper(AbstractBottleneck):
    """A bottleneck around another, whose verbs and properties are its own where it does not override them.

    Args:
        quantizer: The bottleneck inside.
        dim: Features of a latent outside, those of the quantizer by default.
        codebook_dim: Features inside; less than ``dim`` puts a learned projection around the quantizer.

    Attributes:
        quantizer: The bottleneck inside.
    """

    quantizer: AbstractBottleneck

    def __init__(self, quantizer: AbstractBottleneck, dim: int | None = None, codebook_dim: int | None = None) -> None:
        # not super(): beside a quantizer's class, which would keep a codebook size of its own
        AbstractBottleneck.__init__(self, quantizer.dim if dim is None else dim, codebook_dim)
        self.quantizer = quantizer
        self.training_progress = quantizer.training_progress.clone()

    @property
    def codebook_size(self) -> int | None:
        """Number of codes K of the quantizer, None for a continuous bottleneck."""
        return self.quantizer.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened.

        Raises:
            TypeError: If the bottleneck inside is continuous.
        """
        return self.quantizer.codebook_sizes

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one latent."""
        return self.quantizer.code_shape

    @property
    def code_vectors(self) -> Tensor:
        """The quantizer's codebook, ``(K, quantizer.dim)``.

        Raises:
            TypeError: If the bottleneck inside is continuous, or has a codebook for each member.
        """
        return self.quantizer.codebook

    @property
    def codebook(self) -> Tensor:
        """Codes as the decoder sees them, ``(K, dim)``.

        Raises:
            TypeError: If the bottleneck inside is continuous, or has a codebook for each member.
        """
        return self._outside(self.code_vectors)

    @property
    def has_posterior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the quantizer has a posterior over codes."""
        return self.quantizer.has_posterior

    @property
    def quantizes_rows(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if each latent has codes of its own, wherever it stands."""
        return self.quantizer.quantizes_rows

    @property
    def loss_in_nats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the quantizer's loss is in nats per token."""
        return self.quantizer.loss_in_nats

    @property
    def updates_itself(self) -> bool:
        """True if a forward in training begins with :meth:`update`; a trainer that calls it sets this to False."""
        return self.quantizer.updates_itself

    @updates_itself.setter
    def updates_itself(self, updates: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.quantizer.updates_itself = updates

    def update(self) -> None:
        """Folds the statistics of past forwards into the codebook, unless it is frozen."""
        if not self.quantizer.frozen:
            self.quantizer.update()

    def loss_weight(self, squared_error_weight: Tensor, tokens_per_dimension: float | Tensor) -> Tensor:
        """Weight of the quantizer's loss beside a likelihood in nats per data dimension, ``()``."""
        return self.quantizer.loss_weight(squared_error_weight, tokens_per_dimension)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return self.quantizer._fits(shape)

    def _begin(self) -> None:
        pass  # the quantizer inside updates itself where its own forward begins

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        return self.quantizer(rows, kept)

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        return self.quantizer.posterior(rows)

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self.quantizer.encode(rows)

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.quantizer._look_up(codes, dtype)

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.quantizer._look_up(codes)

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self.quantizer.posterior_mean(rows)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return self.quantizer.divergence(rows)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        return self.quantizer.sample_posterior(rows, generator)


def check_inside(quantizer: object, example: str) -> None:
    """Checks the quantizer inside of a wrapper of rows.

    Args:
        quantizer: The user's argument.
        example: A valid argument, as Python has it.

    Raises:
        ValueError: If it is not a quantizer, or quantizes whole maps.
    """
    if not isinstance(quantizer, AbstractQuantizer):
        raise ValueError(f"'quantizer' must be a quantizer, got {kind(quantizer)}. Pass for example {example}.")
    if not quantizer.quantizes_rows:
        raise ValueError(
            f"'quantizer' must quantize each latent by itself, got a {type(quantizer).__name__}, which quantizes whole "
            "maps. Wrap its members instead."
        )


def kind(value: object) -> str:
    """Describes a value in an error: a module or class by its name, anything else by its ``repr``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)
