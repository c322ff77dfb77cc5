"""Options of vector-quantize-pytorch's ``VectorQuantize``, and our quantizer that they describe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from gmvq.compat.options import Rule, check, defaults, read
from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.peer_ways import CodeGradient, Directional, Ways
from gmvq.compat.projections import projected
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.product import Product
from gmvq.quantizers.parts.estimators import AbstractEstimator, DiVeQ, NoGradient, Rotation, StraightThrough
from gmvq.quantizers.parts.vector_parts import Affine, Diversity, InPlaceStep, Orthogonal, Part
from gmvq.quantizers.vector import VectorQuantizer

RULES = (
    Rule("eps", (1e-5,), "Counts are not smoothed here: a code without latents stays where it is. Leave it out."),
    Rule("kmeans_iters", (10,), "Leave it out: ten rounds are taken."),
    Rule("sync_kmeans", (True,), "Leave it out: ranks start from the k-means of all their latents."),
    Rule("sync_codebook", (None, True), "Leave it out: statistics are summed over ranks."),
    Rule("manual_ema_update", (False,), "Set .quantizer.updates_itself = False and call .update()."),
)

OWN_RULES = (
    Rule("commitment_use_cross_entropy_loss", (False,), "Use gmvq.IndexBackpropagationQuantizer."),
    Rule("orthogonal_reg_active_codes_only", (False,), "Leave it out, or take orthogonal_reg_max_codes=128."),
    Rule("stochastic_sample_codes", (False,), "Use gmvq.StochasticQuantizer."),
    Rule("straight_through", (False,), "Use gmvq.VectorQuantizer(..., estimator=gmvq.GumbelSoftmax(hard=True))."),
    Rule("sample_codebook_temp", (1.0, 1), "It belongs to stochastic_sample_codes. Leave it out."),
    Rule("vq_bridge", (None,), "Use gmvq.SimVQ(transform=...).", training_only=False),
    Rule("manual_in_place_optimizer_update", (False,), "Set .quantizer.updates_itself = False and call .update()."),
)
"""Of options that the classes take, those that our own quantizers do not: conversion refuses others."""


@dataclass(frozen=True)
class VectorOptions:
    """Keyword arguments of ``VectorQuantize``, in its order and with its defaults.

    Raises:
        ValueError: If an option is not supported, or two contradict each other.
    """

    dim: int
    codebook_size: int
    codebook_dim: int | None = None
    heads: int = 1
    separate_codebook_per_head: bool = False
    decay: float = 0.8
    eps: float = 1e-5
    freeze_codebook: bool = False
    kmeans_init: bool = False
    kmeans_iters: int = 10
    sync_kmeans: bool = True
    use_cosine_sim: bool = False
    layernorm_after_project_in: bool = False
    threshold_ema_dead_code: float = 0
    channel_last: bool = True
    accept_image_fmap: bool = False
    accept_3d_fmap: bool = False
    commitment_weight: float = 1.0
    commitment_use_cross_entropy_loss: bool = False
    orthogonal_reg_weight: float = 0.0
    orthogonal_reg_active_codes_only: bool = False
    orthogonal_reg_max_codes: int | None = None
    codebook_diversity_loss_weight: float = 0.0
    codebook_diversity_temperature: float = 100.0
    stochastic_sample_codes: bool = False
    sample_codebook_temp: float = 1.0
    straight_through: bool = False
    rotation_trick: bool | None = None
    directional_reparam: bool = False
    directional_reparam_variance: float = 5e-3
    sync_codebook: bool | None = None
    sync_affine_param: bool = False
    ema_update: bool | None = None
    vq_bridge: nn.Module | None = None
    manual_ema_update: bool = False
    learnable_codebook: bool | None = None
    in_place_codebook_optimizer: Callable[..., Optimizer] | None = None
    manual_in_place_optimizer_update: bool = False
    affine_param: bool = False
    affine_param_batch_decay: float = 0.99
    affine_param_codebook_decay: float = 0.9
    sync_update_v: float = 0.0
    return_zeros_for_masked_padding: bool = True
    route_gradients_to_input: bool = True

    def __post_init__(self) -> None:
        check(self, RULES)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"'decay' must lie in [0, 1], got {self.decay}. Use for example 0.99.")
        for broken, message in self._contradictions():
            if broken:
                raise ValueError(message)

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Pairs of options that contradict each other: whether they do, and what to say."""
        both, by_gradient = self.averages and self.learns, "learnable_codebook=True and ema_update=False"
        yield (
            both,
            "'ema_update' must be False where 'learnable_codebook' moves the codes by gradient, got both. "
            "Set ema_update=False.",
        )
        yield (
            not self.learns and self.orthogonal_reg_weight > 0,
            "'orthogonal_reg_weight' must be 0 for moving averages, which overwrite what a loss moves, got "
            f"{self.orthogonal_reg_weight}. Set {by_gradient}.",
        )
        yield (
            self.sync_update_v > 0 and (self.rotates or not self.learns),
            "'sync_update_v' must be 0 unless learning codes get a share of a straight-through gradient, got "
            f" {self.sync_update_v}. Set rotation_trick=False, {by_gradient}.",
        )
        yield (
            self.in_place_codebook_optimizer is not None and not self.learns,
            f"'in_place_codebook_optimizer' must be None unless codes learn by gradient, got one. Set {by_gradient}.",
        )
        yield (
            self.directional_reparam and (self.rotates or self.straight_through),
            "'rotation_trick' and 'straight_through' must be False where 'directional_reparam' passes the gradient, "
            "got both. Leave one out.",
        )
        yield (
            self.straight_through and (self.rotates or self.learns or not self.route_gradients_to_input),
            "'straight_through' must be False unless the gradient passes straight through moving averages, got True. "
            "Set rotation_trick=False, or leave it out.",
        )
        yield (
            not (self.averages or self.learns) and self.threshold_ema_dead_code > 0,
            f"'threshold_ema_dead_code' must be 0 for codes that do not learn, got {self.threshold_ema_dead_code}. "
            "Set learnable_codebook=True or leave ema_update on.",
        )
        yield (
            self.vq_bridge is not None and not self.learns,
            f"'vq_bridge' must be None unless codes learn by gradient, got one. Set {by_gradient}.",
        )
        yield (
            self.vq_bridge is not None and self.separate_codebook_per_head and self.heads > 1,
            "'vq_bridge' must be None for separate codebooks of heads, got one. Set separate_codebook_per_head=False.",
        )
        yield (
            self.use_cosine_sim and self.learns,
            "'use_cosine_sim' must be False where codes learn by gradient, got True. Use gmvq.VectorQuantizer("
            "..., cosine=True, decay=None).",
        )

    @property
    def code_dim(self) -> int:
        """Features of a code."""
        return self.dim if self.codebook_dim is None else self.codebook_dim

    @property
    def averages(self) -> bool:
        """True if codes are moving averages."""
        default = not self.directional_reparam and self.vq_bridge is None
        return default if self.ema_update is None else self.ema_update

    @property
    def learns(self) -> bool:
        """True if codes learn by gradient."""
        default = self.directional_reparam or self.vq_bridge is not None
        return default if self.learnable_codebook is None else self.learnable_codebook

    @property
    def rotates(self) -> bool:
        """True if the gradient is that of the rotation trick."""
        default = not self.directional_reparam and self.dim > 1
        return default if self.rotation_trick is None else self.rotation_trick

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of the input."""
        return not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap

    def _regularizers(self) -> list[Part]:
        parts: list[Part] = []
        if self.affine_param:
            parts.append(Affine(self.affine_param_batch_decay, self.affine_param_codebook_decay))
        if self.orthogonal_reg_weight > 0:
            parts.append(Orthogonal(self.orthogonal_reg_weight, self.orthogonal_reg_max_codes))
        if self.codebook_diversity_loss_weight > 0:
            parts.append(Diversity(self.codebook_diversity_loss_weight, self.codebook_diversity_temperature))
        return parts

    def _estimator(self, own: bool) -> AbstractEstimator:
        if not self.route_gradients_to_input:
            return NoGradient() if own or not self.learns else CodeGradient()
        if self.directional_reparam:
            deviation = math.sqrt(self.directional_reparam_variance)
            return DiVeQ(deviation) if own else Directional(deviation)
        return Rotation() if self.rotates else StraightThrough(self.sync_update_v)

    def _own_member(self) -> VectorQuantizer:
        """One codebook as our own quantizer.

        Raises:
            ValueError: If an option is one of the classes alone.
        """
        check(self, OWN_RULES)
        if self.learns and not self.route_gradients_to_input:
            raise ValueError(
                "'route_gradients_to_input' must be True where the codebook learns by gradient, got False. "
                "Detach the encoder's output instead."
            )
        steps = self.in_place_codebook_optimizer
        return VectorQuantizer(
            self.code_dim,
            self.codebook_size,
            decay=self.decay if self.averages else None,
            commitment_weight=0.0 if self.directional_reparam else self.commitment_weight,
            cosine=self.use_cosine_sim,
            kmeans_start=self.kmeans_init,
            revive_below=float(self.threshold_ema_dead_code),
            estimator=self._estimator(own=True),
            parts=[*self._regularizers(), *([] if steps is None else [InPlaceStep(_learning_rate(steps))])],
        )

    def _peer_member(self) -> PeerQuantizer:
        """One codebook that trains as theirs."""
        return PeerQuantizer(
            self.code_dim,
            self.codebook_size,
            ways=Ways(
                decay=self.decay,
                stochastic=self.stochastic_sample_codes,
                temperature=self.sample_codebook_temp,
                cross_entropy=self.commitment_use_cross_entropy_loss,
                active_only=self.orthogonal_reg_active_codes_only,
                bridge=self.vq_bridge,
                optimizer=self.in_place_codebook_optimizer,
                steps_by_hand=self.manual_in_place_optimizer_update,
                share=1 / self.heads if self.separate_codebook_per_head else 1.0,
            ),
            averages=self.averages,
            commitment_weight=0.0 if self.directional_reparam else self.commitment_weight,
            cosine=self.use_cosine_sim,
            kmeans_start=self.kmeans_init,
            revive_below=float(self.threshold_ema_dead_code),
            estimator=self._estimator(own=False),
            parts=self._regularizers(),
        )

    def member(self, own: bool = False) -> VectorQuantizer:
        """One codebook, inside the projection; ``own`` makes one of our quantizers, for conversion."""
        member = self._own_member() if own else self._peer_member()
        _place_uniformly(member)
        if self.freeze_codebook or not (self.averages or self.learns):
            member.freeze()
        return member

    def quantizer(self, own: bool = False) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``; ``own`` makes it of our quantizers, for conversion."""
        if self.heads == 1:
            inner: AbstractQuantizer = self.member(own)
        elif self.separate_codebook_per_head:
            inner = Product([self.member(own) for _ in range(self.heads)])
        else:
            inner = Product(self.member(own), heads=self.heads)
        # the other library normalizes only if it projects
        normalizes = self.layernorm_after_project_in and inner.dim != self.dim
        return projected(inner, self.dim, then=nn.LayerNorm(inner.dim) if normalizes else None)


