"""The plots of the page: contenders, studies, the course of training, gradients; each from data as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from page_labels import GAP, Box, place
from page_svg import (
    DASHES,
    GROUND,
    INK,
    MARKERS,
    MUTED,
    NORMAL,
    OURS,
    SERIES,
    SMALL,
    THEIRS,
    legend,
    new_figure,
    style,
)

WIDTH = 600.0
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_MOST = 2.0
"""What is drawn in its place, as a multiple of the least error."""
_LEADER = GAP + 4
"""Distance of a name, in points, from which on a line leads to it."""


def plot_contenders(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """MSE against perplexity, a panel for each data set: low and to the right is good.

    What has more than twice the least error is drawn at the upper edge with its error, so that the others have room.

    Args:
        panels: ``title``, ``codebook_size`` and ``points``: ``name``, ``mse`` and ``perplexity`` with ``mse_std`` and
            ``perplexity_std`` or None, ``is_used`` (filled), ``is_ours`` (a colour of its own).
    """
    figure = new_figure(WIDTH, 330 * len(panels))
    shown = []
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        style(axes, panel["title"], "perplexity", "MSE (1e-3)")
        errors = [1e3 * point["mse"] for point in panel["points"]]
        edge = _MOST * min(errors)
        shown.append([_Contender(point, edge) for point in panel["points"]])
        axes.set_xlim(-0.03 * panel["codebook_size"], 1.03 * panel["codebook_size"])
        _logarithmic(axes, [min(error, edge) for error in errors])
        for contender in shown[-1]:
            contender.draw(axes)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names must not move what they were placed by
    for axes, contenders in zip(figure.axes, shown, strict=True):
        _name_points(axes, contenders)
    return figure


class _Contender:
    """A point of the plot of contenders.

    Args:
        point: What :func:`plot_contenders` says.
        edge: Largest error, in 1e-3, that is drawn in its place.
    """

    def __init__(self, point: Mapping[str, Any], edge: float) -> None:
        error = 1e3 * point["mse"]
        self.point, self.is_beyond = point, error > edge
        self.at = (float(point["perplexity"]), min(error, edge))
        self.deviations = (point["perplexity_std"] or 0.0, 0.0 if self.is_beyond else 1e3 * (point["mse_std"] or 0.0))
        self.name = f"{point['name']}, {error:.1f}" if self.is_beyond else point["name"]
        self.colour = OURS if point["is_ours"] else THEIRS

    def draw(self, axes: Axes) -> None:
        """Marker and bars."""
        axes.errorbar(
            *self.at, xerr=self.deviations[0], yerr=self.deviations[1], color=self.colour, elinewidth=0.8,
            linestyle="none", marker="^" if self.is_beyond else "D" if self.point["is_ours"] else "o",
            markersize=6.5 if self.point["is_ours"] else 5.5, markeredgewidth=1.2,
            markerfacecolor=self.colour if self.point["is_used"] else GROUND, zorder=3 if self.point["is_ours"] else 2,
        )  # fmt: skip

    def bars(self, axes: Axes) -> list[Box]:
        """Where its bars are, in points."""
        corners = []
        for across, up in ((self.deviations[0], 0.0), (0.0, self.deviations[1])):
            ends = axes.transData.transform([(self.at[0] + way * across, self.at[1] + way * up) for way in (-1, 1)])
            (left, bottom), (right, top) = ((float(x), float(y)) for x, y in ends)
            corners.append(Box(left - 1, bottom - 1, right + 1, top + 1))
        return corners


def _name_points(axes: Axes, contenders: Sequence[_Contender]) -> None:
    """Writes the names in, once the layout is fixed: at 72 dots per inch a pixel is a point."""
    places = [tuple(map(float, axes.transData.transform(each.at))) for each in contenders]
    names = [
        axes.annotate(
            each.name, each.at, (0, 0), textcoords="offset points", fontsize=SMALL, ha="center", va="center",
            color=each.colour if each.point["is_ours"] else INK, zorder=5,
            fontweight="bold" if each.point["is_ours"] else "normal",
        )
        for each in contenders
    ]  # fmt: skip
    sizes = [(extent.width + 2, extent.height) for extent in (name.get_window_extent() for name in names)]
    frame = Box(*(float(value) for value in axes.get_window_extent().extents))
    boxes = place(places, sizes, frame, [bar for each in contenders for bar in each.bars(axes)])
    for name, (x, y), each, box in zip(names, places, contenders, boxes, strict=True):
        name.set_position(((box.left + box.right) / 2 - x, (box.bottom + box.top) / 2 - y))
        near = box.nearest((x, y))
        if math.dist(near, (x, y)) > _LEADER:
            axes.annotate(
                "", each.at, (near[0] - x, near[1] - y), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3.5},
            )  # fmt: skip


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis upwards, with few and round marks whatever it spans."""
    low, high = min(values), max(values)
    margin = (high / low) ** 0.12 if high > low else 1.1
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    marks = [digit * 10.0**power for power in range(-12, 12) for digit in _ROUND]
    marks = [mark for mark in marks if low / margin <= mark <= high * margin]
    if high > 1000 * low:
        marks = [mark for mark in marks if math.isclose(math.log10(mark) % 1, 0, abs_tol=1e-9)]
    axes.yaxis.set_major_locator(FixedLocator(marks[:: -(-len(marks) // 7)]) if len(marks) > 2 else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


_MEASURES = (("mse", "MSE (1e-3)", 1e3), ("perplexity", "perplexity", 1.0), ("usage", "codes in use (%)", 100.0))


def plot_study(study: Mapping[str, Any]) -> Figure:
    """MSE, perplexity and usage of the points of a study; the default has a colour of its own.

    Args:
        study: ``axis``, ``scale`` (``log``, ``linear`` or ``category``), ``has_training`` (draw the error of training
            images, too) and ``points``: ``label``, ``is_default``, and the measures with ``..._std``, each a number or
            None.
    """
    if study["scale"] == "category":
        return _plot_categories(study["axis"], study["points"])
    figure = new_figure(WIDTH, 190)
    places = positions([point["label"] for point in study["points"]], study["scale"])
    for axes, (key, title, scale) in zip(figure.subplots(1, 3), _MEASURES, strict=True):
        style(axes, title, study["axis"])
        shown = [(x, point) for x, point in zip(places, study["points"], strict=True) if point[key] is not None]
        axes.plot([x for x, _ in shown], [scale * point[key] for _, point in shown], color=THEIRS, linewidth=1.3)
        if key == "mse" and study["has_training"]:
            trained = [math.nan if point["mse_train"] is None else scale * point["mse_train"] for _, point in shown]
            axes.plot([x for x, _ in shown], trained, color=MUTED, linewidth=1.2, linestyle=DASHES[1], marker=".")
            axes.set_title("MSE (1e-3), dashed: training", loc="left", fontsize=NORMAL, color=INK)
        for x, point in shown:
            _study_point(axes, x, scale * point[key], scale * (point[f"{key}_std"] or 0.0), point, upright=True)
        _label_positions(axes, places, [point["label"] for point in study["points"]])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(0.08, 0.12)
        if key == "usage":
            axes.set_ylim(*_per_cents([scale * point[key] for _, point in shown]))
    return figure


def _per_cents(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that ends at 100 %, and spans a tenth of it at least."""
    low = min([90.0, *values])
    return low - 0.1 * (100 - low), 100 + 0.05 * (100 - low)


def _plot_categories(title: str, points: Sequence[Mapping[str, Any]]) -> Figure:
    """The categories one under another, so that their names have room."""
    figure = new_figure(WIDTH, 62 + 21 * len(points))
    places = list(range(len(points)))[::-1]
    for axes, (key, measure, scale) in zip(figure.subplots(1, 3, sharey=True), _MEASURES, strict=True):
        style(axes, measure)
        for y, point in zip(places, points, strict=True):
            if point[key] is not None:
                _study_point(axes, scale * point[key], y, scale * (point[f"{key}_std"] or 0.0), point, upright=False)
        axes.set_yticks(places, [str(point["label"]) for point in points])
        axes.set_ylim(-0.6, len(points) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.1)
        if key == "usage":
            axes.set_xlim(*_per_cents([scale * point[key] for point in points if point[key] is not None]))
    figure.axes[0].set_ylabel(title, fontsize=NORMAL, color=MUTED)
    return figure


def _study_point(axes: Axes, x: float, y: float, deviation: float, point: Mapping[str, Any], *, upright: bool) -> None:
    colour = OURS if point["is_default"] else THEIRS
    axes.errorbar(
        x, y, **{"yerr" if upright else "xerr": deviation}, color=colour, elinewidth=1.0, linestyle="none",
        marker="D" if point["is_default"] else "o", markersize=6 if point["is_default"] else 5, zorder=3,
    )  # fmt: skip


def positions(labels: Sequence[str | float], scale: str) -> list[float]:
    """Where the points of a study stand: numbers in proportion, and apart from them what is no number on this scale.

    On a logarithmic axis zero stands a step to the left of the smallest number; words stand to the right.
    """
    fits = [isinstance(label, int | float) and (scale == "linear" or label > 0) for label in labels]
    value = float if scale == "linear" else math.log10
    known = [value(label) for label, fit in zip(labels, fits, strict=True) if fit]
    if not known:
        return [float(index) for index in range(len(labels))]
    ordered = sorted(known)
    step = max((ordered[-1] - ordered[0]) / max(1, len(ordered) - 1), 1e-9) if len(ordered) > 1 else 1.0
    places, right = [], ordered[-1]
    for label, fit in zip(labels, fits, strict=True):
        if fit:
            places.append(value(label))
        elif isinstance(label, int | float):
            places.append(ordered[0] - step)
        else:
            right += step
            places.append(right)
    return places


def _label_positions(axes: Axes, places: Sequence[float], labels: Sequence[str | float]) -> None:
    """Marks at the points themselves, as many as have room."""
    texts = [label if isinstance(label, str) else f"{label:g}" for label in labels]
    width = max(places) - min(places) or 1.0
    kept: list[int] = []
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        room = (places[index] - places[kept[-1]]) / width * 140 if kept else math.inf
        if not kept or room > 2.9 * (len(texts[index]) + len(texts[kept[-1]])) + 3:
            kept.append(index)
    axes.set_xticks([places[index] for index in kept], [texts[index] for index in kept])


def plot_course(series: Sequence[Mapping[str, Any]]) -> Figure:
    """Posterior entropy, perplexity and MSE against the step of training.

    Args:
        series: ``name``, ``step``, and values at the steps by name of the measure, numbers or None.
    """
    figure = new_figure(WIDTH, 230)
    panels = (("posterior_entropy", "entropy of q (nats)", 1.0), *_MEASURES[1::-1])
    handles: dict[str, Any] = {}
    for axes, (key, title, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        style(axes, title, "step")
        shown = []
        for place_of, one in enumerate(series):
            values = [math.nan if value is None else scale * value for value in one.get(key) or []]
            shown += [value for value in values if value > 0]
            (handles[one["name"]],) = axes.plot(
                one["step"][: len(values)], values, color=SERIES[place_of % len(SERIES)], linewidth=1.5,
                linestyle=DASHES[place_of % len(DASHES)],
            )  # fmt: skip
        if key == "mse" and shown:
            _logarithmic(axes, shown)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    legend(figure, handles)
    return figure


def plot_gradients(columns: Sequence[Mapping[str, Any]]) -> Figure:
    """Bias above variance, against the temperature; what has none is a horizontal line.

    Args:
        columns: ``title`` and ``lines``: ``estimator``, ``look`` (its number), ``temperature`` (numbers, or one None),
            and ``bias``, ``bias_spread``, ``variance``, ``variance_spread`` of the same length, each a number or None.
    """
    figure = new_figure(WIDTH, 380)
    lines = [line for column in columns for line in column["lines"] if any(map(_is_drawn, line["bias"]))]
    handles = {line["estimator"]: _handle(line) for line in lines}
    grid = figure.subplots(2, len(columns), squeeze=False, sharex=True, sharey="row")
    for axes, column in zip(grid[0], columns, strict=True):
        style(axes, column["title"], up="bias" if axes is grid[0, 0] else "")
    for axes in grid[1]:
        style(axes, across="temperature", up="variance" if axes is grid[1, 0] else "")
    for row, key in zip(grid, ("bias", "variance"), strict=True):
        shown = []
        for axes, column in zip(row, columns, strict=True):
            for line in column["lines"]:
                if line["estimator"] in handles:
                    shown += _gradient_line(axes, line, key)
        for axes in row if shown else ():
            _logarithmic(axes, shown)
    temperatures = sorted({t for column in columns for line in column["lines"] for t in line["temperature"] if t})
    for axes in grid.flat if temperatures else ():
        axes.set_xscale("log")
        axes.set_xlim(temperatures[0] / 1.3, temperatures[-1] * 1.3)
        axes.xaxis.set_major_locator(FixedLocator(temperatures[::2]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend(figure, handles)
    return figure


def _is_drawn(value: float | None) -> bool:
    """Rounding is no bias, and what draws nothing has no variance: on a logarithmic axis neither has a place."""
    return value is not None and value > 1e-6


def _look(line: Mapping[str, Any]) -> dict[str, Any]:
    """Colour, dashes and marker of an estimator, the same in all figures."""
    place_of = line["look"] % len(SERIES)
    marker = "" if line["temperature"] == [None] else MARKERS[place_of]
    return {"color": SERIES[place_of], "linestyle": DASHES[place_of], "marker": marker, "markersize": 4.5,
            "linewidth": 1.4}  # fmt: skip


def _handle(line: Mapping[str, Any]) -> Line2D:
    return Line2D([], [], **_look(line))


def _gradient_line(axes: Axes, line: Mapping[str, Any], key: str) -> list[float]:
    """Draws one estimator and returns what it spans."""
    spreads = line.get(f"{key}_spread") or [None] * len(line[key])
    found = [
        (temperature, value, deviation or 0.0)
        for temperature, value, deviation in zip(line["temperature"], line[key], spreads, strict=True)
        if _is_drawn(value)
    ]
    if found and found[0][0] is None:
        axes.axhline(found[0][1], **_look(line))
    elif found:
        x, y, deviations = zip(*found, strict=True)
        low = [min(deviation, 0.9 * value) for value, deviation in zip(y, deviations, strict=True)]
        axes.errorbar(x, y, yerr=(low, deviations), elinewidth=0.8, **_look(line))
    return [value for _, value, _ in found]
