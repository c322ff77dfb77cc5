"""What the other library's codebook does in ways of its own, and how gradients pass its choice of a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gmvq.quantizers.parts.estimators import AbstractEstimator, with_gradient_of

Weight = Tensor | Callable[[Tensor, Tensor], Tensor]
"""Share of a step that each code takes, ``(K,)``, or how it follows from sums ``(1, K, L)`` and counts ``(1, K)``."""


class RowCodes(ABC):
    """Codes that depend on the row they stand for."""

    @abstractmethod
    def crossed(self, codebook: Tensor, rows: slice) -> Tensor:
        """All codes of some rows: ``(K, L)`` -> ``(n, K, L)``."""

    @abstractmethod
    def chosen(self, codes: Tensor) -> Tensor:
        """One code for each row: ``(N, L)`` -> ``(N, L)``."""


@dataclass(frozen=True, repr=False)
class Ways:
    """Ways of the other library's codebook that our own quantizer does not have.

    Attributes:
        decay: Share of the past in counts and sums, in [0, 1].
        stochastic: True to draw codes in training.
        temperature: Temperature of drawn codes, above 0; at most 0 takes the nearest.
        cross_entropy: True for a commitment by the cross-entropy of a code among all.
        active_only: True to keep apart only codes that the batch takes.
        bridge: Network ``(1, K, L)`` -> ``(1, K, L)`` from the codebook to its codes.
        optimizer: Optimizer of the codebook's own steps, for its parameters.
        steps_by_hand: True if these steps wait for :meth:`PeerQuantizer.step_in_place`.
        share: This codebook's share of the latents' features, among those of all heads.
    """

    decay: float = 0.8
    stochastic: bool = False
    temperature: float = 1.0
    cross_entropy: bool = False
    active_only: bool = False
    bridge: nn.Module | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    steps_by_hand: bool = False
    share: float = 1.0

    def __repr__(self) -> str:
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = {name: value for name, value in changed.items() if value != getattr(Ways, name)}
        plain = {name: value if isinstance(value, bool | float) else "..." for name, value in shown.items()}
        return f"Ways({', '.join(f'{name}={value}' for name, value in plain.items())})"


@dataclass(frozen=True)
class Call:
    """What one forward does in another way.

    Attributes:
        temperature: Of drawn codes, in place of the codebook's own.
        weight: Share of the step that each code takes.
        accumulates: True to add statistics to those of the next forward, and to move no code before it.
        averages: False to take no statistics.
        targets: Codes ``(N,)`` whose cross-entropies' sum is a term; -1 is left out.
    """

    temperature: float | None = None
    weight: Weight | None = None
    accumulates: bool = False
    averages: bool = True
    targets: Tensor | None = None


@dataclass(frozen=True)
class Directional(AbstractEstimator):
    """The latent moved by its distance from the code, in the code's direction with noise of an absolute size.

    Args:
        deviation: Standard deviation of the noise of each feature.
    """

    trains_codebook = True
    deviation: float

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:
        """Rows ``(N, L)`` of latents and codes -> the codes, with the moved latents' gradient."""
        difference = values - latents
        distance = difference.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
        with torch.no_grad():
            way = F.normalize(difference + self.deviation * torch.randn_like(difference), dim=-1, eps=1e-6)
        return with_gradient_of(values, latents + distance * way)


@dataclass(frozen=True)
class CodeGradient(AbstractEstimator):
    """The gradient goes to the code alone, and not to the latent."""

    trains_codebook = True

    def __call__(self, latents: Tensor, values: Tensor) -> Tensor:
        """Rows ``(N, L)`` of latents and codes -> the codes."""
        return values
