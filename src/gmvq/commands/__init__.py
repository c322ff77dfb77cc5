"""The verbs of the command line: a file per verb, with its options, its action, its output and its line of help.

::

    words --parse--> options --execute--> result (JSON can hold it) --show--> text
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro
from rich.console import Console

from gmvq.data.locking import within

VERBS = (
    *("train", "evaluate", "reconstruct", "tokenize", "detokenize", "info"),
    *("fit-codec", "compress", "decompress"),
    *("fit-prior", "fit-decoder", "sample", "complete", "interpolate", "swap", "judge"),
    *("compare", "bench"),
)
"""The list of all verbs, in the order of the help. The file of ``fit-prior`` is ``fit_prior.py``."""
_STAGES = ("train", "fit-codec", "fit-prior", "fit-decoder", "compare", "bench")
"""Verbs that lock the folders that they write."""
SPREAD = ("train", "fit-codec", "fit-prior", "fit-decoder")
"""Verbs that all processes of torchrun carry out together; the first one alone carries out all other verbs."""
_CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def module_of(verb: str) -> ModuleType:
    """Imports the module of a verb."""
    return importlib.import_module(f"gmvq.commands.{verb.replace('-', '_')}")


def help_line(verb: str) -> str:
    """Returns the help of a verb, on one line."""
    return (module_of(verb).__doc__ or "").splitlines()[0]


def parse(verb: str, words: Sequence[str]) -> Any:  # noqa: ANN401 (the options of the verb)
    """Parses the options of a verb.

    Raises:
        SystemExit: After the help (0), or if the words are not options of the verb (2).
    """
    module, words = module_of(verb), list(words)
    default = module.defaults(words) if hasattr(module, "defaults") else None
    kind = module.Options if default is None else type(default)
    how: dict[str, Any] = {"prog": f"gmvq {verb}", "args": words, "config": _CONFIG}
    return tyro.cli(kind, **how) if default is None else tyro.cli(kind, default=default, **how)


def execute(verb: str, options: Any, command: str) -> dict[str, Any] | None:  # noqa: ANN401 (the options of the verb)
    """Runs a verb; under torchrun all processes together or the first one alone, see :data:`SPREAD`.

    Args:
        verb: Its name.
        options: Result of :func:`parse`.
        command: The command, for the record of the run.

    Returns:
        The result, which JSON can represent; None in processes that have none to show.
    """
    from gmvq.training.ranks import alone, is_main, leave_ranks  # not for help, which is fast without torch

    with ExitStack() as stack:
        target = _target(options)
        if target is not None and verb not in _STAGES:
            stack.enter_context(within(target))
        if verb in SPREAD:
            result = module_of(verb).run(options, command)
            leave_ranks()
            return result if is_main() else None
        if not is_main():
            return None
        stack.enter_context(alone())
        return module_of(verb).run(options, command)


def _target(options: Any) -> Path | None:  # noqa: ANN401
    """Returns where a verb writes: what it is given, or the folder of the prior that it draws from."""
    out = getattr(options, "out", None)
    return options.drawer.folder(options.run) if out is None and hasattr(options, "drawer") else out


def show(verb: str, result: dict[str, Any]) -> None:
    """Prints a verb's result on standard output for a reader."""
    module_of(verb).show(result, _Console())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises the error, for which the command line has a status; rich would exit with 1."""
        raise BrokenPipeError
