"""Options of vector-quantize-pytorch's ``ResidualVQ``, and the composition of our quantizers that they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from gmvq.compat.level_dropout import LevelDropout
from gmvq.compat.options import Rule, check, defaults, read
from gmvq.compat.peer import PeerQuantizer
from gmvq.compat.peer_residual import ImplicitCodes, LevelWays, PeerResidual
from gmvq.compat.projections import projected
from gmvq.compat.vector_options import VectorOptions, vector_options
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.residual import Residual

DIVEQ_DEVIATION = math.sqrt(5e-3)
"""Of the noise of each feature, the other library's default."""

RULES = (
    Rule("heads", (1,), "Use gmvq.Residual of gmvq.Product.", training_only=False),
    Rule(
        "beam_score_quantizer_weights",
        (None,),
        "Beams are ranked by the error of their sum. Leave it out.",
        training_only=False,
    ),
)

OWN_RULES = (
    Rule("diveq", (False,), "Use gmvq.Residual of gmvq.VectorQuantizer(..., decay=None, estimator=gmvq.DiVeQ())."),
    Rule("implicit_neural_codebook", (False,), "Use gmvq.ImplicitResidual.", training_only=False),
    Rule("quant_grad_frac", (0.0, 0, 1.0, 1), "The gradient of the sum reaches the members once. Leave it out."),
)
"""Of options that the classes take, those that our own quantizers do not: conversion refuses others."""


