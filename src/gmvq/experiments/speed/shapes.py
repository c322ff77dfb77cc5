"""Shapes of measurements: N latents of L features and K codes, and random tensors of these shapes."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A size, written as ``8192x64x1024``.

    Attributes:
        rows: Number of latents N.
        features: Features L of a latent and of a code.
        codes: Number of codes K.
    """

    rows: int
    features: int
    codes: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a size.

        Raises:
            ValueError: If it is not three numbers of at least 1.

        Example:
            >>> Shape.parse("8192x64x1024")
            Shape(rows=8192, features=64, codes=1024)
        """
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
            raise ValueError(
                f"A shape must be latents x features x codes, each at least 1, got {text!r}. Write, for example, "
                "8192x64x1024."
            )
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}x{self.codes}"


def generator(seed: int) -> torch.Generator:
    """Creates a random number generator with the same numbers in every process."""
    return torch.Generator().manual_seed(seed)


@functools.lru_cache(maxsize=1)
def drawn(shape: Shape) -> tuple[Tensor, Tensor]:
    """Draws latents ``(N, L)`` and codes ``(K, L)`` from a normal distribution: no latent is close to its code."""
    source = generator(0)
    codes = torch.randn(shape.codes, shape.features, generator=source)
    return torch.randn(shape.rows, shape.features, generator=source), codes


def clustered(shape: Shape) -> Tensor:
    """Draws rows ``(N, L)`` around K normal centers, at 0.3 of their spread, as input of k-means."""
    source = generator(0)
    centers = torch.randn(shape.codes, shape.features, generator=source)
    places = torch.randint(shape.codes, (shape.rows,), generator=source)
    return centers[places] + 0.3 * torch.randn(shape.rows, shape.features, generator=source)
