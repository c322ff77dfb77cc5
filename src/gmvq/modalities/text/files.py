"""Text files: which files of a path are read, in which encoding, and how they are divided into items.

::

    file --decode--> lines, or a whole document in parts        .txt, or any other name, plain or compressed
         --parse---> rows with a column ``text``                .jsonl, .csv, .tsv

    a/train.en.gz, a/val.en.gz            sides by file names; also train and test folders
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gmvq.data.finding import find_files
from gmvq.data.items import Skipped
from gmvq.data.labels import HELD_OUT_FOLDERS, LABELS_TABLE, METADATA_TABLE, TRAIN_FOLDERS, printable, split_folders
from gmvq.modalities.base import listed
from gmvq.modalities.tables import suffix_of
from gmvq.modalities.text.rows import ROW_SUFFIXES, TextError, read_rows

TEXT_SUFFIXES = (".txt", *ROW_SUFFIXES)
"""Lower-case suffixes of the text files to find in a folder, before ``.gz`` or ``.xz``."""
_MOST_BYTES = 1 << 30
_UNPACKED, _RATIO = 1 << 26, 500
"""Bytes that any compressed file may unpack to, and above that the allowed unpacked bytes per byte of the file."""
_LANGUAGE = re.compile(r"\.([a-z]{2}|src|tgt|raw|tokens|pos|neg)")
"""Other suffixes of texts, accepted if file names also give sides, as ``train.en`` beside ``val.en``."""
_NOT_LANGUAGES = (".ts", ".py", ".md", ".pq", ".h5", ".db")
_HELD_OUT = (*HELD_OUT_FOLDERS, "dev")
_SIDE = re.compile(
    rf"(?:(?P<set>.*)[_\-. ])?"
    rf"(?:(?P<train>{'|'.join(TRAIN_FOLDERS)})|(?P<held>{'|'.join(_HELD_OUT)})(?P<rest>[_\-. ].*)?)",
    re.I,
)
_LINE_END = re.compile(r"\r\n|\n|\r")
_MOST_BLANK = 0.05
"""Largest share of blank lines in a file whose lines are items: in prose they separate paragraphs."""


class Entry(NamedTuple):
    """An item before its encoding as symbols.

    Attributes:
        name: Name of the item.
        text: The text.
        path: File of the item, if any.
        label: Class of the item, if the file gives one.
    """

    name: str
    text: str
    path: Path | None = None
    label: str | None = None


class Texts(NamedTuple):
    """Texts read from a path.

    Attributes:
        name: Name of the data set.
        train: Items for training, or all items.
        held_out: Items for evaluation, or None if the data have no split of their own.
        lines: True if the items are lines or rows.
        skipped: Files that could not be read.
        notes: Other remarks about the files.
    """

    name: str
    train: list[Entry]
    held_out: list[Entry] | None
    lines: bool
    skipped: list[Skipped]
    notes: list[str]


class _Content(NamedTuple):
    """Content of a file: rows with their labels, or a text."""

    path: Path
    name: str
    text: str
    rows: list[tuple[str, str | None]] | None


def read_texts(path: Path, lines: bool | None) -> Texts:
    """Reads a file, or all files of a folder.

    Args:
        path: An existing file or folder.
        lines: True for one item per line, False for documents; by default lines if the files have more lines than
            files and few blank lines. Rows of tables are always items.

    Raises:
        ValueError: If one side has no text.
    """
    skipped, notes = list[Skipped](), list[str]()
    root, sides = _sides(path, skipped, notes)
    names = _names([file for side in sides for file in side], root)
    encodings: dict[str, list[str]] = {}
    contents: list[list[_Content]] = []
    for side in sides:
        contents.append([])
        for file in side:
            try:
                contents[-1].append(_read(file, names[file], encodings))
            except TextError as error:
                if file == path:
                    raise
                skipped.append(Skipped(error.path, error.reason))
    if lines is None:
        lines = _are_lists([content.text for content in contents[0] if content.rows is None])
    counts: Counter[str] = Counter()
    entries = [[entry for content in side for entry in _entries(content, lines, counts)] for side in contents]
    if not all(entries):
        said = f"Skipped: {listed(skipped)}. " if skipped else ""
        raise ValueError(f"There is no text in '{path}', or on one of its sides. {said}Check the files.")
    notes += [f"{len(files)} file(s) {how}: {', '.join(files[:5])}" for how, files in encodings.items()]
    notes = [printable(note) for note in (*notes, *(f"{count} {what}" for what, count in counts.items()))]
    name = path.resolve().name if path.is_dir() else _named(path)
    return Texts(name, entries[0], entries[1] if len(entries) == 2 else None, lines, skipped, notes)


def has_side(path: Path) -> bool:
    """Returns whether a file's name says that it is for training or for testing, and names a language."""
    language = _LANGUAGE.fullmatch(suffix_of(path)) is not None and suffix_of(path) not in _NOT_LANGUAGES
    return language and _SIDE.fullmatch(_stem(path)) is not None


