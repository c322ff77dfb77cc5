"""Figures as SVG that follow the light or dark scheme of the reader, with a mark of what they were drawn from.

A figure is drawn in stand-in colours; in the SVG they are CSS variables with a value for each scheme. The ground is not
transparent, so that a figure can be read on a page of the other scheme, too.
"""

from __future__ import annotations

import hashlib
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

INK, MUTED, LINE, GROUND = "#010101", "#020202", "#030303", "#040404"
OURS, THEIRS = "#050505", "#060606"
SERIES = (OURS, THEIRS, "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
"""Colours of lines, after Okabe and Ito's for the colour-blind; lines differ in dashes and markers, too."""
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (7, 5)),
    (0, (2, 3)),
)
MARKERS = "osD^vPX*"
_SCHEMES = {  # stand-in: name, light, dark
    INK: ("ink", "#222222", "#e6e6e6"),
    MUTED: ("muted", "#5c5c5c", "#a3a3a3"),
    LINE: ("line", "#dcdcdc", "#3a3c40"),
    GROUND: ("ground", "#ffffff", "#17181c"),
    OURS: ("ours", "#c04a00", "#ff8f4a"),
    THEIRS: ("theirs", "#0067a8", "#5fb8f0"),
    SERIES[2]: ("green", "#007a5a", "#2cc59b"),
    SERIES[3]: ("purple", "#a2497f", "#de9ac3"),
    SERIES[4]: ("yellow", "#8f7000", "#ecd94a"),
    SERIES[5]: ("gray", "#4d4d4d", "#c4c4c4"),
    SERIES[6]: ("sky", "#2a86bd", "#8ed0f7"),
    SERIES[7]: ("brown", "#7a4a24", "#c99b6f"),
}
SMALL, NORMAL, LARGE = 8.5, 9.5, 11.0
"""Sizes of text in points."""
MARK = "drawn from "


class Drawing(NamedTuple):
    """A figure of the page.

    Attributes:
        name: Name of its file without the ending.
        text: What it shows, for those who cannot see it.
        data: What it is drawn from, as JSON has it.
        draw: Makes it out of the data.
    """

    name: str
    text: str
    data: Any
    draw: Callable[..., Figure]

    @property
    def mark(self) -> str:
        """Stands for the data and the code that draws: what a file must have to be up to date.

        The bytes of an SVG depend on matplotlib's version, and so are not compared.
        """
        digest = hashlib.sha256(json.dumps([self.text, self.data]).encode())
        for source in sorted(Path(__file__).parent.glob("page_*.py")):
            if source.stem in ("page_labels", "page_plots", "page_svg"):
                digest.update(source.read_bytes())
        return f"{MARK}{digest.hexdigest()[:16]}"

    def svg(self) -> str:
        """The file."""
        return render(self.draw(self.data), self.text, self.mark)

    def is_in(self, path: Path) -> bool:
        """Whether a file holds this figure."""
        return path.is_file() and self.mark in path.read_text(encoding="utf-8")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in points."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_facecolor(GROUND)
    return figure


def style(axes: Axes, title: str = "", across: str = "", up: str = "") -> None:
    """Gives axes the look of the page."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(color=LINE, linewidth=0.8)
    axes.tick_params(which="both", colors=MUTED, labelcolor=MUTED, labelsize=SMALL, length=0, pad=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.set_title(title, loc="left", fontsize=LARGE, color=INK)
    axes.set_xlabel(across, fontsize=NORMAL, color=MUTED)
    axes.set_ylabel(up, fontsize=NORMAL, color=MUTED)


def legend(figure: Figure, handles: Mapping[str, Any], columns: int = 4) -> None:
    """Names of the lines, under the axes, in so many columns at most."""
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, fontsize=NORMAL, labelcolor=INK, handlelength=3,
    )  # fmt: skip


def render(figure: Figure, text: str, mark: str) -> str:
    """Writes a figure as SVG: real text, the same bytes for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": text}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"font: ((?:[a-z\d]+ )?)([\d.]+)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", svg)
    for stand_in, (name, _, _) in _SCHEMES.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    opening = re.match(r"<svg[^>]*>", svg)
    if opening is None:
        raise ValueError("'figure' must give an SVG, got none. Check matplotlib's version.")
    head = f"{opening.group()}\n <title>{_escaped(text)}</title>\n <!-- {mark} -->\n <style>{_css()}</style>"
    lines = (head + svg[opening.end() :]).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _css() -> str:
    light, dark = ("; ".join(f"--{scheme[0]}: {scheme[place]}" for scheme in _SCHEMES.values()) for place in (1, 2))
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
