r"""Divergences of distributions over codes, and the distribution of a batch.

.. math:: \mathrm{KL}(p \,\|\, \pi) = \sum_c p_c (\log p_c - \log \pi_c), \qquad
          q_B(c) = \frac1N \sum_n q(c \mid x_n)
"""

from __future__ import annotations

import math

from torch import Tensor


def divergence_from(log_prior: Tensor | float, probabilities: Tensor) -> Tensor:
    """KL(p || prior) in nats, ``(*, K)`` -> ``(*)``; 0 where p is 0 throughout, as for a batch without a row."""
    # xlogy takes 0 log 0 for 0, but its gradient there is infinite
    return (probabilities * (probabilities.clamp_min(1e-30).log() - log_prior)).sum(-1).clamp_min(0)


def divergence_from_uniform(probabilities: Tensor) -> Tensor:
    """KL(p || uniform) in nats, log K less the entropy: ``(*, K)`` -> ``(*)``."""
    return divergence_from(-math.log(probabilities.shape[-1]), probabilities)