def _sides(path: Path, skipped: list[Skipped], notes: list[str]) -> tuple[Path, list[list[Path]]]:
    """Returns the folder that names are relative to, and the files of one side or of two."""
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"'{path}' is no regular file. Pass the path of a file or of a folder.")
        return path.parent, [[path]]
    folders = split_folders(path)
    if folders is not None:
        return path, [_texts(find_files(folder, _is_text, skipped), folder, skipped) for folder in folders]
    found = find_files(path, lambda file: _is_text(file) or has_side(file), skipped)
    train, held_out = _paired(found)
    if train:
        rest = [file.relative_to(path).as_posix() for file in found if file not in {*train, *held_out}]
        if rest:
            taken = ", ".join(file.relative_to(path).as_posix() for file in held_out)
            notes.append(f"held out {taken}, and left out {', '.join(rest[:10])}{' ...' if len(rest) > 10 else ''}")
        return path, [train, held_out]
    return path, [_texts(found, path, skipped)]


def _texts(files: Sequence[Path], folder: Path, skipped: list[Skipped]) -> list[Path]:
    """Selects the texts by their file names.

    Raises:
        ValueError: If no file is a text.
    """
    found = [file for file in files if _is_text(file)]
    if not found:
        said = f" Skipped: {listed(skipped)}." if skipped else ""
        raise ValueError(
            f"No texts in '{folder}'. Looked, in nested folders too, for files that end in {' '.join(TEXT_SUFFIXES)} "
            f"(any case), also packed as .gz or .xz.{said} Check the path, or pass one file of any name."
        )
    return found


def _is_text(path: Path) -> bool:
    return suffix_of(path) in TEXT_SUFFIXES and path.name.lower() not in (LABELS_TABLE, METADATA_TABLE)


