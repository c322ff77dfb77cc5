r"""vector-quantize-pytorch's ``BinaryMapper``: bits drawn one by one, as one code of :math:`2^n`.

.. math:: b_j \sim \mathrm{Bernoulli}(\sigma(z_j / \tau)), \qquad c = \sum_j 2^j b_j, \qquad
          \mathcal{L} = \max\big(0, \mathrm{KL}(q \,\|\, \mathrm{uniform}) - \kappa\big)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAT = math.log(2)
"""Nats of a bit."""


class BinaryMapper(nn.Module):
    r"""Draws bits from logits, with the interface of vector-quantize-pytorch.

    The gradient is that of the probabilities of all codes, :math:`G_c = \prod_j q_j(b_j(c))`.

    Args:
        bits: Number of bits n.
        kl_loss_threshold: :math:`\kappa`, nats that each latent may tell without a loss.
        deterministic_on_eval: True to take the more likely bits in evaluation.

    Shape:
        logits ``(*, bits)`` -> one-hot codes ``(*, 2**bits)``, loss ``()``.

    Raises:
        ValueError: If the last axis of the logits is not ``bits``.

    References:
        The Free Transformer (Fleuret, 2025), https://arxiv.org/abs/2510.17558

    Example:
        >>> one_hot, loss = BinaryMapper(bits=4)(torch.randn(2, 10, 4))
        >>> one_hot.shape, loss.shape
        (torch.Size([2, 10, 16]), torch.Size([]))
    """

    power_two: Tensor
    codes: Tensor
    """Bits of each code, booleans ``(2**bits, bits)``."""

    def __init__(self, bits: int = 1, kl_loss_threshold: float = NAT, deterministic_on_eval: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.num_codes = 2**bits
        self.kl_loss_threshold = kl_loss_threshold
        self.deterministic_on_eval = deterministic_on_eval
        powers = 2 ** torch.arange(bits)
        self.register_buffer("power_two", powers, persistent=False)
        self.register_buffer("codes", torch.arange(self.num_codes)[:, None] & powers != 0, persistent=False)

    def binary_entropy(self, logits: Tensor) -> Tensor:
        """Entropy of the bits in nats, ``(*, bits)`` -> ``(*)``."""
        return -(logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits)).sum(-1)

    def calc_aux_loss(self, logits: Tensor, reduce_aux_kl_loss: bool = True) -> Tensor:
        """Divergence from even bits above the threshold, in nats: ``()``, or ``(*)`` without reduction."""
        loss = F.relu(self.bits * NAT - self.binary_entropy(logits) - self.kl_loss_threshold)
        return loss.mean() if reduce_aux_kl_loss else loss

    def log_prob(
        self, logits: Tensor, *, indices: Tensor | None = None, one_hot: Tensor | None = None, sum_bits: bool = True
    ) -> Tensor:
        """Log-probability of codes in nats.

        Args:
            logits: Logits ``(*, bits)``.
            indices: Codes ``(*)``.
            one_hot: Instead of them, one-hot codes ``(*, 2**bits)``.
            sum_bits: False for the bits one by one, ``(*, bits)``.

        Raises:
            ValueError: If not exactly one of ``indices`` and ``one_hot`` is given.
        """
        if one_hot is not None and indices is None:
            indices = one_hot.argmax(-1)
        elif indices is None or one_hot is not None:
            raise ValueError("'indices' or 'one_hot' must be given, and not both. Leave one out.")
        log_probs = torch.where(self.codes[indices], F.logsigmoid(logits), F.logsigmoid(-logits))
        return log_probs.sum(-1) if sum_bits else log_probs

    def forward(
        self,
        logits: Tensor,
        temperature: float = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        deterministic: bool | None = None,
        return_indices: bool = False,
        reduce_aux_kl_loss: bool = True,
    ) -> tuple[Tensor, ...]:
        """Draws a code for each latent.

        Args:
            logits: Logits ``(*, bits)``.
            temperature: Divides the logits that bits are drawn from.
            straight_through: Whether one-hot codes have the gradient of the probabilities; by default in training.
            calc_aux_loss: Whether there is a loss; by default in training.
            deterministic: Whether the more likely bits are taken; by default as ``deterministic_on_eval`` says.
            return_indices: True to return indices, too.
            reduce_aux_kl_loss: False for the loss of each latent.

        Returns:
            One-hot codes, indices ``(*)`` if asked for, and the loss ``()``.
        """
        if logits.shape[-1] != self.bits:
            raise ValueError(
                f"The last axis of 'logits' must have {self.bits} bits, got shape {tuple(logits.shape)}. Put a "
                "linear layer before the mapper."
            )
        likely = deterministic if deterministic is not None else self.deterministic_on_eval and not self.training
        probabilities = (logits / temperature).sigmoid()
        bits = probabilities > 0.5 if likely else probabilities.bernoulli()
        indices = (self.power_two * bits.long()).sum(-1)
        one_hot = F.one_hot(indices, self.num_codes).to(logits.dtype)
        if self.training if straight_through is None else straight_through:
            codes = self.codes.to(logits.dtype)
            soft = (F.logsigmoid(logits) @ codes.T + F.logsigmoid(-logits) @ (1 - codes).T).exp()
            one_hot = one_hot + soft - soft.detach()
        loss = logits.new_zeros(())
        if self.training if calc_aux_loss is None else calc_aux_loss:
            loss = self.calc_aux_loss(logits, reduce_aux_kl_loss)
        return (one_hot, indices, loss) if return_indices else (one_hot, loss)
