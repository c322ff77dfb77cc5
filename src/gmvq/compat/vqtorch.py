r"""A loader for the state dicts of vqtorch's layers.

Names in them:

- ``codebook.weight`` ``(K, L)``: the codes of ``VectorQuant``; of ``GroupVectorQuant`` and ``ResidualVectorQuant`` all
  codebooks one after another, or a single one with ``share``;
- ``affine_transform.scale``, ``.bias`` ``(groups, L)``: a learned affine map of the codes, whose effect depends on a
  rate that is not in the state, :math:`\mu = (1 + r a) c + r b`;
- ``affine_transform.running_{ze,c}_{mean,var}`` ``(1, L)``: in place of it, a map from running moments,
  :math:`\mu = m_z + \sqrt{v_z / v_c}\, (c - m_c)`;
- ``data_initialized``, ``_counts``: progress of initialization and of the replacement of codes, not needed here.

The affine map is applied to the codes once, and they learn on from there. vqtorch's loss has the weights 1 - beta for
the latents' part and beta for the codes'; ours has 1 - beta and 1, which is the same to an optimizer that divides by
the size of the gradient, as Adam does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gmvq.compat.states import below, started_codebook
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.channel_first import ChannelFirst
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.compositions.residual import Residual
from gmvq.quantizers.vector import VectorQuantizer

SMALLEST_VARIANCE = 1e-8

OPTIONAL = (
    "data_initialized",
    "_counts",
    "affine_transform.scale",
    "affine_transform.bias",
    "affine_transform.running_statistics_initialized",
    *(f"affine_transform.running_{of}_{moment}" for of in ("ze", "c") for moment in ("mean", "var")),
)

MEANINGS = {
    "norm_layer": "The layer has a normalization layer: put that at the end of your encoder and leave its names out."
}


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    groups: int = 1,
    share: bool = True,
    residual: bool = False,
    affine_lr: float | None = None,
    beta: float = 0.95,
    cosine: bool = False,
    channels_first: bool = True,
) -> AbstractQuantizer | ChannelFirst:
    r"""Makes our quantizer from the state of a vqtorch layer.

    Args:
        state_dict: State of the layer, or of a model that contains it.
        prefix: Prefix of the layer's names, for example ``"quantizer."``.
        groups: Number of codes of a latent: ``groups`` of ``GroupVectorQuant`` and ``ResidualVectorQuant``.
        share: True if groups share one codebook.
        residual: True for a ``ResidualVectorQuant``.
        affine_lr: The layer's ``affine_lr``, which a learned affine map needs.
        beta: Share of the codes' part in the loss.
        cosine: True for a layer with ``norm="l2"`` and ``cb_norm="l2c"``, which scale latents and codes to length 1.
        channels_first: Whether features are the second axis, as in its default ``dim=1``.

    Returns:
        A quantizer for latents ``(B, dim, *spatial)``, or ``(*, dim)``. The codes of each group are numbered from 0,
        where vqtorch numbers those of all groups one after another.

    Raises:
        ValueError: If the state has no codes, has a normalization layer or other unknown names below the prefix, or an
            argument does not fit it.

    References:
        Straightening Out the Straight-Through Estimator (Huh et al., 2023), https://arxiv.org/abs/2305.08842

    Example:
        >>> quantizer = from_state_dict({"vq.codebook.weight": torch.randn(32, 8)}, prefix="vq.")
        >>> quantizer(torch.randn(2, 8, 4, 4)).codes.shape
        torch.Size([2, 4, 4])
    """
    state = below(state_dict, prefix, needed=["codebook.weight"], optional=OPTIONAL, meanings=MEANINGS)
    if not 0 <= beta <= 1:
        raise ValueError(f"'beta' must lie in [0, 1], got {beta}. Use 0.95.")
    weight = state["codebook.weight"].float()
    if groups < 1 or (not share and len(weight) % groups):
        raise ValueError(
            f"'groups' must divide the {len(weight)} codes, got {groups}. Set share=True or another number."
        )
    codebooks = [weight] if share else [*weight.chunk(groups)]
    members = [
        started_codebook(
            VectorQuantizer(weight.shape[1], len(codes), decay=None, commitment_weight=1 - beta, cosine=cosine),
            _mapped(codes, state, affine_lr),
        )
        for codes in codebooks
    ]
    composed = _composed(members, groups, residual)
    return ChannelFirst(composed) if channels_first else composed


def _composed(members: list[VectorQuantizer], groups: int, residual: bool) -> AbstractQuantizer:
    if groups == 1:
        return members[0]
    shared = len(members) < groups
    if residual:
        weight = members[0].commitment_weight
        return Residual(members[0] if shared else members, groups, commitment_weight=weight)
    return Product(members[0], heads=groups) if shared else Product(members)


def _mapped(codes: Tensor, state: Mapping[str, Tensor], affine_lr: float | None) -> Tensor:
    """Codes ``(K, L)`` with the layer's affine map applied."""
    names = {name.removeprefix("affine_transform."): name for name in state if name.startswith("affine_transform.")}
    if "running_ze_mean" in names:
        parts = ("running_ze_mean", "running_ze_var", "running_c_mean", "running_c_var")
        latents_mean, latents_variance, codes_mean, codes_variance = (state[names[part]].float() for part in parts)
        scale = (latents_variance / (codes_variance + SMALLEST_VARIANCE)).sqrt()
        bias = latents_mean - scale * codes_mean
    elif "scale" in names:
        if affine_lr is None:
            raise ValueError(
                "'affine_lr' must be that of the layer, whose learned affine map depends on it, got None. Pass "
                "affine_lr=..., the value that was given to VectorQuant."
            )
        scale = 1 + affine_lr * state[names["scale"]].float()
        bias = affine_lr * state[names["bias"]].float()
    else:
        return codes
    parts = codes.unflatten(0, (len(scale), -1))  # each part of the codebook has its own map
    return torch.addcmul(bias[:, None], scale[:, None], parts).flatten(0, 1)
