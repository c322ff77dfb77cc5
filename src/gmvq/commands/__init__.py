"""The verbs of the command line.

::

    words --parse--> options --execute--> result (JSON can hold it) --show--> text
"""

from typing import Any

from rich.console import Console

from gmvq.commands.options import parse
from gmvq.commands.printing import PRINTERS
from gmvq.commands.verbs import VERBS

__all__ = ["execute", "parse", "show"]


def execute(verb: str, options: Any, command: str) -> dict[str, Any]:  # noqa: ANN401 (the options of the verb)
    """Does what a verb says.

    Args:
        verb: Its name.
        options: What :func:`parse` returned.
        command: The whole command, for the record.

    Returns:
        What it found; JSON can hold it.
    """
    return VERBS[verb](options, command)


def show(verb: str, result: dict[str, Any]) -> None:
    """Prints a verb's result on standard output for a reader."""
    PRINTERS[verb](result, _Console())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the command line, which has a status for it; rich would exit with 1."""
        raise BrokenPipeError
