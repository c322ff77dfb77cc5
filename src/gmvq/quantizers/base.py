"""The bottleneck between encoder and decoder: what all of them share.

A bottleneck takes latents of any leading shape. The base class turns them into rows once, in float32 or float64,
projects them to the code dimension, leaves masked and non-finite rows out of every statistic, and shapes the answer
back; a member works on rows ``(N, L)`` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.types import Posterior, PosteriorSample, Quantized

LARGEST = 1e10
"""Latents are clamped to this magnitude: their squares, over the smallest variance, still fit in float32."""


class NoPosteriorError(TypeError):
    """The quantizer has no mixture reading, so it has no posterior over codes."""


def rows_dtype(latents: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    return torch.float64 if latents.dtype == torch.float64 else torch.float32


class Projection(nn.Module):
    r"""A learned linear map to a lower dimension, and back.

    .. math:: z = (x - b) D (D^T D)^{-1}, \qquad x' = z D^T + b

    The way in is the pseudo-inverse of the way out, so that going out and in again changes nothing: the codes of
    decoded codes are the codes.

    Args:
        dim: Features outside.
        code_dim: Features L inside, at most ``dim``.
    """

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.linalg.qr(torch.randn(dim, code_dim)).Q)
        self.offset = nn.Parameter(torch.zeros(dim))

    def project_in(self, latents: Tensor) -> Tensor:
        """Takes ``(N, dim)`` to ``(N, L)``."""
        directions = self.directions.to(latents.dtype)
        gram = directions.T @ directions
        return torch.linalg.solve(gram, (latents - self.offset.to(latents.dtype)) @ directions, left=False)

    def project_out(self, values: Tensor) -> Tensor:
        """Takes ``(N, L)`` to ``(N, dim)``."""
        return values @ self.directions.to(values.dtype).T + self.offset.to(values.dtype)


class AbstractBottleneck(nn.Module, ABC):
    """Maps latents to what the decoder sees, with a cost.

    Args:
        dim: Features of a latent, the last axis.
        codebook_dim: Features L of a code; less than ``dim`` puts a learned projection around the codes.

    Attributes:
        has_posterior: True if :meth:`posterior` gives a distribution over codes.
        updates_itself: True if a forward in training begins with :meth:`update`. A trainer that calls it after each
            optimizer step sets this to False, so that all forwards of a step see one codebook.
    """

    has_posterior: ClassVar[bool] = False
    updates_itself: bool = True

    def __init__(self, dim: int, codebook_dim: int | None = None) -> None:
        super().__init__()
        self.dim = positive_integer("dim", dim)
        self.codebook_dim = dim if codebook_dim is None else positive_integer("codebook_dim", codebook_dim)
        if self.codebook_dim > dim:
            raise ValueError(
                f"'codebook_dim' must be at most 'dim' = {dim}, got {codebook_dim}. Lower it or leave it out."
            )
        self.projection = Projection(dim, self.codebook_dim) if self.codebook_dim < dim else None
        self.progress = 0.0
        # kept with the weights: a loaded model stands where its schedules had come
        self.register_buffer("training_progress", torch.zeros(()))
        self.register_load_state_dict_post_hook(lambda module, _: module._recall_progress())

    training_progress: Tensor

    @property
    def codebook_size(self) -> int | None:
        """Number of codes K, None for a continuous bottleneck."""
        return None

    def _recall_progress(self) -> None:
        self.progress = min(1.0, max(0.0, float(self.training_progress)))

    def set_progress(self, progress: float) -> None:
        """Tells the schedules how far training has come.

        Raises:
            ValueError: If ``progress`` is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"'progress' must lie in [0, 1], got {progress}. Pass step / steps.")
        self.progress = float(progress)
        self.training_progress.fill_(progress)

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes latents.

        Args:
            latents: Shape ``(*, dim)``, any float type.
            mask: Booleans ``(*)``; a False place has code -1, value 0 and no part in any statistic.

        Returns:
            Values in the latents' type, codes, loss and terms.

        Raises:
            ValueError: If the last axis is not ``dim`` or the mask's shape is not that of the tokens.
        """
        self._check(latents, mask)
        with torch.autocast(latents.device.type, enabled=False):
            rows = latents.reshape(-1, self.dim).to(rows_dtype(latents))
            valid = rows.detach().isfinite().all(-1)
            kept = valid if mask is None else valid & mask.reshape(-1)
            values, codes, loss, terms = self._forward_rows(self._inside(rows, kept), kept)
            values = self._outside(values)
            if mask is not None:
                values = values * mask.reshape(-1, 1)
            # a latent that is not finite has no code: its own row says so, and no other
            values = torch.where((valid if mask is None else valid | ~mask.reshape(-1))[:, None], values, torch.nan)
            if not codes.is_floating_point():
                codes = codes.masked_fill(~kept, -1)
        shape = latents.shape[:-1]
        return Quantized(
            values.to(latents.dtype).reshape(latents.shape), codes.reshape(shape + codes.shape[1:]), loss, terms
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Code of each latent: ``(*, dim)`` -> int64 ``(*)``, -1 where the latent is not finite."""
        rows, kept = self._rows(latents)
        codes = self._encode_rows(rows)
        codes = codes if codes.is_floating_point() else codes.masked_fill(~kept, -1)
        return codes.reshape(latents.shape[:-1] + codes.shape[1:])

    @torch.no_grad()
    def posterior_mean(self, latents: Tensor) -> Tensor:
        """Soft decoding, E_q[z] for each latent: ``(*, dim)`` -> ``(*, dim)``."""
        rows, _ = self._rows(latents)
        return self._outside(self._posterior_mean_rows(rows)).to(latents.dtype).reshape(latents.shape)

    @torch.no_grad()
    def sample_posterior(self, latents: Tensor, generator: torch.Generator | None = None) -> PosteriorSample:
        """Draws z from q(z | x), with log p(z) and log q(z | x) of the draw in nats for each token."""
        rows, _ = self._rows(latents)
        values, log_prior, log_posterior = self._sample_rows(rows, generator)
        shape = latents.shape[:-1]
        values = self._outside(values).to(latents.dtype).reshape(latents.shape)
        return PosteriorSample(values, log_prior.reshape(shape), log_posterior.reshape(shape))

    @torch.no_grad()
    def divergence(self, latents: Tensor) -> Tensor:
        """KL divergence of the posterior from the prior, in nats for each token: ``(*, dim)`` -> ``(*)``."""
        rows, _ = self._rows(latents)
        return self._divergence_rows(rows).reshape(latents.shape[:-1])

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over codes for each latent.

        Raises:
            NoPosteriorError: If the bottleneck has no mixture reading.
        """
        raise NoPosteriorError(f"{type(self).__name__} has no posterior over codes. Use GaussianMixtureQuantizer.")

    def loss_weight(self, squared_error_weight: Tensor, tokens_per_dimension: float) -> Tensor:
        """What the loss weighs beside a likelihood in nats for each data dimension, ``()``.

        Args:
            squared_error_weight: Derivative of the likelihood's loss with respect to the mean squared error, ``()``.
            tokens_per_dimension: Tokens over data dimensions.
        """
        del tokens_per_dimension
        return squared_error_weight  # the loss is a squared error, and counts as one of the data

    def update(self) -> None:
        """Folds the statistics of past forwards into the codebook; nothing to do for a bottleneck without any."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """What the decoder sees for the codes: ``(*)`` -> ``(*, dim)``."""

    @abstractmethod
    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        """Forward on rows ``(N, L)``, of which those with ``kept`` (N,) count."""

    @abstractmethod
    def _encode_rows(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _posterior_mean_rows(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample: ...

    @abstractmethod
    def _divergence_rows(self, rows: Tensor) -> Tensor: ...

    def _rows(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self._check(latents, None)
        with torch.autocast(latents.device.type, enabled=False):
            rows = latents.reshape(-1, self.dim).to(rows_dtype(latents))
            kept = rows.isfinite().all(-1)
            return self._inside(rows, kept), kept

    def _inside(self, rows: Tensor, kept: Tensor) -> Tensor:
        rows = torch.where(kept[:, None], rows, 0).clamp(-LARGEST, LARGEST)
        return rows if self.projection is None else self.projection.project_in(rows)

    def _outside(self, values: Tensor) -> Tensor:
        if self.projection is None:
            return values
        with torch.autocast(values.device.type, enabled=False):
            return self.projection.project_out(values)

    def _check(self, latents: Tensor, mask: Tensor | None) -> None:
        if latents.ndim == 0 or latents.shape[-1] != self.dim:
            raise ValueError(
                f"The last axis of 'latents' must have {self.dim} features, got shape {tuple(latents.shape)}. "
                "Move channels last with .movedim(1, -1)."
            )
        if not latents.is_floating_point():
            raise ValueError(f"'latents' must be floats, got {latents.dtype}. Use .float().")
        if mask is not None and (mask.shape != latents.shape[:-1] or mask.dtype != torch.bool):
            raise ValueError(
                f"'mask' must be boolean of shape {tuple(latents.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}. "
                "Give one boolean for each token."
            )


class AbstractQuantizer(AbstractBottleneck):
    """A bottleneck with a finite codebook.

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
        """Number of codes K."""
        return self._codebook_size

    @property
    @abstractmethod
    def code_vectors(self) -> Tensor:
        """The codebook inside the projection, ``(K, L)``."""

    @property
    def codebook(self) -> Tensor:
        """What the decoder sees for each code, ``(K, dim)``."""
        return self._outside(self.code_vectors)

    def decode(self, codes: Tensor) -> Tensor:
        """Looks codes up: int64 ``(*)`` -> ``(*, dim)``; a code of -1 (masked) gives 0.

        Raises:
            ValueError: If codes are not integers or lie outside [-1, K).
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"'codes' must be integers, got {codes.dtype}. Pass what encode() returned.")
        codes = codes.long()
        if codes.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in codes.aminmax())
            if low < -1 or high >= self.codebook_size:
                raise ValueError(
                    f"'codes' must lie in [0, {self.codebook_size}), or be -1 where masked, got {low} to {high}. "
                    "Check that they come from this tokenizer."
                )
        values = self.code_vectors[codes.clamp_min(0).reshape(-1)]
        values = self._outside(values).reshape(*codes.shape, self.dim)
        return values * (codes >= 0)[..., None]


def positive_integer(name: str, value: int) -> int:
    """Checks a size.

    Raises:
        ValueError: If the value is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{name}' must be an integer of at least 1, got {value!r}. Give for example {name}=64.")
    return value
