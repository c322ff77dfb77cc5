"""The codes and labels that a prior takes: how many there are of them, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmvq.checks import at_least

Integers = Tensor | np.ndarray | Sequence[Any]
"""Types of codes and labels that are accepted: a tensor, an array or lists."""


@dataclass(frozen=True)
class CodeShape:
    """Shape of the codes of an item.

    Args:
        grid: Places along each axis, at most 2 axes; no axes for vectors, which have one place.
        codebook_sizes: Number of codes K of each level of a place; a single level has no axis.
        classes: Number of classes that codes can be conditioned on, 0 for none.

    Raises:
        ValueError: If there are more axes, or a number is not an integer of at least 1 (0 for classes).
    """

    grid: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    classes: int = 0

    def __post_init__(self) -> None:
        for name, example in (("grid", "(8, 8)"), ("codebook_sizes", "(512,)")):
            values = tuple(getattr(self, name))
            checked = tuple(at_least(name, value, 1, f"Give for example {example}.") for value in values)
            object.__setattr__(self, name, checked)  # JSON gives lists
        if not self.codebook_sizes:
            raise ValueError("'codebook_sizes' must have a number for each level, got none. Give for example (512,).")
        if len(self.grid) > 2:
            raise ValueError(f"'grid' must have at most 2 axes, got {self.grid}. Flatten the others.")
        object.__setattr__(self, "classes", at_least("classes", self.classes, 0, "Use 0 for none."))

    @property
    def levels(self) -> int:
        """Number of codes of a place."""
        return len(self.codebook_sizes)

    @property
    def sides(self) -> tuple[int, ...]:
        """Places along each axis; a grid without axes has one axis of one place here."""
        return self.grid or (1,)

    @property
    def places(self) -> int:
        """Number of places T; 1 for a grid without axes."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Number of codes S of an item."""
        return self.places * self.levels

    @property
    def axes(self) -> tuple[int, ...]:
        """Shape of the codes of one item."""
        return (*self.grid, self.levels) if self.levels > 1 else self.grid

    def checked(self, codes: Integers, *, ranges: bool = True) -> Tensor:
        """Checks codes and returns them as int64 ``(B, *axes)``.

        Args:
            codes: Integers of any type, as a tensor, an array or lists.
            ranges: True to check the values, too, which waits for a GPU.

        Raises:
            ValueError: If they are not integers of this shape, or outside their codebooks.
        """
        codes = as_tensor("codes", codes)
        if not _holds_integers(codes) or codes.ndim != len(self.axes) + 1 or tuple(codes.shape[1:]) != self.axes:
            raise ValueError(
                f"'codes' must be integers of shape ({', '.join(['B', *map(str, self.axes)])}), got {codes.dtype} "
                f"{tuple(codes.shape)}. Pass what the tokenizer's encode() returned."
            )
        codes = codes.long()
        if ranges and codes.numel():
            sizes = torch.tensor(self.codebook_sizes, device=codes.device)
            by_level = codes.reshape(-1, self.levels)
            if bool((by_level < 0).any()) or bool((by_level >= sizes).any()):
                raise ValueError(
                    f"'codes' must lie in [0, {', '.join(map(str, self.codebook_sizes))}), got {int(codes.min())} to "
                    f"{int(codes.max())}. Masked codes have no likelihood: leave such items out."
                )
        return codes

    def checked_labels(
        self, labels: Integers | None, batch: int, device: torch.device, *, ranges: bool = True
    ) -> Tensor | None:
        """Checks labels and returns them as int64 ``(B,)`` on a device; None stays None.

        Args:
            labels: Integers of any type, as a tensor, an array or a list.
            batch: Number of items B.
            device: Device of the result.
            ranges: True to check the values, too, which waits for a GPU.

        Raises:
            ValueError: If there are labels without classes, or they are not one integer per item or out of range.
        """
        if labels is None:
            return None
        if not self.classes:
            raise ValueError("'labels' must be None for a prior without classes. Leave them out, or fit one with them.")
        labels = as_tensor("labels", labels)
        if labels.shape != (batch,) or not (_holds_integers(labels) or batch == 0):
            raise ValueError(
                f"'labels' must be {batch} integers, got {labels.dtype} {tuple(labels.shape)}. Give one per item."
            )
        if ranges and batch and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(
                f"'labels' must lie in [0, {self.classes}), got {int(labels.min())} to {int(labels.max())}. Use "
                "classes that the prior has learned."
            )
        return labels.long().to(device)


def as_tensor(name: str, values: Integers) -> Tensor:
    """Returns a tensor unchanged, and an array or lists as a new tensor.

    Raises:
        ValueError: If the values are not numbers, or the lists differ in length.
    """
    if isinstance(values, Tensor):
        return values
    try:
        return torch.as_tensor(np.array(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"'{name}' must be a tensor, an array or lists of integers, got {type(values).__name__} ({error}). Give "
            "for example torch.tensor([0, 1])."
        ) from error


def _holds_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
