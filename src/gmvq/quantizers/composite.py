r"""Quantizers made of quantizers: what all compositions share, and the product of groups of features.

::

    rows (N, dim) --composite--> rows of each place --member(rows, kept)--> Quantized of each --composite--> Quantized

A composite has a number of *places*, each with a member: a level of a residual quantizer, a group of features, a scale.
A latent has one code for each place, so ``code_shape`` is ``(places,) + member.code_shape``, and a member may be a
composite itself. One member may serve all places (a shared codebook): it is stored once and updated once.

The product quantizer cuts the features into groups, each with its own choice of a code, so that h codebooks of K
vectors have :math:`K^h` points:

.. math:: x = (x_1, \dots, x_h), \quad c_g = \arg\min_k |x_g - \mu_{gk}|^2, \quad v = (\mu_{1 c_1}, \dots, \mu_{h c_h})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.checks import checked_codes
from gmvq.quantizers.places import listed, prefixed
from gmvq.quantizers.wrapper import AbstractWrapper
from gmvq.types import Posterior, PosteriorSample, Quantized


class AbstractComposite(AbstractQuantizer):
    """A quantizer with a member at each of its places.

    Members are called through their public verbs, as ``member(rows, kept)``: so their own projections, masks and
    estimators work as they do alone. Their statistics are folded in by the composite's :meth:`update`, each member's
    once, so that a codebook does not change between two places of one forward.

    Args:
        dim: Features of a latent.
        places: The member at each place; one instance at several places is a shared codebook.
        codebook_dim: Features inside; less than ``dim`` puts a learned projection around all members.

    Attributes:
        members: The members, each once.
        adds_losses: True if the loss adds up the members' losses, which must then have one unit.

    Raises:
        ValueError: If there is no member, one does not quantize rows, members have codes of different shapes, or losses
            that add up have different units.
    """

    adds_losses: ClassVar[bool] = True

    def __init__(self, dim: int, places: Sequence[AbstractQuantizer], codebook_dim: int | None = None) -> None:
        unique = list(dict.fromkeys(places))
        for member in unique:
            if not member.quantizes_rows:
                raise ValueError(
                    f"'quantizers' must quantize each latent by itself, got a {type(member).__name__}, which quantizes "
                    "whole maps. Make that the outermost one."
                )
        super().__init__(dim, max((member.codebook_size for member in unique), default=0), codebook_dim)
        shapes = sorted({member.code_shape for member in unique})
        if len(shapes) > 1:
            raise ValueError(
                f"'quantizers' must all have codes of one shape, got {', '.join(map(str, shapes))} for each latent. "
                "Give each member the same number of levels or groups."
            )
        if self.adds_losses and len({member.loss_in_nats for member in unique}) > 1:
            names = ", ".join(type(member).__name__ for member in unique)
            raise ValueError(
                f"'quantizers' must all have losses of one unit, nats or squared errors, got {names}. Take "
                "StochasticQuantizer and GaussianQuantizer among themselves."
            )
        self.members = nn.ModuleList(unique)
        self._member_at = tuple(unique.index(member) for member in places)
        # last, and after all checks of subclasses: the members of a composite that was refused still learn alone
        for member in unique:
            member.updates_itself = False

    @property
    def places(self) -> tuple[AbstractQuantizer, ...]:
        """The member at each place."""
        members = [member for member in self.members if isinstance(member, AbstractQuantizer)]
        return tuple(members[index] for index in self._member_at)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Axes of the codes of one latent: places first, then those of a member."""
        return (len(self._member_at), *self.places[0].code_shape)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each place of ``code_shape``, flattened."""
        return tuple(size for member in self.places for size in member.codebook_sizes)

    @property
    def code_vectors(self) -> Tensor:
        """None for all places.

        Raises:
            TypeError: Always: a composite has a codebook for each member.
        """
        raise TypeError(f"{type(self).__name__} has a codebook for each member. Use .members[i].code_vectors.")

    @property
    def codebook(self) -> Tensor:
        """None for all places.

        Raises:
            TypeError: Always: a composite has a codebook for each member.
        """
        raise TypeError(f"{type(self).__name__} has a codebook for each member. Use .members[i].codebook.")

    @property
    def loss_in_nats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the members' losses are in nats for each token."""
        return self.places[0].loss_in_nats

    def update(self) -> None:
        """Folds the statistics of past forwards into each member's codebook, once; frozen members stay."""
        for member in self.members:
            if isinstance(member, AbstractQuantizer) and not member.frozen:
                member.update()

    def decode(self, codes: Tensor) -> Tensor:
        """Looks codes up: int64 ``(*, *code_shape)`` -> ``(*, dim)``.

        A place of -1 (masked, or a level that was dropped) adds 0; a token of -1 in all places gives 0.

        Raises:
            ValueError: If codes are not integers, lie outside the codes of their place, or have another shape.
        """
        axes = len(self.code_shape)
        if codes.ndim < axes or not self._fits(shape := tuple(codes.shape[codes.ndim - axes :])):
            raise ValueError(
                f"'codes' must have {self.code_shape} codes for each latent in the last axes, got shape "
                f"{tuple(codes.shape)}. Pass what encode() returned."
            )
        rows = checked_codes(codes, self.codebook_size).reshape(-1, *shape)
        with torch.autocast(self.training_progress.device.type, enabled=False):  # as in the forward
            values = self._outside(self._decode_rows(rows))
        present = (rows >= 0).reshape(rows.shape[0], math.prod(shape)).any(-1)
        return (values * present[:, None]).reshape(*codes.shape[: codes.ndim - axes], self.dim)

    def posterior(self, latents: Tensor) -> Posterior:
        """Distribution over the codes of each latent, where all members have one and places are independent.

        Args:
            latents: Shape ``(*, dim)``.

        Returns:
            Responsibilities ``(*, *code_shape, K)``, K the largest member's and 0 where a member has fewer codes;
            entropy ``(*)`` and log-density ``(*)`` of all places together, in nats.

        Raises:
            NoPosteriorError: If there is none.
        """
        if not self.has_posterior:
            raise NoPosteriorError(
                f"{type(self).__name__} has no posterior over the codes of all its places. Ask its members: "
                ".members[i].posterior(...)."
            )
        return super().posterior(latents)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == len(self._member_at) and self._members_fit(shape[1:])

    def _members_fit(self, shape: tuple[int, ...]) -> bool:
        return self.places[0]._fits(shape)

    # codes (N, *code_shape) go into _decode_rows with their -1; values of such places are 0

    def _log_number_of_codes(self) -> float:
        return sum(math.log(size) for size in self.codebook_sizes)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return rows.new_full(rows.shape[:1], self._log_number_of_codes())

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = rows.new_zeros(rows.shape[0])
        log_prior = log_posterior - self._log_number_of_codes()
        return PosteriorSample(self._posterior_mean_rows(rows), log_prior, log_posterior)


