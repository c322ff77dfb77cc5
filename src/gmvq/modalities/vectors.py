"""Feature vectors: items are float32 ``(C,)`` in the data's own units.

::

    table --columns--> rows with gaps --split by content, or by the files--> --means of training--> Items
          --label----> classes
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.data.items import ArrayItems, Skipped
from gmvq.data.labels import Labels, labels_of
from gmvq.data.splitting import digest_of, held_out
from gmvq.metrics.base import Measure
from gmvq.metrics.real import RealDistortion
from gmvq.modalities.base import Data, Exhibit, Modality, listed, register
from gmvq.modalities.charts import bars, code_strip
from gmvq.modalities.delimited import Table, TableError, cleaned
from gmvq.modalities.gathering import Files, gather
from gmvq.modalities.installed import package_folder
from gmvq.modalities.tables import (
    LABEL_NAMES,
    TABLE_SUFFIXES,
    check_names,
    classes_of,
    columns,
    read_array,
    read_table,
    stem_of,
    suffix_of,
    table_of,
    write_numbers,
)
from gmvq.types import Signal

_NUCLEI = "radius texture perimeter area smoothness compactness concavity concave_points symmetry fractal_dimension"
_WINE = (
    "alcohol malic_acid ash alcalinity_of_ash magnesium total_phenols flavanoids nonflavanoid_phenols proanthocyanins "
    "color_intensity hue od280/od315_of_diluted_wines proline"
)
_BUNDLED = {
    "breast-cancer": (
        "breast_cancer.csv",
        " ".join(f"{kind}_{what}" for kind in ("mean", "error", "worst") for what in _NUCLEI.split()),
    ),
    "wine": ("wine_data.csv", _WINE),
    "iris": ("iris.csv", "sepal_length sepal_width petal_length petal_width"),
    "diabetes": ("diabetes_data_raw.csv.gz", "age sex bmi bp s1 s2 s3 s4 s5 s6"),
}
"""Tables in scikit-learn's distribution: file, and the names of their features, which its code holds."""
_BUNDLED_FRACTION = 0.2


