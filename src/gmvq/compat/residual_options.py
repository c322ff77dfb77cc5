"""Options of vector-quantize-pytorch's ``ResidualVQ``, and the composition of our quantizers that they describe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from gmvq.compat.options import Rule, check, defaults, read
from gmvq.compat.projections import projected
from gmvq.compat.vector_options import VectorOptions, vector_options
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.residual import Residual

RULES = (
    Rule("heads", (1,), "Use gmvq.Residual of gmvq.Product.", training_only=False),
    Rule("diveq", (False,), "Use gmvq.Residual of gmvq.VectorQuantizer(..., decay=None, estimator=gmvq.DiVeQ())."),
    Rule("implicit_neural_codebook", (False,), "Use gmvq.ImplicitResidual.", training_only=False),
    Rule(
        "beam_score_quantizer_weights",
        (None,),
        "Beams are ranked by the error of their sum. Leave it out.",
        training_only=False,
    ),
    Rule("quant_grad_frac", (0.0, 0, 1.0, 1), "The gradient of the sum reaches the members once. Leave it out."),
)


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
        self.level(sizes[0])  # checks the options of the levels

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

    @property
    def commitment_weight(self) -> float:
        """Weight of the latents' distance from the codes of each level."""
        level = self.level(self.codebook_sizes[0])
        return 0.0 if level.directional_reparam else level.commitment_weight

    def level(self, codebook_size: int) -> VectorOptions:
        """Options of a level."""
        return VectorOptions(self.code_dim, codebook_size, **self.vector)

    def quantizer(self) -> AbstractQuantizer:
        """The complete quantizer, for latents ``(*, dim)``."""
        levels = [self.level(size) for size in self.codebook_sizes]
        drops = self.quantize_dropout and len(levels) > 1
        residual = Residual(
            levels[0].member() if self.shared_codebook else [level.member() for level in levels],
            len(levels),
            quantizer_dropout=drops,
            dropout_cutoff=self.quantize_dropout_cutoff_index + 1 if drops else 1,
            dropout_multiple_of=self.quantize_dropout_multiple_of,
            beam_size=self.eval_beam_size or self.beam_size or 1,
            commitment_weight=self.commitment_weight,
        )
        return projected(residual, self.dim)


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
    }
    if not training:
        found |= defaults(RULES)
    return ResidualOptions(**found)


def _weights(module: Any) -> list[float] | None:  # noqa: ANN401
    """Weights of the levels in beam search, None where they are all 1."""
    weights = module.beam_score_weights.tolist()
    return weights if module.beam_size is not None and set(weights) != {1.0} else None
