r"""vector-quantize-pytorch's ``VectorQuantize``, by our :class:`~gmvq.VectorQuantizer`.

::

    x --channels last--> latents --way in--> heads --nearest codes--> --way out--> values, indices, loss

The loss has the value and the gradient of the other library's:

.. math:: \mathcal{L} = w\, |z - \mathrm{sg}[\mu_c]|^2, \quad \text{and for codes that learn by gradient }
          w\, |z - \mu_c|^2
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.compat.codebooks import (
    CodebookState,
    codebook_state,
    codebooks_of,
    own_members,
    padded,
    put_bridge,
    rows_of_heads,
    top_codes,
)
from gmvq.compat.dropin import AbstractDropIn, mean_term
from gmvq.compat.options import refuse
from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.peer_ways import Call, Weight
from gmvq.compat.projections import inside, put_projection
from gmvq.compat.states import Translation
from gmvq.compat.vector_options import VectorOptions
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.rows import mask_of_lengths
from gmvq.quantizers.parts.vector_parts import Diversity, Orthogonal
from gmvq.types import Quantized

REMEDIES = {
    "codebook_transform_fn": "Use gmvq.SimVQ(transform=...), or ResidualVQ(implicit_neural_codebook=True).",
}


class LossBreakdown(NamedTuple):
    """Parts of the loss before their weights, detached, each of shape ``()``.

    Attributes:
        commitment: Mean squared distance of latents from their codes.
        codebook_diversity: Divergence of the mean assignment from an even one, in nats.
        orthogonal_reg: Mean squared cosine of two codes.
        inplace_optimize: Mean squared distance before the codebook's own step, 0 without one.
    """

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class VectorQuantize(AbstractDropIn):
    r"""Quantizes latents to the nearest codes, with the interface of vector-quantize-pytorch.

    .. math:: c = \arg\min_k |z - \mu_k|^2, \qquad v = \mu_c

    Args:
        *arguments: Arguments of the other library's class in its order: ``dim``, ``codebook_size``, ``codebook_dim``,
            ``heads``, ...; see :class:`~gmvq.compat.vector_options.VectorOptions`.
        **options: The same by keyword, with its defaults.

    Shape:
        x ``(B, N, dim)``, ``(B, dim)``, or with channels second -> quantized as x, indices ``(B, N)`` or with heads
        ``(B, N, heads)``, loss ``()``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Neural Discrete Representation Learning (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937

    Example:
        >>> vq = VectorQuantize(dim=16, codebook_size=32, accept_image_fmap=True)
        >>> quantized, indices, commit_loss = vq(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = VectorOptions(*arguments, **options)
        self.quantizer = self.options.quantizer()

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channels_first

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return self.options.codebook_size

    @property
    def heads(self) -> int:
        """Number of codes of a latent."""
        return self.options.heads

    @property
    def commitment_weight(self) -> float:
        """Weight of the latents' distance from their codes; not in the loss with ``directional_reparam``."""
        return self.options.commitment_weight

    @property
    def use_cosine_sim(self) -> bool:
        """True if latents and codes are compared by direction."""
        return self.options.use_cosine_sim

    @property
    def separate_codebook_per_head(self) -> bool:
        """True if each head has its own codebook."""
        return self.options.separate_codebook_per_head

    @property
    def ema_update(self) -> bool:
        """True if codes are moving averages."""
        return self.options.averages

    @property
    def members(self) -> list[PeerQuantizer]:
        """The codebooks: one, or one per head."""
        return codebooks_of(self.quantizer)

    @property
    def codebook(self) -> Tensor:
        """Code vectors inside the projection, ``(K, L)``, or ``(heads, K, L)`` with separate ones.

        Reading it in training folds the statistics of past forwards in.
        """
        self._fold()
        vectors = [member.code_vectors for member in self.members]
        return torch.stack(vectors) if self.options.separate_codebook_per_head else vectors[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        codes = codes if self.options.separate_codebook_per_head else codes[None]
        for member, vectors in zip(self.members, codes, strict=True):
            member.moving.place(vectors, member.moving.counts)
            if member.learned is not None:
                with torch.no_grad():
                    member.learned.copy_(vectors)

    @property
    def _codebook(self) -> CodebookState:
        """The other library's codebook as it stands, with all heads."""
        self._fold()
        return codebook_state(self.members)

    def _fold(self) -> None:
        if self.training:
            self.update()

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded.

        Raises:
            ValueError: If an option is one of the class alone.
        """
        return self.options.quantizer(own=True)

    def update_in_place_optimizer(self) -> None:
        """Takes the codebook's own step, with ``manual_in_place_optimizer_update``."""
        for member in self.members:
            member.step_in_place()

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Counts latents for codes chosen elsewhere, and moves the codes.

        Args:
            x: Latents as forward takes them.
            indices: Codes as forward returns them; -1 is left out.
            mask: Booleans ``(B, N)``; a False place is left out.
        """
        channels_first = self.options.channels_first and x.ndim > 2
        groups, kept = rows_of_heads(self.quantizer, x.movedim(1, -1) if channels_first else x, mask)
        self.update()
        for member, rows, codes in zip(self.members, groups, self._targets(indices), strict=True):
            rows = direction(rows) if member.cosine else rows
            counted = kept.repeat_interleave(len(codes) // len(kept)) & (codes >= 0)
            member.take(rows.detach(), codes.clamp_min(0), counted)

    update_ema_indices = update_indices

    def _targets(self, indices: Tensor) -> list[Tensor]:
        """Indices as forward returns them, by codebook: int64 ``(N,)``, or ``(N heads,)`` of a shared one."""
        if self.heads == 1 or len(self.members) == 1:
            return [indices.reshape(-1)]
        return [each.reshape(-1) for each in indices.unbind(-1)]

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors inside the projection, heads side by side, in the layout of x; 0 for -1."""
        codes = self.quantizer._cast(inside(self.quantizer).decode(indices))
        return codes.movedim(-1, 1) if self.options.channels_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; 0 for -1."""
        values = self.quantizer.decode(indices)
        return values.movedim(-1, 1) if self.options.channels_first else values

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: None = None,
        ema_update_weight: Weight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Tensor | LossBreakdown, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            indices: Codes as returned, for their cross-entropy in place of indices and loss; -1 is left out.
            mask: Booleans ``(B, N)``; a False place has index -1 and value 0, or x with
                ``return_zeros_for_masked_padding=False``.
            lens: Lengths ``(B,)``, in place of a mask.
            topk: Number k of nearest codes for each latent, each with its value and commitment: quantized
                ``(B, N, k, dim)``, indices and losses ``(B, N, k)``. Nothing is counted.
            sample_codebook_temp: Temperature of this call's drawn codes.
            freeze_codebook: True freezes the codebook for this call, False lets a frozen one learn.
            return_loss_breakdown: True to return the parts of the loss, too.
            codebook_transform_fn: Not supported.
            ema_update_weight: Share of a step that each code takes, ``(K,)``, or a function of sums ``(1, K, L)`` and
                counts ``(1, K)`` that gives it.
            accum_ema_update: True to add the statistics to those of the next call, before which no code moves.
            ema_update: False to take no statistics.

        Returns:
            Quantized, indices, loss (0 in evaluation), and :class:`LossBreakdown` if asked for; or quantized and the
            cross-entropy of ``indices``.

        Raises:
            ValueError: If an argument is not supported, or two contradict each other.
        """
        refuse({"codebook_transform_fn": codebook_transform_fn}, REMEDIES)
        channels_first = self.options.channels_first and x.ndim > 2
        mask = self._mask(x, mask, lens, channels_first)
        if topk is not None:
            return self._top(x, topk, mask, sample_codebook_temp, channels_first, return_loss_breakdown)
        averages = self._averages_in(ema_update)
        call = Call(sample_codebook_temp, ema_update_weight, accum_ema_update, averages)
        targets = [None] * len(self.members) if indices is None else self._targets(indices)
        learns = self.options.averages or self.options.learns  # others stay as they are in any call
        with self._frozen([*self.members], freeze_codebook if learns else None), ExitStack() as calls:
            for member, target in zip(self.members, targets, strict=True):
                calls.enter_context(member.during(replace(call, targets=target)))
            out = self._quantize(x, channels_first, mask)
        values = padded(out.values, x, mask, channels_first, self.options.return_zeros_for_masked_padding)
        if indices is not None:
            total = mean_term(out.terms, "targets") * len(self.members)
            return values, total / (indices >= 0).sum().clamp_min(1)
        answer = values, out.codes, out.loss if self.training else torch.zeros_like(out.loss)
        return (*answer, self._breakdown(out)) if return_loss_breakdown else answer

    def _averages_in(self, ema_update: bool | None) -> bool:
        """Whether a call takes statistics.

        Raises:
            ValueError: If it says otherwise than the codebook can.
        """
        if ema_update and not self.options.averages:
            raise ValueError("'ema_update' must be None or False for codes that learn by gradient, got True.")
        if ema_update is False and self.options.averages and self.options.threshold_ema_dead_code > 0:
            raise ValueError(
                "'ema_update' must be None or True where 'threshold_ema_dead_code' replaces codes by their counts, got "
                "False. Use freeze_codebook=True."
            )
        return ema_update is not False or not self.options.averages

    def _top(
        self,
        x: Tensor,
        topk: int,
        mask: Tensor | None,
        temperature: float | None,
        channels_first: bool,
        return_loss_breakdown: bool,
    ) -> tuple[Tensor | LossBreakdown, ...]:
        options = self.options
        if self.heads > 1 or topk < 1 or (options.commitment_use_cross_entropy_loss and self.training):
            raise ValueError(
                f"'topk' must be at least 1, for one head without a commitment by cross-entropy, got {topk}. Use "
                "heads=1 and commitment_use_cross_entropy_loss=False."
            )
        if options.in_place_codebook_optimizer is not None and self.training:
            raise ValueError(
                f"'topk' must be None beside the codebook's own steps in training, got {topk}. Use .eval()."
            )
        with self.members[0].during(Call(temperature)):
            latents = x.movedim(1, -1) if channels_first else x
            values, codes, losses, commitment = top_codes(self.quantizer, latents, topk, mask)
        if mask is not None and not options.return_zeros_for_masked_padding:
            values = torch.where(mask[..., None, None], values, latents.unsqueeze(-2))
        values = values.movedim(-1, 1) if channels_first else values
        zero = torch.zeros_like(commitment)
        breakdown = LossBreakdown(commitment, zero, zero, zero)
        return (values, codes, losses, breakdown) if return_loss_breakdown else (values, codes, losses)

    @staticmethod
    def _mask(x: Tensor, mask: Tensor | None, lens: Tensor | None, channels_first: bool) -> Tensor | None:
        if lens is None:
            return mask
        if mask is not None:
            raise ValueError("'lens' must be None where 'mask' is given, got both. Leave one out.")
        return mask_of_lengths(lens, x.movedim(1, -1).shape if channels_first else x.shape)

    def _breakdown(self, out: Quantized) -> LossBreakdown:
        zero = torch.zeros_like(out.loss)
        regularizers = self.members[0].regularizers
        weights = {part.name: part.weight for part in regularizers if isinstance(part, Orthogonal | Diversity)}
        parts = {name: mean_term(out.terms, name) / weight for name, weight in weights.items()}
        steps = any(name.rpartition(".")[2] == "in_place" for name in out.terms)
        return LossBreakdown(
            mean_term(out.terms, "commitment"),
            parts.get("diversity", zero),
            parts.get("orthogonality", zero),
            mean_term(out.terms, "in_place") if steps else zero,
        )

    def _is_theirs(self, names: list[str]) -> bool:
        return "_codebook.embed" in names

    def _translate(self, translation: Translation) -> None:
        put_projection(translation, self.quantizer)
        members = own_members(self.quantizer)
        for head, member in enumerate(members):
            translation.codebook(member, "_codebook.", head, len(members))
        put_bridge(translation, members, "_codebook.")
