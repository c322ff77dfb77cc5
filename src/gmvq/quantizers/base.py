"""Base classes of the bottleneck between encoder and decoder.

::

    latents (*, dim) --rows--> (N, dim) --projection--> (N, L) --member--> values (N, L) --projection--> values (*, dim)
                                                           |
                                                        codes (N, *code_shape)

A bottleneck takes latents of any leading shape. The base class turns them into rows once, in float32 or float64,
projects them to the code dimension, leaves masked and non-finite rows out of every statistic, and shapes the result
back; a subclass works on rows ``(N, L)`` only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.quantizers.parts.checks import check_listing, checked_codes, checked_tensor, positive_integer
from gmvq.quantizers.parts.learner import Learner
from gmvq.quantizers.parts.projection import Projection
from gmvq.quantizers.parts.rows import as_type, cleaned, mask_of_lengths, rows_dtype
from gmvq.types import Posterior, PosteriorSample, Quantized


class NoPosteriorError(TypeError):
    """Raised for a quantizer that has no posterior over codes."""


class AbstractBottleneck(Learner, ABC):
    """Maps latents to the values that the decoder sees, and charges a loss.

    Args:
        dim: Features of a latent, the last axis.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codes.

    Attributes:
        citations: Keys of its sources in the bibliography.
        has_posterior: True if :meth:`posterior` gives a distribution over codes.
        quantizes_rows: True if each latent has codes of its own, wherever it stands; False if it takes whole maps.
        loss_in_nats: True if the loss is in nats per token, False if it is a squared error of the latents.
        projected_scale: Scale of the latents behind the projection, against those before it, at the start.
        updates_itself: True if a forward in training begins with :meth:`update`. A trainer that calls it after each
            optimizer step sets this to False, so that all forwards of a step see one codebook.
    """

    citations: tuple[str, ...] = ()
    has_posterior: ClassVar[bool] = False
    quantizes_rows: ClassVar[bool] = True
    loss_in_nats: ClassVar[bool] = False
    projected_scale: ClassVar[float] = 1.0
    updates_itself: bool = True

    def __init__(self, dim: int, codebook_dim: int | None = None) -> None:
        super().__init__()
        self.dim = positive_integer("dim", dim)
        self.codebook_dim = dim if codebook_dim is None else positive_integer("codebook_dim", codebook_dim)
        if self.codebook_dim > dim:
            raise ValueError(
                f"'codebook_dim' must be at most 'dim' = {dim}, got {codebook_dim}. Lower it or leave it out."
            )
        self.projection = Projection(dim, self.codebook_dim, self.projected_scale) if self.codebook_dim < dim else None

    @property
    def codebook_size(self) -> int | None:
        """Number of codes K, None for a continuous bottleneck."""
        return None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened; (K,) where a latent has one code.

        Raises:
            TypeError: If the bottleneck is continuous.
        """
        raise TypeError(f"{type(self).__name__} is continuous and has no codebook_sizes. Take a quantizer.")

    @property
    def codebook(self) -> Tensor:
        """Codes as the decoder sees them, ``(K, dim)``.

        Raises:
            TypeError: If the bottleneck is continuous, or has a codebook for each member.
        """
        raise TypeError(f"{type(self).__name__} is continuous and has no codebook. Take a quantizer.")

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one latent: () for one code, (levels,) for a residual quantizer."""
        return ()

    def extra_repr(self) -> str:
        """Features, codes and the arguments that are not the constructor's defaults, in one line."""
        sizes: dict[str, object] = {"dim": self.dim}
        if self.codebook_size is not None:
            sizes["codebook_size"] = self.codebook_size
        if self.codebook_dim != self.dim:
            sizes["codebook_dim"] = self.codebook_dim
        return ", ".join(f"{name}={value}" for name, value in {**sizes, **self._given, **sizes}.items())

    def forward(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Quantized:
        """Quantizes latents.

        Args:
            latents: Shape ``(*, dim)``, any float type.
            mask: Booleans ``(*)``; a False place has code -1, value 0 and no part in any statistic.
            lengths: Instead of a mask, the number of places that count in each sequence: integers ``(B,)`` for latents
                ``(B, T, dim)``.

        Returns:
            Values in the latents' type, codes ``(*, *code_shape)``, loss and terms.

        Raises:
            ValueError: If the last axis is not ``dim``, or mask or lengths do not fit the tokens.
        """
        mask = self._check(latents, mask, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            rows = as_type(latents.reshape(-1, self.dim), rows_dtype(latents))
            mask = None if mask is None else mask.reshape(-1)
            rows, finite, kept, unchanged = cleaned(rows, mask)
            self._begin()
            values, codes, loss, terms = self._forward_rows(self._inside(rows, kept), kept)
            values = self._outside(values)
            if unchanged:
                values = values.clone()  # what a caller writes into is nothing that a gradient needs
            elif mask is not None:
                values = torch.where((finite | ~mask)[:, None], values * mask[:, None], torch.nan)
            else:  # a latent that is not finite has no code: its own row says so, and no other
                values = torch.where(finite[:, None], values, torch.nan)
        shape = latents.shape[:-1]
        codes = _marked(codes, kept)
        values = as_type(values, latents.dtype).reshape(latents.shape)
        return Quantized(values, codes.reshape(shape + codes.shape[1:]), loss, terms)

    @torch.no_grad()
    def encode(self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Code of each latent: ``(*, dim)`` -> int64 ``(*, *code_shape)``, -1 where masked or not finite.

        Args:
            latents: Shape ``(*, dim)``, any float type.
            mask: As in :meth:`forward`.
            lengths: As in :meth:`forward`.
        """
        rows, kept = self._rows(latents, mask, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            codes = _marked(self._encode_rows(rows), kept)
        return codes.reshape(latents.shape[:-1] + codes.shape[1:])

    @torch.no_grad()
    def posterior_mean(self, latents: Tensor) -> Tensor:
        """Soft decoding, E_q[z] for each latent: ``(*, dim)`` -> ``(*, dim)``."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            values = self._outside(self._posterior_mean_rows(rows))
        return as_type(values, latents.dtype).reshape(latents.shape)

    @torch.no_grad()
    def sample_posterior(self, latents: Tensor, generator: torch.Generator | None = None) -> PosteriorSample:
        """Draws z from q(z | x), with log p(z) and log q(z | x) of the draw in nats per token."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            values, log_prior, log_posterior = self._sample_rows(rows, generator)
        shape = latents.shape[:-1]
        values = as_type(self._outside(values), latents.dtype).reshape(latents.shape)
        return PosteriorSample(values, log_prior.reshape(shape), log_posterior.reshape(shape))

    @torch.no_grad()
    def divergence(self, latents: Tensor) -> Tensor:
        """KL divergence of the posterior from the prior, in nats per token: ``(*, dim)`` -> ``(*)``."""
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self._divergence_rows(rows).reshape(latents.shape[:-1])

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over codes for each latent.

        Args:
            latents: Shape ``(*, dim)``.

        Returns:
            Responsibilities ``(*, *code_shape, K)``, their entropy ``(*)`` in nats, and the log-density of the latents
            ``(*)`` in nats, in the code space, or None if the model has no density of latents.

        Raises:
            NoPosteriorError: If the bottleneck has no posterior over codes.
        """
        rows, _ = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            responsibilities, entropy, log_density = self._posterior_rows(rows)
        shape = latents.shape[:-1]
        return Posterior(
            responsibilities.reshape(shape + responsibilities.shape[1:]),
            entropy.reshape(shape),
            None if log_density is None else log_density.reshape(shape),
        )

    def loss_weight(self, squared_error_weight: Tensor, tokens_per_dimension: float | Tensor) -> Tensor:
        """Weight of the loss beside a likelihood in nats per data dimension, ``()``.

        Args:
            squared_error_weight: Derivative of the likelihood's loss with respect to the mean squared error, ``()``.
            tokens_per_dimension: Tokens over data dimensions.
        """
        if self.loss_in_nats:
            return torch.ones_like(squared_error_weight) * tokens_per_dimension
        return squared_error_weight  # a squared error of the latents counts as one of the data

    def update(self) -> None:
        """Folds the statistics of past forwards into the codebook; does nothing for a bottleneck without any."""

    def decode(self, codes: Tensor) -> Tensor:
        """Values that the decoder sees for codes: int64 ``(*, *code_shape)`` -> ``(*, dim)``.

        A code of -1 (masked, or a level that was dropped) adds 0, and a latent without any code gives 0. A continuous
        bottleneck takes its means, floats ``(*, L)``.

        Returns:
            Values in the type of the state, or in that of the last ``.half()`` or ``.bfloat16()``.

        Raises:
            ValueError: If codes are not integers, lie outside their codebook, or are not of ``code_shape``.
        """
        return self._cast(self._look_up(checked_tensor("codes", codes)))

    @abstractmethod
    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Values ``(*, dim)`` of codes ``(*, *code_shape)``, in the type of the state by default.

        What is taken off latents on the way of encoding is looked up in the type of the rows, as a forward on them
        computes it: a projection rounds otherwise in each type, and another residual may have another code.
        """

    def _begin(self) -> None:
        if self.learning and self.updates_itself:
            self.update()

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the codes of one latent may have this shape."""
        return shape == self.code_shape

    @abstractmethod
    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        """Forward on rows ``(N, L)``, of which those with ``kept`` (N,) count."""

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        """Posterior of rows ``(N, L)``, for a class with ``has_posterior``."""
        raise NoPosteriorError(f"{type(self).__name__} has no posterior over codes. Use GaussianMixtureQuantizer.")

    @abstractmethod
    def _encode_rows(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _posterior_mean_rows(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample: ...

    @abstractmethod
    def _divergence_rows(self, rows: Tensor) -> Tensor: ...

    def _rows(
        self, latents: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mask = self._check(latents, mask, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            rows = as_type(latents.reshape(-1, self.dim), rows_dtype(latents))
            clean = cleaned(rows, None if mask is None else mask.reshape(-1))
            return self._inside(clean.rows, clean.kept), clean.kept

    def _inside(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Rows ``(N, L)`` that subclasses work on, from clean rows ``(N, dim)`` and which of them count ``(N,)``."""
        return rows if self.projection is None else self.projection.project_in(rows)

    def _outside(self, values: Tensor) -> Tensor:
        if self.projection is None:
            return values
        with torch.autocast(values.device.type, enabled=False):
            return self.projection.project_out(values)

    def _check(self, latents: Tensor, mask: Tensor | None, lengths: Tensor | None = None) -> Tensor | None:
        checked_tensor("latents", latents)
        if latents.ndim == 0 or latents.shape[-1] != self.dim:
            raise ValueError(
                f"The last axis of 'latents' must have {self.dim} features, got shape {tuple(latents.shape)}. "
                "Move channels last with .movedim(1, -1), or wrap the quantizer in ChannelFirst."
            )
        if not latents.is_floating_point():
            raise ValueError(f"'latents' must be floats, got {latents.dtype}. Use .float().")
        if lengths is not None:
            if mask is not None:
                raise ValueError("'mask' and 'lengths' say the same, got both. Leave one out.")
            mask = mask_of_lengths(lengths, latents.shape)
        if mask is not None and (checked_tensor("mask", mask).shape != latents.shape[:-1] or mask.dtype != torch.bool):
            raise ValueError(
                f"'mask' must be boolean of shape {tuple(latents.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}. "
                "Give one boolean for each token."
            )
        return mask


def _marked(codes: Tensor, kept: Tensor) -> Tensor:
    """Codes ``(N, *)`` with -1 in the rows that are not kept; the means of a continuous bottleneck stay."""
    return codes if codes.is_floating_point() else codes.masked_fill(~kept.reshape(-1, *[1] * (codes.ndim - 1)), -1)


class AbstractQuantizer(AbstractBottleneck):
    """A bottleneck with a finite codebook, of which each latent takes one code.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K.
        codebook_dim: Features L of a code.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int | None = None) -> None:
        super().__init__(dim, codebook_dim)
        self._codebook_size = positive_integer("codebook_size", codebook_size)

    @property
    def codebook_size(self) -> int:
        """Number of codes K; of a composite, the largest of its members'."""
        return self._codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened; (K,) where a latent has one code."""
        return (self.codebook_size,)

    @property
    def code_vectors(self) -> Tensor:
        """The codebook inside the projection, ``(K, L)``.

        Raises:
            ValueError: If K is more than 2^24, and no codebook is stored.
        """
        check_listing(self.codebook_size)
        return self._decode_rows(torch.arange(self.codebook_size, device=self.training_progress.device))

    @property
    def codebook(self) -> Tensor:
        """Codes as the decoder sees them, ``(K, dim)``."""
        return self._outside(self.code_vectors)

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        codes = checked_codes(codes, self.codebook_size)
        rows = self._decode_rows(codes.clamp_min(0).reshape(-1))
        values = self._outside(rows.to(dtype or rows.dtype)).reshape(*codes.shape, self.dim)
        return values * (codes >= 0)[..., None]

    @abstractmethod
    def _decode_rows(self, codes: Tensor) -> Tensor:
        """Code vectors ``(N, L)`` of codes ``(N,)`` in [0, K)."""

    # without a posterior: q(c | x) is one-hot and p(c) uniform

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._decode_rows(self._encode_rows(rows)).to(rows.dtype)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return torch.full(rows.shape[:1], math.log(self.codebook_size), dtype=rows.dtype, device=rows.device)

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = rows.new_zeros(rows.shape[0])
        return PosteriorSample(
            self._posterior_mean_rows(rows), log_posterior - math.log(self.codebook_size), log_posterior
        )
