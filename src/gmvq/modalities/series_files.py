"""Reads files as series: one series whose steps are the rows, or a collection in a format of the UCR archive.

::

    rows in time    CSV, TSV, Parquet, .npy (T,)             one series of C channels
    collections     .npy (N, C, T), .ts, *_TRAIN.txt          N series, maybe with classes
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmvq.modalities.delimited import Table, TableError, cleaned, lines_of
from gmvq.modalities.gathering import has_side
from gmvq.modalities.tables import (
    LABEL_NAMES,
    TABLE_SUFFIXES,
    columns,
    default_names,
    first_rows,
    in_float32,
    read_array,
    read_table,
    suffix_of,
)

SERIES_SUFFIXES = (".ts", *TABLE_SUFFIXES)
_FEWEST_STEPS = 8
"""An array (N, C, T) with fewer steps than this and fewer steps than channels is rejected as (N, T, C)."""
_TIME_NAME = re.compile(r"|t|index|step|id|year|unnamed: 0|.*(date|time).*", re.I)
_COUNTERS = ("", "index", "id", "unnamed: 0")
"""Names of columns that number rows of any kind."""
_TIME = re.compile(r"\d{1,4}[-/.:]\w")
_STEP_LABELS = frozenset(LABEL_NAMES) - {"target"}


class Found(NamedTuple):
    """Series of a file.

    Attributes:
        names: Names of the channels.
        series: float32 ``(C, T)`` each, NaN for gaps.
        labels: Class of each series, or None.
        classes: All classes in order, if the file lists them.
        rate: Steps per second, Hz, if the times are evenly spaced.
        notes: Descriptions of what was left out.
    """

    names: tuple[str, ...]
    series: list[NDArray[np.float32]]
    labels: list[str] | None = None
    classes: tuple[str, ...] = ()
    rate: float | None = None
    notes: tuple[str, ...] = ()


class _Clock(NamedTuple):
    """The time column, if any: its index, what its values say about the rows, and how these are reordered."""

    leave: frozenset[int] = frozenset()
    rate: float | None = None
    step: int = 1
    notes: tuple[str, ...] = ()


def read_series(path: Path, names: tuple[str, ...] | None) -> Found:
    """Reads a file of series.

    Args:
        path: The file.
        names: Names of the channels to take, or None for all; see :func:`gmvq.modalities.tables.columns`.

    Raises:
        TableError: If the file holds no such series.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    suffix = suffix_of(path)
    if suffix == ".ts":
        return _read_ts(path, names)
    if suffix == ".npy":
        return _collection(path, _with_axes(read_array(path), names, path), names)
    table = read_table(path, keep=_STEP_LABELS)
    if has_side(path) and _has_classes(table):
        labels = [str(int(label)) for label in table.values[:, 0]]
        return _collection(path, table.values[:, None, 1:], names)._replace(labels=labels)
    clock = _clock(table)
    leave = {place for place, name in enumerate(table.names) if name.lower() in _STEP_LABELS and len(table.names) > 1}
    chosen = columns(table, path, names, clock.leave | leave)
    unused = [*chosen.left_out, *(table.names[place] for place in leave if table.names[place] not in chosen.names)]
    notes = (f"column(s) of text or labels: {', '.join(unused)}",) if unused and names is None else ()
    series = np.ascontiguousarray(chosen.values[:: clock.step].T)
    return Found(chosen.names, [series], rate=clock.rate, notes=notes + clock.notes)


def looks_like_series(path: Path) -> bool:
    """Returns whether a file holds series: a table whose rows have times, evenly spaced or without a class column.

    Arrays of one axis are series, and so are arrays of three, (N, C, T); the rows of arrays of two axes are vectors.

    Raises:
        TableError: If it cannot be read.
    """
    if suffix_of(path) == ".npy":
        return read_array(path).ndim in (1, 3)
    if suffix_of(path) not in TABLE_SUFFIXES:
        return True
    table = first_rows(path)
    if has_side(path) and _has_classes(table):
        return True
    names = [name.lower() for name in table.names]
    rest = [place for place in range(1, len(names)) if names[place] not in _STEP_LABELS and not table.is_text(place)]
    clock = _clock(table)
    if not clock.leave or clock.notes or not rest or names[0] in _COUNTERS:
        return False
    steps = _steps_between_dates(table) if table.is_text(0) else np.diff(table.values[:, 0])
    if steps is None and not _TIME_NAME.fullmatch(names[0]):
        return False  # text that begins like a date may be a part number
    is_even = steps is not None and len(steps) > 1 and bool(np.isclose(steps, steps[0]).all())
    return is_even or not any(name in LABEL_NAMES for name in names)


def trimmed(series: NDArray[np.float32]) -> NDArray[np.float32]:
    """Removes the trailing gaps of a series, which pad it to the longest one of its collection."""
    places = np.flatnonzero(~np.isnan(series).all(0))
    return series[:, : places[-1] + 1] if len(places) else series


def _collection(path: Path, array: NDArray[np.generic], names: tuple[str, ...] | None) -> Found:
    """Reads the series of an array ``(N, C, T)``."""
    count, channels, steps = array.shape
    if names is not None and len(names) != channels:
        raise TableError(path, f"its series have {channels} channel(s) instead of {len(names)}")
    names = names or default_names(channels)
    rows = np.moveaxis(array, 1, 2).reshape(-1, channels)
    values = np.moveaxis(in_float32(rows, path, names, steps).reshape(count, steps, channels), 1, 2)
    return Found(names, [trimmed(np.ascontiguousarray(series)) for series in values])