class Product(AbstractComposite):
    r"""Quantizes groups of features, each by its own code.

    .. math:: v = (v_1(x_1), \dots, v_h(x_h)), \qquad \mathcal{L} = \textstyle\sum_g L_g \mathcal{L}_g / \sum_g L_g

    A member's loss is a mean over its own :math:`L_g` features, so this is the mean over all features. Groups are
    independent: log-densities, entropies and divergences of members add.

    Args:
        quantizers: A list has a member for each group of consecutive features, and their ``dim`` may differ. One
            quantizer is shared between ``heads`` groups of its ``dim`` features: all are quantized together, as N heads
            rows, so that its statistics count them all alike.
        heads: Number of groups of one shared quantizer.

    Shape:
        latents ``(*, dim)``, dim the sum over groups -> values ``(*, dim)``, codes ``(*, groups, *member.code_shape)``,
        loss ``()``.

    Raises:
        ValueError: If members do not fit together, or the last axis of the latents is not ``dim``.

    References:
        Product Quantization for Nearest Neighbor Search (Jégou et al., 2011), https://doi.org/10.1109/TPAMI.2010.57

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> shared = Product(VectorQuantizer(dim=4, codebook_size=16), heads=2)
        >>> shared(torch.randn(3, 8)).codes.shape
        torch.Size([3, 2])
        >>> separate = Product([VectorQuantizer(dim=6, codebook_size=64), VectorQuantizer(dim=2, codebook_size=8)])
        >>> separate.dim, separate.codebook_sizes
        (8, (64, 8))
    """

    citations: tuple[str, ...] = ("product_jegou2011",)

    def __init__(self, quantizers: AbstractQuantizer | Sequence[AbstractQuantizer], heads: int | None = None) -> None:
        places = listed(quantizers, heads, "heads")
        super().__init__(sum(member.dim for member in places), places)
        self._is_shared = len(self.members) < len(places)

    @property
    def heads(self) -> int:
        """Number of groups."""
        return len(self.places)

    @property
    def has_posterior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if all members have a posterior."""
        return all(member.has_posterior for member in self.places)

    def _posterior_rows(self, rows: Tensor) -> Posterior:
        parts = [member.posterior(group) for member, group in self._groups(rows)]
        padding = [self.codebook_size - part.responsibilities.shape[-1] for part in parts]
        responsibilities = self._side_by_side(
            [F.pad(part.responsibilities, (0, extra)) for part, extra in zip(parts, padding, strict=True)]
        )
        densities = [part.log_density for part in parts if part.log_density is not None]
        return Posterior(
            responsibilities,
            self._total([part.entropy for part in parts]),
            self._total(densities) if len(densities) == len(parts) else None,
        )

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        kept = kept.repeat_interleave(self.heads) if self._is_shared else kept
        parts = [member(group, kept) for member, group in self._groups(rows)]
        loss = torch.stack([weight * part.loss for weight, part in zip(self._loss_weights(), parts, strict=True)]).sum()
        terms = [prefixed(part.terms, place) for place, part in enumerate(parts)]
        return Quantized(
            self._end_to_end([part.values for part in parts]),
            self._side_by_side([part.codes for part in parts]),
            loss,
            {name: term for part in terms for name, term in part.items()},
        )

    def _loss_weights(self) -> list[float]:
        """Squared errors make a mean over all features; nats of groups add up."""
        if self._is_shared:  # it has seen all features, as so many rows
            return [float(self.heads) if self.loss_in_nats else 1.0]
        return [1.0 if self.loss_in_nats else member.dim / self.dim for member in self.places]

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._side_by_side([member.encode(group) for member, group in self._groups(rows)])

    def _decode_rows(self, codes: Tensor) -> Tensor:
        if self._is_shared:
            return self._end_to_end([self.places[0].decode(codes.flatten(0, 1))])
        return self._end_to_end(
            [member.decode(part) for member, part in zip(self.places, codes.unbind(1), strict=True)]
        )

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._end_to_end([member.posterior_mean(group) for member, group in self._groups(rows)])

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return self._total([member.divergence(group) for member, group in self._groups(rows)])

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        draws = [member.sample_posterior(group, generator) for member, group in self._groups(rows)]
        return PosteriorSample(
            self._end_to_end([draw.values for draw in draws]),
            self._total([draw.log_prior for draw in draws]),
            self._total([draw.log_posterior for draw in draws]),
        )

    # a shared member has all groups in one batch of N heads rows; separate members have N rows each

    def _groups(self, rows: Tensor) -> list[tuple[AbstractQuantizer, Tensor]]:
        """Each member with its rows."""
        if self._is_shared:
            return [(self.places[0], rows.reshape(-1, self.places[0].dim))]
        return list(zip(self.places, rows.split([member.dim for member in self.places], dim=-1), strict=True))

    def _side_by_side(self, parts: list[Tensor]) -> Tensor:
        """Members' ``(rows, *)`` as ``(N, groups, *)``."""
        if not self._is_shared:
            return torch.stack(parts, 1)
        return parts[0].unflatten(0, (parts[0].shape[0] // self.heads, self.heads))

    def _end_to_end(self, parts: list[Tensor]) -> Tensor:
        """Members' values as ``(N, dim)``."""
        return parts[0].reshape(-1, self.dim) if self._is_shared else torch.cat(parts, -1)

    def _total(self, parts: list[Tensor]) -> Tensor:
        """Members' figures of each row ``(rows,)``, added over groups: ``(N,)``."""
        return self._side_by_side(parts).sum(1)


def commitment_weight_of(member: AbstractBottleneck) -> float:
    """Weight beta of the commitment in a member's loss: 0 if it has none or is in nats, of groups the mean."""
    if member.loss_in_nats:
        return 0.0
    if isinstance(member, AbstractWrapper):
        return commitment_weight_of(member.quantizer)
    weight = getattr(member, "commitment_weight", None)
    if weight is None and isinstance(member, AbstractComposite):
        weighed = [commitment_weight_of(part) * part.dim for part in member.places]
        return sum(weighed) / sum(part.dim for part in member.places)
    return weight or 0.0
