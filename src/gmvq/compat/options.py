"""Rules for the options of another library: which values are supported, and what to do about the others.

A rule names an option, the supported values, and a remedy for all others. ``training=False`` ignores options that only
matter in training, for users who want the codes of a trained module and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The supported values of an option.

    Attributes:
        name: The option.
        accepted: Supported values; the first is the other library's default.
        remedy: What to do instead of using another value.
        training_only: True if the option changes nothing in evaluation.
    """

    name: str
    accepted: tuple[Any, ...]
    remedy: str
    training_only: bool = True


def check(options: object, rules: Sequence[Rule]) -> None:
    """Checks options against rules.

    Raises:
        ValueError: If an option has a value that is not supported.
    """
    for rule in rules:
        value = getattr(options, rule.name)
        # types are compared, too: 1 is not True, and comparing a tensor gives no single truth value
        if not any(value is good or (type(value) is type(good) and value == good) for good in rule.accepted):
            raise ValueError(
                f"'{rule.name}' must be {' or '.join(map(repr, rule.accepted))} here, got {value!r}. {rule.remedy}"
            )


def read(module: object, names: Sequence[str]) -> dict[str, Any]:
    """Attributes of a module by name, without those that it does not have."""
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def defaults(rules: Sequence[Rule]) -> dict[str, Any]:
    """Accepted values of all options that only matter in training."""
    return {rule.name: rule.accepted[0] for rule in rules if rule.training_only}


def has_bias(module: Any) -> bool:  # noqa: ANN401
    """True if a module's ``project_in`` has a bias, or is not linear."""
    return getattr(module.project_in, "bias", True) is not None


def refuse(unsupported: dict[str, Any], remedies: dict[str, str]) -> None:
    """Refuses arguments of the other library's forward that are not supported, unless they are None or False.

    Raises:
        TypeError: If the other library has no such argument either.
        ValueError: If an argument is neither None nor False.
    """
    for name, value in unsupported.items():
        if name not in remedies:
            raise TypeError(f"There is no argument {name!r}. Its arguments are those of the other library's forward.")
        if value is not None and value is not False:
            raise ValueError(f"'{name}' must be left out here, got {value!r}. {remedies[name]}")
