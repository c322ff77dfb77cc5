r"""vector-quantize-pytorch's ``LFQ``, by our quantizers of signs.

::

    x --channels last--> latents --way in--> soft limit --> codebooks --rotation--> signs --> ... --> way out

The original's entropy loss is :math:`w (E H(q) - \gamma H(q_B))`, which is negative. Ours is larger by the constant
:math:`w \gamma \log K`: it has the same gradient and a minimum of 0.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmvq.compat.dropin import AbstractDropIn, mean_term
from gmvq.compat.options import Rule, check, defaults, has_bias, read
from gmvq.compat.peer_signs import PeerLookupFree, PeerSigns, PeerSpherical, SignWays
from gmvq.compat.projections import (
    CosineLinear,
    FixedRotation,
    SoftClamp,
    inside,
    projected,
    put_projection,
    put_rotation,
)
from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gmvq.quantizers.compositions.product import Product

INVERSE_TEMPERATURE = 100.0
"""The other library's default, a temperature of 0.01."""

RULES = (Rule("force_quantization_f32", (True,), "Leave it out: quantization is in float32 or float64."),)

OWN_RULES = (
    Rule("frac_per_sample_entropy", (1.0, 1), "All latents count, without a matrix N x K. Leave it out."),
    Rule("experimental_softplus_entropy_loss", (False,), "The entropy loss is at least 0 without it. Leave it out."),
)
"""Of options that the class takes, those that our own quantizers do not: conversion refuses others."""


class Return(NamedTuple):
    """Return value of ``LFQ``.

    Attributes:
        quantized: Values in the layout of x.
        indices: Code of each latent.
        entropy_aux_loss: Loss ``()``, 0 in evaluation.
    """

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LossBreakdown(NamedTuple):
    """Parts of the loss before their weights, detached, each of shape ``()``.

    Attributes:
        per_sample_entropy: Mean entropy of the posterior, in nats.
        batch_entropy: Entropy of the mean posterior, in nats.
        commitment: Mean squared distance of latents from their codes.
    """

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


