"""Base class of quantizers that have other quantizers at their places.

::

    rows (N, dim) --composite--> rows of each place --member(rows, kept)--> Quantized of each --composite--> Quantized

A composite has a number of *places*, each with a member: a level of a residual quantizer, a group of features, a scale.
A latent has one code for each place, so ``code_shape`` is ``(places,) + member.code_shape``, and a member may be a
composite itself. One member may serve all places (a shared codebook): it is stored once and updated once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractBottleneck, AbstractQuantizer, NoPosteriorError
from gmvq.quantizers.compositions.wrapper import AbstractWrapper
from gmvq.quantizers.parts.checks import checked_codes
from gmvq.types import Posterior, PosteriorSample


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
        """Raises an error, since a composite has no single codebook.

        Raises:
            TypeError: Always: a composite has a codebook for each member.
        """
        raise TypeError(f"{type(self).__name__} has a codebook for each member. Use .members[i].code_vectors.")

    @property
    def codebook(self) -> Tensor:
        """Raises an error, since a composite has no single codebook.

        Raises:
            TypeError: Always: a composite has a codebook for each member.
        """
        raise TypeError(f"{type(self).__name__} has a codebook for each member. Use .members[i].codebook.")

    @property
    def loss_in_nats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the members' losses are in nats per token."""
        return self.places[0].loss_in_nats

    def update(self) -> None:
        """Folds the statistics of past forwards into each member's codebook, once; frozen members stay."""
        for member in self.members:
            if isinstance(member, AbstractQuantizer) and not member.frozen:
                member.update()

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        axes = len(self.code_shape)
        if codes.ndim < axes or not self._fits(shape := tuple(codes.shape[codes.ndim - axes :])):
            raise ValueError(
                f"'codes' must have {self.code_shape} codes for each latent in the last axes, got shape "
                f"{tuple(codes.shape)}. Pass what encode() returned."
            )
        rows = checked_codes(codes, self.codebook_size).reshape(-1, *shape)
        with torch.autocast(self.training_progress.device.type, enabled=False):  # as in the forward
            values = self._decode_rows(rows, dtype)
            values = self._outside(values.to(dtype or values.dtype))
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
            NoPosteriorError: If the composite has no posterior.
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

    @abstractmethod
    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Values ``(N, L)`` of codes ``(N, *code_shape)``, -1 among them: such places add 0.

        Members look up in the type that is given, or in that of their state.
        """

    def _posterior_mean_rows(self, rows: Tensor) -> Tensor:
        return self._decode_rows(self._encode_rows(rows), rows.dtype).to(rows.dtype)

    def _log_number_of_codes(self) -> float:
        return sum(math.log(size) for size in self.codebook_sizes)

    def _divergence_rows(self, rows: Tensor) -> Tensor:
        return rows.new_full(rows.shape[:1], self._log_number_of_codes())

    def _sample_rows(self, rows: Tensor, generator: torch.Generator | None) -> PosteriorSample:
        log_posterior = rows.new_zeros(rows.shape[0])
        log_prior = log_posterior - self._log_number_of_codes()
        return PosteriorSample(self._posterior_mean_rows(rows), log_prior, log_posterior)


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