@register
@dataclass(frozen=True)
class Vectors(Modality):
    """Feature vectors: rows of tables, or embeddings, with any number of unordered features.

    Values keep the data's units: models standardize them.

    Args:
        names: Names of the features, in order; by default all columns of numbers. A table's are selected by name.
        label: Name of the class column; by default ``label``, ``labels``, ``class`` or ``target`` if it holds classes.
        fill: Value that replaces gaps in each feature; by default its mean over the training rows.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[str] = "vectors"
    item: ClassVar[str] = "vector"
    items: ClassVar[str] = "vectors"
    sample: ClassVar[str] = "vector"
    wanted: ClassVar[str] = (
        "the path of a table whose rows are items (CSV, TSV, Parquet), of a .npy file of shape (N, C), or of a folder "
        "of them"
    )
    learned: ClassVar[tuple[str, ...]] = ("fill",)
    several: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = RealDistortion.measures
    bundled: ClassVar[Mapping[str, Callable[[Any], Data]]] = {}
    window_size: ClassVar[int | None] = None
    downsampling: ClassVar[int] = 1

    names: tuple[str, ...] | None = None
    label: str | None = None
    fill: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_names(self.names)
        if self.fill is not None and (self.names is None or len(self.fill) != len(self.names)):
            raise ValueError(f"'fill' must have a value for each of 'names', got {len(self.fill)}. Leave it out.")

    @property
    def signal(self) -> Signal:  # noqa: D102
        return Signal("vectors", 0, len(self._known), "real")

    @property
    def suffix(self) -> str:  # noqa: D102
        return ".csv"

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        """Reads tables and splits them.

        Files named ``train`` and ``test``, or such folders, are the two sides. Otherwise rows are held out by a hash of
        their content, so that equal rows are on one side. Classes come from a column, or else from the folders of the
        files. All rows are kept in memory.
        """
        files = gather(path, TABLE_SUFFIXES)
        reading = _Reading(self, files)
        train = reading.side(files.train, path)
        other = None if files.held_out is None else reading.side(files.held_out, path)
        if reading.notes:
            warnings.warn(f"Left out of '{path}': {'; '.join(dict.fromkeys(reading.notes))}.", stacklevel=3)
        rows = [*train, *(other or [])]
        values = np.concatenate([each.values for each in rows])
        labels = _labels(rows, path)
        names = [name for each in rows for name in _row_names(each, None if len(rows) == 1 else files.root)]
        border = sum(len(each.values) for each in train)
        held = list(range(border, len(values))) if other else None
        modality = replace(self, names=reading.names)
        return _finished(files.name, path, modality, values, labels, names, held, held_out_fraction, files.skipped)

    def recognizes(self, source: Path) -> bool:  # noqa: D102
        return suffix_of(source) in TABLE_SUFFIXES

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Returns the whole vector."""
        return item

    def distortion(self, *, quick: bool = False) -> RealDistortion:
        """Creates an accumulator of squared and absolute error in the data's units, cosine, and explained variance."""
        return RealDistortion(cosine=True)

    def exhibit(  # noqa: D102
        self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None
    ) -> Exhibit:
        note = ""
        if made is not None:
            distortion = self.distortion()
            distortion.update(made.float().cpu()[None], real.float().cpu()[None])
            metrics = distortion.metrics()
            note = f"squared error {metrics['mse']:.3g}, cosine {metrics['cosine']:.4f}"
        return Exhibit(
            name,
            note,
            (bars(real, None, self._known, name, self.fill),),
            () if made is None else (bars(real, made, self._known, f"{name}, reconstructed", self.fill),),
            () if codes is None else (code_strip(codes, f"Codes of {name}"),),
        )

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes a table with a row per item, or, for a ``.npy`` path, an array ``(N, C)``."""
        if not items:
            raise ValueError(f"'items' must be at least one vector for {path}, got none. Give some.")
        rows = torch.stack(list(items))
        write_numbers(path, rows, self._known, rows)

    @property
    def _known(self) -> tuple[str, ...]:
        if self.names is None:
            raise ValueError("'names' of the features must be known, got None. Use for example Vectors(names=('x',)).")
        return self.names


class _Rows(NamedTuple):
    """Rows of a file: float32 ``(N, C)`` with gaps, and their classes."""

    path: Path
    values: NDArray[np.float32]
    labels: list[str] | None


class _Reading:
    """The features found in the files so far."""

    def __init__(self, modality: Vectors, files: Files) -> None:
        self.names, self.label, self.files = modality.names, modality.label, files
        self.notes: list[str] = []

    def side(self, paths: Sequence[Path], source: Path) -> list[_Rows]:
        """Reads all rows of some files; if there are several files, unreadable ones are skipped."""
        rows: list[_Rows] = []
        for path in paths:
            try:
                rows.append(self._file(path))
            except TableError as error:
                if path == source:
                    raise
                self.files.skipped.append(Skipped(error.path, error.reason))
        if not rows:
            skipped = listed(self.files.skipped)
            raise ValueError(f"No table in '{source}' can be read. Skipped: {skipped}. Check the files.")
        return rows

    def _file(self, path: Path) -> _Rows:
        if suffix_of(path) == ".npy":
            array = read_array(path)
            table = table_of(array[None] if array.ndim == 1 else array, path)
        else:
            table = read_table(path, keep=LABEL_NAMES if self.label is None else (self.label.lower(),), lists=True)
        place, labels = self._classes(table, path)
        leave = {column for column in (place, 0 if table.counts_rows() else None) if column is not None}
        chosen = columns(table, path, self.names, leave)
        if chosen.left_out and self.names is None:
            self.notes.append(f"column(s) of text: {', '.join(chosen.left_out)}")
        self.names = chosen.names
        return _Rows(path, chosen.values, labels)

    def _classes(self, table: Table, path: Path) -> tuple[int | None, list[str] | None]:
        """Returns the index of the class column, and the class of each row."""
        wanted = LABEL_NAMES if self.label is None else (self.label.lower(),)
        names = [name.lower() for name in table.names]
        place = next((names.index(name) for name in wanted if name in names), None)
        if place is None:
            if self.label is not None:
                raise TableError(path, f"it has no column {self.label!r} of classes among {', '.join(table.names)}")
            return None, None
        labels = _as_classes(table, place)
        if self.label is not None:
            if labels is None or not all(labels):
                raise TableError(path, f"its column {self.label!r} must have a class in each row, integers or text")
            return place, labels
        if labels is None or len({*labels} - {""}) > max(2, len(labels) // 2):
            self.notes.append(f"labels: '{table.names[place]}' has fractions or nearly as many values as rows")
            return None, None
        if not all(labels):
            self.notes.append(f"labels: '{table.names[place]}' has gaps")
            return place, None
        return place, labels


def _as_classes(table: Table, place: int) -> list[str] | None:
    """Returns the classes in a column, empty for a gap; None for fractions."""
    if place in table.strange:
        return [cleaned(cell) for cell in table.texts[place]]
    values = table.values[:, place]
    gaps = np.isnan(values)
    if not (gaps | (values == np.round(values))).all() or np.isinf(values).any():
        return None
    return ["" if gap else str(int(value)) for value, gap in zip(values.tolist(), gaps.tolist(), strict=True)]


def _labels(rows: list[_Rows], source: Path) -> Labels | None:
    """Returns the classes of a column, or else of the folders."""
    said = [label for each in rows for label in each.labels or ()]
    if len(said) == sum(len(each.values) for each in rows):
        classes = classes_of(said)
        numbers = {name: number for number, name in enumerate(classes)}
        return Labels(torch.tensor([numbers[label] for label in said]), classes)
    names = [each.path.relative_to(source).as_posix() for each in rows] if source.is_dir() else []
    labels = labels_of(names, source)
    if labels is None:
        return None
    return labels._replace(values=labels.values.repeat_interleave(torch.tensor([len(each.values) for each in rows])))


def _row_names(rows: _Rows, root: Path | None) -> list[str]:
    """Names each row by its number, and if a root is given by its file's path below the root, too."""
    stem = "" if root is None else rows.path.with_name(stem_of(rows.path)).relative_to(root).as_posix() + "-"
    return [f"{stem}{row:05d}" for row in range(len(rows.values))]


