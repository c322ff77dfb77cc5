"""Time series of measurements: items are float32 ``(C, T)`` in the data's own units.

::

    file --read_series--> (C, T) with gaps --split by time, by content or by the files--> --without_gaps--> Items
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import positive
from gmvq.data.items import ArrayItems, Items, ListItems, Skipped
from gmvq.data.labels import Labels, labels_of
from gmvq.data.splitting import digest_of, held_out
from gmvq.metrics.base import Measure
from gmvq.metrics.real import RealDistortion
from gmvq.modalities.base import Data, Exhibit, Modality, listed, register
from gmvq.modalities.charts import code_strip, curves
from gmvq.modalities.delimited import TableError
from gmvq.modalities.gathering import gather, has_side
from gmvq.modalities.installed import package_folder
from gmvq.modalities.series_files import SERIES_SUFFIXES, looks_like_series, read_series
from gmvq.modalities.tables import check_names, classes_of, columns, read_table, stem_of, suffix_of, write_numbers
from gmvq.types import Signal

LONGEST_GAP = 100
"""Longest gap in steps that is filled; for short series a tenth of their steps."""
MEMBRANE = ("potential",)
STOCKS = ("IBM", "AAPL", "MSFT", "XRX", "ADBE", "^GSPC", "^IXIC")


@register
@dataclass(frozen=True)
class Series(Modality):
    """Time series such as heartbeats, prices, load or weather, with any number of channels.

    Values keep the data's units: models standardize them. Steps are assumed to be evenly spaced.

    Args:
        names: Names of the channels, in order; by default all columns of numbers except time and step labels. Columns
            of a table are selected by name: ``Series(names=("OT",))`` takes one channel of ETTh1.
        rate: Steps per second, Hz; by default derived from evenly spaced dates of the data.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[str] = "series"
    item: ClassVar[str] = "series"
    items: ClassVar[str] = "series"
    sample: ClassVar[str] = "step"
    wanted: ClassVar[str] = (
        "the path of a table whose rows are steps in time (CSV, TSV, Parquet), of a collection of series (.ts, .npy of "
        "shape (N, C, T), the text files of the UCR archive), or of a folder of them"
    )
    measures: ClassVar[tuple[Measure, ...]] = RealDistortion.measures
    bundled: ClassVar[Mapping[str, Callable[[Any], Data]]] = {}
    window_size: ClassVar[int | None] = 96
    downsampling: ClassVar[int] = 4

    names: tuple[str, ...] | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        check_names(self.names)
        if self.rate is not None:
            positive("rate", self.rate)

    @property
    def signal(self) -> Signal:  # noqa: D102
        return Signal("series", 1, len(self._known), "real", self.rate)

    @property
    def suffix(self) -> str:  # noqa: D102
        return ".csv"

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        """Reads series and splits them.

        Files named ``*_TRAIN`` and ``*_TEST``, or folders ``train`` and ``test``, are the two sides. Otherwise the last
        part of a single series is held out, and of several series some are held out by a hash of their content. All are
        kept in memory, where they take a fraction of the size of their files.

        Gaps of up to 100 steps, or a tenth of a shorter series, are filled by linear interpolation in time, gaps at the
        ends by the nearest value, on each side separately; at longer gaps a series is cut in two.
        """
        files = gather(path, SERIES_SUFFIXES)
        reading = _Reading(self.names, self.rate, files.root, files.skipped)
        alone = len(files.train) == 1 and files.train[0] == path
        sides = [reading.side(paths, alone=alone, folder=path) for paths in (files.train, files.held_out) if paths]
        modality = replace(self, names=reading.names, rate=self.rate or reading.rate)
        if reading.notes:
            warnings.warn(f"Left out of '{path}': {'; '.join(dict.fromkeys(reading.notes))}.", stacklevel=3)
        if len(sides) == 1:
            sides = _split(sides[0], files.name, held_out_fraction)
        return _finished(files.name, sides, modality, path, reading)

    def recognizes(self, source: Path) -> bool:  # noqa: D102
        return suffix_of(source) in SERIES_SUFFIXES or (
            suffix_of(source) == ".txt" and has_side(source) and "_" in source.name
        )

    def suits(self, file: Path) -> bool:
        """Returns whether the rows of a file are steps in time, or it is a collection of series."""
        return looks_like_series(file)

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts a stretch of consecutive steps; keeps shorter series whole, and never mirrors."""
        length = item.shape[-1]
        if size is None or length <= size:
            return item
        start = min(int(chance[0] * (length - size + 1)), length - size)
        return item[..., start : start + size]

    def padded(self, item: Tensor, length: int) -> Tensor:
        """Continues a series to some length: by its last values, since 0 may be far from all of them."""
        more = length - item.shape[-1]
        return torch.cat([item, item[..., -1:].expand(*item.shape[:-1], more)], dim=-1) if more > 0 else item

    def distortion(self, *, quick: bool = False) -> RealDistortion:
        """Creates an accumulator of squared and absolute error in the data's units, and explained variance."""
        return RealDistortion()

    def exhibit(  # noqa: D102
        self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None
    ) -> Exhibit:
        note = ""
        if made is not None:
            distortion = self.distortion()
            distortion.update(made.float().cpu()[None], real.float().cpu()[None])
            note = f"squared error {distortion.metrics()['mse']:.3g}"
        return Exhibit(
            name,
            note,
            (curves(real, None, self._known, self.rate, name),),
            () if made is None else (curves(real, made, self._known, self.rate, f"{name}, reconstructed"),),
            () if codes is None else (code_strip(codes, f"Codes of {name}", real.shape[-1]),),
        )

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes a table whose rows are steps, or, for a ``.npy`` path, an array ``(1, C, T)``."""
        if len(items) != 1:
            raise ValueError(f"'items' must be one series for {path}, got {len(items)}. Give each a file of its own.")
        write_numbers(path, items[0].T, self._known, items[0][None])

    @property
    def _known(self) -> tuple[str, ...]:
        if self.names is None:
            raise ValueError("'names' of the channels must be known, got None. Use for example Series(names=('x',)).")
        return self.names


class _Raw(NamedTuple):
    """A series as read: its name, values ``(C, T)`` with gaps, file and class.

    Attributes:
        cut: First step and number of steps of the original series before its split in time, or None for a whole one.
    """

    name: str
    values: NDArray[np.float32]
    path: Path
    label: str | None = None
    cut: tuple[int, int] | None = None

    @property
    def longest_gap(self) -> int:
        """Longest gap in steps that is filled."""
        steps = self.values.shape[1] if self.cut is None else self.cut[1]
        return max(1, min(LONGEST_GAP, steps // 10))


class _Reading:
    """The channels, rate and classes found in the files so far."""

    def __init__(self, names: tuple[str, ...] | None, rate: float | None, root: Path, skipped: list[Skipped]) -> None:
        self.names, self.rate, self.root, self.skipped = names, rate, root, skipped
        self.classes: tuple[str, ...] = ()
        self.notes: list[str] = []

    def side(self, paths: Iterable[Path], *, alone: bool, folder: Path) -> list[_Raw]:
        """Reads all series of some files; if there are several files, unreadable ones are skipped."""
        series: list[_Raw] = []
        for path in paths:
            try:
                series.extend(self._file(path))
            except TableError as error:
                if alone:
                    raise
                self.skipped.append(Skipped(error.path, error.reason))
        if not series:
            raise ValueError(f"No series in '{folder}' can be read. Skipped: {listed(self.skipped)}. Check the files.")
        return series

    def _file(self, path: Path) -> list[_Raw]:
        found = read_series(path, self.names)
        if self.rate is not None and found.rate is not None and not math.isclose(self.rate, found.rate, rel_tol=1e-6):
            raise TableError(path, f"its times are {found.rate:g} Hz instead of {self.rate:g}; resample it")
        self.names, self.rate = found.names, self.rate or found.rate
        self.classes = self.classes or found.classes
        self.notes.extend(found.notes)
        name = path.relative_to(self.root)
        labels = found.labels or [None] * len(found.series)
        if len(found.series) == 1:
            return [_Raw(name.as_posix(), found.series[0], path, labels[0])]
        stem = name.with_name(stem_of(path)).as_posix()
        pairs = enumerate(zip(found.series, labels, strict=True))
        return [_Raw(f"{stem}-{place:05d}", values, path, label) for place, (values, label) in pairs]


def without_gaps(values: NDArray[np.float32], longest: int) -> tuple[list[tuple[int, NDArray[np.float32]]], int]:
    """Fills short gaps and cuts at long ones.

    Args:
        values: Series ``(C, T)``, NaN for gaps.
        longest: Longest gap in steps that is filled.

    Returns:
        Stretches without gaps, each with its first step, and the number of values that were filled. Stretches shorter
        than the longest filled gap, or with a channel that is all gaps, are left out.
    """
    gaps, steps = np.isnan(values), values.shape[1]
    if not gaps.any():
        return [(0, values)], 0
    kept = np.ones(steps, bool)
    for channel in gaps:
        for start, stop in _runs(channel):
            if stop - start > longest:
                kept[start:stop] = False
    stretches, filled = [], 0
    for start, stop in _runs(kept):
        missing = gaps[:, start:stop]
        if stop - start < min(longest, steps) or missing.all(1).any():
            continue
        stretch, places = values[:, start:stop].copy(), np.arange(stop - start)
        for channel, holes in zip(stretch, missing, strict=True):
            channel[holes] = np.interp(places[holes], places[~holes], channel[~holes])
        stretches.append((start, stretch))
        filled += int(missing.sum())
    return stretches, filled


def _runs(places: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns the start and end of each run of true values."""
    borders = np.flatnonzero(np.diff(np.concatenate([[False], places, [False]])))
    return list(zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True))


