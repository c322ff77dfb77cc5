"""Plots of the page, each from JSON data: contenders, studies, metrics over training, gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from svg import DASHES, GROUND, INK, MARKERS, MUTED, NORMAL, OURS, SERIES, SMALL, THEIRS, legend, new_figure, style

WIDTH = 600.0
GAP = 5.0
"""Distance in points between a point and the nearest name."""
_LEADER = GAP + 4
"""Distance of a name, in points, from which a line connects it to its point."""
_MOST = 2.0
"""The largest error that is drawn at its true position, as a multiple of the smallest."""
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_MEASURES = (("mse", "MSE (1e-3)", 1e3), ("perplexity", "perplexity", 1.0), ("usage", "codes in use (%)", 100.0))
Point = Mapping[str, Any]


def plot_contenders(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots MSE against perplexity, a panel per data set: low and to the right is good.

    Errors of more than twice the smallest are drawn at the upper edge with their values, to leave room for the others.

    Args:
        panels: ``title``, ``codebook_size`` and ``points``: ``name``, mean and deviation of ``mse`` and
            ``perplexity``, ``is_used`` (filled), ``is_ours`` (a separate color).
    """
    figure = new_figure(WIDTH, 330 * len(panels))
    drawn = []
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        style(axes, panel["title"], "perplexity", "MSE (1e-3)")
        errors = [1e3 * point["mse"][0] for point in panel["points"]]
        edge = _MOST * min(errors)
        axes.set_xlim(-0.03 * panel["codebook_size"], 1.03 * panel["codebook_size"])
        _logarithmic(axes, [min(error, edge) for error in errors])
        drawn.append([_contender(axes, point, edge) for point in panel["points"]])
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a new layout would move the points that names are placed for
    for axes, panel, shown in zip(figure.axes, panels, drawn, strict=True):
        _name_points(axes, panel["points"], *zip(*shown, strict=True))
    return figure


def _contender(axes: Axes, point: Point, edge: float) -> tuple[str, tuple[float, float], tuple[float, float]]:
    """Draws marker and bars of a point; returns its name, position and deviations."""
    (mse, deviation), (perplexity, spread), is_ours = point["mse"], point["perplexity"], point["is_ours"]
    is_beyond, color = 1e3 * mse > edge, OURS if is_ours else THEIRS
    at, bars = (perplexity, min(1e3 * mse, edge)), (spread or 0.0, 0.0 if is_beyond else 1e3 * (deviation or 0.0))
    axes.errorbar(
        *at, xerr=bars[0], yerr=bars[1], color=color, elinewidth=0.8, linestyle="none",
        marker="^" if is_beyond else "D" if is_ours else "o", markersize=6.5 if is_ours else 5.5, markeredgewidth=1.2,
        markerfacecolor=color if point["is_used"] else GROUND, zorder=3 if is_ours else 2,
    )  # fmt: skip
    return f"{point['name']}, {1e3 * mse:.1f}" if is_beyond else point["name"], at, bars


def _name_points(axes: Axes, points: Sequence[Point], names: Sequence[str], *places: Sequence[Any]) -> None:
    """Writes the names after the layout is fixed: at 72 dots per inch a pixel is a point."""
    at, deviations = map(np.array, places)
    pixels = axes.transData.transform(at)
    texts = [
        axes.annotate(
            name, place, (0, 0), textcoords="offset points", fontsize=SMALL, ha="center", va="center", zorder=5,
            color=OURS if point["is_ours"] else INK, fontweight="bold" if point["is_ours"] else "normal",
        )
        for name, place, point in zip(names, at, points, strict=True)
    ]  # fmt: skip
    sizes = [(extent.width + 2, extent.height) for extent in (text.get_window_extent() for text in texts)]
    ways = np.concatenate([deviations * (1, 0), deviations * (0, 1)])
    low, high = (axes.transData.transform(np.concatenate([at, at]) + sign * ways) + sign for sign in (-1, 1))
    boxes = place_names(pixels, sizes, axes.get_window_extent().extents, np.hstack([low, high]))
    for text, place, pixel, box in zip(texts, at, pixels, boxes, strict=True):
        text.set_position(tuple((box[:2] + box[2:]) / 2 - pixel))
        near = np.clip(pixel, box[:2], box[2:])
        if math.dist(near, pixel) > _LEADER:
            axes.annotate(
                "", place, tuple(near - pixel), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3.5},
            )  # fmt: skip


