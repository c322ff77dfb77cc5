r"""Normalization layers, whose statistics do not depend on how items are batched, padded or spread over processes.

Batch normalization is over all places of the batches of all processes. From the number of places n, the mean m and the
sum of squared deviations s of each rank r,

.. math:: N = \sum_r n_r, \quad m = \frac1N \sum_r n_r m_r, \quad v = \frac1N \sum_r \big(s_r + n_r (m_r - m)^2\big)

References:
    Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979): stable where means
    are far from 0, unlike sums of squares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.distributed import gather_over_ranks, world_size


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each place.

    It depends on one place alone, so a network trained on windows computes the same on whole items; group normalization
    takes its statistics over all places and does not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, C, *S)`` to the same shape."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group normalization, over the places of a sequence that count."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps ``(B, C, *S)`` to the same shape; with a mask ``(B, *S)`` the statistics are of the places in it."""
        if mask is None:
            return super().forward(input)
        groups = _precise(input).unflatten(1, (self.num_groups, -1))
        inside = mask[:, None, None]
        axes = tuple(range(2, groups.ndim))
        number = (mask.flatten(1).sum(1) * groups.shape[2]).clamp_min(1).reshape(-1, *[1] * (groups.ndim - 1))
        mean = torch.where(inside, groups, 0).sum(axes, keepdim=True) / number
        variance = torch.where(inside, (groups - mean).square(), 0).sum(axes, keepdim=True) / number
        normalized = ((groups - mean) * (variance + self.eps).rsqrt()).flatten(1, 2)
        return _scaled(normalized, self.weight, self.bias).to(input.dtype)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalization of vectors ``(B, C)`` and sequences ``(B, C, T)`` over the places that count, of all ranks.

    In training every rank calls it equally often, and gradients go through the statistics.
    """

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps features to the same shape; with a mask ``(B)`` or ``(B, T)`` the statistics are of the places in it."""
        return super().forward(input) if _alone(self, mask) else _over_ranks(self, input, mask)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of images ``(B, C, H, W)``, like :class:`BatchNorm1d`."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps features to the same shape; with a mask ``(B, H, W)`` the statistics are of the places in it."""
        return super().forward(input) if _alone(self, mask) else _over_ranks(self, input, mask)


class BatchNorm3d(nn.BatchNorm3d):
    """Batch normalization of volumes ``(B, C, D, H, W)``, like :class:`BatchNorm1d`."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps features to the same shape; with a mask ``(B, D, H, W)`` the statistics are of the places in it."""
        return super().forward(input) if _alone(self, mask) else _over_ranks(self, input, mask)


def _alone(layer: nn.Module, mask: Tensor | None) -> bool:
    """Returns True where torch's own layer does the same."""
    return not layer.training or (mask is None and world_size() == 1)


def _over_ranks(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, input: Tensor, mask: Tensor | None) -> Tensor:
    """Normalizes by the statistics of all ranks, and moves the running ones toward them."""
    features = _precise(input)
    number, mean, variance = _statistics(features, mask)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    assert layer.momentum is not None
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)
        layer.running_mean.lerp_(mean.to(layer.running_mean), layer.momentum)
        unbiased = variance * (number / (number - 1).clamp_min(1))
        layer.running_var.lerp_(unbiased.to(layer.running_var), layer.momentum)
    normalized = (features - _shaped(mean, input)) * _shaped((variance + layer.eps).rsqrt(), input)
    return _scaled(normalized, layer.weight, layer.bias).to(input.dtype)


def _statistics(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Computes number N ``()``, mean and variance ``(C,)`` over the places that count, of all ranks."""
    rows = features.movedim(1, -1).flatten(0, -2)
    kept = torch.ones_like(rows[:, :1]) if mask is None else mask.reshape(-1, 1).to(rows.dtype)
    n = kept.sum(0)
    m = torch.where(kept > 0, rows, 0).sum(0) / n.clamp_min(1)
    s = torch.where(kept > 0, (rows - m).square(), 0).sum(0)
    parts = gather_over_ranks(torch.cat([n, m, s]))  # (ranks, 1 + 2 C)
    n, m, s = parts.split([1, rows.shape[1], rows.shape[1]], dim=1)
    number = n.sum().clamp_min(1)
    mean = (n * m).sum(0) / number
    return number, mean, (s + n * (m - mean).square()).sum(0) / number


def _precise(features: Tensor) -> Tensor:
    """Converts half precisions to float32, in which statistics are computed."""
    return features if features.dtype == torch.float64 else features.float()


def _shaped(values: Tensor, features: Tensor) -> Tensor:
    """Shapes values of channels ``(C,)`` for features ``(B, C, *S)``."""
    return values.reshape(-1, *[1] * (features.ndim - 2))


def _scaled(normalized: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normalized * _shaped(weight, normalized) + _shaped(bias, normalized)
