"""The dropout of levels of vector-quantize-pytorch: which levels take part in a forward in training."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from gmvq.distributed import broadcast

DROPOUT = ("quantize_dropout", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of")
"""Options of the dropout of levels."""

MOST_SEEDS = 10_000
"""Seeds of the dropout of levels, as many as in the original: the same generator draws the same levels."""


@dataclass(frozen=True)
class LevelDropout:
    """Leaves the last levels out of forwards in training.

    Attributes:
        levels: Number of levels.
        applies: True to leave levels out.
        cutoff: Index of the first level that may be the last one left.
        multiple_of: The number of levels left is rounded up to a multiple of this.

    Raises:
        ValueError: If ``cutoff`` is not the index of a level, or ``multiple_of`` is below 1.
    """

    levels: int
    applies: bool = False
    cutoff: int = 0
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < self.levels:
            raise ValueError(
                f"'quantize_dropout_cutoff_index' must lie in [0, {self.levels}), got {self.cutoff}. Use 0 to leave "
                "at least one level."
            )
        if self.multiple_of < 1:
            raise ValueError(
                f"'quantize_dropout_multiple_of' must be at least 1, got {self.multiple_of}. Leave it out."
            )

    def left(self, seed: int | None, device: torch.device) -> int:
        """Number of levels that take part in a forward in training, drawn with a seed or a new one for all ranks."""
        if not self.applies or self.levels == 1:
            return self.levels
        number = random.Random(drawn_seed(device) if seed is None else seed).randrange(self.cutoff, self.levels) + 1
        return min(-(-number // self.multiple_of) * self.multiple_of, self.levels)


def drawn_seed(device: torch.device) -> int:
    """A seed that all ranks share."""
    return int(broadcast(torch.randint(0, MOST_SEEDS, (), device=device)))