@dataclass(frozen=True)
class ResidualOptions:
    """Keyword arguments of ``ResidualVQ``, with its defaults; ``vector`` holds those for each level.

    Raises:
        ValueError: If an option is not supported, or two contradict each other.
    """

    dim: int
    codebook_size: int | tuple[int, ...]
    num_quantizers: int | None = None
    codebook_dim: int | None = None
    shared_codebook: bool = False
    diveq: bool = False
    heads: int = 1
    quantize_dropout: bool = False
    quantize_dropout_cutoff_index: int = 0
    quantize_dropout_multiple_of: int = 1
    accept_image_fmap: bool = False
    implicit_neural_codebook: bool = False
    mlp_kwargs: dict[str, Any] = field(default_factory=dict)
    beam_size: int | None = None
    eval_beam_size: int | None = None
    beam_score_quantizer_weights: list[float] | None = None
    quant_grad_frac: float = 0.0
    return_zeros_for_masked_padding: bool = True
    vector: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, RULES)
        if self.num_quantizers is None and isinstance(self.codebook_size, int):
            raise ValueError(
                "'num_quantizers' must be the number of levels, got None. Give for example num_quantizers=4."
            )
        sizes = self.codebook_sizes
        if self.num_quantizers not in (None, len(sizes)):
            raise ValueError(
                f"'num_quantizers' must be the number of codebook sizes, {len(sizes)}, got {self.num_quantizers}. "
                "Leave it out."
            )
        if self.shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"'codebook_size' must be one integer with 'shared_codebook', got {sizes}. Give one size.")
        if not 0 <= self.quant_grad_frac <= 1:
            raise ValueError(f"'quant_grad_frac' must lie in [0, 1], got {self.quant_grad_frac}. Use 0.0.")
        if self.implicit_neural_codebook and (self.beam_size or 1) > 1:
            raise ValueError(
                f"'beam_size' must be None with 'implicit_neural_codebook', got {self.beam_size}. Leave it out."
            )
        level = self.level(sizes[0])  # checks the options of the levels
        if self.implicit_neural_codebook and level.commitment_use_cross_entropy_loss:
            raise ValueError(
                "'commitment_use_cross_entropy_loss' must be False with 'implicit_neural_codebook', got True. Leave it "
                "out."
            )
        if self.shared_codebook and level.in_place_codebook_optimizer is not None:
            raise ValueError(
                "'in_place_codebook_optimizer' must be None with 'shared_codebook', got one. Give the codebook to an "
                "optimizer of your own."
            )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        if isinstance(self.codebook_size, int):
            return (self.codebook_size,) * (self.num_quantizers or 1)
        return tuple(self.codebook_size)

    @property
    def code_dim(self) -> int:
        """Features of a code."""
        return self.dim if self.codebook_dim is None else self.codebook_dim

    @property
    def channels_first(self) -> bool:
        """True if features are the second axis of the input."""
        last = self.vector.get("channel_last", True) and not self.vector.get("accept_3d_fmap", False)
        return self.accept_image_fmap or not last

    def level(self, codebook_size: int) -> VectorOptions:
        """Options of a level."""
        options = dict(self.vector)
        if self.implicit_neural_codebook:
            options |= {"learnable_codebook": True, "ema_update": False}
        if self.diveq:
            options |= {"learnable_codebook": True, "ema_update": False, "route_gradients_to_input": False}
            options["commitment_weight"] = 0.0
        return VectorOptions(self.code_dim, codebook_size, **options)

    def quantizer(self, own: bool = False) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``; ``own`` makes it of our quantizers, for conversion."""
        residual = self._own_residual() if own else self._peer_residual()
        return projected(residual, self.dim)

    @property
    def _search_size(self) -> int:
        return self.eval_beam_size or self.beam_size or 1

    def _own_residual(self) -> Residual:
        check(self, OWN_RULES)
        levels = [self.level(size) for size in self.codebook_sizes]
        weight = 0.0 if levels[0].directional_reparam else levels[0].commitment_weight
        dropout = level_dropout(self, len(levels))
        return Residual(
            levels[0].member(own=True) if self.shared_codebook else [level.member(own=True) for level in levels],
            len(levels),
            quantizer_dropout=dropout.applies,
            dropout_cutoff=dropout.cutoff + 1,
            dropout_multiple_of=dropout.multiple_of,
            beam_size=self._search_size,
            commitment_weight=weight,
        )

    def _peer_residual(self) -> PeerResidual:
        levels = [self.level(size) for size in self.codebook_sizes]
        members = [level.member() for level in (levels[:1] if self.shared_codebook else levels)]
        peers = [member for member in members if isinstance(member, PeerQuantizer)]
        networks = [ImplicitCodes(self.code_dim, **self.mlp_kwargs) for _ in levels[1:]]
        return PeerResidual(
            peers[0] if self.shared_codebook else peers,
            len(levels),
            dropout=level_dropout(self, len(levels)),
            ways=LevelWays(
                gradient_share=1.0 if self.diveq else float(self.quant_grad_frac),
                deviation=DIVEQ_DEVIATION if self.diveq else None,
            ),
            networks=networks if self.implicit_neural_codebook else (),
            beam_size=self._search_size,
        )


def level_dropout(options: Any, levels: int) -> LevelDropout:  # noqa: ANN401
    """Which levels take part in a forward in training, by the options of a class.

    Raises:
        ValueError: If no level would be left.
    """
    if not options.quantize_dropout or levels == 1:
        return LevelDropout(levels)
    return LevelDropout(levels, True, options.quantize_dropout_cutoff_index, options.quantize_dropout_multiple_of)


def residual_options(module: Any, training: bool) -> ResidualOptions:  # noqa: ANN401
    """Options of a ``ResidualVQ`` of the other library.

    Args:
        module: The module.
        training: False ignores options that only matter in training.
    """
    found = read(module, [each.name for each in fields(ResidualOptions)])
    # the module sets these itself if levels share a codebook: one update after all levels
    known = {"manual_ema_update": False, "manual_in_place_optimizer_update": False} if module.shared_codebook else {}
    first = vector_options(module.layers[0], training, **known)
    own = {"dim", "codebook_size", "codebook_dim", "heads", "accept_image_fmap", "return_zeros_for_masked_padding"}
    vector = {each.name: getattr(first, each.name) for each in fields(first) if each.name not in own}
    found |= {
        "dim": getattr(module.project_in, "in_features", module.codebook_dim),
        "codebook_size": tuple(module.codebook_sizes),
        "num_quantizers": module.num_quantizers,
        "heads": 1,
        "beam_score_quantizer_weights": _weights(module),
        "vector": vector,
        **_implicit(module),
    }
    if not training:
        found |= defaults((*RULES, *OWN_RULES))
    return ResidualOptions(**found)


def _weights(module: Any) -> list[float] | None:  # noqa: ANN401
    """Weights of the levels in beam search, None where they are all 1."""
    weights = module.beam_score_weights.tolist()
    return weights if module.beam_size is not None and set(weights) != {1.0} else None


def _implicit(module: Any) -> dict[str, Any]:  # noqa: ANN401
    """Options of implicit codebooks, as the networks have them."""
    if not module.implicit_neural_codebook or not len(module.mlps):
        return {}
    layers = module.mlps[0].layers
    return {"mlp_kwargs": {"depth": len(layers), **({"dim_hidden": layers[0][0].out_features} if len(layers) else {})}}
