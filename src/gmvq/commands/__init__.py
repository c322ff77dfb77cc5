"""The verbs of the command line: one file for each, with its options, what it does, how it prints, its help line.

::

    words --parse--> options --execute--> result (JSON can hold it) --show--> text
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tyro
from rich.console import Console

VERBS = (
    *("train", "evaluate", "reconstruct", "tokenize", "detokenize", "info"),
    *("fit-prior", "fit-decoder", "sample", "complete", "interpolate", "swap", "judge"),
    *("compare", "bench"),
)
"""All verbs, in the order of the help: the one list. The file of ``fit-prior`` is ``fit_prior.py``."""
_CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def module_of(verb: str) -> ModuleType:
    """The file of a verb."""
    return importlib.import_module(f"gmvq.commands.{verb.replace('-', '_')}")


def help_line(verb: str) -> str:
    """What a verb does, on one line."""
    return (module_of(verb).__doc__ or "").splitlines()[0]


def parse(verb: str, words: Sequence[str]) -> Any:  # noqa: ANN401 (the options of the verb)
    """The options of a verb.

    Raises:
        SystemExit: After help was printed (0), or if the words are no options of the verb (2).
    """
    module, words = module_of(verb), list(words)
    default = module.defaults(words) if hasattr(module, "defaults") else None
    kind = module.Options if default is None else type(default)
    how: dict[str, Any] = {"prog": f"gmvq {verb}", "args": words, "config": _CONFIG}
    return tyro.cli(kind, **how) if default is None else tyro.cli(kind, default=default, **how)


def execute(verb: str, options: Any, command: str) -> dict[str, Any]:  # noqa: ANN401 (the options of the verb)
    """Does what a verb says.

    Args:
        verb: Its name.
        options: What :func:`parse` returned.
        command: The whole command, for the record.

    Returns:
        What it found; JSON can hold it.
    """
    return module_of(verb).run(options, command)


def show(verb: str, result: dict[str, Any]) -> None:
    """Prints a verb's result on standard output for a reader."""
    module_of(verb).show(result, _Console())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the command line, which has a status for it; rich would exit with 1."""
        raise BrokenPipeError