def _paired(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pairs training and held-out files whose names differ only in the side.

    Of several held-out files one without other words in its name comes first: ``val.en`` before ``test_2016.en``.
    """
    train: dict[tuple[Path, str, str], Path] = {}
    held: dict[tuple[Path, str, str], list[tuple[bool, int, Path]]] = {}
    for file in files:
        match = _SIDE.fullmatch(_stem(file))
        if match is None:
            continue
        key = file.parent, (match["set"] or "").lower(), suffix_of(file)
        if match["train"]:
            train.setdefault(key, file)
        else:
            held.setdefault(key, []).append((bool(match["rest"]), _HELD_OUT.index(match["held"].lower()), file))
    pairs = [(file, min(held[key])[-1]) for key, file in train.items() if key in held]
    known = [pair for pair in pairs if _is_text(pair[0])]
    return [pair[0] for pair in known or pairs], [pair[1] for pair in known or pairs]


def _stem(path: Path) -> str:
    """Returns the name without its suffix and that of its compression."""
    name = path.name
    suffix = suffix_of(path)
    place = name.lower().rfind(suffix) if suffix else -1
    return name[:place] if place > 0 else name


def _named(path: Path) -> str:
    """Returns the name without ``.txt`` and the suffix of its compression."""
    return _stem(path) + ("" if _is_text(path) else path.name[len(_stem(path)) :][: len(suffix_of(path))])


def _names(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Returns the prefix of item names for each file: its path without suffixes, if these are still distinct."""
    short = {file: file.relative_to(root).with_name(_named(file)).as_posix() for file in files}
    times = Counter(short.values())
    return {file: name if times[name] == 1 else file.relative_to(root).as_posix() for file, name in short.items()}


def _read(path: Path, name: str, encodings: dict[str, list[str]]) -> _Content:
    text, note = decoded(_bytes_of(path), path)
    if note:
        encodings.setdefault(note, []).append(name)
    if not text.strip():
        raise TextError(path, "it has no text")
    rows = read_rows(text, path) if suffix_of(path) in ROW_SUFFIXES else None
    return _Content(path, name, text if rows is None else "", rows)


def decoded(data: bytes, path: Path) -> tuple[str, str]:
    """Decodes bytes: UTF-8, UTF-16 with a byte order mark, or else Windows-1252.

    Returns:
        The text, and a remark on its encoding, which may be empty.

    Raises:
        TextError: If the bytes are not text.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), ""
        except UnicodeDecodeError as error:
            raise TextError(path, f"it begins like UTF-16 and cannot be decoded: {error.reason}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if 10 * data.count(0) > len(data) or (text is None and 0 in data):
        raise TextError(path, "it is not text, as its zero bytes show")
    if text is not None:
        return text, ""
    mostly = data.decode("utf-8-sig", "replace")
    wrong = mostly.count("\ufffd")
    if len(re.findall(r"[^\0-\x7f\ufffd]", mostly)) > wrong:
        return mostly, f"with bytes that are not UTF-8, read as U+FFFD ({wrong} in {path.name})"
    try:
        return data.decode("cp1252"), "that are not UTF-8, read as Windows-1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "that are not UTF-8, read as Latin-1"


def _bytes_of(path: Path) -> bytes:
    """Reads all bytes of a file, unpacked within size limits."""
    try:
        with path.open("rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            stream: io.BufferedIOBase = raw
            most = _MOST_BYTES
            if start[:2] == b"\x1f\x8b":
                stream = gzip.GzipFile(fileobj=raw)
            elif start == b"\xfd7zXZ\0":
                stream = lzma.LZMAFile(raw)  # noqa: SIM115
            if stream is not raw:
                most = min(most, max(_UNPACKED, _RATIO * path.stat().st_size))
            data = stream.read(most + 1)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise TextError(path, f"it cannot be unpacked: {error}") from error
    except OSError as error:
        raise TextError(path, error.strerror or str(error)) from error
    if len(data) > most:
        raise TextError(path, f"it has, or unpacks to, more than {most} bytes; take a part of it")
    return data


def _are_lists(texts: Sequence[str]) -> bool:
    """Returns whether texts are lists of items: more lines than texts, and few blank lines; True for no texts."""
    blank, filled = 0, 0
    for text in texts:
        lines = _LINE_END.split(text)
        some = sum(1 for line in lines if line.strip())
        filled += some
        blank += len(lines) - some - (not lines[-1])
    return not texts or (filled >= 2 * len(texts) and blank <= _MOST_BLANK * filled)


def _entries(content: _Content, lines: bool, counts: Counter[str]) -> Iterator[Entry]:
    """Yields the items of a file; counts the omitted ones."""
    rows: Sequence[tuple[str, str | None]]
    what = "row"
    if content.rows is not None:
        rows = content.rows
    elif lines:
        what = "line"
        rows = [(line, None) for line in _LINE_END.split(content.text)]
        rows = rows if rows[-1][0] else rows[:-1]
    else:
        yield Entry(content.name, content.text, content.path)
        return
    digits = max(5, len(str(len(rows))))
    for number, (text, label) in enumerate(rows, 1):
        if not text.strip():
            counts[f"empty {what}(s) left out"] += 1
            continue
        yield Entry(f"{content.name}-{number:0{digits}d}", text, content.path, label)
