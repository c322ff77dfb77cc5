"""Conversion of modules of vector-quantize-pytorch to our quantizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from gmvq.compat.binary import LFQ, binary_options
from gmvq.compat.dropin import AbstractDropIn
from gmvq.compat.latent import LatentQuantize, latent_options
from gmvq.compat.linear import SimVQ, linear_options
from gmvq.compat.residual import GroupedResidualVQ, ResidualVQ
from gmvq.compat.residual_groups import AbstractResidualGroups, GroupedResidualFSQ, GroupedResidualLFQ
from gmvq.compat.residual_layers import AbstractResidualLayers, ResidualLFQ, ResidualSimVQ
from gmvq.compat.residual_options import residual_options
from gmvq.compat.scalar import FSQ, ResidualFSQ, residual_scalar_options, scalar_options
from gmvq.compat.vector import VectorQuantize
from gmvq.compat.vector_options import vector_options
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.channel_first import ChannelFirst

Composed = AbstractResidualLayers | AbstractResidualGroups

Reader = Callable[[Any, bool], Any]

KINDS: dict[str, tuple[type[AbstractDropIn], Reader]] = {
    "VectorQuantize": (VectorQuantize, vector_options),
    "ResidualVQ": (ResidualVQ, residual_options),
    "FSQ": (FSQ, scalar_options),
    "ResidualFSQ": (ResidualFSQ, residual_scalar_options),
    "LFQ": (LFQ, binary_options),
    "SimVQ": (SimVQ, linear_options),
}
"""By class name: our class of the same name, and the function that reads a module's options."""

COMPOSED: tuple[type[Composed], ...] = (GroupedResidualLFQ, GroupedResidualFSQ, ResidualLFQ, ResidualSimVQ)
"""Our classes that are made of parts, each converted by itself."""


def convert(module: nn.Module, training: bool = True) -> AbstractQuantizer | ChannelFirst:
    """Makes our quantizer from a module of vector-quantize-pytorch, with the same codes, values and statistics.

    The result has our own interface, for latents ``(*, dim)``, or ``(B, dim, *spatial)`` if the module takes channels
    second::

        quantizer = convert(vector_quantize_pytorch.VectorQuantize(dim=256, codebook_size=512, codebook_dim=16))
        values, codes, loss, terms = quantizer(latents)

    Args:
        module: A ``VectorQuantize``, ``FSQ``, ``LFQ``, ``SimVQ`` or ``LatentQuantize``, or a ``Residual...`` or
            ``GroupedResidual...`` of them, recognized by the name of its class.
        training: False ignores options that only matter in training, instead of refusing those that are not supported.

    Returns:
        A quantizer or a composition of quantizers, which shares no memory with the module.

    Raises:
        ValueError: If the module is of another class, or has an option that is not supported.
    """
    dropin = _loaded(module, training, own=True)
    quantizer = ChannelFirst(dropin.quantizer) if dropin.channels_first else dropin.quantizer
    return quantizer.train(module.training)


def dropin_of(module: nn.Module, training: bool = True) -> AbstractDropIn | Composed:
    """Makes our class of the same name, with the options and the state of a module of vector-quantize-pytorch.

    Args:
        module: The module.
        training: As for :func:`convert`.

    Raises:
        ValueError: If the module is of another class, or has an option that is not supported.
    """
    return _loaded(module, training, own=False)


def _loaded(module: nn.Module, training: bool, own: bool) -> AbstractDropIn | Composed:
    dropin = _empty(module, training)
    for part in dropin.modules() if own else ():
        if isinstance(part, AbstractDropIn):
            part.quantizer = part.own_quantizer()
    state = module.state_dict()
    dropin.load_state_dict(state)
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    if floats:
        dropin.to(device=floats[0].device)
        if floats[0].dtype != torch.float32:
            dropin.to(floats[0].dtype)  # half precisions are those of the maps and of what is decoded
            dropin.load_state_dict(state)  # again, for what was rounded to float32 above
    return dropin.train(module.training)


def _empty(module: Any, training: bool) -> AbstractDropIn | Composed:  # noqa: ANN401
    names = [kind.__name__ for kind in type(module).__mro__]
    if "GroupedResidualVQ" in names:
        options = _arguments(residual_options(module.rvqs[0], training)) | {"dim": module.dim}
        return GroupedResidualVQ(groups=module.groups, **options)
    for kind in COMPOSED:
        if kind.__name__ in names:
            return kind.like(module, [_empty(part, training) for part in getattr(module, kind.PARTS)])
    if "LatentQuantize" in names:
        return LatentQuantize(**latent_options(module))
    for name, (kind, reader) in KINDS.items():
        if name in names:
            return kind(**_arguments(reader(module, training)))
    raise ValueError(
        f"'module' must be one of {', '.join((*KINDS, *(kind.__name__ for kind in COMPOSED)))}, GroupedResidualVQ, "
        f"LatentQuantize, got {type(module).__name__}. Load its state into our class of the same name."
    )


def _arguments(options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Keyword arguments that make the same options, those for the levels among the others."""
    found = {each.name: getattr(options, each.name) for each in fields(options)}
    for handed in ("vector", "scalar"):
        found |= found.pop(handed, None) or {}
    return found