def place_names(
    points: np.ndarray, sizes: Sequence[tuple[float, float]], frame: np.ndarray, bars: np.ndarray
) -> np.ndarray:
    """Places a name near each point: inside the frame, without overlap of names, points and connecting lines.

    The most crowded points choose first, each the nearest free place; if all of these are crossed by lines, one that is
    crossed, and if the frame is full, one outside it. Names must not cover the bars either. A box, of the frame, of
    bars ``(M, 4)`` and of the returned names ``(N, 4)``, is left, bottom, right, top in points.
    """
    crowded = np.exp(-np.linalg.norm(points[:, None] - points, axis=-1) / 40).sum(1)
    markers, placed = np.hstack([points - 3, points + 3]), np.full((len(points), 4), np.nan)
    for index in np.argsort(-crowded, kind="stable"):
        boxes = _candidates(points[index], sizes[index])
        others = np.concatenate([placed, np.hstack([points - GAP, points + GAP]), bars])
        free = boxes[~((boxes[:, None, :2] < others[:, 2:]) & (others[:, :2] < boxes[:, None, 2:])).all(-1).any(1)]
        inside = free[((frame[:2] <= free[:, :2]) & (free[:, 2:] <= frame[2:])).all(1)]
        crossed = np.concatenate([placed, np.delete(markers, index, axis=0)])
        clear = (
            box
            for box in inside
            if not _crosses(points[index, None], box[None], crossed).any() and not _crosses(points, placed, box).any()
        )
        placed[index] = next(clear, next(iter(inside), next(iter(free), boxes[-1])))
    return placed


