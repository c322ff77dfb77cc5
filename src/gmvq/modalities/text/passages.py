"""An original text and its reconstruction, with differences marked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import groupby

from torch import Tensor

from gmvq.modalities.base import Passage

_SHOWN = 1000
"""Largest number of characters of a text that are shown."""
_CODES = 256
"""Largest number of tokens whose codes are shown."""
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a page cannot show, and those that change the writing direction of the following text."""


def passages(real: str, made: str | None, name: str) -> tuple[Passage, ...]:
    """Shows a text above its reconstruction, each with the characters that the other lacks marked.

    Texts of equal length are compared character by character, others are aligned. Of long ones the first 1,000
    characters are shown. Control characters are shown as U+FFFD.
    """
    said = name if len(real) <= _SHOWN else f"{name}, the first {_SHOWN:,} of {len(real):,} characters"
    if made is None:
        return (Passage(_runs(real[:_SHOWN], [False] * len(real)), said),)
    in_real, in_made = _marks(real[:_SHOWN], made[:_SHOWN], same_places=len(real) == len(made))
    changed = Passage(_runs(made[:_SHOWN], in_made), f"{said}, reconstructed")
    return Passage(_runs(real[:_SHOWN], in_real), said), changed


def code_passage(codes: Tensor, name: str) -> Passage:
    """Formats codes ``(T[, levels])`` as a line of numbers, with the levels of a token joined by points."""
    rows = codes[:_CODES].reshape(min(len(codes), _CODES), -1).tolist()
    more = " ..." if len(codes) > _CODES else ""
    line = " ".join(".".join(map(str, row)) for row in rows) + more
    return Passage(((line, False),), f"Codes of {name}")


def _marks(real: str, made: str, *, same_places: bool) -> tuple[list[bool], list[bool]]:
    if same_places:
        differ = [one != other for one, other in zip(real, made, strict=True)]
        return differ, differ
    in_real, in_made = [True] * len(real), [True] * len(made)
    for start, other, size in SequenceMatcher(None, real, made, autojunk=False).get_matching_blocks():
        in_real[start : start + size] = [False] * size
        in_made[other : other + size] = [False] * size
    return in_real, in_made


def _runs(text: str, marks: list[bool]) -> tuple[tuple[str, bool], ...]:
    def pieces() -> Iterator[tuple[str, bool]]:
        for marked, group in groupby(zip(_UNSEEN.sub("\ufffd", text), marks, strict=False), key=lambda pair: pair[1]):
            yield "".join(character for character, _ in group), marked

    return tuple(pieces())
