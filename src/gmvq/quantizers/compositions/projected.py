r"""A quantizer in another space: in lower dimension, on the sphere, or behind any two maps.

.. math:: v = \mathrm{out}\big(\mathrm{quantize}(\mathrm{in}(x))\big)

In few dimensions the codes lie dense against the latents, and all of them are used; on the sphere the choice is by the
angle alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.wrapper import AbstractWrapper, check_inside, kind
from gmvq.quantizers.parts.checks import positive_integer
from gmvq.quantizers.parts.directions import direction
from gmvq.quantizers.parts.rows import as_type


class Projected(AbstractWrapper, AbstractQuantizer):  # pyright: ignore[reportIncompatibleVariableOverride]
    r"""Puts maps around a quantizer, which sees and gives latents of its own dimension.

    .. math:: z = \mathrm{in}(x) \;\; \big(z / |z| \text{ with } \texttt{normalize}\big), \qquad
              v = \mathrm{out}(\mathrm{quantize}(z))

    Tied, the way out is :math:`z D^T + b` and the way in its pseudo-inverse :math:`(x - b) D (D^T D)^{-1}`: the codes
    of decoded codes are the codes. Two independent linear maps do not keep that law. Tied to a
    quantizer of as many features there is no map at all: latents go in, and values come out, as they are.

    Args:
        quantizer: The quantizer inside, of any dimension.
        dim: Features of a latent outside.
        normalize: Scale latents to length 1 before they are quantized, for a quantizer that does not do so itself as
            ``cosine=True`` does. One shorter than 1e-4 stays shorter than 1, so that its gradient is bounded.
        tied: True for a linear map and its pseudo-inverse, to a dimension below ``dim``, and no map to ``dim`` itself;
            False for two separate ``nn.Linear``.
        project_in: Any module ``(N, dim)`` -> ``(N, quantizer.dim)`` instead, together with ``project_out``.
        project_out: Any module ``(N, quantizer.dim)`` -> ``(N, dim)`` instead.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, *quantizer.code_shape)``, loss ``()`` of the quantizer,
        in its own space.

    Raises:
        ValueError: If ``quantizer`` does not quantize rows, it is tied to a dimension above ``dim``, only one of
            two modules is given, or the last axis of the latents is not ``dim``.

    References:
        Vector-quantized Image Modeling with Improved VQGAN (Yu et al., 2021), https://arxiv.org/abs/2110.04627

    Example:
        >>> from gmvq.quantizers.vector import VectorQuantizer
        >>> quantizer = Projected(VectorQuantizer(dim=4, codebook_size=64), dim=32, normalize=True)
        >>> quantizer(torch.randn(2, 10, 32)).values.shape
        torch.Size([2, 10, 32])
        >>> quantizer.codebook.shape
        torch.Size([64, 32])
    """

    citations: tuple[str, ...] = ("improved_vqgan_yu2021",)
    quantizer: AbstractQuantizer  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        quantizer: AbstractQuantizer,
        dim: int,
        *,
        normalize: bool = False,
        tied: bool = True,
        project_in: nn.Module | None = None,
        project_out: nn.Module | None = None,
    ) -> None:
        check_inside(quantizer, "VectorQuantizer(8, 512)")
        dim = positive_integer("dim", dim)
        for name, module in (("project_in", project_in), ("project_out", project_out)):
            if not isinstance(module, nn.Module | None):
                raise ValueError(f"'{name}' must be a module, got {kind(module)}. Pass for example nn.Linear(64, 8).")
        if (project_in is None) != (project_out is None):
            raise ValueError(
                "'project_in' and 'project_out' must be given together, got one of them. Use nn.Identity() as "
                "the other."
            )
        is_linear_pair = project_in is None and not tied
        if tied and project_in is None and quantizer.dim > dim:
            raise ValueError(
                f"'dim' must be at least {quantizer.dim}, that of the quantizer, where the maps are tied, got {dim}. "
                "Set tied=False."
            )
        super().__init__(quantizer, dim, quantizer.dim if tied and project_in is None else None)
        self.codebook_dim = quantizer.dim
        self.normalize = normalize
        self.project_in = nn.Linear(dim, quantizer.dim) if is_linear_pair else project_in
        self.project_out = nn.Linear(quantizer.dim, dim) if is_linear_pair else project_out

    @property
    def codebook_size(self) -> int:
        """Number of codes K of the quantizer."""
        return self.quantizer.codebook_size

    def _inside(self, rows: Tensor, kept: Tensor) -> Tensor:
        rows = _through(self.project_in, super()._inside(rows, kept))
        return direction(rows) if self.normalize else rows

    def _outside(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return _through(self.project_out, super()._outside(values))

    def _look_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        values = self.quantizer._look_up(codes, dtype)
        shape = values.shape[:-1]
        outside = self._outside(values.reshape(-1, self.quantizer.dim)).reshape(*shape, self.dim)
        present = (codes >= 0).reshape(*shape, math.prod(codes.shape[len(shape) :])).any(-1)
        return outside * present[..., None]


def _through(module: nn.Module | None, rows: Tensor) -> Tensor:
    """Rows through a module in the module's own precision, given back in theirs."""
    if module is None:
        return rows
    dtype = next((parameter.dtype for parameter in module.parameters()), rows.dtype)
    return as_type(module(as_type(rows, dtype)), rows.dtype)
