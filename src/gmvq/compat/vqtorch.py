r"""Coming from vqtorch: its layers' state dicts, made our quantizers.

The names, as its files have them:

- ``codebook.weight`` ``(K, L)``: the codes, of ``VectorQuant``; of ``GroupVectorQuant`` and ``ResidualVectorQuant`` all
  codebooks one after another, or one with ``share``;
- ``affine_transform.scale``, ``.bias`` ``(groups, L)``: a learned affine map of the codes, whose effect depends on a
  rate that the state does not have, :math:`\mu = (1 + r a) c + r b`;
- ``affine_transform.running_{ze,c}_{mean,var}`` ``(1, L)``: the same map from running moments instead,
  :math:`\mu = m_z + \sqrt{v_z / v_c}\, (c - m_c)`;
- ``data_initialized``, ``_counts``: progress of its start and of its replacement of codes, not needed here.

The affine map is folded into the codes: they stand where it had taken them, and learn on from there. Its loss weighs
the latents' part by 1 - beta and the codes' by beta; ours by 1 - beta and by 1, which is the same to an optimizer that
divides by the size of the gradient, as Adam does.
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
    r"""Makes our quantizer out of the state of a vqtorch layer.

    Args:
        state_dict: State of the layer, or of a model that contains it.
        prefix: Where the layer's names begin, for example ``"quantizer."``.
        groups: Number of codes of a latent, ``groups`` of ``GroupVectorQuant`` and ``ResidualVectorQuant``.
        share: Whether groups share one codebook.
        residual: Whether it is a ``ResidualVectorQuant``.
        affine_lr: The layer's ``affine_lr``, needed where its affine map is learned.
        beta: Share of the codes' part in the loss.
        cosine: Whether the layer had ``norm="l2"`` and ``cb_norm="l2c"``, which scale latents and codes to length 1.
        channels_first: Whether features are the second axis, as in its default ``dim=1``.

    Returns:
        A quantizer for latents ``(B, dim, *spatial)``, or ``(*, dim)``. Codes of several groups are each counted from
        0, where theirs go on from one codebook to the next.

    Raises:
        ValueError: If the state is not one of these, or has a normalization layer or other names below the prefix.

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
    """Codes ``(K, L)`` after the layer's affine map."""
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
                "affine_lr=..., the number that VectorQuant was made with."
            )
        scale = 1 + affine_lr * state[names["scale"]].float()
        bias = affine_lr * state[names["bias"]].float()
    else:
        return codes
    parts = codes.unflatten(0, (len(scale), -1))  # a map for each of so many runs of codes
    return torch.addcmul(bias[:, None], scale[:, None], parts).flatten(0, 1)