@dataclass(frozen=True)
class BinaryOptions:
    """Keyword arguments of ``LFQ``, with its defaults.

    Raises:
        ValueError: If an option is not supported, or two contradict each other.
    """

    dim: int | None = None
    codebook_size: int | None = None
    entropy_loss_weight: float = 0.1
    commitment_loss_weight: float = 0.0
    diversity_gamma: float = 1.0
    straight_through_activation: nn.Module | None = None
    num_codebooks: int = 1
    keep_num_codebooks_dim: bool | None = None
    codebook_scale: float = 1.0
    frac_per_sample_entropy: float = 1.0
    has_projections: bool | None = None
    projection_has_bias: bool = True
    soft_clamp_input_value: float | None = None
    cosine_sim_project_in: bool = False
    cosine_sim_project_in_scale: float | None = None
    channel_first: bool | None = None
    experimental_softplus_entropy_loss: bool = False
    entropy_loss_offset: float = 5.0
    spherical: bool = False
    force_quantization_f32: bool = True
    orthogonal_rotation: bool = False

    def __post_init__(self) -> None:
        check(self, RULES)
        if not 0 < self.frac_per_sample_entropy <= 1:
            raise ValueError(
                f"'frac_per_sample_entropy' must lie in (0, 1], got {self.frac_per_sample_entropy}. Use 1.0."
            )
        if self.experimental_softplus_entropy_loss and self.num_codebooks > 1:
            raise ValueError(
                f"'experimental_softplus_entropy_loss' must be False for {self.num_codebooks} codebooks, got True. "
                "Leave it out: the entropy loss is at least 0."
            )
        if self.dim is None and self.codebook_size is None:
            raise ValueError(
                "'dim' or 'codebook_size' must be given, got neither. Give for example codebook_size=2**18."
            )
        if self.num_codebooks > 1 and self.keep_num_codebooks_dim is False:
            raise ValueError("'keep_num_codebooks_dim' must be True for several codebooks, got False. Leave it out.")
        if self.soft_clamp_input_value is not None and self.soft_clamp_input_value < self.codebook_scale:
            raise ValueError(
                f"'soft_clamp_input_value' must be at least 'codebook_scale' = {self.codebook_scale}, got "
                f"{self.soft_clamp_input_value}. Raise it."
            )

    @property
    def size(self) -> int:
        """Number of codes K of a codebook."""
        return 2**self.dim if self.codebook_size is None and self.dim is not None else self.codebook_size or 0

    @property
    def keeps_axis(self) -> bool:
        """True if indices have an axis for codebooks."""
        return self.num_codebooks > 1 if self.keep_num_codebooks_dim is None else self.keep_num_codebooks_dim

    def signs(self, own: bool = False) -> AbstractQuantizer:
        """One codebook; ``own`` makes it one of our quantizers, for conversion.

        Raises:
            ValueError: If it is to be our own, and an option is one of the class alone.
        """
        kinds = (LookupFreeQuantizer, BinarySphericalQuantizer) if own else (PeerLookupFree, PeerSpherical)
        signs = kinds[self.spherical](
            codebook_size=self.size,
            codebook_scale=self.codebook_scale,
            entropy_weight=self.entropy_loss_weight,
            diversity_gamma=self.diversity_gamma,
            commitment_weight=self.commitment_loss_weight,
            temperature=1 / INVERSE_TEMPERATURE,
            group_bits=18,
        )
        if isinstance(signs, PeerSigns):
            offset = self.entropy_loss_offset if self.experimental_softplus_entropy_loss else None
            return signs.with_ways(SignWays(self.frac_per_sample_entropy, offset, self.straight_through_activation))
        check(self, OWN_RULES)
        if not isinstance(self.straight_through_activation, nn.Identity | None):
            raise ValueError(
                f"'straight_through_activation' must be the identity here, got {self.straight_through_activation!r}. "
                "Apply it to the latents before the quantizer."
            )
        return signs

    def quantizer(self, own: bool = False) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``; ``own`` makes it of our quantizers, for conversion."""
        bits = self.size.bit_length() - 1
        rotation = FixedRotation(bits) if self.orthogonal_rotation else None
        members = [
            self.signs(own) if rotation is None else rotation.around(self.signs(own)) for _ in range(self.num_codebooks)
        ]
        inner = Product(members) if self.keeps_axis else members[0]
        dim = inner.dim if self.dim is None else self.dim
        scale = self.codebook_scale if self.cosine_sim_project_in_scale is None else self.cosine_sim_project_in_scale
        return projected(
            inner,
            dim,
            linear=self.has_projections,
            bias=self.projection_has_bias,
            way_in=CosineLinear(dim, inner.dim, scale) if self.cosine_sim_project_in else None,
            then=None if self.soft_clamp_input_value is None else SoftClamp(self.soft_clamp_input_value),
        )


class LFQ(AbstractDropIn):
    r"""Keeps the sign of each feature, with the interface of vector-quantize-pytorch.

    .. math:: \mu_c = s\, \mathrm{sign}(x)

    Args:
        **options: Keyword arguments of the other library's class, with its defaults: ``dim``, ``codebook_size``,
            ``num_codebooks``, ...; see :class:`BinaryOptions`.

    Shape:
        x ``(B, N, dim)``, or ``(B, dim, *spatial)`` with ``channel_first`` or at least four axes -> quantized as x,
        indices ``(B, N)``, or with several codebooks ``(B, N, num_codebooks)``, loss ``()``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (Yu et al., 2023),
        https://arxiv.org/abs/2310.05737; spherical: Image and Video Tokenization with Binary Spherical Quantization
        (Zhao et al., 2024), https://arxiv.org/abs/2406.07548

    Example:
        >>> quantized, indices, loss = LFQ(codebook_size=256, dim=16)(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = BinaryOptions(**options)
        self.quantizer = self.options.quantizer()

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded.

        Raises:
            ValueError: If an option is one of the class alone.
        """
        return self.options.quantizer(own=True)

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channel_first is True

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a codebook."""
        return self.options.size

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks."""
        return self.options.num_codebooks

    @property
    def codebook_dim(self) -> int:
        """Bits of a code of one codebook."""
        return self.options.size.bit_length() - 1

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """Codes of bits, ``(*, L)``, before projection to the sphere: ``codebook_scale`` for 1, its negative for 0."""
        return (2 * bits.to(self.quantizer.training_progress) - 1) * self.options.codebook_scale

    @property
    def codebook(self) -> Tensor:
        """Codes ``(K, L)``, before projection to the sphere."""
        signs = LookupFreeQuantizer(codebook_size=self.options.size, codebook_scale=self.options.codebook_scale)
        return signs.codebook.to(self.quantizer.training_progress)

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Values that forward returns for these indices, in the layout of x, or code vectors before ``project_out``.

        Args:
            indices: Int64 codes; -1 gives 0.
            project_out: False returns the code vectors inside the projection.
        """
        linear = self.quantizer if project_out else _without_projection(self.quantizer)
        values = linear.decode(indices)
        are_spatial = indices.ndim >= 3 + self.options.keeps_axis
        first = are_spatial if self.options.channel_first is None else self.options.channel_first
        return values.movedim(-1, 1) if first else values

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = INVERSE_TEMPERATURE,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantizes x.

        Args:
            x: Latents.
            inv_temperature: Inverse temperature of the posterior in this call, above 0.
            return_loss_breakdown: True to return the parts of the loss, too.
            mask: Booleans ``(B,)``, ``(B, N)`` or one for each token; a False place has index -1 and value 0, and is
                left out of the loss.

        Returns:
            Quantized, indices, loss, and the parts of the loss if asked for.

        Raises:
            ValueError: If the mask fits neither the batch nor its tokens, or the temperature is not above 0.
        """
        if not inv_temperature > 0:
            raise ValueError(f"'inv_temperature' must be above 0, got {inv_temperature}. Use {INVERSE_TEMPERATURE}.")
        first = x.ndim >= 4 if self.options.channel_first is None else self.options.channel_first and x.ndim > 2
        tokens = (x.movedim(1, -1) if first else x).shape[:-1]
        with ExitStack() as calls:
            for member in self.quantizer.modules():
                if isinstance(member, PeerSigns):
                    calls.enter_context(member.at(1 / inv_temperature))
            out = self._quantize(x, first, _mask_of_tokens(mask, tokens))
        loss = out.loss if self.training else torch.zeros_like(out.loss)
        answer = Return(out.values, out.codes, loss)
        return (answer, self._breakdown(out.terms)) if return_loss_breakdown else answer

    def _breakdown(self, terms: dict[str, Tensor]) -> LossBreakdown:
        bits = self.codebook_dim
        names = {name.rpartition(".")[2] for name in terms}
        zero = torch.zeros_like(mean_term(terms, "commitment"))
        divergence = mean_term(terms, "aggregated_divergence") if "aggregated_divergence" in names else zero
        entropy = bits * torch.log(zero + 2) - divergence
        return LossBreakdown(mean_term(terms, "posterior_entropy"), entropy, mean_term(terms, "commitment"))

    def _is_theirs(self, names: list[str]) -> bool:
        return "mask" in names

    def _translate(self, translation: Translation) -> None:
        mask = translation.take("mask")  # powers of 2, which are not stored here
        if mask is not None and len(mask) != self.codebook_dim:
            raise ValueError(
                f"'mask' must have {self.codebook_dim} bits, got {len(mask)}. Make the module with "
                f"codebook_size={2 ** len(mask)}."
            )
        put_projection(translation, self.quantizer)
        put_rotation(translation, self.quantizer)
        for member in self.quantizer.modules():
            activation = member.activation if isinstance(member, PeerSigns) else None
            for part, tensor in ({} if activation is None else activation.state_dict(keep_vars=True)).items():
                translation.put(tensor, translation.take(f"activation.{part}"))


def _mask_of_tokens(mask: Tensor | None, tokens: torch.Size) -> Tensor | None:
    """A mask with one boolean for each token, of one for each item, each place or each token."""
    if mask is None or mask.shape == tokens:
        return mask
    if mask.shape == tokens[:1]:
        return mask.reshape(-1, *[1] * (len(tokens) - 1)).expand(tokens)
    if mask.shape == (tokens[0], tokens[1:].numel()):
        return mask.reshape(tokens)
    raise ValueError(
        f"'mask' must have shape {tuple(tokens[:1])} or {tuple(tokens)}, got {tuple(mask.shape)}. Give one boolean for "
        "each item or for each token."
    )


def binary_options(module: Any, training: bool) -> BinaryOptions:  # noqa: ANN401
    """Options of an ``LFQ`` of the other library.

    Args:
        module: The module.
        training: False ignores options that only matter in training.
    """
    found = read(module, [each.name for each in fields(BinaryOptions)])
    is_cosine = type(module.project_in).__name__ == "CosineSimLinear"
    found |= {
        "straight_through_activation": module.activation if training else None,
        "projection_has_bias": has_bias(module) if not is_cosine else module.project_out.bias is not None,
        "cosine_sim_project_in": is_cosine,
        "cosine_sim_project_in_scale": module.project_in.scale if is_cosine else None,
        "spherical": module.spherical,
    }
    if not training:
        found |= defaults((*RULES, *OWN_RULES))
    return BinaryOptions(**found)


def _without_projection(quantizer: AbstractQuantizer) -> AbstractQuantizer:
    """The quantizer inside of linear maps, with its rotation."""
    has_maps = any(True for _ in quantizer.parameters())
    return inside(quantizer) if has_maps else quantizer