def _split(series: list[_Raw], name: str, fraction: float) -> list[list[_Raw]]:
    """Splits one series in time, several by content; returns a single side if there is nothing to hold out."""
    if len(series) == 1 and fraction:
        length = series[0].values.shape[1]
        border = length - max(1, round(length * fraction))
        if border < 1:
            return [series]
        spans = (0, border), (border, length)
        whole = series[0]._replace(name=name)
        return [[whole._replace(values=whole.values[:, start:stop], cut=(start, length))] for start, stop in spans]
    chosen = set(held_out([digest_of(each.values) for each in series], fraction))
    if not chosen:
        return [series]
    return [[each for place, each in enumerate(series) if (place in chosen) == side] for side in (False, True)]


def _finished(name: str, sides: list[list[_Raw]], modality: Series, path: Path, reading: _Reading) -> Data:
    """Fills gaps, indexes classes, and makes items of two sides, or of one side that is used for both."""
    raws = [each for side in sides for each in side]
    labels = _labels(raws, reading, path)
    made: list[Items] = []
    filled, kept, place = 0, 0, 0
    for side in sides:
        names, values, classes = list[str](), list[Tensor](), list[int]()
        for each in side:
            stretches, gaps = without_gaps(each.values, each.longest_gap)
            filled += gaps
            for start, stretch in stretches:
                names.append(_stretch_name(each, start, stretch.shape[1]))
                values.append(torch.from_numpy(np.ascontiguousarray(stretch)))
                classes.append(0 if labels is None else int(labels.values[place]))
                kept += stretch.shape[1]
            if not stretches:
                reading.skipped.append(Skipped(each.path, f"no stretch of '{each.name}' has values in all channels"))
            place += 1
        if not values:
            lost = listed(reading.skipped)
            raise ValueError(f"No series of '{path}' is left on one side where gaps are cut out: {lost}. Fill them.")
        tensor = None if labels is None else torch.tensor(classes)
        alike = len(values) > 1 and len({each.shape for each in values}) == 1
        made.append(ArrayItems(torch.stack(values), 1, tensor, names) if alike else ListItems(values, 1, names, tensor))
    steps, total = sum(each.values.shape[1] for each in raws), sum(each.values.size for each in raws)
    if filled or kept < steps:
        cut = f", and left out {steps - kept} of {steps} steps in and between longer ones" if kept < steps else ""
        warnings.warn(f"Filled {filled} of {total} values of '{path}' in short gaps{cut}.", stacklevel=4)
    return Data(name, made[0], made[-1], modality, tuple(reading.skipped), () if labels is None else labels.classes)


