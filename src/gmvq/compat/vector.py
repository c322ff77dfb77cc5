r"""vector-quantize-pytorch's ``VectorQuantize``, by our :class:`~gmvq.VectorQuantizer`.

::

    x --channels last--> latents --way in--> heads --nearest codes--> --way out--> values, indices, loss

The loss has the value of the other library's; its gradient is that of our quantizer:

.. math:: \mathcal{L} = w\, |z - \mathrm{sg}[\mu_c]|^2, \quad \text{and for codes that learn by gradient also }
          |\mathrm{sg}[z] - \mu_c|^2
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.compat.dropin import AbstractDropIn, mean_term
from gmvq.compat.options import refuse
from gmvq.compat.projections import inside, put_projection
from gmvq.compat.states import Translation
from gmvq.compat.vector_options import VectorOptions
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.parts.rows import mask_of_lengths
from gmvq.quantizers.parts.vector_parts import Diversity, Orthogonal
from gmvq.quantizers.vector import VectorQuantizer
from gmvq.types import Quantized

REMEDIES = {
    "topk": "Use gmvq.Residual(..., beam_size=...) for beam search.",
    "sample_codebook_temp": "Codes are the nearest ones, in training too: use gmvq.StochasticQuantizer to draw them.",
    "codebook_transform_fn": "Use gmvq.SimVQ(transform=...), or gmvq.ImplicitResidual.",
    "ema_update_weight": "Use a mask to leave latents out of the averages.",
    "accum_ema_update": "Set .quantizer.updates_itself = False and call .update() after the last of several forwards.",
    "ema_update": "Use freeze_codebook=True for a call that does not move the codes.",
}


class LossBreakdown(NamedTuple):
    """Parts of the loss before their weights, detached, each of shape ``()``.

    Attributes:
        commitment: Mean squared distance of latents from their codes.
        codebook_diversity: Divergence of the mean assignment from an even one, in nats.
        orthogonal_reg: Mean squared cosine of two codes.
        inplace_optimize: Always 0: the codebook's own step has no loss here.
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
    def members(self) -> list[VectorQuantizer]:
        """The codebooks: one, or one per head."""
        inner = inside(self.quantizer)
        members = inner.members if isinstance(inner, Product) else [inner]
        return [member for member in members if isinstance(member, VectorQuantizer)]

    @property
    def codebook(self) -> Tensor:
        """Code vectors inside the projection, ``(K, L)``, or ``(heads, K, L)`` with separate ones."""
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

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors inside the projection, heads side by side, in the layout of x; 0 for -1."""
        codes = inside(self.quantizer).decode(indices)
        return codes.movedim(-1, 1) if self.options.channels_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; 0 for -1."""
        values = self.quantizer.decode(indices)
        return values.movedim(-1, 1) if self.options.channels_first else values

    def forward(
        self,
        x: Tensor,
        indices: None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        **unsupported: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, LossBreakdown]:
        """Quantizes x.

        Args:
            x: Latents.
            indices: Not supported.
            mask: Booleans ``(B, N)``; a False place has index -1 and value 0, or x with
                ``return_zeros_for_masked_padding=False``.
            lens: Lengths ``(B,)``, in place of a mask.
            freeze_codebook: True freezes the codebook for this call, False lets a frozen one learn.
            return_loss_breakdown: True to return the parts of the loss, too.
            **unsupported: Other arguments of the original, which must be None or False.

        Returns:
            Quantized, indices, loss (0 in evaluation), and :class:`LossBreakdown` if asked for.

        Raises:
            ValueError: If ``indices`` or an argument that is not supported are given.
        """
        refuse(unsupported, REMEDIES)
        if indices is not None:
            raise ValueError(
                "'indices' must be None here, got a tensor. For a cross-entropy of codes take "
                "torch.nn.functional.cross_entropy(-torch.cdist(latents, vq.codebook).movedim(-1, 1), indices)."
            )
        channels_first = self.options.channels_first and x.ndim > 2
        mask = self._mask(x, mask, lens, channels_first)
        with self._frozen([*self.members], freeze_codebook):
            out = self._quantize(x, channels_first, mask)
        values = out.values
        if mask is not None and not self.options.return_zeros_for_masked_padding:
            values = torch.where(mask.unsqueeze(1 if channels_first else -1), values, x)
        answer = values, out.codes, self._loss(out)
        return (*answer, self._breakdown(out)) if return_loss_breakdown else answer

    @staticmethod
    def _mask(x: Tensor, mask: Tensor | None, lens: Tensor | None, channels_first: bool) -> Tensor | None:
        if lens is None:
            return mask
        if mask is not None:
            raise ValueError("'lens' must be None where 'mask' is given, got both. Leave one out.")
        return mask_of_lengths(lens, x.movedim(1, -1).shape if channels_first else x.shape)

    def _loss(self, out: Quantized) -> Tensor:
        if not self.training:
            return torch.zeros_like(out.loss)
        weighted = self.members[0].commitment_weight * mean_term(out.terms, "commitment")
        extra = [term for name, term in out.terms.items() if not name.endswith("commitment")]
        value = weighted + torch.stack(extra).sum() / len(self.members) if extra else weighted
        return value + (out.loss - out.loss.detach())

    def _breakdown(self, out: Quantized) -> LossBreakdown:
        zero = torch.zeros_like(out.loss)
        regularizers = self.members[0].regularizers
        weights = {part.name: part.weight for part in regularizers if isinstance(part, Orthogonal | Diversity)}
        parts = {name: mean_term(out.terms, name) / weight for name, weight in weights.items()}
        return LossBreakdown(
            mean_term(out.terms, "commitment"), parts.get("diversity", zero), parts.get("orthogonality", zero), zero
        )

    def _is_theirs(self, names: list[str]) -> bool:
        return "_codebook.embed" in names

    def _translate(self, translation: Translation) -> None:
        put_projection(translation, self.quantizer)
        members = self.members
        for head, member in enumerate(members):
            translation.codebook(member, "_codebook.", head, len(members))
