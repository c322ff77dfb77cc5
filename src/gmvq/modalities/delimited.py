"""Tables as text: CSV and similar formats, plain or compressed by gzip or xz, within memory limits."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

PACKED = (".gz", ".xz")
"""Suffixes of compressed files."""

_GAPS = frozenset({"", "?", "-", "na", "n/a", "#n/a", "#na", "nan", "-nan", "null", "none", "nil", "<na>"})
_DELIMITERS = "\t;,"
_SAMPLE = 32
_CELLS = 1 << 18
"""Cells parsed at a time."""
MOST_VALUES = 1 << 29
"""Largest number of values of a table in memory, 4 GiB."""
_LONGEST_LINE = 1 << 26
_UNPACKED, _RATIO = 1 << 26, 500
"""Characters that any compressed file may unpack to, and above that the allowed characters per byte: tables of numbers
shrink to a tenth or less, a file made to fill the memory to a thousandth."""


class TableError(ValueError):
    """A file cannot be read as numbers; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keeps the path and the reason apart for lists of skipped files."""
        super().__init__(f"Cannot read '{path}': {reason}.")
        self.path, self.reason = path, reason


class Strange(NamedTuple):
    """Cells of a column that are not numbers.

    Attributes:
        number: Number of such cells.
        row: Row of the first one, counted from 1 without the header.
        cell: Text of the first one.
    """

    number: int
    row: int
    cell: str


class Table(NamedTuple):
    """Content of a table file.

    Attributes:
        names: Names of the columns; empty if there is no header.
        values: Floats ``(N, columns)``, NaN for gaps and text.
        texts: Text of the cells of some columns, by column index.
        strange: Text cells in columns of numbers, by column index.
    """

    names: tuple[str, ...]
    values: NDArray[np.floating[Any]]
    texts: dict[int, list[str]]
    strange: dict[int, Strange]

    @property
    def named(self) -> bool:
        """True if the table has a header."""
        return any(self.names)

    def is_text(self, place: int) -> bool:
        """Returns whether at least half of a column's non-empty cells are text."""
        texts = self.strange[place].number if place in self.strange else 0
        return texts > 0 and bool(texts >= np.count_nonzero(~np.isnan(self.values[:, place])))

    def counts_rows(self) -> bool:
        """Returns whether the first column is an unnamed index of the rows."""
        named = self.named and self.names[0].lower() in ("", "index", "id", "unnamed: 0")
        return named and 0 not in self.strange and bool((np.diff(self.values[:, 0]) == 1).all())


def read_text(path: Path, keep: Collection[str] = (), most: int | None = None) -> Table:
    """Reads a table of text: columns separated by commas, semicolons, tabs or spaces, with or without a header.

    Decimals have points, or commas if these do not separate columns. Comments before the table begin with ``#``.

    Args:
        path: The file, plain or packed.
        keep: Lower-case names of columns whose text is kept; that of a text column in first place is always kept.
        most: Largest number of rows to read; None for all.

    Raises:
        TableError: If it is damaged, empty, too large, or its rows differ in length.
    """
    with lines_of(path) as lines:
        sample = _first_lines(lines)
        if not sample:
            raise TableError(path, "it is empty")
        try:
            table = _table_of(sample, lines, keep, path, most)
        except csv.Error as error:
            raise TableError(path, f"it is not a table of text: {error}") from error
    last = len(table.names) - 1
    if last and not table.names[last] and last not in table.strange and np.isnan(table.values[:, last]).all():
        return table._replace(names=table.names[:last], values=table.values[:, :last])  # a delimiter ends each line
    return table


