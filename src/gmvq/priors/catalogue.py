"""Priors by name, and what a prior is made of as JSON has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

from gmvq.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from gmvq.priors.base import AbstractPrior, CodeShape
from gmvq.priors.counting import Frequencies, NGram
from gmvq.priors.flow import CodeFlowPrior, FlowConfig, LatentFlowConfig, LatentFlowPrior
from gmvq.priors.masked import MaskedConfig, MaskedPrior

PriorName = Literal["autoregressive", "masked", "code-flow", "latent-flow", "n-gram", "frequencies"]


class Kind(NamedTuple):
    """What a name stands for.

    Attributes:
        prior: The class.
        config: The dataclass of its size, None for one that counts.
    """

    prior: type[AbstractPrior]
    config: Callable[..., Any] | None


KINDS: dict[str, Kind] = {
    "autoregressive": Kind(AutoregressivePrior, AutoregressiveConfig),
    "masked": Kind(MaskedPrior, MaskedConfig),
    "code-flow": Kind(CodeFlowPrior, FlowConfig),
    "latent-flow": Kind(LatentFlowPrior, LatentFlowConfig),
    "n-gram": Kind(NGram, None),
    "frequencies": Kind(Frequencies, None),
}


def make_prior(name: PriorName, shape: CodeShape, options: Mapping[str, Any] | None = None) -> AbstractPrior:
    """The prior of a name.

    Args:
        name: What it is.
        shape: What codes it is of.
        options: Fields of its configuration, beside their defaults; none for one that counts.

    Raises:
        ValueError: If there is none of that name, or it has no such option.
    """
    if name not in KINDS:
        raise ValueError(f"'prior' must be one of {', '.join(get_args(PriorName))}, got {name!r}. Use autoregressive.")
    kind = KINDS[name]
    if kind.config is None:
        if options:
            raise ValueError(f"A prior that counts has no options, got {', '.join(options)}. Leave them out.")
        return kind.prior(shape)
    try:
        config = kind.config(**(options or {}))
    except TypeError as error:
        raise ValueError(
            f"'options' must be fields of the {name} prior, got {dict(options or {})}: {error}."
        ) from error
    return kind.prior(shape, config)  # pyright: ignore[reportCallIssue]


def described(prior: AbstractPrior) -> dict[str, Any]:
    """What a prior is made of, ready for JSON; :func:`make_prior` makes it again."""
    name = next(name for name, kind in KINDS.items() if type(prior) is kind.prior)
    config = getattr(prior, "config", None)
    return {"prior": name, "shape": asdict(prior.shape), "options": {} if config is None else asdict(config)}


def from_description(description: Mapping[str, Any]) -> AbstractPrior:
    """The prior that :func:`described` told of, with new weights.

    Raises:
        ValueError: If there is no such prior.
        KeyError: If something is missing.
    """
    return make_prior(description["prior"], CodeShape(**description["shape"]), description["options"])
