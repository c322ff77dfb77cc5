"""Plots of a run: maps of tokens, curves and the usage of a codebook.

Curves are inline SVG whose colors are the page's CSS variables, so that they follow its light and dark themes. Pyplot
is not used.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image
from torch import Tensor

from gmvq.modalities import Picture

# Placeholder colors of a figure; the page's CSS variables replace them in the SVG.
INK, MUTED, LINE, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", SECOND: "--second"}
HEAT = "magma"
MAP_WIDTH = 256
"""Approximate width in pixels of a map of tokens."""


class Curve(NamedTuple):
    """One quantity over training.

    Attributes:
        steps: Optimizer steps of the training values.
        values: Values on training batches, one per step.
        held_out_steps: Optimizer steps of the evaluations.
        held_out_values: Values on held-out data, one per evaluation.
    """

    steps: list[float]
    values: list[float]
    held_out_steps: list[float]
    held_out_values: list[float]


def code_colors(codebook: Tensor) -> np.ndarray:
    """Assigns each code a color, with similar colors for similar codes.

    The ranks of the codes along the three principal axes of the codebook become lightness and the two opponent colors
    of Oklab.

    Args:
        codebook: Vectors of the codes ``(K, L)``.

    Returns:
        sRGB colors, uint8 ``(K, 3)``.
    """
    centered = codebook.detach().cpu().double()
    centered = centered - centered.mean(0)
    axes = torch.linalg.svd(centered, full_matrices=False).Vh[:3]
    projected = centered @ axes.T
    ranks = projected.argsort(0).argsort(0).double() * (2 / max(len(centered) - 1, 1)) - 1
    ranks = torch.where(projected.std(0, correction=0) > 1e-12, ranks, torch.zeros_like(ranks))
    ranks = torch.nn.functional.pad(ranks, (0, 3 - ranks.shape[1]))
    signs = 1 - 2 * (axes.sum(1) < 0).double()  # the sign of a principal axis is arbitrary
    signs = torch.nn.functional.pad(signs, (0, 3 - len(signs)), value=1.0)
    lightness, green_red, blue_yellow = (ranks * signs).numpy().T
    return _oklab_to_srgb(0.62 + 0.26 * lightness, 0.13 * green_red, 0.13 * blue_yellow)


def _oklab_to_srgb(lightness: np.ndarray, green_red: np.ndarray, blue_yellow: np.ndarray) -> np.ndarray:
    """Converts Oklab (Ottosson, 2020, https://bottosson.github.io/posts/oklab/) to uint8 sRGB ``(K, 3)``, clipped."""
    long = (lightness + 0.3963377774 * green_red + 0.2158037573 * blue_yellow) ** 3
    medium = (lightness - 0.1055613458 * green_red - 0.0638541728 * blue_yellow) ** 3
    short = (lightness - 0.0894841775 * green_red - 1.2914855480 * blue_yellow) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def token_map(colors: np.ndarray, text: str) -> Picture:
    """Draws a map of tokens: a row for a sequence, the grid for an image.

    Args:
        colors: uint8 ``(h, w, 3)`` or ``(T, 3)``.
        text: Alternative text of the picture.
    """
    wide = colors if colors.ndim == 3 else colors[None].repeat(max(1, len(colors) // 16), 0)
    side = max(1, round(MAP_WIDTH / wide.shape[1]))
    return png(wide.repeat(side, 0).repeat(side, 1), text)


def heat(values: Tensor, maximum: float) -> np.ndarray:
    """Maps values between 0 and a maximum to colors, uint8 ``(*, 3)``."""
    scaled = (values.detach().cpu().double() / max(maximum, 1e-12)).clamp(0, 1).numpy()
    return np.asarray(mpl.colormaps[HEAT](scaled, bytes=True))[..., :3]


def color_bar() -> Picture:
    """Draws the colors of :func:`heat` from 0 to its maximum, from left to right."""
    return png(heat(torch.linspace(0, 1, 256)[None], 1.0), "Colors from none to most")


def png(pixels: np.ndarray, text: str) -> Picture:
    """Encodes uint8 pixels ``(H, W, 3)`` as a picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), "png", text, pixels.shape[1])


def curve_chart(curve: Curve, text: str, reference: tuple[float, str] | None = None) -> str:
    """Draws one quantity over training as SVG: training batches as a line, held-out evaluations as points.

    Args:
        curve: The quantity; training values or evaluations may be missing, not both.
        text: Alternative text of the chart.
        reference: Value and name of a horizontal line.
    """
    figure = Figure(figsize=(5.0, 2.7))
    axes = _axes(figure)
    values = np.asarray(curve.values)
    if len(values) > 40:  # with a running mean, since single batches are noisy
        axes.plot(curve.steps, values, color=ACCENT, alpha=0.25, linewidth=1)
        axes.plot(curve.steps, _smooth(values), color=ACCENT, linewidth=1.8)
    elif len(values):
        axes.plot(curve.steps, values, color=ACCENT, linewidth=1.8, marker="o" if len(values) == 1 else None)
    if curve.held_out_values:
        axes.plot(curve.held_out_steps, curve.held_out_values, color=SECOND, linewidth=1.2, marker="o", markersize=4.5)
    low, high = _limits(values, np.asarray(curve.held_out_values))
    if reference is not None:
        high = max(high, reference[0] + 0.12 * (reference[0] - low))  # room for the line's name
        axes.axhline(reference[0], color=MUTED, linewidth=1, dashes=(3, 3))
        axes.annotate(
            reference[1], (1, reference[0]), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
            textcoords="offset points", ha="right", va="bottom", fontsize=10,
        )  # fmt: skip
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step", color=MUTED, fontsize=10)
    return _svg(figure, text)


def usage_chart(counts: Tensor, text: str) -> str:
    """Draws how often each code is used, the most used first, on a logarithmic scale, and the uniform share.

    Args:
        counts: Number of tokens of each code ``(K,)``, not all zero.
        text: Alternative text of the chart.
    """
    shares = np.sort(counts.double().cpu().numpy())[::-1] / counts.sum().item()
    used = int((shares > 0).sum())
    shown = np.unique(np.linspace(0, used - 1, min(used, 512)).round().astype(int))  # 16,384 points would be 1 MB
    floor = shares[used - 1] / 1.6
    figure = Figure(figsize=(5.8, 3.1))
    axes = _axes(figure)
    edges, heights = np.append(shown, used) + 0.5, np.append(shares[shown], shares[used - 1])
    axes.fill_between(edges, floor, heights, step="post", color=ACCENT, alpha=0.18, linewidth=0)
    axes.step(edges, heights, where="post", color=ACCENT, linewidth=1.8)
    axes.axhline(1 / len(shares), color=SECOND, linewidth=1.3, dashes=(4, 3))
    axes.annotate(
        f"uniform, {100 / len(shares):.3g} %", (len(shares) + 0.5, 1 / len(shares)), xytext=(0, 4), color=SECOND,
        textcoords="offset points", ha="right", va="bottom", fontsize=10.5,
    )  # fmt: skip
    if used < len(shares):
        axes.axvspan(used + 0.5, len(shares) + 0.5, color=MUTED, alpha=0.14, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(floor, max(shares[0], 1 / len(shares)) * 1.6)
    axes.set_xlim(0.5, len(shares) + 0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("codes, the most used first", color=MUTED, fontsize=10.5)
    axes.set_ylabel("share of tokens", color=MUTED, fontsize=10.5)
    return _svg(figure, text)


def _axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, pad=6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.margins(x=0.02)
    return axes


def _smooth(values: np.ndarray) -> np.ndarray:
    """Computes a running mean over about a twentieth of the values, with shorter windows at both ends."""
    width = max(3, len(values) // 20)
    sums = np.convolve(values, np.ones(width), "same")
    return sums / np.convolve(np.ones_like(values), np.ones(width), "same")


def _limits(values: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """Returns axis limits without the steep first steps, which would flatten all later changes."""
    if len(values) > 40:
        values = np.quantile(values, [0.005, 0.97])
        values = np.append(values, held_out) if len(held_out) else values
    else:
        values = np.append(values, held_out)
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _svg(figure: Figure, text: str) -> str:
    """Renders a figure as inline SVG: text in the page's font, colors as CSS variables, unique names."""
    figure.subplots_adjust(left=0.15, right=0.97, top=0.96, bottom=0.2)
    figure.patch.set_alpha(0)
    figure.axes[0].patch.set_alpha(0)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": text}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # groups are never referenced, and two charts would share their names
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the format of matplotlib before 3.10
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{_attribute(text)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
