"""Experiments: contenders under one protocol, over several seeds, in a reproducible table.

::

    (recipe or protocol) x contenders x seeds --running--> rows --table--> JSON, a terminal, Markdown
"""

from gmvq.experiments.contenders import CONTENDERS, GROUPS, Contender, chosen
from gmvq.experiments.protocols import PROTOCOLS, Protocol
from gmvq.experiments.running import compare, measure
from gmvq.experiments.studies import STUDIES, Point, Study
from gmvq.experiments.table import Entry, Row, Table, read_table

__all__ = [
    "CONTENDERS",
    "GROUPS",
    "PROTOCOLS",
    "STUDIES",
    "Contender",
    "Entry",
    "Point",
    "Protocol",
    "Row",
    "Study",
    "Table",
    "chosen",
    "compare",
    "measure",
    "read_table",
]
