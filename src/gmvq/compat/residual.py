r"""vector-quantize-pytorch's ``ResidualVQ`` and ``GroupedResidualVQ``, by our :class:`~gmvq.Residual`.

::

    x --groups--> way in --level 1--> rest --level 2--> ... --sum--> way out --> quantized, indices, losses

Each level has its own loss, whose gradient is its own, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.compat.codebooks import padded, put_bridge
from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.level_dropout import drawn_seed
from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.peer_residual import PeerResidual
from gmvq.compat.peer_ways import Call
from gmvq.compat.projections import inside, put_projection
from gmvq.compat.residual_options import ResidualOptions
from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.vector import VectorQuantizer


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

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded.

        Raises:
            ValueError: If an option is one of the class alone.
        """
        return self.options.quantizer(own=True)

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
        """Code vectors of each level inside the projection, ``(levels, K, L)``; a tuple where sizes differ.

        Reading them in training folds the statistics of past forwards in.
        """
        if self.training:
            self.update()
        vectors = tuple(member.code_vectors for member in levels_of(self.quantizer))
        return torch.stack(vectors) if len(set(self.options.codebook_sizes)) == 1 else vectors

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors of each level inside the projection: ``(B, *, levels)`` -> ``(levels, B, *, L)``.

        An index of -1, or a missing last level, gives 0.
        """
        return self.quantizer._cast(codes_of_levels(self.quantizer, indices))

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
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            mask: Booleans ``(B, N)``; a False place has indices -1 and value 0, or x with
                ``return_zeros_for_masked_padding=False``.
            indices: Not supported.
            return_all_codes: True to return the code vectors of each level, too.
            sample_codebook_temp: Temperature of this call's drawn codes.
            freeze_codebook: True freezes the codebooks for this call.
            beam_size: Of this call's search, in evaluation.
            rand_quantize_dropout_fixed_seed: Seed of the number of levels that dropout leaves.

        Returns:
            Quantized, indices, losses (0 in evaluation), and code vectors ``(levels, B, N, L)`` if asked for.

        Raises:
            ValueError: If ``indices`` or an argument that is not supported are given.
        """
        if indices is not None:
            raise ValueError(
                "'indices' must be None here, got a tensor. For a cross-entropy of codes take "
                "torch.nn.functional.cross_entropy on -torch.cdist(residual, codebook) of each level."
            )
        if beam_size is not None and self.training:
            raise ValueError(
                f"'beam_size' must be None in training, where each level takes its nearest code, got {beam_size}. "
                "Leave it out."
            )
        channels_first = self.options.channels_first and x.ndim > 2
        call = LevelCall(sample_codebook_temp, beam_size, rand_quantize_dropout_fixed_seed)
        with in_levels([self.quantizer], call), self._frozen(levels_of(self.quantizer), freeze_codebook or None):
            out = self._quantize(x, channels_first, mask)
        values = padded(out.values, x, mask, channels_first, self.options.return_zeros_for_masked_padding)
        losses = self._losses(out.loss, out.terms)
        return (values, out.codes, losses, *([self.get_codes_from_indices(out.codes)] if return_all_codes else []))

    def _losses(self, loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
        if not self.training:
            return loss.new_zeros(self.num_quantizers)
        return losses_of_levels(terms, self.num_quantizers)

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

    def own_quantizer(self) -> AbstractQuantizer:
        """A quantizer of our own with these options, for conversion; its state is still to be loaded.

        Raises:
            ValueError: If an option is one of the class alone.
        """
        return Product([self.options.quantizer(own=True) for _ in range(self.groups)])

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
        """Code vectors of each level inside the projection, ``(groups, levels, K, L)``.

        Reading them in training folds the statistics of past forwards in.
        """
        if self.training:
            self.update()
        return torch.stack(
            [torch.stack([member.code_vectors for member in levels_of(group)]) for group in self._of_groups]
        )

    @property
    def _of_groups(self) -> list[AbstractQuantizer]:
        return [*self.quantizer.places] if isinstance(self.quantizer, Product) else []

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Code vectors inside the projection: ``(groups, B, *, levels)`` -> ``(groups, levels, B, *, L)``."""
        levels = [codes_of_levels(group, part) for group, part in zip(self._of_groups, indices, strict=True)]
        return self.quantizer._cast(torch.stack(levels))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; fewer levels give a coarser output."""
        values = self.quantizer.decode(torch.stack([*indices], -2))
        return values.movedim(-1, 1) if self.options.channels_first else values

    def forward(
        self,
        x: Tensor,
        indices: None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Quantizes x.

        Args:
            x: Latents.
            indices: Not supported.
            return_all_codes: True to return the code vectors of each level, too.
            sample_codebook_temp: Temperature of this call's drawn codes.
            freeze_codebook: True freezes the codebooks for this call.
            mask: Booleans ``(B, N)``; a False place has indices -1 and value 0.

        Returns:
            Quantized, indices, losses (0 in evaluation), and the code vectors ``(levels, B, N, L)`` of each group if
            asked for.

        Raises:
            ValueError: If ``indices`` or an argument that is not supported are given.
        """
        if indices is not None and len(indices):
            raise ValueError("'indices' must be None here, got a value. Compute the cross-entropy of codes outside.")
        members = [member for group in self._of_groups for member in levels_of(group)]
        channels_first = self.options.channels_first and x.ndim > 2
        seed = drawn_seed(x.device) if self.training else None  # one for all groups
        call = LevelCall(sample_codebook_temp, None, seed)
        with in_levels(self._of_groups, call), self._frozen(members, freeze_codebook or None):
            out = self._quantize(x, channels_first, mask)
        values = padded(out.values, x, mask, channels_first, self.options.return_zeros_for_masked_padding)
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
        return torch.stack([losses_of_levels(own, self.num_quantizers) for own in of_groups])

    def _is_theirs(self, names: list[str]) -> bool:
        return "rvqs.0.layers.0._codebook.embed" in names

    def _translate(self, translation: Translation) -> None:
        for place, group in enumerate(self._of_groups):
            put_residual(translation, group, f"rvqs.{place}.")


def levels_of(quantizer: AbstractQuantizer) -> list[AbstractQuantizer]:
    """The member at each level of a residual quantizer, inside its projection."""
    inner = inside(quantizer)
    return [*inner.places] if isinstance(inner, Residual) else []


class LevelCall(NamedTuple):
    """What one forward of levels does in another way.

    Attributes:
        temperature: Of drawn codes, None for the levels' own.
        beam_size: Of the search, None for the quantizer's own.
        seed: Of the number of levels that dropout leaves, None to draw one.
    """

    temperature: float | None = None
    beam_size: int | None = None
    seed: int | None = None


@contextmanager
def in_levels(quantizers: list[AbstractQuantizer], call: LevelCall) -> Iterator[None]:
    """Does in one forward of residual quantizers what a call asks for."""
    residuals = [inner for each in quantizers if isinstance(inner := inside(each), PeerResidual)]
    before = [(residual, residual.beam_size) for residual in residuals]
    with ExitStack() as calls:
        for residual in residuals:
            residual.seed, residual.beam_size = call.seed, call.beam_size or residual.beam_size
            for member in residual.members:
                if isinstance(member, PeerQuantizer):
                    calls.enter_context(member.during(Call(call.temperature)))
        try:
            yield
        finally:
            for residual, beam_size in before:
                residual.seed, residual.beam_size = None, beam_size


def codes_of_levels(quantizer: AbstractQuantizer, indices: Tensor) -> Tensor:
    """Code vectors of all levels, ``(*, at most levels)`` -> ``(levels, *, L)``; 0 for a missing index."""
    inner = inside(quantizer)
    if isinstance(inner, PeerResidual) and len(inner.networks):
        values = inner.level_values(indices.reshape(-1, indices.shape[-1]))
        return values.reshape(-1, *indices.shape[:-1], inner.dim)
    members = levels_of(quantizer)
    codes = [member.decode(level) for member, level in zip(members, indices.unbind(-1), strict=False)]
    return torch.stack(codes + [torch.zeros_like(codes[0])] * (len(members) - len(codes)))


def losses_of_levels(terms: dict[str, Tensor], levels: int) -> Tensor:
    """The loss of each level with its gradient, ``(levels,)``."""
    return torch.stack([terms[f"{level}.loss"] for level in range(levels)])


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
            put_bridge(translation, [member], f"{name}layers.{level}._codebook.")
    if isinstance(inner, PeerResidual):
        for level, network in enumerate(inner.networks):
            for part, tensor in network.state_dict(keep_vars=True).items():
                translation.put(tensor, translation.take(f"{name}mlps.{level}.{part}"))
