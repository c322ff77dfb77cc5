r"""A loader for the quantizers of VQGAN checkpoints, those of taming-transformers and of LlamaGen.

Names of ``taming/modules/vqvae/quantize.py``, which begin with ``quantize.`` in a checkpoint:

- ``embedding.weight`` ``(K, L)``: ``VectorQuantizer`` and ``VectorQuantizer2``, whose codes learn by gradient;
- ``embedding.weight``, ``embedding.cluster_size``, ``embedding.embed_avg``: ``EMAVectorQuantizer``, whose codes are
  moving averages;
- ``proj.weight`` ``(K, C, 1, 1)``, ``proj.bias``, ``embed.weight`` ``(K, L)``: ``GumbelQuantize``, which chooses by a
  linear map of the latent and not by distance: :class:`GumbelQuantizer`.

LlamaGen's quantizer has the same names, and ``codebook_used``: the last 65,536 codes that it chose, a buffer that only
serves to count codes in use. But LlamaGen compares directions unless it is made with ``codebook_l2_norm=False``, which
its state does not say, so ``cosine`` must be given: ``from_state_dict(..., cosine=True, legacy=False)``.

taming's ``VectorQuantizer`` weighs the wrong part of the loss by beta, and ``VectorQuantizer2`` does so too unless
``legacy=False``:

.. math:: |z - \mathrm{sg}[\mu_c]|^2 + \beta\, |\mathrm{sg}[z] - \mu_c|^2

Here the codes' part always has the weight 1: to an optimizer that divides by the size of the gradient, as Adam does,
that is the same as beta. The latents' part has the weight that it has there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.states import below, started_codebook
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.channel_first import ChannelFirst
from gmvq.quantizers.parts.checks import non_negative
from gmvq.quantizers.parts.estimators import GumbelSoftmax, relaxed_sample, with_gradient_of
from gmvq.quantizers.parts.rows import row_mean
from gmvq.quantizers.parts.schedules import Schedule
from gmvq.quantizers.vector import VectorQuantizer
from gmvq.types import Posterior, PosteriorSample, Quantized

BLOCK_ELEMENTS = 1 << 22
"""Number of logits in memory at a time where no gradient is needed."""

AVERAGES = ("embedding.cluster_size", "embedding.embed_avg")

MEANINGS = {
    "used": "The quantizer has 'remap', by which code used[i] is its index i, and a GumbelQuantize chooses among those "
    "alone. Leave 'used' out and renumber codes yourself; of a GumbelQuantize keep the rows 'used' of all tensors.",
    "codebook_used": "LlamaGen keeps there which codes it chose last, and compares directions. Pass cosine=True, or "
    "cosine=False for a model made with codebook_l2_norm=False.",
}


class GumbelQuantizer(AbstractQuantizer):
    r"""Draws a code from a softmax of learned logits of the latent: the quantizer of the discrete VAE.

    .. math:: q(c \mid x) = \mathrm{softmax}_c(x \cdot w_c + b_c), \qquad
              \mathcal{L} = w\, \mathrm{KL}\big(q(c \mid x) \,\|\, \mathrm{uniform}\big)

    In training the code is drawn, with the gradient of a relaxed draw; in evaluation it is the most likely one. The
    logits do not depend on the code vectors, so encoding a code's vector may return another code.

    Args:
        dim: Features of a latent and of a code.
        codebook_size: Number of codes K.
        divergence_weight: w, per nat.
        temperature: Temperature of the relaxed draw: a number above 0 or a schedule.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*)``, loss ``()``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2016), https://arxiv.org/abs/1611.01144

    Example:
        >>> quantizer = GumbelQuantizer(dim=8, codebook_size=32)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 10, 8))
        >>> torch.equal(values, quantizer.decode(codes))
        True
    """

    citations: tuple[str, ...] = ("gumbel_jang2016",)
    has_posterior: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        divergence_weight: float = 5e-4,
        temperature: float | Schedule = 1.0,
    ) -> None:
        super().__init__(dim, codebook_size)
        self.divergence_weight = non_negative("divergence_weight", divergence_weight)
        self.estimator = GumbelSoftmax(temperature, hard=True)
        self.logits = nn.Linear(dim, codebook_size)
        self.learned = nn.Parameter(torch.randn(codebook_size, dim))

    @property
    def code_vectors(self) -> Tensor:  # noqa: D102
        return self.learned

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        log_posterior = self._log_posterior(rows)
        probabilities = log_posterior.exp()
        return Posterior(probabilities, -(probabilities * log_posterior).sum(-1), None)  # the logits are not a density

    def _logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.logits.weight.to(rows.dtype), self.logits.bias.to(rows.dtype))

    def _log_posterior(self, rows: Tensor) -> Tensor:
        return self._logits(rows).log_softmax(-1)

    def _divergences(self, log_posterior: Tensor) -> Tensor:
        return (log_posterior.exp() * log_posterior).sum(-1) + math.log(self.codebook_size)

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        log_posterior, codebook = self._log_posterior(rows), self.learned.to(rows.dtype)
        divergence = row_mean(self._divergences(log_posterior), kept)
        if self.training:
            temperature = self.estimator.temperature_at(self.training_progress)
            values, codes, _ = relaxed_sample(log_posterior, codebook, temperature, hard=True)
        else:
            codes = log_posterior.argmax(-1)
            # not straight-through: the latent is not near its code
            values = with_gradient_of(codebook[codes], log_posterior.exp() @ codebook)
        return Quantized(values, codes, self.divergence_weight * divergence, {"divergence": divergence.detach()})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        block = max(1, BLOCK_ELEMENTS // self.codebook_size)
        return torch.cat([self._logits(part).argmax(-1) for part in rows.split(block)])

    def _decode_rows(self, codes: Tensor) -> Tensor:
        return self.learned[codes]

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._log_posterior(rows).exp() @ self.learned.to(rows.dtype)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return self._divergences(self._log_posterior(rows))

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = self._log_posterior(rows)
        uniform = torch.rand(len(rows), 1, generator=generator, dtype=rows.dtype, device=rows.device)
        codes = (log_posterior.exp().cumsum(-1) < uniform).sum(-1).clamp_max(self.codebook_size - 1)
        log_prior = torch.full_like(log_posterior[:, 0], -math.log(self.codebook_size))
        return PosteriorSample(
            self.learned[codes].to(rows.dtype), log_prior, log_posterior.take_along_dim(codes[:, None], 1)[:, 0]
        )


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    beta: float = 0.25,
    legacy: bool = True,
    cosine: bool | None = None,
    decay: float = 0.99,
    kl_weight: float = 5e-4,
    channels_first: bool = True,
) -> AbstractQuantizer | ChannelFirst:
    """Makes our quantizer from the state of a VQGAN's quantizer.

    Args:
        state_dict: State of the quantizer, or of a checkpoint that contains it.
        prefix: Prefix of the quantizer's names: ``"quantize."`` in a checkpoint.
        beta: The original's ``beta``; for moving averages the weight of the latents' part.
        legacy: The original's ``legacy``: True if beta is the weight of the codes' part of the loss.
        cosine: True if the original scales latents and codes to length 1, as LlamaGen with ``codebook_l2_norm``, for
            whose checkpoints it must be given; by default, for all others, False.
        decay: Decay of the moving averages.
        kl_weight: The original's ``kl_weight``, of a ``GumbelQuantize``.
        channels_first: Whether features are the second axis, as in images ``(B, C, H, W)``.

    Returns:
        A quantizer for latents ``(B, dim, *spatial)``, or ``(*, dim)``.

    Raises:
        ValueError: If the state lacks a name, has other names below the prefix, has codes and latents with different
            numbers of features, or is LlamaGen's and ``cosine`` is not given.

    References:
        Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2020), https://arxiv.org/abs/2012.09841

    Example:
        >>> checkpoint = {"quantize.embedding.weight": torch.randn(32, 8)}
        >>> quantizer = from_state_dict(checkpoint, prefix="quantize.")
        >>> quantizer(torch.randn(2, 8, 4, 4)).codes.shape
        torch.Size([2, 4, 4])
    """
    if f"{prefix}proj.weight" in state_dict:
        names = ["embed.weight", "proj.weight", "proj.bias"]
        quantizer: AbstractQuantizer = _gumbel(below(state_dict, prefix, needed=names, meanings=MEANINGS), kl_weight)
    else:
        averages = AVERAGES if any(prefix + name in state_dict for name in AVERAGES) else ()
        optional = () if cosine is None else ("codebook_used",)
        state = below(state_dict, prefix, needed=["embedding.weight", *averages], optional=optional, meanings=MEANINGS)
        codes = state["embedding.weight"].float()
        member = VectorQuantizer(
            codes.shape[1],
            len(codes),
            decay=decay if averages else None,
            commitment_weight=beta if averages or not legacy else 1.0,
            cosine=bool(cosine),
        )
        quantizer = started_codebook(member, codes, *(state[name] for name in averages))
    return ChannelFirst(quantizer) if channels_first else quantizer


def _gumbel(state: Mapping[str, Tensor], kl_weight: float) -> GumbelQuantizer:
    codes, weight = state["embed.weight"].float(), state["proj.weight"].float().flatten(1)
    if codes.shape != weight.shape:
        raise ValueError(
            f"'embed.weight' must have the features of the latents, {weight.shape[1]}, for {len(weight)} codes, got "
            f"shape {tuple(codes.shape)}. Add a linear layer after the quantizer."
        )
    quantizer = GumbelQuantizer(codes.shape[1], len(codes), divergence_weight=kl_weight)
    with torch.no_grad():
        quantizer.learned.copy_(codes)
        quantizer.logits.weight.copy_(weight)
        quantizer.logits.bias.copy_(state["proj.bias"])
    return quantizer
