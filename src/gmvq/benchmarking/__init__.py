"""gmvq beside other libraries on this machine: time, peak memory and agreement.

::

    shapes --sections--> rows --running--> bench.json --tables, plotting--> bench.md, bench.png
              |
       contestants, clock, memory
"""

from gmvq.benchmarking.plotting import plot_growth
from gmvq.benchmarking.running import GROWTH_SHAPES, MEMORY_SHAPES, PEERS, SHAPES, bench
from gmvq.benchmarking.sections import SECTIONS
from gmvq.benchmarking.shapes import Shape
from gmvq.benchmarking.tables import footnote, grids, markdown, markdown_grid, tables

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
