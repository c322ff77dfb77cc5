"""Parsing of JSON that may come from strangers, in bounded memory and time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_JSON = 1 << 23
"""Bytes of a JSON file, or of the header of a sealed one; the configuration of a model of text holds its vocabulary."""
MOST_VALUES = 1 << 19
"""Values in such a text: an empty list takes two bytes there and sixty in memory."""

LONGEST_INTEGER = 40
"""Digits of an integer in such a text."""


class DamagedFileError(ValueError):
    """Error of a file that is damaged, of another kind or version, or contradicts itself."""


def parse_json(text: bytes) -> Any:  # noqa: ANN401
    """Parses JSON in UTF-8; NaN, infinity, huge integers and a key that occurs twice in an object are refused.

    Raises:
        ValueError: If it is not such JSON, or larger than a file of gmvq can be.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' occurs twice
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    try:
        numbers = {"parse_constant": _refused, "parse_float": _finite, "parse_int": _short}
        return json.loads(text.decode(), object_pairs_hook=_once, **numbers)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Reads a JSON file, see :func:`parse_json`.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If it is not JSON, or larger than a file of gmvq can be.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:  # before it is read
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(f"{path} is not JSON ({error}). Copy it again from where it was made.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, _ in pairs:
            if found.pop(key, pairs) is pairs:  # it was taken out before
                raise ValueError(f"the key {key[:99]!r} occurs twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _short(text: str) -> int:
    if len(text) > LONGEST_INTEGER:  # longer ones are no floats, and a product of many takes long
        raise ValueError(f"{text[:20]}... is too large")
    return int(text)


def _finite(text: str) -> float:
    if abs(number := float(text)) == float("inf"):
        raise ValueError(f"{text[:20]} is too large")
    return number
