r"""A loader for the quantizers of VQGAN checkpoints, those of taming-transformers and of LlamaGen.

Names of ``taming/modules/vqvae/quantize.py``, which begin with ``quantize.`` in a checkpoint:

- ``embedding.weight`` ``(K, L)``: ``VectorQuantizer`` and ``VectorQuantizer2``, whose codes learn by gradient;
- ``embedding.weight``, ``embedding.cluster_size``, ``embedding.embed_avg``: ``EMAVectorQuantizer``, whose codes are
  moving averages;
- ``proj.weight`` ``(K, C, 1, 1)``, ``proj.bias``, ``embed.weight`` ``(K, L)``: ``GumbelQuantize``, which chooses by a
  linear map of the latent and not by distance: :class:`GumbelQuantizer`.

- ``used`` ``(U,)`` beside them, of a quantizer with ``remap``: only these codes are numbered, code ``used[i]`` by i.

LlamaGen's quantizer has the same names, and ``codebook_used``: the last 65,536 codes that it chose, a buffer that only
serves to count codes in use. It compares directions unless it is made with ``codebook_l2_norm=False``, which its state
does not say, and has the weights of ``legacy=False``.

taming's ``VectorQuantizer`` weighs the wrong part of the loss by beta, and ``VectorQuantizer2`` does so too unless
``legacy=False``:

.. math:: |z - \mathrm{sg}[\mu_c]|^2 + \beta\, |\mathrm{sg}[z] - \mu_c|^2

Here the codes' part always has the weight 1: to an optimizer that divides by the size of the gradient, as Adam does,
that is the same as beta. The latents' part has the weight that it has there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

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

CHECKPOINTS = ("model", "state_dict")
"""Names under which a whole checkpoint holds its state: LlamaGen's, and taming's."""


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
    state_dict: Mapping[str, Any],
    *,
    prefix: str = "",
    beta: float = 0.25,
    legacy: bool | None = None,
    cosine: bool | None = None,
    decay: float = 0.99,
    kl_weight: float = 5e-4,
    channels_first: bool = True,
) -> AbstractQuantizer | ChannelFirst:
    """Makes our quantizer from the state of a VQGAN's quantizer.

    With ``used``, the codebook has these codes alone, in their order: indices are those of the original. A latent that
    is nearest to another code gets the nearest of these, where the original gives it a random index or one of no code.

    Args:
        state_dict: State of the quantizer or of a model that contains it, or a whole checkpoint with one under
            ``"model"`` or ``"state_dict"``.
        prefix: Prefix of the quantizer's names: ``"quantize."`` in a checkpoint.
        beta: The original's ``beta``; for moving averages the weight of the latents' part.
        legacy: The original's ``legacy``: True if beta is the weight of the codes' part of the loss. By default True,
            but False for LlamaGen's state, which has ``codebook_used``.
        cosine: True if the original scales latents and codes to length 1. By default True for LlamaGen's state: pass
            False for a model made with ``codebook_l2_norm=False``.
        decay: Decay of the moving averages.
        kl_weight: The original's ``kl_weight``, of a ``GumbelQuantize``.
        channels_first: Whether features are the second axis, as in images ``(B, C, H, W)``.

    Returns:
        A quantizer for latents ``(B, dim, *spatial)``, or ``(*, dim)``.

    Raises:
        ValueError: If the state lacks a name, has other names below the prefix, has codes and latents with different
            numbers of features, or ``used`` is not a list of distinct codes.

    References:
        Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2020), https://arxiv.org/abs/2012.09841;
        Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation (Sun et al., 2024),
        https://arxiv.org/abs/2406.06525

    Example:
        >>> checkpoint = {"quantize.embedding.weight": torch.randn(32, 8)}
        >>> quantizer = from_state_dict(checkpoint, prefix="quantize.")
        >>> quantizer(torch.randn(2, 8, 4, 4)).codes.shape
        torch.Size([2, 4, 4])
    """
    state_dict = _unwrapped(state_dict)
    if f"{prefix}proj.weight" in state_dict:
        state = below(state_dict, prefix, needed=["embed.weight", "proj.weight", "proj.bias"], optional=["used"])
        quantizer: AbstractQuantizer = _gumbel(state, kl_weight)
        return ChannelFirst(quantizer) if channels_first else quantizer
    averages = AVERAGES if any(prefix + name in state_dict for name in AVERAGES) else ()
    optional = ("used",) if averages else ("used", "codebook_used")
    state = below(state_dict, prefix, needed=["embedding.weight", *averages], optional=optional)
    directions = "codebook_used" in state
    legacy = not directions if legacy is None else legacy
    codes = state["embedding.weight"].float()
    used = _used(state, len(codes))
    member = VectorQuantizer(
        codes.shape[1],
        len(codes[used]),
        decay=decay if averages else None,
        commitment_weight=beta if averages or not legacy else 1.0,
        cosine=directions if cosine is None else cosine,
    )
    quantizer = started_codebook(member, codes[used], *(state[name][used] for name in averages))
    return ChannelFirst(quantizer) if channels_first else quantizer


def _unwrapped(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict inside a whole checkpoint."""
    for name in CHECKPOINTS:
        if isinstance(checkpoint.get(name), Mapping):
            return checkpoint[name]
    return checkpoint


def _used(state: Mapping[str, Tensor], codebook_size: int) -> Tensor:
    """Numbers of the codes that are used, in the order of their indices."""
    every = torch.arange(codebook_size)
    used = state.get("used", every).cpu()
    is_list = used.ndim == 1 and len(used) > 0 and not used.is_floating_point() and used.dtype != torch.bool
    if not is_list or not torch.isin(used, every).all() or len(used.unique()) < len(used):
        raise ValueError(
            f"'used' must be distinct codes in [0, {codebook_size}), got {str(used.tolist())[:60]}. Leave it out for "
            "all codes."
        )
    return used.long()


def _gumbel(state: Mapping[str, Tensor], kl_weight: float) -> GumbelQuantizer:
    codes, weight = state["embed.weight"].float(), state["proj.weight"].float().flatten(1)
    if codes.shape != weight.shape:
        raise ValueError(
            f"'embed.weight' must have the features of the latents, {weight.shape[1]}, for {len(weight)} codes, got "
            f"shape {tuple(codes.shape)}. Add a linear layer after the quantizer."
        )
    used = _used(state, len(codes))
    quantizer = GumbelQuantizer(codes.shape[1], len(used), divergence_weight=kl_weight)
    with torch.no_grad():
        quantizer.learned.copy_(codes[used])
        quantizer.logits.weight.copy_(weight[used])
        quantizer.logits.bias.copy_(state["proj.bias"][used])
    return quantizer
