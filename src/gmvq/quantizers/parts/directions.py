r"""The direction of a latent, for quantizers that compare angles.

.. math:: \hat z = \frac{z}{\max(|z|, \epsilon)}

The gradient of a direction is about :math:`1 / |z|`, and where z is zero, as for padding, :math:`1 / \epsilon`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-4
"""Latents shorter than this are scaled by its inverse, not to length 1: a shorter one is noise around zero, and a
gradient of :math:`1 / |z|` (up to 1e12 where only zero itself is caught) would throw the encoder's weights away."""


def direction(rows: Tensor) -> Tensor:
    """Rows ``(N, L)`` scaled to length 1, in value and gradient finite even for zero rows."""
    return F.normalize(rows, dim=-1, eps=SHORTEST)
