"""Options of another library: which of them mean something here, and what to do about the others.

A rule names an option, the values that have a meaning here, and a remedy for all others. Options that matter in
training only may be left out (``training=False``) by someone who wants the codes of a trained module and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What an option may be here.

    Attributes:
        name: The option.
        accepted: Values with a meaning here; the first is the other library's default.
        remedy: What to do instead of any other value.
        training_only: Whether the option changes nothing in evaluation.
    """

    name: str
    accepted: tuple[Any, ...]
    remedy: str
    training_only: bool = True


def check(options: object, rules: Sequence[Rule]) -> None:
    """Checks options against rules.

    Raises:
        ValueError: If an option has a value without a meaning here.
    """
    for rule in rules:
        value = getattr(options, rule.name)
        # by type too: 1 is no True, and a tensor does not compare to one truth value
        if not any(value is good or (type(value) is type(good) and value == good) for good in rule.accepted):
            raise ValueError(
                f"'{rule.name}' must be {' or '.join(map(repr, rule.accepted))} here, got {value!r}. {rule.remedy}"
            )


def read(module: object, names: Sequence[str]) -> dict[str, Any]:
    """Those attributes of a module that it has, by name."""
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def defaults(rules: Sequence[Rule]) -> dict[str, Any]:
    """Accepted values of all options that matter in training only."""
    return {rule.name: rule.accepted[0] for rule in rules if rule.training_only}


def has_bias(module: Any) -> bool:  # noqa: ANN401
    """Whether the linear map on a module's way in has a bias; True where there is none."""
    return getattr(module.project_in, "bias", True) is not None


def refuse(unsupported: dict[str, Any], remedies: dict[str, str]) -> None:
    """Refuses arguments of a call that the other library has and that mean nothing here, unless they are at rest.

    Raises:
        TypeError: If there is no such argument there either.
        ValueError: If one is neither None nor False.
    """
    for name, value in unsupported.items():
        if name not in remedies:
            raise TypeError(f"There is no argument {name!r}. Its arguments are those of the other library's forward.")
        if value is not None and value is not False:
            raise ValueError(f"'{name}' must be left out here, got {value!r}. {remedies[name]}")