def _finished(
    name: str,
    path: Path,
    modality: Vectors,
    values: NDArray[np.float32],
    labels: Labels | None,
    names: list[str] | None,
    held: list[int] | None,
    fraction: float,
    skipped: Sequence[Skipped] = (),
) -> Data:
    """Splits rows, fills gaps by training means, and makes items."""
    if held is None:
        held = held_out([digest_of(row) for row in values], fraction)
    rest = np.setdiff1d(np.arange(len(values)), held)
    known = modality.names or ()
    gaps = np.isnan(values)
    fill = modality.fill
    if fill is None:
        for feature in np.flatnonzero(gaps[rest].all(0))[:1]:
            raise ValueError(f"'{known[feature]}' of '{path}' has only gaps in the rows to learn from. Leave it out.")
        fill = tuple(np.asarray(np.nanmean(values[rest], axis=0, dtype=np.float64)).tolist())
    if gaps.any():
        counted = f"{int(gaps.sum())} of {gaps.size} values of '{path}'"
        warnings.warn(f"Filled {counted}, gaps, by the mean of their column over the training rows.", stacklevel=4)
        values = np.where(gaps, np.array(fill, np.float32), values)
    everything = ArrayItems(torch.from_numpy(values), 0, None if labels is None else labels.values, names)
    train = everything.subset(rest.tolist())
    modality = replace(modality, fill=fill)
    classes = () if labels is None else labels.classes
    return Data(name, train, everything.subset(held) if held else train, modality, tuple(skipped), classes)


def _bundled(modality: Vectors, name: str) -> Data:
    """Loads a table of scikit-learn's distribution, a fifth of it held out by a hash of the content.

    breast-cancer: 569 tumors in 30 features of their cell nuclei, malignant or benign. wine: 178 wines of three growers
    in 13 measurements. iris: 150 flowers of three species in 4 lengths (cm). diabetes: 442 patients in 10 measurements,
    without classes.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If its file is damaged, or settings do not fit it.
    """
    file, features = _BUNDLED[name][0], tuple(_BUNDLED[name][1].split())
    if modality.label is not None or modality.names not in (None, features):
        raise ValueError(f"Bundled data have names and labels of their own, got {modality}. Leave these settings out.")
    path = package_folder("sklearn", "scikit-learn") / "datasets" / "data" / file
    labels = None
    if name == "diabetes":
        rows = read_table(path).values
    else:
        lines = path.read_text().splitlines()
        rows = np.array([line.split(",") for line in lines[1:]], np.float64)
        labels = Labels(torch.from_numpy(rows[:, -1].astype(np.int64)), tuple(lines[0].split(",")[2:]))
        rows = rows[:, :-1]
    modality = replace(modality, names=features)
    return _finished(name, path, modality, rows.astype(np.float32), labels, None, None, _BUNDLED_FRACTION)


Vectors.bundled = {name: partial(_bundled, name=name) for name in _BUNDLED}
