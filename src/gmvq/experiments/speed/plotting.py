"""Plot of time and memory against the number of codes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gmvq.experiments.speed.contestants import CDIST, FAISS, LABELS, MIXTURE_STEP, NAIVE, NEAREST, OURS, PEER, PRODUCT

_INK, _LINE = "#333333", "#dddddd"
_COLORS = {OURS: "#c0392b", PRODUCT: "#888888", CDIST: "#8e6bbd", PEER: "#2b6cb0", FAISS: "#2f855a", NAIVE: "#d69e2e"}
_TITLES = {NEAREST: "nearest code", MIXTURE_STEP: "GM-VQ training step"}
_DOTS_PER_INCH = 110


def plot_growth(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Plots time relative to the bare product, and peak memory, against K, all axes logarithmic.

    Args:
        rows: Rows of the growth section.

    Returns:
        A PNG, the same bytes for the same rows.
    """
    figure = Figure(figsize=(9, 6.4), dpi=_DOTS_PER_INCH, layout="constrained")
    tasks = [task for task in _TITLES if any(row["task"] == task for row in rows)]
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex=True)
    limits = {row["shape"][2]: row["median"][PRODUCT] for row in rows if PRODUCT in row["median"]}
    for column, task in enumerate(tasks):
        mine = sorted((row for row in rows if row["task"] == task), key=lambda row: row["shape"][2])
        _style(axes[0, column], _TITLES[task])
        _style(axes[1, column])
        for name in LABELS:
            _draw(axes[0, column], name, _times(mine, name, limits))
            _draw(axes[1, column], name, _peaks(mine, name, fits=False), linestyle=":", markerfacecolor="white")
            _draw(axes[1, column], name, _peaks(mine, name, fits=True))
        axes[1, column].set_xlabel("number of codes K")
        axes[1, column].set_xticks([row["shape"][2] for row in mine])
        axes[0, column].legend(frameon=False, fontsize=8, labelcolor=_INK)
    axes[0, 0].set_ylabel("time / time of the product alone" if limits else "milliseconds")
    axes[1, 0].set_ylabel("peak memory (MB), dotted: would take")
    for each in axes.flat:
        _finish(each)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _times(rows: Sequence[Mapping[str, Any]], name: str, limits: Mapping[int, float]) -> dict[int, float]:
    """Returns times by K: relative to the bare product, or in milliseconds if that was not measured."""
    times = {row["shape"][2]: row["median"][name] for row in rows if name in row["median"]}
    return {codes: time / limits[codes] if limits else 1000 * time
            for codes, time in times.items() if not limits or codes in limits}  # fmt: skip


def _peaks(rows: Sequence[Mapping[str, Any]], name: str, fits: bool) -> dict[int, float]:
    """Returns megabytes by K: measured ones, or required ones from the last measured point on."""
    found = {row["shape"][2]: row["memory"].get(name, {}) for row in rows}
    values = {codes: max(entry["bytes"] / 1e6, 0.1) for codes, entry in found.items() if "bytes" in entry}
    fitting = {codes: value for codes, value in values.items() if found[codes]["fits"]}
    if fits:
        return fitting
    least = max(fitting, default=0)
    beyond = {codes: value for codes, value in values.items() if codes >= least}
    return beyond if len(values) > len(fitting) else {}


def _draw(axes: Axes, name: str, values: Mapping[int, float], **changes: Any) -> None:  # noqa: ANN401 (of the line)
    if not values:
        return
    style = {"linestyle": "--", "linewidth": 1.2} if name == PRODUCT else {"marker": "o", "linewidth": 1.6}
    weight = {"linewidth": 2.4, "zorder": 3} if name == OURS else {}
    style = {"color": _COLORS[name], "markersize": 4, "label": LABELS[name], **style, **weight, **changes}
    axes.plot(list(values), list(values.values()), **style)


def _style(axes: Axes, title: str | None = None) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=_INK)


def _finish(axes: Axes) -> None:
    """Limits the number of ticks on the axes."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 500 * low else (1.0, 2.0, 5.0), numticks=12))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
