r"""vector-quantize-pytorch's ``SimVQ``, by our :class:`~gmvq.SimVQ`.

.. math:: \mu_k = \mathrm{transform}(a_k), \qquad
          \mathcal{L} = w \big(|\mathrm{sg}[z] - \mu_c|^2 + \tfrac14 |z - \mathrm{sg}[\mu_c]|^2\big)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.options import read
from gmvq.compat.states import Translation
from gmvq.quantizers.parts.estimators import Rotation, StraightThrough
from gmvq.quantizers.simvq import SimVQ as LinearQuantizer


@dataclass(frozen=True)
class LinearOptions:
    """Keyword arguments of ``SimVQ``, in its order and with its defaults."""

    dim: int
    codebook_size: int
    codebook_transform: nn.Module | None = None
    init_fn: Callable[[Tensor], Tensor] | None = None
    channel_first: bool = False
    rotation_trick: bool = True
    input_to_quantize_commit_loss_weight: float = 0.25
    commitment_weight: float = 1.0
    frozen_codebook_dim: int | None = None

    def quantizer(self) -> LinearQuantizer:
        """The complete quantizer, for latents ``(*, dim)``."""
        quantizer = LinearQuantizer(
            self.dim,
            self.codebook_size,
            frozen_codebook_dim=self.frozen_codebook_dim,
            transform=self.codebook_transform,
            commitment_weight=self.commitment_weight * self.input_to_quantize_commit_loss_weight,
            quantization_weight=self.commitment_weight,
            estimator=Rotation() if self.rotation_trick else StraightThrough(),
        )
        if self.init_fn is not None:
            with torch.no_grad():
                quantizer.frozen_codebook.copy_(self.init_fn(quantizer.frozen_codebook.clone()))
        return quantizer


class SimVQ(AbstractDropIn):
    r"""Quantizes latents to learned maps of fixed codes, with the interface of vector-quantize-pytorch.

    .. math:: c = \arg\min_k |z - \mathrm{transform}(a_k)|^2

    Args:
        *arguments: Arguments of the other library's class in its order: ``dim``, ``codebook_size``,
            ``codebook_transform``, ...; see :class:`LinearOptions`.
        **options: The same by keyword, with its defaults.

    Shape:
        x ``(B, *, dim)``, or with ``channel_first`` ``(B, dim, *)`` -> quantized as x, indices ``(B, *)``, loss ``()``.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Addressing Representation Collapse in Vector Quantized Models with One Linear Layer (Zhu et al., 2024),
        https://arxiv.org/abs/2411.02038

    Example:
        >>> vq = SimVQ(dim=16, codebook_size=32, channel_first=True)
        >>> quantized, indices, commit_loss = vq(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.options = LinearOptions(*arguments, **options)
        self.quantizer = self.options.quantizer()

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return self.options.channel_first

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return self.options.codebook_size

    @property
    def commitment_weight(self) -> float:
        """Weight of the loss."""
        return self.options.commitment_weight

    @property
    def codebook(self) -> Tensor:
        """Codes, ``(K, dim)``."""
        return self.quantizer.code_vectors

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Values that forward returns for these indices, in the layout of x; 0 for -1."""
        values = self.quantizer.decode(indices)
        return values.movedim(-1, 1) if self.options.channel_first else values

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes x; returns values, indices and the loss, which is not 0 in evaluation."""
        out = self._quantize(x, self.options.channel_first and x.ndim > 2)
        return out.values, out.codes, out.loss

    def _is_theirs(self, names: list[str]) -> bool:
        return "frozen_codebook" in names

    def _translate(self, translation: Translation) -> None:
        quantizer = self.quantizer
        if not isinstance(quantizer, LinearQuantizer):
            return
        translation.put(quantizer.frozen_codebook, translation.take("frozen_codebook"))
        for name, tensor in quantizer.transform.state_dict(keep_vars=True).items():
            translation.put(tensor, translation.take(f"code_transform.{name}"))


def linear_options(module: Any, training: bool) -> LinearOptions:  # noqa: ANN401
    """Options of a ``SimVQ`` of the other library."""
    del training
    found = read(module, [each.name for each in fields(LinearOptions)])
    size, frozen_dim = module.frozen_codebook.shape
    with torch.no_grad():
        dim = module.codebook.shape[-1]
    return LinearOptions(
        **found | {"dim": dim, "codebook_size": size, "frozen_codebook_dim": frozen_dim},
        codebook_transform=copy.deepcopy(module.code_transform),
    )