def _labels(raws: list[_Raw], reading: _Reading, source: Path) -> Labels | None:
    """Returns the classes given in the files, or else by their folders."""
    said = [each.label for each in raws if each.label is not None]
    if len(said) == len(raws):
        classes = reading.classes or classes_of(said)
        return Labels(torch.tensor([classes.index(label) for label in said]), classes)
    if not source.is_dir():
        return None
    return labels_of([each.path.relative_to(source).as_posix() for each in raws], source)


def _stretch_name(raw: _Raw, start: int, length: int) -> str:
    if raw.cut is None and length == raw.values.shape[1]:
        return raw.name
    first = start if raw.cut is None else raw.cut[0] + start
    return f"{raw.name} {first}-{first + length - 1}"


def _stocks(modality: Series) -> Data:
    """Loads monthly prices of five stocks and two indices, January 1990 to June 2022, from Yahoo Finance.

    IBM, Apple, Microsoft, Xerox and Adobe in dollars, the S&P 500 and the NASDAQ Composite in points, from matplotlib's
    sample data. The last tenth, from April 2019 on, is held out: most of it is above all earlier prices. Three stocks
    with a later start are left out, and so are rows without a price, which are dividend dates.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If its file is damaged, or names are not among the columns.
    """
    path = package_folder("matplotlib", "matplotlib") / "mpl-data" / "sample_data" / "Stocks.csv"
    chosen = columns(read_table(path), path, modality.names or STOCKS)
    months = chosen.values[~np.isnan(chosen.values).all(1)][:-1]  # the last row repeats June
    reading = _Reading(chosen.names, modality.rate, path.parent, [])
    sides = _split([_Raw("stocks", np.ascontiguousarray(months.T), path)], "stocks", 0.1)
    return _finished("stocks", sides, replace(modality, names=chosen.names), path, reading)