def _with_axes(array: NDArray[np.generic], names: tuple[str, ...] | None, path: Path) -> NDArray[np.generic]:
    """Reshapes an array to ``(N, C, T)``."""
    shape, channels = array.shape, None if names is None else len(names)
    if array.ndim == 1:
        return array[None, None]
    if array.ndim == 2 and channels is not None:
        if channels == shape[1]:
            return np.asarray(array.T[None])
        if channels == 1:
            return array[:, None]
        raise TableError(path, f"its shape {shape} is not (T, {channels}), a series of {channels} channels")
    if array.ndim == 2:
        one, several = "array.T[None] if its rows are steps of one series", "array[:, None] if each row is a series"
        raise TableError(path, f"its shape {shape} may be (N, T) or (T, C); save (N, C, T): {one}, {several}")
    if array.ndim != 3:
        raise TableError(path, f"it must have shape (N, C, T), got {shape}")
    transposed = channels not in (None, shape[1]) and channels == shape[2]
    if transposed or (channels is None and shape[2] < min(_FEWEST_STEPS, shape[1])):
        raise TableError(path, f"its shape {shape} looks like (N, T, C); save array.transpose(0, 2, 1)")
    return array


def _has_classes(table: Table) -> bool:
    """Returns whether the first column numbers classes, as in the text files of the UCR archive."""
    first = table.values[:, 0]
    if table.named or table.strange or table.values.shape[1] < 3 or not np.isfinite(first).all():
        return False
    return bool((first == first.round()).all()) and 2 * len(np.unique(first)) <= max(2, len(first))


def _clock(table: Table) -> _Clock:
    """Recognizes a time column in first place."""
    if table.values.shape[1] < 2 and 0 not in table.strange:
        return _Clock()
    name = table.names[0]
    if not table.is_text(0):
        steps = np.diff(table.values[:, 0])
        rises, falls = bool((steps > 0).all()), bool((steps < 0).all())
        if table.named and _TIME_NAME.fullmatch(name) and len(steps) and (rises or falls):
            return _Clock(frozenset({0}), step=-1 if falls else 1)
        return _Clock()
    if not (_TIME_NAME.fullmatch(name) and name) and not _TIME.match(table.strange[0].cell):
        return _Clock()
    steps = _steps_between_dates(table)
    if steps is None or len(steps) == 0:  # dates in another format: the rows may still be in order
        return _Clock(frozenset({0}))
    falls = bool((steps < 0).all())
    if not falls and not (steps > 0).all():
        return _Clock(frozenset({0}), notes=(f"the times '{name}', which do not rise: rows are taken as they come",))
    even = bool((steps == steps[0]).all())
    return _Clock(frozenset({0}), 1e6 / abs(int(steps[0])) if even else None, -1 if falls else 1)


def _steps_between_dates(table: Table) -> NDArray[np.int64] | None:
    """Returns microseconds between the dates of the first column; None if they are not in ISO 8601."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of time zones, which numpy drops
            return np.diff(np.array(table.texts[0], "datetime64[us]")).astype(np.int64)
    except (ValueError, UserWarning, DeprecationWarning):
        return None


def _read_ts(path: Path, names: tuple[str, ...] | None) -> Found:
    """Reads sktime's format: tags that begin with ``@``, and after ``@data`` one series per line.

    Channels are separated by colons, values by commas, and the class comes last.
    """
    tags: dict[str, list[str]] = {}
    series: list[NDArray[np.float64]] = []
    labels: list[str] = []
    with lines_of(path) as lines:
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line or line.startswith("#"):
                continue
            if "data" not in tags:
                tag, *words = line.split()
                if not tag.startswith("@"):
                    raise TableError(path, f"its line {number} comes before '@data', which sktime's form begins with")
                tags[tag[1:].lower()] = words
                if tags.get("timestamps", ["false"])[:1] == ["true"]:
                    raise TableError(path, "it has a time for each value, which is not understood; leave the times out")
                continue
            channels = line.split(":")
            if _says(tags, "classlabel") or _says(tags, "targetlabel"):
                labels.append(cleaned(channels.pop()))
            series.append(_channels_of(channels, number, path))
            if len(series[-1]) != len(series[0]):
                reason = f"its line {number} has {len(series[-1])} channel(s) and the first {len(series[0])}"
                raise TableError(path, reason)
    if not series:
        raise TableError(path, "it has no series after a line '@data'")
    longest = max(each.shape[1] for each in series)
    padded = [np.pad(each, ((0, 0), (0, longest - each.shape[1])), constant_values=np.nan) for each in series]
    found = _collection(path, np.stack(padded), names)
    if not _says(tags, "classlabel"):
        return found
    classes = tuple(map(cleaned, tags["classlabel"][1:]))
    strangers = sorted(set(labels) - set(classes))
    if classes and strangers:
        raise TableError(path, f"its class {strangers[0]!r} is not among {', '.join(classes)} of '@classLabel'")
    return found._replace(labels=labels, classes=classes)


def _says(tags: dict[str, list[str]], tag: str) -> bool:
    return tags.get(tag, ["false"])[:1] == ["true"]


def _channels_of(channels: list[str], number: int, path: Path) -> NDArray[np.float64]:
    try:
        values = [np.array(channel.replace("?", "nan").split(","), np.float64) for channel in channels]
    except ValueError as error:
        raise TableError(path, f"its line {number} has a value that is not a number: {cleaned(str(error))}") from error
    lengths = {len(channel) for channel in values}
    if len(lengths) != 1:
        raise TableError(path, f"its line {number} has channels of {', '.join(map(str, sorted(lengths)))} values")
    return np.stack(values)
