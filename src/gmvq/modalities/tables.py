"""Tables of numbers: CSV and similar formats, Parquet, ``.npy``, plain or compressed by gzip or xz.

::

    file --read_table--> Table --columns--> names, float32 (N, C), NaN where a cell is empty

A text cell in a column of numbers is an error that names the cell; a column of text is left out and reported.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmvq.data.writing import write_atomically
from gmvq.modalities.delimited import MOST_VALUES, PACKED, Strange, Table, TableError, cleaned, read_text

PARQUET = (".parquet", ".pq")
TABLE_SUFFIXES = (".csv", ".tsv", *PARQUET, ".npy")
"""Suffixes of table files in folders, before ``.gz`` or ``.xz``; a file with another suffix that is given itself is
read as text."""
LABEL_NAMES = ("label", "labels", "class", "target")

_LARGEST = float(np.finfo(np.float32).max)
_DEFAULT_NAME = re.compile(r"column_\d+")


class Columns(NamedTuple):
    """Validated columns of numbers.

    Attributes:
        names: Name of each column.
        values: float32 ``(N, C)``, NaN for gaps.
        left_out: Names of columns that are left out because they hold text.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    left_out: tuple[str, ...]


def suffix_of(path: Path) -> str:
    """Returns the lower-case suffix of a name, before that of its compression: ``.csv`` of ``a.CSV.xz``."""
    endings = [ending.lower() for ending in path.suffixes]
    return next((ending for ending in reversed(endings) if ending not in PACKED), "")


def stem_of(path: Path) -> str:
    """Returns the name without its suffix and that of its compression."""
    name = path.name
    while Path(name).suffix.lower() in PACKED:
        name = Path(name).stem
    return Path(name).stem


def check_names(names: Sequence[str] | None) -> None:
    """Raises ValueError unless ``names`` is None or holds at least one name, all different."""
    if names is not None and (isinstance(names, str) or not names or len(set(names)) < len(names)):
        raise ValueError(f"'names' must be at least one name, all different, got {names!r}. Give them as a tuple.")


def default_names(count: int) -> tuple[str, ...]:
    """Creates names for columns without names."""
    return tuple(f"column_{place}" for place in range(1, count + 1))


def read_table(path: Path, *, keep: Collection[str] = (), lists: bool = False) -> Table:
    """Reads a table in the format of its suffix.

    Args:
        path: ``.npy``, Parquet, or text with any other suffix: columns separated by commas, semicolons, tabs or spaces,
            with or without a header.
        keep: Lower-case names of columns whose text is kept; that of a text column in first place is always kept.
        lists: Read a Parquet column of equally long lists as one column of numbers per list element.

    Raises:
        TableError: If it is damaged, empty, too large, or not a table.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    suffix = suffix_of(path)
    if suffix == ".npy":
        return table_of(read_array(path), path)
    return read_parquet(path, keep, lists=lists) if suffix in PARQUET else read_text(path, keep)


def first_rows(path: Path, most: int = 200) -> Table:
    """Reads the first rows of a table of text or of a Parquet file, see :func:`read_table`."""
    return read_parquet(path, most=most) if suffix_of(path) in PARQUET else read_text(path, most=most)


def columns(table: Table, path: Path, names: tuple[str, ...] | None, leave: Collection[int] = ()) -> Columns:
    """Selects the columns of numbers of a table.

    Args:
        table: The table.
        path: Source of the table, for errors.
        names: Names of the columns, in order; a table without a header needs a name for each column. None for all.
        leave: Indices of columns to leave out, as the time.

    Raises:
        TableError: If a column has text among its numbers, infinity, only gaps or numbers beyond float32, or a name is
            not in the table.
    """
    have = list[str]()
    for name, default in zip(table.names, default_names(len(table.names)), strict=True):
        have.append(name if name and name not in have else f"{name}_{default}".removeprefix("_"))
    numeric = [place for place in range(len(have)) if place not in leave and not table.is_text(place)]
    chosen = numeric if names is None else _places(names, have, numeric, table.named, path)
    left_out = tuple(have[place] for place in range(len(have)) if place not in leave and place not in numeric)
    if not chosen:
        raise TableError(path, f"it has no column of numbers{': ' if left_out else ''}{', '.join(left_out)}")
    for place in chosen:
        strange = table.strange.get(place)
        if strange is not None:
            what = f"its column '{have[place]}' has {strange.cell!r} in row {strange.row}, which is not a number"
            raise TableError(path, f"{what}; leave the cell empty for a gap, or the column out")
    kept = tuple(have[place] for place in chosen) if names is None else names
    whole = chosen == list(range(table.values.shape[1]))
    return Columns(kept, in_float32(table.values if whole else table.values[:, chosen], path, kept), left_out)


def in_float32(values: NDArray[Any], path: Path, names: Sequence[str], steps: int | None = None) -> NDArray[np.float32]:
    """Converts numbers ``(N, C)`` to float32 with one NaN and one zero.

    Args:
        values: The numbers.
        path: Source of the numbers, for errors.
        names: Names of the columns.
        steps: Rows per series, or None if each row is an item.

    Raises:
        TableError: If some are infinite or beyond float32, or a column is all gaps.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of NaN with a payload
        result = values.astype(np.float32)
    for place in np.flatnonzero(np.isinf(result).any(0))[:1]:
        row = int(np.flatnonzero(np.isinf(result[:, place]))[0])
        value = float(values[row, place])
        rule = "which is not finite; leave the cell empty for a gap"
        if np.isfinite(value):
            rule = f"and float32 ends at {_LARGEST:.2g}; take a larger unit"
        where = f"row {row + 1}" if steps is None else f"step {row % steps + 1} of series {row // steps + 1}"
        raise TableError(path, f"its column '{names[place]}' has {value:g} in {where}, {rule}")
    gaps = np.isnan(result)
    for place in np.flatnonzero(gaps.all(0))[:1]:
        raise TableError(path, f"its column '{names[place]}' is all gaps; leave it out")
    result[gaps] = np.nan  # of any sign and payload: equal rows must have equal bytes
    result += 0.0  # -0 is 0
    return result


