"""Inputs of a transformer beside the codes: vectors of classes and of places."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gmvq.checks import fraction
from gmvq.networks.transformer import initialize


class ClassVectors(nn.Module):
    """Learned vectors of classes, with one for no class.

    Args:
        classes: Number of classes, 0 for none.
        width: Features.
        dropout: Share of the items that are learned without their class, as guidance needs.

    Shape:
        labels ``(B,)`` or None -> ``(B, width)``.

    Raises:
        ValueError: If ``dropout`` is not in [0, 1].
    """

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        fraction("label_dropout", dropout, "Use 0.1.")
        self.classes, self.dropout = classes, dropout
        self.vectors = nn.Embedding(classes + 1, width)  # the last one is for no class
        initialize(self.vectors)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        """Returns the vectors of the classes of a batch; in training, some classes are dropped at random."""
        device = self.vectors.weight.device
        if labels is None:
            labels = torch.full((batch,), self.classes, device=device)
        elif self.training and self.dropout:
            labels = labels.masked_fill(torch.rand(batch, device=device) < self.dropout, self.classes)
        return self.vectors(labels)


def grid_vectors(axes: Iterable[Tensor]) -> Tensor:
    """Vectors of the places of a grid in raster order ``(T, width)``: the sum of the row's and the column's vector.

    Args:
        axes: Vectors along each of one or two axes, ``(places, width)``.
    """
    first, *second = axes
    return (first[:, None] + second[0]).flatten(0, 1) if second else first