def _membrane(modality: Series) -> Data:
    """Loads the membrane potential of a nerve cell, 12,000 steps with 57 spikes, from matplotlib's sample data.

    Steps 8,400 to 9,599 are held out; the steps before and after them are the two series for training.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If its file is damaged.
    """
    path = package_folder("matplotlib", "matplotlib") / "mpl-data" / "sample_data" / "membrane.dat"
    try:
        values = np.fromfile(path, "<f4")
    except OSError as error:
        raise ValueError(f"Cannot read the membrane in '{path}': {error}. Reinstall matplotlib.") from error
    if len(values) != 12_000 or not np.isfinite(values).all():
        raise ValueError(f"'{path}' must hold 12,000 numbers, got {len(values)}. Reinstall matplotlib.")
    if modality.names not in (None, MEMBRANE):
        raise ValueError(f"'names' of the membrane must be {MEMBRANE}, got {modality.names}. Leave them out.")
    parts = [
        _Raw("membrane", values[None, start:stop], path, cut=(start, len(values)))
        for start, stop in itertools.pairwise((0, 8400, 9600, len(values)))
    ]
    reading = _Reading(MEMBRANE, modality.rate, path.parent, [])
    return _finished("membrane", [[parts[0], parts[2]], [parts[1]]], replace(modality, names=MEMBRANE), path, reading)


Series.bundled = {"membrane": _membrane, "stocks": _stocks}
