r"""Product quantization: features in groups, each with its own choice of a code.

h codebooks of K vectors have :math:`K^h` points:

.. math:: x = (x_1, \dots, x_h), \quad c_g = \arg\min_k |x_g - \mu_{gk}|^2, \quad v = (\mu_{1 c_1}, \dots, \mu_{h c_h})
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.composite import AbstractComposite
from gmvq.quantizers.compositions.places import listed, prefixed
from gmvq.types import Posterior, PosteriorSample, Quantized


class Product(AbstractComposite):
    r"""Quantizes groups of features, each by its own code.

    .. math:: v = (v_1(x_1), \dots, v_h(x_h)), \qquad \mathcal{L} = \textstyle\sum_g L_g \mathcal{L}_g / \sum_g L_g

    A member's loss is a mean over its own :math:`L_g` features, so this is the mean over all features. Groups are
    independent: log-densities, entropies and divergences of members add.

    Args:
        quantizers: A list has a member for each group of consecutive features, and their ``dim`` may differ. One
            quantizer is shared between ``heads`` groups of its ``dim`` features: all are quantized together, as N heads
            rows, so that its statistics count them alike.
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
        if self._is_shared:  # it has seen all features, as N heads rows
            return [float(self.heads) if self.loss_in_nats else 1.0]
        return [1.0 if self.loss_in_nats else member.dim / self.dim for member in self.places]

    def _encode_rows(self, rows: Tensor) -> Tensor:
        return self._side_by_side([member.encode(group) for member, group in self._groups(rows)])

    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self._is_shared:
            return self._end_to_end([self.places[0]._look_up(codes.flatten(0, 1), dtype)])
        return self._end_to_end(
            [member._look_up(part, dtype) for member, part in zip(self.places, codes.unbind(1), strict=True)]
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
