r"""Maps that vector-quantize-pytorch puts around its codebooks, as projections of our :class:`~gmvq.Projected`.

.. math:: z = \mathrm{in}(x), \qquad v = \mathrm{out}(\mathrm{quantize}(z))

They are two independent linear maps, with an optional normalization, soft limit, rotation or scale. So encoding the
values of codes need not return the same codes, as it does with our own projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.states import Translation
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.projected import Projected


class SoftClamp(nn.Module):
    r"""Limits features smoothly, :math:`l \tanh(x / l)`.

    Args:
        limit: l, a number or one number per feature.
    """

    limit: Tensor

    def __init__(self, limit: float | list[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("limit", torch.as_tensor(limit, dtype=torch.float32), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``(N, L)`` -> ``(N, L)``."""
        limit = self.limit.to(rows.dtype)
        return (rows / limit).tanh() * limit


class Scale(nn.Module):
    """Divides or multiplies each feature by a number.

    Args:
        scale: A number per feature, ``(L,)``.
        divides: True to divide, False to multiply.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, divides: bool) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.divides = divides

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``(N, L)`` -> ``(N, L)``."""
        scale = self.scale.to(rows.dtype)
        return rows / scale if self.divides else rows * scale


class FixedRotation(nn.Module):
    """A random rotation that does not learn.

    Args:
        dim: Features L.
    """

    rotation: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("rotation", nn.init.orthogonal_(torch.empty(dim, dim)))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``(N, L)`` -> ``(N, L)``."""
        return rows @ self.rotation.to(rows.dtype)

    def around(self, quantizer: AbstractQuantizer) -> Projected:
        """Wraps a quantizer: it gets rotated latents, and its values are rotated back."""
        return Projected(quantizer, quantizer.dim, project_in=self, project_out=_Back(self))


class _Back(nn.Module):
    """The inverse of a rotation, whose matrix it shares."""

    def __init__(self, forth: FixedRotation) -> None:
        super().__init__()
        self.forth = forth

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.forth.rotation.to(rows.dtype).T


class CosineLinear(nn.Module):
    r"""Cosines of the latent with learned directions, :math:`s \frac{x}{|x|} \cdot \frac{w_l}{|w_l|}`.

    Args:
        dim: Features of x.
        code_dim: Number of directions L.
        scale: Factor s of the cosines.
    """

    def __init__(self, dim: int, code_dim: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim, code_dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``(N, dim)`` -> ``(N, L)``."""
        return F.normalize(rows, dim=-1) @ F.normalize(self.weight, dim=0) * self.scale


def projected(
    inner: AbstractQuantizer,
    dim: int,
    *,
    linear: bool | None = None,
    bias: bool = True,
    way_in: nn.Module | None = None,
    then: nn.Module | None = None,
) -> AbstractQuantizer:
    """Wraps a quantizer in the other library's projections; without any, returns the quantizer itself.

    Args:
        inner: Quantizer of any dimension.
        dim: Features of a latent outside the projection.
        linear: Whether to use linear maps; by default, if the dimensions differ.
        bias: Whether the linear maps have a bias.
        way_in: Module that replaces the linear map into the codebook's space.
        then: Module that follows it, before the codebook.
    """
    linear = inner.dim != dim if linear is None else linear
    if not linear and then is None:
        return inner
    ways = [way_in or nn.Linear(dim, inner.dim, bias=bias)] if linear else []
    way_out = nn.Linear(inner.dim, dim, bias=bias) if linear else nn.Identity()
    return Projected(
        inner, dim, project_in=nn.Sequential(*ways, *([] if then is None else [then])), project_out=way_out
    )


def inside(quantizer: AbstractQuantizer) -> AbstractQuantizer:
    """The quantizer inside the projection that :func:`projected` made."""
    return quantizer.quantizer if isinstance(quantizer, Projected) else quantizer


def put_projection(translation: Translation, quantizer: AbstractQuantizer, name: str = "") -> None:
    """Loads the other library's ``project_in`` and ``project_out``.

    Args:
        translation: The state to take them from.
        quantizer: Return value of :func:`projected`.
        name: Prefix of their names.
    """
    if not isinstance(quantizer, Projected):
        return
    ways = quantizer.project_in if isinstance(quantizer.project_in, nn.Sequential) else nn.Sequential()
    # a single layer has no number in its name there
    numbered = translation.has(f"{name}project_in.0.weight")
    for place, way in enumerate(way for way in ways if list(way.parameters())):
        translation.layer(way, f"{name}project_in.{place}" if numbered else f"{name}project_in")
    if quantizer.project_out is not None:
        translation.layer(quantizer.project_out, f"{name}project_out")


def put_rotation(translation: Translation, quantizer: AbstractQuantizer, name: str = "") -> None:
    """Loads the other library's fixed rotation, which all codebooks share."""
    for module in quantizer.modules():
        if isinstance(module, FixedRotation):
            translation.put(module.rotation, translation.take(f"{name}orthogonal_rot"))