def vector_options(module: Any, training: bool, **known: Any) -> VectorOptions:  # noqa: ANN401
    """Options of a ``VectorQuantize`` of the other library.

    Args:
        module: The module.
        training: False ignores options that only matter in training.
        **known: Options that replace those of the module.
    """
    codebook = module._codebook
    names = [field.name for field in fields(VectorOptions)]
    found: dict[str, Any] = read(codebook, names) | read(module, names)
    for name in ("sync_codebook", "sync_kmeans"):  # these describe its process and are not a choice of the user
        found.pop(name, None)
    drawing: Mapping[str, Any] = getattr(codebook.gumbel_sample, "keywords", {})
    found |= {
        "codebook_dim": codebook.embed.shape[-1],
        "kmeans_init": not bool(codebook.initted),
        "layernorm_after_project_in": isinstance(module.project_in, nn.Sequential),
        "stochastic_sample_codes": drawing.get("stochastic", False),
        "straight_through": drawing.get("straight_through", False),
        "learnable_codebook": module.learnable_codebook,
        "ema_update": codebook.ema_update,
        "in_place_codebook_optimizer": _anew(module.in_place_codebook_optimizer),
    }
    found |= known
    if not training:
        found |= _EVALUATION
    return VectorOptions(**found)


_EVALUATION: dict[str, Any] = {
    **defaults((*RULES, *OWN_RULES)),
    "orthogonal_reg_weight": 0.0,
    "codebook_diversity_loss_weight": 0.0,
    "sync_update_v": 0.0,
    "threshold_ema_dead_code": 0,
    "in_place_codebook_optimizer": None,
    "route_gradients_to_input": True,
}
"""Accepted values of the options that only matter in training."""


