"""Sentences of Python's own manual, which Python includes for ``help()``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

SHORTEST, LONGEST = 20, 200
"""Smallest and largest number of characters of a sentence."""

_BLOCK = re.compile(r"\n[ \t]*\n")
_RULE = re.compile(r"([-=*~^+#\"'])\1{2,}")
_BULLET = re.compile(r"^\s*(?:[*-]|#\.|\d+\.|\[\d+\])\s+")
_LEAD = re.compile(r"^(?:\w+ ){,3}(?:[Nn]ote|[Dd]etail|[Ss]ee also|Source):\s*")
_LEFT_OUT = re.compile(r"(?:New|Added|Changed|Deprecated|Removed)(?: since| in)? version|PEP \d|See\b|Source code")
_CROSS = re.compile(r"\s*\([Ss]ee\s[^()]*\)")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])")
_END = re.compile(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\betc\.)(?<=[.!?])\s+(?=[\"(]?[A-Z])")
_CODE = re.compile(r"[^A-Za-z0-9 ,;:'\"()?!.-]|::|\b(?!e\.g|i\.e)\w+\.\w|[a-z]\(|\(\)|[,;:][A-Za-z\"(]|\"\w+\"\w|\"\"")
_WORD = re.compile(r"[A-Za-z]+")
_QUOTES = str.maketrans("’‘“”", "''\"\"")


def sentences(topics: Mapping[str, str]) -> list[str]:
    """Collects sentences of plain English.

    Args:
        topics: Texts in the format of ``pydoc_data.topics``, reStructuredText rendered as plain text.

    Returns:
        Distinct sentences of 20 to 200 characters, sorted by the topics' names. Grammars, code, headings, tables and
        notes on versions are left out, and so are sentences with symbols other than punctuation.
    """
    found = {
        sentence: None
        for name in sorted(topics)
        for paragraph in _paragraphs(topics[name])
        for sentence in _END.split(paragraph)
        if _is_english(sentence)
    }
    return list(found)


def _paragraphs(text: str) -> Iterator[str]:
    """Yields blocks of lines that may be prose, each joined to one line without markup."""
    for block in _BLOCK.split(text.translate(_QUOTES)):
        lines = block.strip("\n").splitlines()
        if "::=" in block or any(_RULE.match(line.strip()) for line in lines):
            continue
        if len(lines) > 1 and not _BULLET.match(lines[0]) and _indent(lines[1]) > _indent(lines[0]):
            lines = lines[1:]  # a term above its definition
        words = " ".join(" ".join(lines).split())
        words = _LEAD.sub("", _CROSS.sub("", _EMPHASIS.sub(r"\1", _BULLET.sub("", words, count=1))), count=1)
        if not _LEFT_OUT.match(words):
            yield words


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_english(sentence: str) -> bool:
    if not SHORTEST <= len(sentence) <= LONGEST or not sentence[0].isupper() or sentence[-1] not in ".?!":
        return False
    if _LEFT_OUT.match(sentence) or _CODE.search(sentence) or len(_WORD.findall(sentence)) < 4:
        return False
    return sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0


def manual_sentences() -> list[str]:
    """Collects the sentences of the running Python's manual, see :func:`sentences`.

    Raises:
        ModuleNotFoundError: If this Python was installed without its manual.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        remedy = "Install all of Python's standard library, or give a path."
        raise ModuleNotFoundError(f"This Python has no manual (pydoc_data). {remedy}") from error
    return sentences(topics)
