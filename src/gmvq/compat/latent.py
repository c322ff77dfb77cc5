r"""vector-quantize-pytorch's ``LatentQuantize``, by our :class:`~gmvq.LatentQuantizer`.

The loss compares latents and values *outside* the projection. The values of the codebook get no gradient from it, nor
from the task: they stay where they start, as in the original.

.. math:: \mathcal{L} = w_c\, |\mathrm{sg}[x] - v|^2 + w_q\, |x - \mathrm{sg}[v]|^2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.options import read
from gmvq.compat.projections import inside, projected, put_projection
from gmvq.compat.states import Translation
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.scalar import LatentQuantizer


class MissingSizeError(ValueError, RuntimeError):
    """Raised for one number of levels without a number of features; the original raises a RuntimeError."""


class LatentQuantize(AbstractDropIn):
    r"""Takes each feature to the nearest of a few values of its own, with the interface of vector-quantize-pytorch.

    Args:
        levels: Number of values of each feature of a code; an integer is that of all ``codebook_dim`` features.
        dim: Features of a latent.
        commitment_loss_weight: w_c.
        quantization_loss_weight: w_q.
        num_codebooks: Number of codes of a latent, all with the same values.
        codebook_dim: Features of a code where ``levels`` is an integer.
        keep_num_codebooks_dim: True for an axis of indices for a single codebook, too.
        optimize_values: True if the values are parameters.
        in_place_codebook_optimizer: None; the original fails in training with any other.

    Shape:
        x ``(B, dim, *spatial)`` -> quantized as x, indices ``(B, *spatial)`` or with several codebooks
        ``(B, *spatial, num_codebooks)``, loss ``()``.

    Raises:
        ValueError: If an argument is out of range or not supported; for an integer of levels without ``codebook_dim``
            it is a RuntimeError, too.

    References:
        Disentanglement via Latent Quantization (Hsu et al., 2023), https://arxiv.org/abs/2305.18378

    Example:
        >>> quantized, indices, loss = LatentQuantize(levels=[5, 5, 8], dim=16)(torch.randn(2, 16, 4, 4))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(
        self,
        levels: Sequence[int] | int,
        dim: int,
        commitment_loss_weight: float = 0.1,
        quantization_loss_weight: float = 0.1,
        num_codebooks: int = 1,
        codebook_dim: int = -1,
        keep_num_codebooks_dim: bool | None = None,
        optimize_values: bool = True,
        in_place_codebook_optimizer: None = None,
    ) -> None:
        super().__init__()
        if in_place_codebook_optimizer is not None:
            raise ValueError(
                "'in_place_codebook_optimizer' must be None, got one. Use gmvq.LatentQuantizer, whose values learn by "
                "the optimizer of the model."
            )
        self.levels = _levels(levels, codebook_dim)
        self.commitment_loss_weight = commitment_loss_weight
        self.quantization_loss_weight = quantization_loss_weight
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = bool(keep_num_codebooks_dim) or num_codebooks > 1
        self.optimize_values = optimize_values
        # its own losses are of no use here: only a weight above 0 makes values parameters
        member = LatentQuantizer(
            self.levels, commitment_weight=0.0, quantization_weight=1.0 if optimize_values else 0.0
        )
        self.quantizer = projected(Product(member, heads=num_codebooks) if self.keep_num_codebooks_dim else member, dim)

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of every x."""
        return True

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a codebook."""
        return self._member.codebook_size

    @property
    def codebook_dim(self) -> int:
        """Features of a code of one codebook."""
        return len(self.levels)

    @property
    def effective_codebook_dim(self) -> int:
        """Features of the codes of all codebooks."""
        return self.num_codebooks * self.codebook_dim

    @property
    def has_projections(self) -> bool:
        """True if there are linear maps around the codebooks."""
        return self.dim != self.effective_codebook_dim

    @property
    def implicit_codebook(self) -> Tensor:
        """Values of all codes of a codebook, ``(K, L)``."""
        return self._member.codebook

    @property
    def _member(self) -> LatentQuantizer:
        return next(module for module in self.quantizer.modules() if isinstance(module, LatentQuantizer))

    def quantize(self, z: Tensor) -> Tensor:
        """Nearest values of each feature, ``(*, L)`` -> ``(*, L)``, with the gradient of z."""
        return self._member(z).values

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Indices of values of a codebook, ``(*, L)`` -> int64 ``(*)``."""
        return self._member.encode(zhat)

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Values that forward returns for these indices, in the layout of x.

        Args:
            indices: Int64 codes; -1 gives 0.
            project_out: False returns the values inside the projection.
        """
        quantizer = self.quantizer if project_out else inside(self.quantizer)
        return quantizer.decode(indices).movedim(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes z; returns values in its layout, indices, and the loss, 0 in evaluation."""
        values, codes, loss, _ = self._quantize(z, channels_first=True)
        if not self.training:
            return values, codes, torch.zeros_like(loss)
        commitment = F.mse_loss(values, z.detach())
        quantization = F.mse_loss(z, values.detach())
        loss = self.commitment_loss_weight * commitment + self.quantization_loss_weight * quantization
        return values, codes, loss

    def _is_theirs(self, names: list[str]) -> bool:
        return not any(name.startswith("quantizer.") for name in names)  # the original may have an empty state

    def _translate(self, translation: Translation) -> None:
        put_projection(translation, self.quantizer)
        if not self.optimize_values:
            return
        parts = [translation.take(f"values_per_latent.{feature}") for feature in range(len(self.levels))]
        found = [part for part in parts if part is not None]
        translation.put(self._member.values, torch.cat(found) if len(found) == len(parts) else None)


def latent_options(module: Any) -> dict[str, Any]:  # noqa: ANN401
    """Keyword arguments of a ``LatentQuantize`` of the other library."""
    return {
        **read(module, ["dim", "num_codebooks", "keep_num_codebooks_dim"]),
        "levels": module._levels.tolist(),
        "commitment_loss_weight": float(module.commitment_loss_weight),
        "quantization_loss_weight": float(module.quantization_loss_weight),
        "optimize_values": isinstance(module.values_per_latent, nn.ParameterList),
    }


def _levels(levels: Sequence[int] | int, codebook_dim: int) -> list[int]:
    if isinstance(levels, int):
        if codebook_dim < 1:
            raise MissingSizeError(
                f"'codebook_dim' must be at least 1 where 'levels' is an integer, got {codebook_dim}. Give the number "
                "of features of a code, or a list of levels."
            )
        return [levels] * codebook_dim
    if codebook_dim > 0 and codebook_dim != len(levels):
        raise ValueError(
            f"'codebook_dim' must be the number of 'levels', {len(levels)}, got {codebook_dim}. Leave it out."
        )
    return list(levels)