def _candidates(point: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Returns places around a point, the nearest first, right before left: boxes ``(1440, 4)``."""
    turns = np.array([(number + 1) // 2 * (-1) ** number for number in range(24)]) * math.pi / 12
    ways, half = np.stack([np.cos(turns), np.sin(turns)], -1), np.array(size) / 2
    rings = (GAP + 1 + 5 * np.arange(60))[:, None, None]
    centers = (point + ways * (rings + half)).reshape(-1, 2)  # the side towards the point touches the ring
    boxes = np.hstack([centers - half, centers + half])
    nearest = np.linalg.norm(np.clip(point, boxes[:, :2], boxes[:, 2:]) - point, axis=1)
    return boxes[np.argsort(nearest.round(9), kind="stable")]


def _crosses(points: np.ndarray, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns whether the lines from points to their boxes cross other boxes (Liang and Barsky's clipping)."""
    ways = np.clip(points, boxes[:, :2], boxes[:, 2:]) - points
    ways = np.where(abs(ways) < 1e-9, 1e-9, ways)
    ends = np.stack([others[..., :2] - points, others[..., 2:] - points]) / ways
    return ends.min(0).max(-1).clip(min=0) < ends.max(0).min(-1).clip(max=1)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Sets a logarithmic y axis with a few round ticks for any range."""
    low, high = min(values), max(values)
    margin = (high / low) ** 0.12 if high > low else 1.1
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    digits = (1,) if high > 1000 * low else _ROUND
    marks = [digit * 10.0**power for power in range(-12, 12) for digit in digits]
    marks = [mark for mark in marks if low / margin <= mark <= high * margin]
    axes.yaxis.set_major_locator(FixedLocator(marks[:: -(-len(marks) // 7)]) if len(marks) > 2 else MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def plot_study(study: Mapping[str, Any]) -> Figure:
    """Plots MSE, perplexity and usage of the points of a study; the default has a separate color.

    Categories are listed vertically, to leave room for their names.

    Args:
        study: ``axis``, ``scale`` (``log``, ``linear`` or ``category``), ``has_training`` (also draw the error of
            training images) and ``points``: ``label``, ``is_default``, and mean and deviation of each measure or None.
    """
    points, upright = study["points"], study["scale"] != "category"
    labels = [point["label"] for point in points]
    figure = new_figure(WIDTH, 190 if upright else 62 + 21 * len(points))
    places = [math.log10(label) if study["scale"] == "log" else label for label in labels] if upright else None
    places = places or list(range(len(points)))[::-1]
    for axes, (key, title, scale) in zip(figure.subplots(1, 3, sharey=not upright), _MEASURES, strict=True):
        style(axes, title, study["axis"] if upright else "")
        shown = [(x, point) for x, point in zip(places, points, strict=True) if point[key] is not None]
        if upright:
            _study_lines(axes, key, scale, shown, study["has_training"])
        for x, point in shown:
            mean, deviation = (scale * (value or 0.0) for value in point[key])
            axes.errorbar(
                *((x, mean) if upright else (mean, x)), **{"yerr" if upright else "xerr": deviation},
                color=OURS if point["is_default"] else THEIRS, elinewidth=1.0, linestyle="none", zorder=3,
                marker="D" if point["is_default"] else "o", markersize=6 if point["is_default"] else 5,
            )  # fmt: skip
        if upright:
            _label_positions(axes, places, [f"{label:g}" for label in labels])
        else:
            axes.set_yticks(places, labels)
            axes.set_ylim(-0.6, len(points) - 0.4)
        (axes.yaxis if upright else axes.xaxis).set_major_locator(MaxNLocator(5 if upright else 4))
        axes.margins(**{"x": 0.08, "y": 0.12} if upright else {"x": 0.1})
        if key == "usage":  # an axis that ends at 100 % and spans at least a tenth of it
            low = min([90.0, *(scale * point[key][0] for _, point in shown)])
            (axes.set_ylim if upright else axes.set_xlim)(low - 0.1 * (100 - low), 100 + 0.05 * (100 - low))
    if not upright:
        figure.axes[0].set_ylabel(study["axis"], fontsize=NORMAL, color=MUTED)
    return figure


def _study_lines(axes: Axes, key: str, scale: float, shown: Sequence[tuple[float, Point]], has_training: bool) -> None:
    """Draws the lines through the points, and for the error also that of training images."""
    x = [x for x, _ in shown]
    axes.plot(x, [scale * point[key][0] for _, point in shown], color=THEIRS, linewidth=1.3)
    if key == "mse" and has_training:
        trained = [scale * point["mse_train"][0] if point["mse_train"] else math.nan for _, point in shown]
        axes.plot(x, trained, color=MUTED, linewidth=1.2, linestyle=DASHES[1], marker=".")
        axes.set_title("MSE (1e-3), dashed: training", loc="left", fontsize=NORMAL, color=INK)


def _label_positions(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """Sets ticks at the points, as many as there is room for."""
    width = max(places) - min(places) or 1.0
    kept: list[int] = []
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        room = (places[index] - places[kept[-1]]) / width * 140 if kept else math.inf
        if not kept or room > 2.9 * (len(labels[index]) + len(labels[kept[-1]])) + 3:
            kept.append(index)
    axes.set_xticks([places[index] for index in kept], [labels[index] for index in kept])


def plot_course(series: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots posterior entropy, perplexity and MSE against the training step.

    Args:
        series: ``name``, ``step``, and values at the steps by metric, numbers or None.
    """
    figure, handles = new_figure(WIDTH, 230), {}
    panels = (("posterior_entropy", "entropy of q (nats)", 1.0), *_MEASURES[1::-1])
    for axes, (key, title, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        style(axes, title, "step")
        shown = []
        for number, one in enumerate(series):
            values = [math.nan if value is None else scale * value for value in one[key]]
            shown += [value for value in values if value > 0]
            look = {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}
            (handles[one["name"]],) = axes.plot(one["step"], values, linewidth=1.5, **look)
        if key == "mse" and shown:
            _logarithmic(axes, shown)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    legend(figure, handles)
    return figure


def plot_gradients(data: Mapping[str, Any]) -> Figure:
    """Plots bias above variance against the temperature, for three posteriors from near one-hot to soft.

    An estimator without a temperature is a horizontal line.

    Args:
        data: ``names`` of the estimators to draw, and ``rows`` as gradients.py writes them.
    """
    rows = [row for row in data["rows"] if row["estimator"] in data["names"]]
    entropies = sorted({round(row["posterior_entropy"], 3) for row in rows})
    entropies = list(dict.fromkeys((entropies[0], entropies[len(entropies) // 2], entropies[-1])))
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(data["names"]):
        mine = [row for row in rows if row["estimator"] == name]
        marker = MARKERS[number % len(MARKERS)] if any(row["temperature"] for row in mine) else ""
        look = {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)], "marker": marker}
        looks |= {name: {**look, "markersize": 4.5, "linewidth": 1.4}} if mine else {}
    figure = new_figure(WIDTH, 380)
    grid = figure.subplots(2, len(entropies), squeeze=False, sharex=True, sharey="row")
    for line, key in zip(grid, ("bias", "variance"), strict=True):
        shown = []
        for axes, entropy in zip(line, entropies, strict=True):
            title, across = (f"entropy {entropy:.2f} nats", "") if key == "bias" else ("", "temperature")
            style(axes, title, across, key if axes is line[0] else "")
            same = [row for row in rows if round(row["posterior_entropy"], 3) == entropy]
            for name, look in looks.items():
                shown += _gradient_line(axes, [row for row in same if row["estimator"] == name], key, look)
        for axes in line if shown else ():
            _logarithmic(axes, shown)
    temperatures = sorted({row["temperature"] for row in rows if row["temperature"]})
    for axes in grid.flat if temperatures else ():
        axes.set_xscale("log")
        axes.set_xlim(temperatures[0] / 1.3, temperatures[-1] * 1.3)
        axes.xaxis.set_major_locator(FixedLocator(temperatures[::2]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend(figure, {name: Line2D([], [], **look) for name, look in looks.items()})
    return figure


def _gradient_line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, look: Mapping[str, Any]) -> list[float]:
    """Draws one estimator and returns its values; rounding errors and zero variance are left out of a log axis."""
    found = [(row["temperature"], row[key], row.get(f"{key}_spread") or 0.0) for row in rows if row[key] > 1e-6]
    if found and found[0][0] is None:
        axes.axhline(found[0][1], **look)
    elif found:
        x, y, deviations = zip(*sorted(found), strict=True)
        if len(set(x)) < len(x):
            raise ValueError(
                f"'rows' must differ in what a plot shows, got {rows[0]['estimator']} twice at one temperature."
            )
        low = [min(deviation, 0.9 * value) for value, deviation in zip(y, deviations, strict=True)]
        axes.errorbar(x, y, yerr=(low, deviations), elinewidth=0.8, **look)
    return [value for _, value, _ in found]
