"""The experiment: every quantizer under one frozen protocol, in a table that anyone can make again."""

from gmvq.leaderboard.contenders import CONTENDERS, GROUPS, Contender, chosen
from gmvq.leaderboard.protocols import PROTOCOLS, Protocol
from gmvq.leaderboard.running import measure
from gmvq.leaderboard.studies import STUDIES, Point, Study
from gmvq.leaderboard.table import RowKey, Table, printed, read_table, summary

__all__ = [
    "CONTENDERS",
    "GROUPS",
    "PROTOCOLS",
    "STUDIES",
    "Contender",
    "Point",
    "Protocol",
    "RowKey",
    "Study",
    "Table",
    "chosen",
    "measure",
    "printed",
    "read_table",
    "summary",
]