def classes_of(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the distinct values, sorted; numerically if all are numbers."""
    distinct = sorted(set(values))
    try:
        return tuple(sorted(distinct, key=float))
    except ValueError:
        return tuple(distinct)


def read_array(path: Path) -> NDArray[Any]:
    """Reads the numbers of a ``.npy`` file.

    Raises:
        TableError: If it is damaged, empty, or holds anything but real numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a false size in the header allocates nothing
    except OSError as error:
        raise TableError(path, error.strerror or str(error)) from error
    except Exception as error:  # a damaged header can make numpy raise nearly any exception
        objects = "Python objects" in str(error) or "pickle" in str(error)
        why = "it holds Python objects, which could run foreign code" if objects else str(error) or type(error).__name__
        raise TableError(path, f"it is not a .npy file of numbers: {why}; save a plain array with np.save") from error
    if not isinstance(array, np.ndarray):
        raise TableError(path, "it is an archive of arrays; save one of them with np.save")
    if array.dtype.kind not in "fiub" or array.size == 0 or array.size > MOST_VALUES:
        raise TableError(path, f"it must hold 1 to {MOST_VALUES} real numbers, got {array.dtype} {array.shape}")
    return np.asarray(array)


def table_of(array: NDArray[Any], path: Path) -> Table:
    """Converts an array to a table, row by row.

    Raises:
        TableError: If the array does not have two axes.
    """
    if array.ndim != 2:
        raise TableError(path, f"it must have an axis of rows and one of columns, got shape {array.shape}")
    return Table(("",) * array.shape[1], array, {}, {})


def read_parquet(path: Path, keep: Collection[str] = (), *, lists: bool = False, most: int | None = None) -> Table:
    """Reads a Parquet file, or its first rows, see :func:`read_table`.

    Raises:
        TableError: If it is damaged, empty or too large.
        ModuleNotFoundError: If pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"'{path}' is Parquet, which needs pyarrow: pip install pyarrow.") from error
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)  # of pages that have one
        size = file.metadata.num_rows * max(1, file.metadata.num_columns)
        if not 0 < size <= MOST_VALUES:
            raise TableError(path, f"it must hold 1 to {MOST_VALUES} values, got {size}")
        data = file.read() if most is None else _first_of(file, most)
    except (OSError, ArrowException) as error:
        raise TableError(path, f"it is not a Parquet file, or damaged: {cleaned(str(error))}") from error
    names: list[str] = []
    values: list[NDArray[np.float64]] = []
    texts: dict[int, list[str]] = {}
    strange: dict[int, Strange] = {}
    for name, column in zip(map(cleaned, data.column_names), data.columns, strict=True):
        if name.startswith("__index_level_"):  # an index that pandas stored
            continue
        numbers = _numbers_of(column, lists)
        if numbers is None:
            cells = _cells_of(column, whole=not values or name.lower() in keep)
            found = [row for row, cell in enumerate(cells) if cell]
            if found:
                count = len(column) - column.null_count
                strange[len(values)] = Strange(count, found[0] + 1, cleaned(cells[found[0]]))
            texts[len(values)] = cells
            numbers = np.full((len(column), 1), np.nan)
        width = numbers.shape[1]
        names.extend([name] if width == 1 else [f"{name}_{place}" for place in range(1, width + 1)])
        values.extend(numbers.T)
    return Table(tuple(names), np.stack(values, axis=1), texts, strange)


def write_numbers(path: Path, rows: Tensor, names: Sequence[str], array: Tensor) -> None:
    """Writes a table ``(N, C)`` as CSV with a header, or, for a ``.npy`` path, as an array.

    Raises:
        ValueError: If there is not one name per column, or the path has another suffix.
        OSError: If the file cannot be written.
    """
    if rows.shape[1] != len(names):
        raise ValueError(f"'items' must have {len(names)} channels, got {rows.shape[1]}. Check the model's modality.")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, array.detach().float().cpu().numpy())
        write_atomically(path, buffer.getvalue())
    elif suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        # the shortest decimals that identify each float32
        writer.writerows(rows.detach().float().cpu().numpy().astype(str).tolist())
        write_atomically(path, text.getvalue().encode())
    else:
        raise ValueError(f"Numbers are written as .csv or .npy, got {path}. Use {path.with_suffix('.csv')}.")


def _places(names: tuple[str, ...], have: list[str], numeric: list[int], named: bool, path: Path) -> list[int]:
    """Returns the indices of the requested columns."""
    missing = [name for name in names if name not in have]
    if not missing:
        return [have.index(name) for name in names]
    if len(numeric) == len(names) and (not named or all(map(_DEFAULT_NAME.fullmatch, names))):
        return numeric
    found = ", ".join(have[:12]) + (" ..." if len(have) > 12 else "")
    if not named:
        raise TableError(path, f"it has {len(numeric)} columns of numbers instead of {len(names)}")
    raise TableError(path, f"it has no column {', '.join(map(repr, missing[:4]))} among {found}")


def _first_of(file: Any, most: int) -> Any:  # noqa: ANN401
    """Reads the first rows of an open Parquet file."""
    from pyarrow import Table as ArrowTable

    return ArrowTable.from_batches([next(file.iter_batches(most))], file.schema_arrow)


def _numbers_of(column: Any, lists: bool) -> NDArray[np.float64] | None:  # noqa: ANN401
    """Returns numbers ``(N, 1)`` of an Arrow column, of equally long lists ``(N, width)``, or None for other types."""
    from pyarrow import types

    kind, width = column.type, 1
    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if lists and not column.null_count and any(check(kind) for check in is_list):
        cells = column.combine_chunks()
        lengths = {len(cell) for cell in cells}
        if len(lengths) != 1 or lengths == {0}:
            return None
        column, kind, width = cells.flatten(), kind.value_type, lengths.pop()
    is_number = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    if not any(check(kind) for check in is_number):
        return None
    return np.asarray(column.cast("float64", safe=False).to_numpy(zero_copy_only=False), np.float64).reshape(-1, width)


def _cells_of(column: Any, whole: bool) -> list[str]:  # noqa: ANN401
    """Returns the cells of an Arrow column as text, or only up to the first non-empty one."""
    from pyarrow import types

    if types.is_temporal(column.type) and not types.is_duration(column.type):
        column = column.cast("string")  # not through Python's types, which lack nanoseconds
    cells: list[str] = []
    for cell in column:
        cells.append("" if cell.as_py() is None else str(cell.as_py()))
        if cells[-1] and not whole:
            break
    return cells
