"""Priors by name, and their configuration for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from gmvq.checks import one_of
from gmvq.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from gmvq.priors.base import AbstractPrior, CodeShape
from gmvq.priors.counting import Frequencies, NGram
from gmvq.priors.flow import CodeFlowPrior, FlowConfig, LatentFlowConfig, LatentFlowPrior
from gmvq.priors.masked import MaskedConfig, MaskedPrior


class Kind(NamedTuple):
    """A kind of prior.

    Attributes:
        prior: Its class.
        config: The dataclass of its size; None for a prior that counts.
        title: One line for help and tables.
    """

    prior: type[AbstractPrior]
    config: Callable[..., Any] | None
    title: str


PRIORS: dict[str, Kind] = {
    "autoregressive": Kind(AutoregressivePrior, AutoregressiveConfig, "a transformer that draws code by code"),
    "masked": Kind(MaskedPrior, MaskedConfig, "a transformer that draws the surest codes first, in a few steps"),
    "code-flow": Kind(CodeFlowPrior, FlowConfig, "a flow between codes, all at once"),
    "latent-flow": Kind(LatentFlowPrior, LatentFlowConfig, "a flow between latents, all at once, for one codebook"),
    "n-gram": Kind(NGram, None, "counts of each code after those before it"),
    "frequencies": Kind(Frequencies, None, "counts of each code"),
}
"""The one list of priors: options, help and the tables of the documentation follow it."""


def make_prior(name: str, shape: CodeShape, options: Mapping[str, Any] | None = None) -> AbstractPrior:
    """Makes a prior by its name.

    Args:
        name: A name in :data:`PRIORS`.
        shape: Shape of the codes.
        options: Fields of its configuration that differ from the defaults; empty for a prior that counts.

    Raises:
        ValueError: If the name or an option is unknown, or an option is out of range.
    """
    kind = PRIORS[one_of("prior", name, PRIORS)]
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
    """Describes a prior for JSON, from which :func:`from_description` makes it again."""
    name = next(name for name, kind in PRIORS.items() if type(prior) is kind.prior)
    config = getattr(prior, "config", None)
    return {"prior": name, "shape": asdict(prior.shape), "options": {} if config is None else asdict(config)}


def from_description(description: Mapping[str, Any]) -> AbstractPrior:
    """Makes the prior that :func:`described` has described, with new weights.

    Raises:
        ValueError: If the name or an option is unknown, or an option is out of range.
        KeyError: If an entry is missing.
    """
    return make_prior(description["prior"], CodeShape(**description["shape"]), description["options"])
