"""Comparison of gmvq with other libraries on this machine: time, peak memory and agreement.

::

    shapes --sections--> rows --running--> bench.json --tables, plotting--> bench.md, bench.png
              |
       contestants, clock, memory
"""

from gmvq.experiments.speed.plotting import plot_growth
from gmvq.experiments.speed.running import GROWTH_SHAPES, MEMORY_SHAPES, PEERS, SHAPES, bench
from gmvq.experiments.speed.sections import SECTIONS
from gmvq.experiments.speed.shapes import Shape
from gmvq.experiments.speed.tables import footnote, grids, markdown, markdown_grid, tables

__all__ = [
    "GROWTH_SHAPES",
    "MEMORY_SHAPES",
    "PEERS",
    "SECTIONS",
    "SHAPES",
    "Shape",
    "bench",
    "footnote",
    "grids",
    "markdown",
    "markdown_grid",
    "plot_growth",
    "tables",
]
