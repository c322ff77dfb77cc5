r"""vector-quantize-pytorch's ``ResidualVQ`` and ``GroupedResidualVQ``, by our :class:`~gmvq.Residual`.

::

    x --groups--> way in --level 1--> rest --level 2--> ... --sum--> way out --> quantized, indices, losses

There, each level has its own loss. Here, each entry of the losses has the value of that loss, and an equal share of
the gradient of our quantizer's one loss.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.options import refuse
from gmvq.compat.projections import inside, put_projection
from gmvq.compat.residual_options import ResidualOptions
from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.vector import VectorQuantizer

REMEDIES = {
    "sample_codebook_temp": "Codes are the nearest ones, in training too: use gmvq.StochasticQuantizer to draw them.",
    "beam_size": "Give beam_size to the constructor: it applies to every call in evaluation.",
    "rand_quantize_dropout_fixed_seed": "All ranks draw the same number of levels. Use torch.manual_seed to repeat it.",
}


def residual_arguments(options: dict[str, Any]) -> ResidualOptions:
    """Options of ``ResidualVQ`` from its keyword arguments."""
    own = {each.name for each in fields(ResidualOptions)} - {"vector"}
    vector = {name: value for name, value in options.items() if name not in own}
    return ResidualOptions(**{name: options[name] for name in options if name in own}, vector=vector)


class ResidualVQ(AbstractDropIn):
    r"""Quantizes latents level after level, with the interface of vector-quantize-pytorch.

    .. math:: v = \sum_i v_i, \qquad v_i = \mathrm{quantize}_i\big(x - \textstyle\sum_{j<i} v_j\big)

    Args:
        **options: Keyword arguments of the other library's class, with its defaults: ``dim``, ``num_quantizers``,
            ``codebook_size``, ...; see :class:`~gmvq.compat.residual_options.ResidualOptions`, and
            :class:`~gmvq.compat.vector_options.VectorOptions` for those of each level.

    Shape:
        x ``(B, N, dim)``, ``(B, dim)``, or with ``accept_image_fmap`` ``(B, dim, H, W)`` -> quantized as x, indices
        ``(B, N, levels)``, losses ``(levels,)``.

    Raises:
        ValueError: If an option is not supported.

    References:
        SoundStream: An End-to-End Neural Audio Codec (Zeghidour et al., 2021), https://arxiv.org/abs/2107.03312

    Example:
        >>> vq = ResidualVQ(dim=16, num_quantizers=4, codebook_size=32)
        >>> quantized, indices, commit_losses = vq(torch.randn(2, 10, 16))
        >>> quantized.shape, indices.shape, commit_losses.shape
        (torch.Size([2, 10, 16]), torch.Size([2, 10, 4]), torch.Size([4]))
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = residual_arguments(options)
        self.quantizer = self.options.quantizer()

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channels_first

    @property
    def num_quantizers(self) -> int:
        """Number of levels."""
        return len(self.options.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Number of codes K of the first level."""
        return self.options.codebook_sizes[0]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.options.codebook_sizes

    @property
    def codebook_dim(self) -> int:
        """Features of a code."""
        return self.options.code_dim

    @property
    def shared_codebook(self) -> bool:
        """True if all levels share one codebook."""
        return self.options.shared_codebook

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """Code vectors of each level inside the projection, ``(levels, K, L)``; a tuple where sizes differ."""
        vectors = tuple(member.code_vectors for member in levels_of(self.quantizer))
        return torch.stack(vectors) if len(set(self.options.codebook_sizes)) == 1 else vectors

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors of each level inside the projection: ``(B, *, levels)`` -> ``(levels, B, *, L)``.

        An index of -1, or a missing last level, gives 0.
        """
        return codes_of_levels(self.quantizer, indices)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        values = self.quantizer.decode(indices)
        return values.movedim(-1, 1) if self.options.channels_first else values

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: None = None,
        return_all_codes: bool = False,
        freeze_codebook: bool = False,
        **unsupported: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            mask: Booleans ``(B, N)``; a False place has indices -1 and value 0, or x with
                ``return_zeros_for_masked_padding=False``.
            indices: Not supported.
            return_all_codes: True to return the code vectors of each level, too.
            freeze_codebook: True freezes the codebooks for this call.
            **unsupported: Other arguments of the original, which must be None or False.

        Returns:
            Quantized, indices, losses (0 in evaluation), and code vectors ``(levels, B, N, L)`` if asked for.

        Raises:
            ValueError: If ``indices`` or an argument that is not supported are given.
        """
        refuse(unsupported, REMEDIES)
        if indices is not None:
            raise ValueError(
                "'indices' must be None here, got a tensor. For a cross-entropy of codes take "
                "torch.nn.functional.cross_entropy on -torch.cdist(residual, codebook) of each level."
            )
        channels_first = self.options.channels_first and x.ndim > 2
        with self._frozen(levels_of(self.quantizer), True if freeze_codebook else None):
            out = self._quantize(x, channels_first, mask)
        values = out.values
        if mask is not None and not self.options.return_zeros_for_masked_padding:
            values = torch.where(mask.unsqueeze(1 if channels_first else -1), values, x)
        losses = self._losses(out.loss, out.terms)
        return (values, out.codes, losses, *([self.get_codes_from_indices(out.codes)] if return_all_codes else []))

    def _losses(self, loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
        if not self.training:
            return loss.new_zeros(self.num_quantizers)
        return losses_of_levels(loss, terms, self.num_quantizers, self.options.commitment_weight)

    def _is_theirs(self, names: list[str]) -> bool:
        return "layers.0._codebook.embed" in names

    def _translate(self, translation: Translation) -> None:
        put_residual(translation, self.quantizer)


class GroupedResidualVQ(AbstractDropIn):
    r"""Quantizes groups of features, each level after level, with the interface of vector-quantize-pytorch.

    .. math:: v = (v_1(x_1), \dots, v_g(x_g))

    Args:
        dim: Features of a latent.
        groups: Number of groups.
        **options: As for :class:`ResidualVQ`, for each group.

    Shape:
        x ``(B, N, dim)`` -> quantized ``(B, N, dim)``, indices ``(groups, B, N, levels)``, losses ``(groups, levels)``.

    Raises:
        ValueError: If an option is not supported, or the groups do not divide ``dim``.

    References:
        HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec (Yang et al., 2023),
        https://arxiv.org/abs/2305.02765

    Example:
        >>> vq = GroupedResidualVQ(dim=16, groups=2, num_quantizers=4, codebook_size=32)
        >>> quantized, indices, commit_losses = vq(torch.randn(2, 10, 16))
        >>> indices.shape, commit_losses.shape
        (torch.Size([2, 2, 10, 4]), torch.Size([2, 4]))
    """

    def __init__(self, *, dim: int, groups: int = 1, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"'groups' must divide 'dim' = {dim}, got {groups}. Use for example groups=1.")
        self.groups = groups
        self.options = residual_arguments({"dim": dim // groups, **options})
        self.quantizer = Product([self.options.quantizer() for _ in range(groups)])

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channels_first

    @property
    def num_quantizers(self) -> int:
        """Number of levels of a group."""
        return len(self.options.codebook_sizes)

    @property
    def codebooks(self) -> Tensor:
        """Code vectors of each level inside the projection, ``(groups, levels, K, L)``."""
        return torch.stack(
            [torch.stack([member.code_vectors for member in levels_of(group)]) for group in self._of_groups]
        )

    @property
    def _of_groups(self) -> list[AbstractQuantizer]:
        return [*self.quantizer.places] if isinstance(self.quantizer, Product) else []

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors inside the projection: ``(groups, B, *, levels)`` -> ``(groups, levels, B, *, L)``."""
        return torch.stack([codes_of_levels(group, part) for group, part in zip(self._of_groups, indices, strict=True)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        values = self.quantizer.decode(torch.stack([*indices], -2))
        return values.movedim(-1, 1) if self.options.channels_first else values

    def forward(
        self,
        x: Tensor,
        indices: None = None,
        return_all_codes: bool = False,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
        **unsupported: Any,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            indices: Not supported.
            return_all_codes: True to return the code vectors of each level, too.
            freeze_codebook: True freezes the codebooks for this call.
            mask: Booleans ``(B, N)``; a False place has indices -1 and value 0.
            **unsupported: Other arguments of the original, which must be None or False.

        Returns:
            Quantized, indices, losses (0 in evaluation), and the code vectors ``(levels, B, N, L)`` of each group if
            asked for.

        Raises:
            ValueError: If ``indices`` or an argument that is not supported are given.
        """
        refuse(unsupported, REMEDIES)
        if indices is not None:
            raise ValueError("'indices' must be None here, got a value. Compute the cross-entropy of codes outside.")
        members = [member for group in self._of_groups for member in levels_of(group)]
        channels_first = self.options.channels_first and x.ndim > 2
        with self._frozen(members, True if freeze_codebook else None):
            out = self._quantize(x, channels_first, mask)
        values = out.values
        if mask is not None and not self.options.return_zeros_for_masked_padding:
            values = torch.where(mask.unsqueeze(1 if channels_first else -1), values, x)
        codes = out.codes.movedim(-2, 0)
        losses = self._losses(out.loss, out.terms)
        if not return_all_codes:
            return values, codes, losses
        return values, codes, losses, tuple(self.get_codes_from_indices(codes))

    def _losses(self, loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
        if not self.training:
            return loss.new_zeros(self.groups, self.num_quantizers)
        of_groups = [
            {name.removeprefix(f"{group}."): term for name, term in terms.items() if name.startswith(f"{group}.")}
            for group in range(self.groups)
        ]
        # our loss is the mean over groups: equal shares for all entries add up to their sum
        return torch.stack(
            [losses_of_levels(loss, own, self.num_quantizers, self.options.commitment_weight) for own in of_groups]
        )

    def _is_theirs(self, names: list[str]) -> bool:
        return "rvqs.0.layers.0._codebook.embed" in names

    def _translate(self, translation: Translation) -> None:
        for place, group in enumerate(self._of_groups):
            put_residual(translation, group, f"rvqs.{place}.")


def levels_of(quantizer: AbstractQuantizer) -> list[AbstractQuantizer]:
    """The member at each level of a residual quantizer, inside its projection."""
    inner = inside(quantizer)
    return [*inner.places] if isinstance(inner, Residual) else []


def codes_of_levels(quantizer: AbstractQuantizer, indices: Tensor) -> Tensor:
    """Code vectors of all levels, ``(*, at most levels)`` -> ``(levels, *, L)``; 0 for a missing index."""
    members = levels_of(quantizer)
    codes = [member.decode(level) for member, level in zip(members, indices.unbind(-1), strict=False)]
    return torch.stack(codes + [torch.zeros_like(codes[0])] * (len(members) - len(codes)))


def losses_of_levels(loss: Tensor, terms: dict[str, Tensor], levels: int, weight: float) -> Tensor:
    """The other library's loss of each level: the weighted commitment, with an equal share of our gradient."""
    values = weight * torch.stack([terms[f"{level}.commitment"] for level in range(levels)])
    return values + (loss - loss.detach()) / levels


def put_residual(translation: Translation, quantizer: AbstractQuantizer, name: str = "") -> None:
    """Loads the state of a ``ResidualVQ``, whose names begin with ``name``."""
    put_projection(translation, quantizer, name)
    inner = inside(quantizer)
    if isinstance(inner, Residual) and inner.all_levels_started is not None:
        last = f"{name}layers.{inner.num_quantizers - 1}._codebook.initted"
        translation.put(inner.all_levels_started, translation.flag(last))
    for level, member in enumerate(levels_of(quantizer)):
        if isinstance(member, VectorQuantizer):
            translation.codebook(member, f"{name}layers.{level}._codebook.")
