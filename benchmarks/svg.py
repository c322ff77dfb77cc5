"""SVG figures that follow the reader's light or dark scheme, with a fingerprint of their data and code.

A figure is drawn in placeholder colors; in the SVG they are CSS variables with a value for each scheme. The background
is opaque, so that a figure is readable on a page of the other scheme, too.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# name, light, dark; after the color-blind safe palette of Okabe and Ito
_SCHEMES = (
    ("ink", "#222222", "#e6e6e6"), ("muted", "#5c5c5c", "#a3a3a3"), ("line", "#dcdcdc", "#3a3c40"),
    ("ground", "#ffffff", "#17181c"), ("ours", "#c04a00", "#ff8f4a"), ("theirs", "#0067a8", "#5fb8f0"),
    ("green", "#007a5a", "#2cc59b"), ("purple", "#a2497f", "#de9ac3"), ("yellow", "#8f7000", "#ecd94a"),
    ("gray", "#4d4d4d", "#c4c4c4"), ("sky", "#2a86bd", "#8ed0f7"), ("brown", "#7a4a24", "#c99b6f"),
)  # fmt: skip
_STAND_INS = [f"#{3 * f'{number:02x}'}" for number in range(1, len(_SCHEMES) + 1)]
INK, MUTED, LINE, GROUND, OURS, THEIRS = _STAND_INS[:6]
SERIES = _STAND_INS[4:]
"""Colors of lines, which also differ in dashes and markers."""
_DASHES = ((5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (9, 3), (3, 1, 1, 1, 1, 1), (7, 5), (2, 3))
DASHES = ("-", *((0, dashes) for dashes in _DASHES))
MARKERS = "osD^vPX*"
SMALL, NORMAL, LARGE = 8.5, 9.5, 11.0
"""Sizes of text in points."""


class Drawing(NamedTuple):
    """A figure of a page.

    Attributes:
        name: Name of its file without the suffix.
        text: Alternative text: what the figure shows.
        data: Data of the figure, as JSON types.
        draw: Function that draws the data.
    """

    name: str
    text: str
    data: Any
    draw: Callable[..., Figure]

    @property
    def mark(self) -> str:
        """Fingerprint of the data and the drawing code, which an up-to-date file contains.

        The bytes of an SVG depend on matplotlib's version, and so are not compared.
        """
        digest = hashlib.sha256(json.dumps([self.text, self.data]).encode())
        for source in (inspect.getsourcefile(self.draw), __file__):
            digest.update(Path(str(source)).read_bytes())
        return f"drawn from {digest.hexdigest()[:16]}"

    def svg(self) -> str:
        """Returns the content of the file: text is not outlined, and equal figures have equal bytes."""
        buffer = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.text}):
            FigureCanvasSVG(self.draw(self.data)).print_svg(buffer, metadata={"Date": None})
        svg = buffer.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r"font: ((?:[a-z\d]+ )?)([\d.]+)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", svg)
        for stand_in, (name, _, _) in zip(_STAND_INS, _SCHEMES, strict=True):
            svg = svg.replace(stand_in, f"var(--{name})")
        light, dark = ("; ".join(f"--{scheme[0]}: {scheme[place]}" for scheme in _SCHEMES) for place in (1, 2))
        css = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
        opening, rest = svg.split(">", 1)
        head = f"{opening}>\n <title>{html.escape(self.text, quote=False)}</title>\n <!-- {self.mark} -->\n"
        return "\n".join(line.rstrip() for line in f"{head} <style>{css}</style>{rest}".splitlines()) + "\n"

    def is_in(self, path: Path) -> bool:
        """Returns whether a file is up to date."""
        return path.is_file() and self.mark in path.read_text(encoding="utf-8")


def new_figure(width: float, height: float) -> Figure:
    """Creates an empty figure of a size in points."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_facecolor(GROUND)
    return figure


def style(axes: Axes, title: str = "", across: str = "", up: str = "") -> None:
    """Sets the style of the pages on axes."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(color=LINE, linewidth=0.8)
    axes.tick_params(which="both", colors=MUTED, labelcolor=MUTED, labelsize=SMALL, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    axes.set_title(title, loc="left", fontsize=LARGE, color=INK)
    axes.set_xlabel(across, fontsize=NORMAL, color=MUTED)
    axes.set_ylabel(up, fontsize=NORMAL, color=MUTED)


def legend(figure: Figure, handles: Mapping[str, Any], columns: int = 4) -> None:
    """Adds the names of the lines below the axes, in at most the given number of columns."""
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, fontsize=NORMAL, labelcolor=INK, handlelength=3,
    )  # fmt: skip
