"""Pictures of numbers in reports: curves, bars, and a strip of codes."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from gmvq.modalities.base import Picture

SHOWN_CHANNELS, SHOWN_STEPS, SHOWN_FEATURES = 4, 256, 12
REAL, MADE = "#17365d", "#f39c1f"
"""Dark blue and light orange, which differ in lightness too."""

_WIDTH, _ROW, _DENSITY = 4.8, 0.8, 2
"""Width of a picture and height of one channel in hundreds of pixels, and dots of the file per displayed pixel."""
_INK, _LINE = "#333333", "#bbbbbb"
_LEGEND = {"fontsize": 6, "frameon": False, "ncols": 3, "labelcolor": _INK, "borderpad": 0}
_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0), ("milliseconds", 1e-3))
LEFT, RIGHT = 0.16, 0.98
_NUMBERED = 24
"""Largest number of codes in a strip that are labeled with their numbers."""


def curves(real: Tensor, made: Tensor | None, names: Sequence[str], rate: float | None, text: str) -> Picture:
    """Draws the first 256 steps of up to 4 channels, each on its own scale.

    Args:
        real: Series ``(C, T)``.
        made: Reconstruction, drawn over it; None to draw the real series alone.
        names: Names of the channels.
        rate: Steps per second, Hz, or None to count steps.
        text: Alternative text of the picture.
    """
    steps = min(real.shape[-1], SHOWN_STEPS)
    channels = min(real.shape[0], SHOWN_CHANNELS)
    unit, place = _unit(steps, rate)
    figure = new_figure(channels * _ROW + 0.6)
    axes = figure.subplots(channels, 1, sharex=True, squeeze=False)[:, 0]
    for channel, ax in enumerate(axes):
        for values, color, label, width in ((real, REAL, "real", 1.6), (made, MADE, "made", 0.9)):
            if values is not None:
                line = values[channel, :steps].detach().float().cpu().numpy()
                marker = "o" if steps == 1 else None
                ax.plot(np.arange(steps) * place, line, color=color, linewidth=width, label=label, marker=marker)
        ax.set_ylabel(_short(names[channel], 12), fontsize=7, color=_INK)
        plain(ax)
    if made is not None:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.95), **_LEGEND)
    axes[-1].set_xlabel(unit, fontsize=7, color=_INK)
    axes[-1].set_xlim(0, max(1, steps - 1) * place)
    height = channels * _ROW + 0.6
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=1 - 0.2 / height, bottom=0.4 / height, hspace=0.15)
    left = real.shape[0] - channels
    text += f": {', '.join(names[:channels])}" + (f" and {left} channels that are not shown" if left else "")
    text += f", the first {steps} of {real.shape[-1]} steps" if steps < real.shape[-1] else ""
    return as_picture(figure, text)


def code_strip(codes: Tensor, text: str, steps: int = 0) -> Picture:
    """Draws each code as a color, with distant colors for neighboring numbers, and a row for each level.

    Args:
        codes: Codes ``(T'[, levels])`` of a series, on the axis of :func:`curves`, or ``([levels])`` of a vector.
        text: Alternative text of the picture.
        steps: Steps T of the series, of which the first 256 are shown; 0 for a vector.
    """
    table = codes.detach().cpu().reshape(len(codes) if steps else 1, -1).T
    shown = max(1, math.ceil(table.shape[1] * min(1.0, SHOWN_STEPS / steps))) if steps else table.shape[1]
    table = table[:, :shown] if steps else table.T
    colors = [[_color(code) for code in row] for row in table.tolist()]
    height = 0.2 + 0.14 * min(len(table), 8)
    figure = new_figure(height)
    ax = figure.subplots()
    ax.imshow(np.array(colors), aspect="auto", interpolation="nearest")
    ax.set_axis_off()
    if table.numel() <= _NUMBERED:
        for (row, column), code in np.ndenumerate(table.numpy()):
            ax.text(column, row, str(code), ha="center", va="center", fontsize=6, color="black")
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.95, bottom=0.05)
    return as_picture(figure, text)


def bars(
    real: Tensor, made: Tensor | None, names: Sequence[str], text: str, means: Sequence[float] | None = None
) -> Picture:
    """Draws up to 12 features as bars with their values, each on its own scale.

    Args:
        real: Vector ``(C,)``.
        made: Reconstruction, drawn beside it; None to draw the real vector alone.
        names: Names of the features.
        text: Alternative text of the picture.
        means: Means of the features over the training items, marked by lines.
    """
    count = min(len(real), SHOWN_FEATURES)
    sides = [(real, REAL, "real")] + ([] if made is None else [(made, MADE, "made")])
    values = np.stack([side[:count].detach().double().cpu().numpy() for side, _, _ in sides])
    height = count * 0.2 + 0.35
    figure = new_figure(height)
    ax = figure.subplots()
    typical = np.zeros((0, count)) if means is None else np.array([means[:count]])
    shown = np.concatenate([values, typical])
    largest = np.maximum(np.abs(shown).max(0), np.finfo(np.float64).tiny)
    thickness = 0.7 / len(sides)
    for row, (_, color, label) in enumerate(sides):
        shift = (row - (len(sides) - 1) / 2) * thickness
        ax.barh(np.arange(count) + shift, values[row] / largest, thickness, color=color, label=label)
    for mean in typical / largest:
        ax.plot(
            mean, np.arange(count), "|", color="#9aa5b1", markersize=9, markeredgewidth=1.5, label="mean of training"
        )
    for place in range(count):
        numbers = "   ".join(f"{value:.4g}" for value in values[:, place])
        ax.text(1.05, place, numbers, va="center", fontsize=6, color=_INK)
    ax.set_yticks(range(count), [_short(name, 24) for name in names[:count]])
    ax.set_ylim(count - 0.4, -0.6)
    ax.set_xlim(min(0.0, float((shown / largest).min())), 1.0)
    plain(ax)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    if made is not None or means is not None:
        ax.legend(loc="upper left", bbox_to_anchor=(0, 0), **_LEGEND)
    figure.subplots_adjust(left=0.32, right=0.74, top=1 - 0.03 / height, bottom=0.3 / height)
    left = len(real) - count
    text += f": {', '.join(names[:count])}" + (f" and {left} features that are not shown" if left else "")
    return as_picture(figure, text)


def _color(code: int) -> tuple[float, float, float]:
    golden = 0.618033988749895  # steps of the golden ratio around the color wheel never come close to each other
    return colorsys.hsv_to_rgb(code * golden % 1, 0.65, 0.9 - 0.25 * (code % 3) / 2)


def new_figure(height: float) -> Any:  # noqa: ANN401
    """Creates a matplotlib figure of the common width, ``height`` hundreds of pixels high."""
    from matplotlib.figure import Figure  # not at import: its import takes longer than all others but torch's

    return Figure(figsize=(_WIDTH, height), dpi=100 * _DENSITY)


def as_picture(figure: Any, text: str) -> Picture:  # noqa: ANN401
    """Converts a figure to a PNG file, with ``text`` as its description."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    # a palette, a third of the size: the pictures have few colors
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(128).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), "png", text, round(_WIDTH * 100))


def plain(ax: Any) -> None:  # noqa: ANN401
    """Reduces the frame of a chart to its left and lower side, thin and gray."""
    ax.tick_params(labelsize=6, colors=_INK, color=_LINE, length=2)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)


def _unit(steps: int, rate: float | None) -> tuple[str, float]:
    """Returns the name of the time axis and the length of one step in its unit."""
    if rate is None:
        return "steps", 1.0
    for name, seconds in _UNITS:
        if steps / rate >= 2 * seconds:
            return name, 1 / (rate * seconds)
    return "microseconds", 1e6 / rate


def _short(text: str, most: int) -> str:
    """Shortens a name to a length, and escapes dollar signs, between which matplotlib reads equations."""
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")