def _anew(optimizer: Optimizer | None) -> Callable[..., Optimizer] | None:
    """What makes another optimizer of the same kind and settings."""
    if optimizer is None:
        return None
    taken = inspect.signature(type(optimizer)).parameters
    return partial(type(optimizer), **{name: value for name, value in optimizer.defaults.items() if name in taken})


def _learning_rate(optimizer: Callable[..., Optimizer]) -> float:
    """Learning rate of plain gradient descent.

    Raises:
        ValueError: If the optimizer is another one.
    """
    made = optimizer([nn.Parameter(torch.zeros(1))])
    group = made.param_groups[0]
    plain = isinstance(made, SGD) and not any(group[name] for name in ("momentum", "weight_decay", "maximize"))
    if not plain:
        raise ValueError(
            f"'in_place_codebook_optimizer' must be plain gradient descent here, got {type(made).__name__}. "
            "Pass lambda parameters: torch.optim.SGD(parameters, lr=...)."
        )
    return float(group["lr"])


@torch.no_grad()
def _place_uniformly(member: VectorQuantizer) -> None:
    """Draws the codes as the other library does: uniform, of standard deviation sqrt(2 / (K L))."""
    codes = member.moving.codes if member.learned is None else member.learned
    bound = math.sqrt(6 / codes.numel())
    codes.uniform_(-bound, bound)
