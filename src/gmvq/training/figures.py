"""Pictures of a run: photographs, maps of codes, heat maps, the tiles of a codebook and curves.

Everything comes back as a string or an array that goes into one HTML file: rasters as data URIs, curves as inline SVG
whose colours are the page's CSS variables, so that they follow its light and dark themes. Nothing here imports pyplot.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
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

# Stand-ins that a figure is drawn in; the page's CSS variables take their place in the SVG.
INK, MUTED, LINE, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", SECOND: "--second"}
HEAT = "magma"
_SMALL = 96  # pixels: images up to this side are shown magnified, pixel by pixel


class Picture(NamedTuple):
    """A raster for an ``<img>``.

    Attributes:
        source: Data URI.
        width: Width in pixels.
        height: Height in pixels.
        text: What the picture shows, for those who cannot see it.
    """

    source: str
    width: int
    height: int
    text: str


class Curve(NamedTuple):
    """One quantity over training.

    Attributes:
        steps: Optimizer steps of the training values.
        values: Values on training batches, one for each step.
        held_out_steps: Optimizer steps of the evaluations.
        held_out_values: Values on held-out data, one for each evaluation.
    """

    steps: list[float]
    values: list[float]
    held_out_steps: list[float]
    held_out_values: list[float]


def is_small(height: int, width: int) -> bool:
    """Tells whether an image is so small that it is shown magnified, without smoothing."""
    return max(height, width) <= _SMALL


def pixels(image: Tensor) -> np.ndarray:
    """Turns an image of any number of channels into what a screen shows.

    Args:
        image: ``(C, H, W)``, uint8 or float in [0, 1].

    Returns:
        uint8 of shape ``(H, W)`` for one channel, ``(H, W, 4)`` for four, else ``(H, W, 3)``: the first three channels,
        the third black where there are but two.
    """
    image = image.detach().cpu()
    if image.is_floating_point():
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if image.shape[0] == 1:
        return image[0].numpy()
    if image.shape[0] == 2:
        image = torch.cat([image, torch.zeros_like(image[:1])])
    return image[: 4 if image.shape[0] == 4 else 3].movedim(0, -1).contiguous().numpy()


def picture(array: np.ndarray, text: str, *, lossless: bool = True) -> Picture:
    """Encodes uint8 pixels as a data URI.

    Args:
        array: ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)`` uint8.
        text: What the picture shows.
        lossless: PNG; else WebP of quality 92, a fifth of the size for a photograph.
    """
    buffer = io.BytesIO()
    if lossless:
        Image.fromarray(array).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(array).save(buffer, "WEBP", quality=92, method=4)
    kind = "png" if lossless else "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Picture(source, array.shape[1], array.shape[0], text)


def code_colours(codebook: Tensor, tiles: Tensor) -> np.ndarray:
    """Gives each code a colour, near codes near colours.

    The ranks of the codes along the three principal axes of the codebook become lightness and the two opponent colours
    of Oklab. The decoded tiles fix only the signs of the axes (light codes are light, warm ones warm), so that the same
    codebook always gets the same colours.

    Args:
        codebook: Vectors of the codes ``(K, L)``.
        tiles: Decoded codes ``(K, C, t, t)`` in [0, 1].

    Returns:
        sRGB colours, uint8 ``(K, 3)``.
    """
    centred = codebook.detach().double().cpu()
    centred = centred - centred.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    projected = centred @ axes.T
    ranks = projected.argsort(0).argsort(0).double() * (2 / max(len(centred) - 1, 1)) - 1
    ranks = torch.where(projected.std(0, correction=0) > 1e-12, ranks, torch.zeros_like(ranks))
    ranks = torch.nn.functional.pad(ranks, (0, 3 - ranks.shape[1]))
    means = tiles.detach().double().cpu().mean((2, 3))
    red, green, blue = means[:, 0], means[:, min(1, means.shape[1] - 1)], means[:, min(2, means.shape[1] - 1)]
    opponents = torch.stack([red + green + blue, red - green, red + green - 2 * blue], dim=1)
    signs = ((ranks * (opponents - opponents.mean(0))).sum(0) >= 0).double() * 2 - 1
    lightness, green_red, blue_yellow = (ranks * signs).numpy().T
    return _oklab_to_srgb(0.62 + 0.26 * lightness, 0.13 * green_red, 0.13 * blue_yellow)


def _oklab_to_srgb(lightness: np.ndarray, green_red: np.ndarray, blue_yellow: np.ndarray) -> np.ndarray:
    """Oklab (Ottosson, 2020, https://bottosson.github.io/posts/oklab/) to uint8 sRGB ``(K, 3)``, clipped."""
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


def code_map(codes: Tensor, colours: np.ndarray, downsampling: int, size: tuple[int, int]) -> np.ndarray:
    """Paints each token of ``codes`` (h, w) in its code's colour over the pixels it stands for, cropped to ``size``."""
    return _over_pixels(colours[codes.cpu().numpy()], downsampling, size)


def heat_map(values: Tensor, maximum: float, downsampling: int, size: tuple[int, int]) -> np.ndarray:
    """Paints ``values`` (h, w) between 0 and ``maximum`` over the pixels that they stand for, cropped to ``size``."""
    scaled = (values.detach().double().cpu() / max(maximum, 1e-12)).clamp(0, 1).numpy()
    return _over_pixels(_heat(scaled), downsampling, size)


def colour_bar() -> np.ndarray:
    """The colours of :func:`heat_map` from 0 to its maximum, from left to right."""
    return _heat(np.linspace(0, 1, 256)[None])


def _heat(scaled: np.ndarray) -> np.ndarray:
    return np.asarray(mpl.colormaps[HEAT](scaled, bytes=True))[..., :3]


def _over_pixels(colours: np.ndarray, downsampling: int, size: tuple[int, int]) -> np.ndarray:
    return colours.repeat(downsampling, 0).repeat(downsampling, 1)[: size[0], : size[1]]


def tile_sheet(tiles: Tensor, alive: Tensor, columns: int) -> np.ndarray:
    """Lays the decoded codes out as a sheet, dark above and light below, cool to warm within each row.

    Args:
        tiles: Decoded codes ``(K, C, t, t)`` in [0, 1].
        alive: Which codes are in use, ``(K,)`` boolean; the others follow after them, faint.
        columns: Tiles in a row.

    Returns:
        uint8 ``(H, W, 4)``; between the tiles the sheet is transparent.
    """
    means = tiles.double().cpu().mean((2, 3))
    lightness, warmth = means[:, :3].sum(1), means[:, 0] - means[:, min(2, means.shape[1] - 1)]
    if means.shape[1] == 1:  # gray tiles have no warmth: the contrast orders a row
        warmth = tiles.double().cpu().std((1, 2, 3), correction=0)
    order = []
    for members in (alive.cpu().nonzero()[:, 0], (~alive.cpu()).nonzero()[:, 0]):
        members = members[lightness[members].argsort(stable=True)]
        order += [row[warmth[row].argsort(stable=True)] for row in members.split(columns) if len(row)]
    side = tiles.shape[-1]
    factor, gap = max(1, math.ceil(24 / side)), 2
    cell = side * factor + gap
    sheet = np.zeros((len(order) * cell - gap, columns * cell - gap, 4), np.uint8)
    for row, codes in enumerate(order):
        for column, code in enumerate(codes.tolist()):
            tile = np.asarray(Image.fromarray(pixels(tiles[code])).convert("RGBA")).repeat(factor, 0).repeat(factor, 1)
            place = (slice(row * cell, row * cell + cell - gap), slice(column * cell, column * cell + cell - gap))
            sheet[place] = tile
            if not alive[code]:
                sheet[place][..., 3] //= 4
    return sheet


def curve_chart(curve: Curve, text: str, reference: tuple[float, str] | None = None) -> str:
    """Draws one quantity over training as SVG: training batches as a line, held-out evaluations as points.

    Args:
        curve: What to draw; it may lack training values or evaluations, not both.
        text: What the chart shows, for those who cannot see it.
        reference: Value and name of a horizontal line.
    """
    figure = Figure(figsize=(5.0, 2.7))
    axes = _axes(figure)
    values = np.asarray(curve.values)
    if len(values) > 40:  # a running mean over the noise of single batches
        axes.plot(curve.steps, values, color=ACCENT, alpha=0.25, linewidth=1)
        axes.plot(curve.steps, _smooth(values), color=ACCENT, linewidth=1.8)
    elif len(values):
        axes.plot(curve.steps, values, color=ACCENT, linewidth=1.8, marker="o" if len(values) == 1 else None)
    if curve.held_out_values:
        axes.plot(curve.held_out_steps, curve.held_out_values, color=SECOND, linewidth=1.2, marker="o", markersize=4.5)
    low, high = _limits(values, np.asarray(curve.held_out_values))
    if reference is not None:
        high = max(high, reference[0] * 1.04)
        axes.axhline(reference[0], color=MUTED, linewidth=1, dashes=(3, 3))
        axes.annotate(
            reference[1], (1, reference[0]), xycoords=("axes fraction", "data"), xytext=(0, -4), color=MUTED,
            textcoords="offset points", ha="right", va="top", fontsize=10,
        )  # fmt: skip
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step", color=MUTED, fontsize=10)
    return _svg(figure, text)


def usage_chart(counts: Tensor, text: str) -> str:
    """Draws how often each code is used, the most used first, on a logarithmic scale beside the uniform share.

    Args:
        counts: Tokens of each code ``(K,)``, not all zero.
        text: What the chart shows, for those who cannot see it.
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
    """Running mean over about a twentieth of the values, with shorter windows at both ends."""
    width = max(3, len(values) // 20)
    sums = np.convolve(values, np.ones(width), "same")
    return sums / np.convolve(np.ones_like(values), np.ones(width), "same")


def _limits(values: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """Limits of the axis that leave out the steep first steps, where all later change would be a flat line."""
    if len(values) > 40:
        values = np.quantile(values, [0.005, 0.97])
        values = np.append(values, held_out) if len(held_out) else values
    else:
        values = np.append(values, held_out)
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _svg(figure: Figure, text: str) -> str:
    """Renders a figure as inline SVG: real text in the page's font, colours as CSS variables, no name used twice."""
    figure.subplots_adjust(left=0.15, right=0.97, top=0.96, bottom=0.2)
    figure.patch.set_alpha(0)
    figure.axes[0].patch.set_alpha(0)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": text}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and two charts would share their names
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # how matplotlib wrote it before 3.10
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{_attribute(text)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def save_reconstructions(
    path: str | Path,
    originals: Sequence[Tensor] | Tensor,
    reconstructions: Sequence[Tensor] | Tensor,
    *,
    columns: int = 8,
    height: int = 256,
) -> Path:
    """Writes a PNG with the originals in one row and their reconstructions below them.

    All pictures get one height; small ones are magnified by a whole factor without smoothing. The gaps are transparent.

    Args:
        path: File to write; its folder is made.
        originals: Images ``(C, H, W)`` each, uint8 or float in [0, 1]; they may differ in size.
        reconstructions: As many images, in the same order.
        columns: Most pictures in a row; the others follow in further pairs of rows.
        height: Greatest height of a picture in pixels.

    Returns:
        The path that was written.

    Raises:
        ValueError: If there are no images or the two numbers of images differ.
    """
    if len(originals) == 0 or len(originals) != len(reconstructions):
        raise ValueError(
            f"'originals' and 'reconstructions' must be equally many, at least one, got {len(originals)} and "
            f"{len(reconstructions)}. Pass one reconstruction for each image."
        )
    tallest = max(image.shape[-2] for image in originals)
    height = min(height, tallest) if tallest > _SMALL else tallest * max(1, height // 2 // tallest)
    rows = []
    for first in range(0, len(originals), columns):
        for images in (originals, reconstructions):
            rows.append([_scaled(images[place], height) for place in range(first, min(first + columns, len(images)))])
    gap = max(2, height // 32)
    width = max(sum(image.width + gap for image in row) for row in rows) - gap
    sheet = Image.new("RGBA", (width, len(rows) * (height + gap) - gap), (0, 0, 0, 0))
    for place, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, place * (height + gap)))
            left += image.width + gap
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def _scaled(image: Tensor, height: int) -> Image.Image:
    shown = Image.fromarray(pixels(image)).convert("RGBA")
    width = max(1, round(shown.width * height / shown.height))
    smooth = not is_small(shown.height, shown.width)
    return shown.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
