"""Rows of tables with one text per row: JSON lines, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from gmvq.data.labels import LABEL_COLUMNS
from gmvq.modalities.delimited import cleaned

ROW_SUFFIXES = (".jsonl", ".csv", ".tsv")
"""Suffixes of files whose rows are items."""
TEXT_COLUMN = "text"

_DELIMITERS = ",;\t"
_NAMED = 8

Rows = list[tuple[str, str | None]]
"""Texts with their labels."""


class TextError(ValueError):
    """A file cannot be read as text; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keeps the path and the reason apart for lists of skipped files."""
        super().__init__(f"Cannot read '{path}': {reason}.")
        self.path, self.reason = path, reason


def read_rows(text: str, path: Path) -> Rows:
    """Reads the texts of a table, and their labels if it has any.

    Args:
        text: Content of the file.
        path: Path of the file; its suffix before ``.gz`` or ``.xz`` is the format.

    Raises:
        TextError: If a row is damaged or has no field ``text``.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return _of_json(text, path) if ".jsonl" in suffixes else _of_table(text, path, tabs=".tsv" in suffixes)


def _of_json(text: str, path: Path) -> Rows:
    rows: Rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(path, f"its line {number} is not JSON: {cleaned(str(error))}") from error
        if not isinstance(value, dict) or not isinstance(value.get(TEXT_COLUMN), str):
            have = f", but {_some(list(value))}" if isinstance(value, dict) else ""
            raise TextError(path, f"its line {number} has no field '{TEXT_COLUMN}' with a text{have}")
        label = next((value[name] for name in LABEL_COLUMNS if value.get(name) is not None), None)
        if not isinstance(label, str | int | None):
            raise TextError(path, f"its line {number} has a label that is neither a word nor an integer")
        rows.append((_whole(value[TEXT_COLUMN]), None if label is None else _whole(str(label))))
    return rows


def _of_table(text: str, path: Path, *, tabs: bool) -> Rows:
    header = text.partition("\n")[0]
    delimiter = "\t" if tabs else max(_DELIMITERS, key=header.count)
    try:
        table = _parsed(text, delimiter, quotes=True) if not tabs or _is_quoted(text) else _parsed(text, delimiter)
    except csv.Error as error:
        raise TextError(path, f"it is not a table: {cleaned(str(error))}") from error
    names = [name.strip().lower() for name in table[0]] if table else []
    if TEXT_COLUMN not in names:
        raise TextError(path, f"its first line does not name a column '{TEXT_COLUMN}', but {_some(names)}")
    place = names.index(TEXT_COLUMN)
    labels_at = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    rows: Rows = []
    for number, row in enumerate(table[1:], 1):
        if len(row) != len(names):
            raise TextError(path, f"its row {number} has {len(row)} cells instead of {len(names)}; mend it")
        label = None if labels_at is None else row[labels_at].strip()
        rows.append((row[place], label or None))
    return rows


def _is_quoted(text: str) -> bool:
    """Returns whether a tab-separated table quotes its cells: read without quotes, its rows differ in width."""
    try:
        return len({len(row) for row in _parsed(text, "\t")}) > 1
    except csv.Error:
        return True


def _parsed(text: str, delimiter: str, *, quotes: bool = False) -> list[list[str]]:
    lines = io.StringIO(text, newline="")
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    return [row for row in csv.reader(lines, delimiter=delimiter, quoting=quoting) if row]


def _whole(text: str) -> str:
    """Joins surrogate pairs, which JSON may have, to characters, and replaces lone surrogates by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(cleaned, names[:_NAMED])) + (" ..." if len(names) > _NAMED else "")