@contextmanager
def lines_of(path: Path) -> Iterator[Iterator[str]]:
    """Opens a text file and yields an iterator over its lines, unpacked and decoded, within size limits.

    Raises:
        TableError: If it cannot be read, is not text, or unpacks to far more than tables do; also from the iterator.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            packed = None
            stream: BinaryIO = raw
            if start[:2] == b"\x1f\x8b":  # by content: the suffix is often lost
                stream, packed = cast(BinaryIO, gzip.GzipFile(fileobj=raw)), path.stat().st_size
            elif start == b"\xfd7zXZ\0":
                stream, packed = cast(BinaryIO, lzma.LZMAFile(raw)), path.stat().st_size  # noqa: SIM115
            buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
            text = io.TextIOWrapper(buffered, _encoding(buffered.peek(1 << 16), path), errors="replace", newline="")
            yield _bounded(text, path, packed)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise TableError(path, f"it cannot be unpacked: {error}") from error
    except OSError as error:
        raise TableError(path, error.strerror or str(error)) from error


def _bounded(text: io.TextIOWrapper, path: Path, packed: int | None) -> Iterator[str]:
    most = None if packed is None else max(_UNPACKED, _RATIO * packed)
    read = 0
    while line := text.readline(_LONGEST_LINE):
        read += len(line)
        if most is not None and read > most:
            what = f"its {packed} bytes unpack to more than {most} characters"
            raise TableError(path, f"{what}; if you trust it, unpack it first")
        if len(line) == _LONGEST_LINE:
            raise TableError(path, f"it has a line of {_LONGEST_LINE} characters or more, which no table has")
        yield line


def _encoding(start: bytes, path: Path) -> str:
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if b"\0" in start or start[:2] == b"PK":
        raise TableError(path, "it is not text, as its bytes show; unpack an archive, or save it as CSV")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _first_lines(lines: Iterator[str]) -> list[str]:
    """Returns up to 32 non-empty lines, without the comments before them."""
    sample: list[str] = []
    for line in lines:
        if line.strip() and (sample or not line.startswith("#")):
            sample.append(line)
            if len(sample) == _SAMPLE:
                break
    return sample


def _table_of(sample: list[str], lines: Iterator[str], keep: Collection[str], path: Path, most: int | None) -> Table:
    """Parses the table of a file in the format of its first lines."""
    delimiter = _delimiter(sample)
    head = list(_split(sample, delimiter))
    comma = delimiter != "," and _has_decimal_commas(head)
    rows = _split(chain(sample, lines), delimiter)
    names = ("",) * len(head[0])
    if _is_header(head, comma):
        names = tuple(cleaned(name) for name in next(rows))
    kept = {place for place, name in enumerate(names) if name.lower() in keep}
    return _parsed(islice(rows, most), names, kept, comma, path)


def _delimiter(sample: list[str]) -> str | None:
    """Returns the separator of cells in the first lines; None for white space, or a single column."""
    for delimiter in _DELIMITERS:  # commas last: with another delimiter they may be decimal commas
        if _is_even(_split(sample, delimiter)):
            return delimiter
    if _is_even(_split(sample, None)):
        return None
    # rows of different lengths, which the parser reports as an error, or a single column
    return max(_DELIMITERS, key=lambda delimiter: sum(line.count(delimiter) for line in sample))


def _is_even(rows: Iterator[list[str]]) -> bool:
    """Returns whether all rows have the same number of cells, and more than one."""
    try:
        widths = {len(row) for row in rows}
    except csv.Error:  # a long line without delimiters is one cell, too long for the reader
        return False
    return len(widths) == 1 and widths != {1}


def _split(lines: Iterator[str] | list[str], delimiter: str | None) -> Iterator[list[str]]:
    if delimiter is None:
        return (cells for line in lines if (cells := line.split()))
    return (row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row)


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    cells = [cell.strip() for row in rows for cell in row]
    return any(re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", cell, re.I) for cell in cells) and not any(
        re.fullmatch(r"[+-]?\d*\.\d+(e[+-]?\d+)?", cell, re.I) for cell in cells
    )


def _is_header(rows: list[list[str]], comma: bool) -> bool:
    kinds = [[_kind(cell, comma) for cell in row] for row in rows]
    first, rest = kinds[0], kinds[1:]
    if "text" in first and "number" not in first:
        return True
    cells = [cell.strip() for cell in rows[0]]
    counted = cells[1:] if cells[0] == "" else cells
    if rest and len(cells) > 2 and counted == [str(place) for place in range(len(counted))]:
        return True  # the names that pandas gives to columns without names
    below = [[row[place] for row in rest if place < len(row)] for place in range(len(first))]
    return any(kind == "text" and "number" in cells for kind, cells in zip(first, below, strict=True))


def _is_gap(cell: str) -> bool:
    return cell.strip().lower() in _GAPS


def _kind(cell: str, comma: bool) -> str:
    return "gap" if _is_gap(cell) else "text" if _numbers([cell], comma)[1] else "number"


def _parsed(rows: Iterator[list[str]], names: tuple[str, ...], kept: set[int], comma: bool, path: Path) -> Table:
    width, done = len(names), 0
    parts: list[NDArray[np.float64]] = []
    texts: dict[int, list[str]] = {}
    strange: dict[int, Strange] = {}
    while chunk := list(islice(rows, max(1, _CELLS // width))):
        if {len(row) for row in chunk} != {width}:
            place = next(place for place, row in enumerate(chunk) if len(row) != width)
            cells = f"{len(chunk[place])} cells instead of {width}"
            raise TableError(path, f"its row {done + place + 1} has {cells}; mend it")
        if (done + len(chunk)) * width > MOST_VALUES:
            raise TableError(path, f"it holds more than {MOST_VALUES} values; take a part of it, or .npy files")
        part = np.empty((len(chunk), width))
        for place, cells in enumerate(zip(*chunk, strict=True)):
            part[:, place], odd = _numbers(cells, comma)
            if odd:
                before = strange.get(place, Strange(0, done + odd[0] + 1, cleaned(cells[odd[0]])))
                strange[place] = before._replace(number=before.number + len(odd))
            if place in kept or (place == done == 0 and odd):  # a first column of text may be the time
                texts.setdefault(place, []).extend(cells)
                kept.add(place)
        parts.append(part)
        done += len(chunk)
    if not parts:
        raise TableError(path, "it holds a header and no rows")
    return Table(names, np.concatenate(parts), texts, strange)


def _numbers(cells: Sequence[str], comma: bool) -> tuple[NDArray[np.float64], list[int]]:
    """Parses a column: its numbers, NaN for gaps and text, and the indices of text."""
    if comma:
        cells = [cell.replace(",", ".") for cell in cells]
    if not any("_" in cell for cell in cells):  # Python's float reads 1_000
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells)), []
        except ValueError:
            pass
    numbers, odd = np.full(len(cells), np.nan), []
    for place, cell in enumerate(cells):
        if _is_gap(cell):
            continue
        try:
            numbers[place] = float("" if "_" in cell else cell)
        except ValueError:
            odd.append(place)
    return numbers, odd


def cleaned(text: str) -> str:
    """Cleans text of a file for printing to a terminal and in tables."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:100]
