"""The command line: ``gmvq VERB ...``. Results go to standard output, everything else to standard error.

::

    argv --commands.parse--> options --commands.execute--> result --> text, or one JSON object (--json)

Exit status: 0 when done, 1 on failure, 2 on wrong usage, 130 on an interrupt, 141 when the reader of the output left.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, for the user or the file."""
_SAFE = "Files are replaced whole or not at all: make room there, and give the command again."
_EXAMPLES = (
    ("gmvq train photos", "learn from the bundled photographs"),
    ("gmvq train folder --data FOLDER --out runs/mine", "learn from your own"),
    ("gmvq reconstruct runs/mine cat.jpg cat.png", "what the codes keep of an image"),
    ("gmvq tokenize runs/mine FOLDER codes.safetensors", "the codes themselves"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Words after ``gmvq``; by default those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _plain_warnings():
            status = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 141
    except KeyboardInterrupt as interrupt:
        _complain(_interruption(interrupt, arguments))
        return 130
    except Exception as error:
        if os.environ.get("GMVQ_DEBUG"):
            raise
        _complain(_reason(error))
        return 1
    return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from gmvq import __version__

        print(f"gmvq {__version__}")
        return 0
    from gmvq.commands import VERBS

    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "See gmvq --help."
        _complain(f"There is no command {verb!r}, only {', '.join(VERBS)}. {hint}")
        return 2
    return _execute(verb, arguments)


def _execute(verb: str, arguments: list[str]) -> int:
    from gmvq import commands  # after the cases above, which do not need what it imports

    said, shown = _memory(), _memory()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            options = commands.parse(verb, arguments[1:])
    except SystemExit as stop:
        if stop.code in (0, None):
            print(_printable("\n".join(map(_without_markup, _text(shown).splitlines()))))
            return 0
        _complain(f"{_unboxed(_text(said))} See gmvq {verb} --help.")
        return 2
    except ValueError as error:  # options that contradict each other
        _complain(f"{_reason(error)} See gmvq {verb} --help.")
        return 2
    command = shlex.join(["gmvq", *arguments])
    with contextlib.redirect_stdout(sys.stderr) if options.common.json else contextlib.nullcontext():
        result = commands.execute(verb, options, command)
    if result is None:  # another process shows it
        return 0
    if options.common.json:
        print(json.dumps(result, allow_nan=False))
    else:
        commands.show(verb, result)
    return 0


def _help() -> str:
    from gmvq.commands import VERBS, help_line

    verbs = "\n".join(f"  {verb:<12} {help_line(verb)}" for verb in VERBS)
    examples = "\n".join(f"  {line:<52} {text}" for line, text in _EXAMPLES)
    return (
        "usage: gmvq COMMAND ...\n\nDiscrete tokens from data, with a codebook that does not collapse.\n\n"
        f"commands:\n{verbs}\n\nexamples:\n{examples}\n\n"
        "Every command has its own --help, and --json for one JSON object on standard output.\n"
        "GMVQ_DEBUG=1 shows the traceback of an error."
    )


def _memory() -> io.TextIOWrapper:
    """Makes a stream in memory; tyro draws its frames for exactly this spelling of the encoding."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _text(memory: io.TextIOWrapper) -> str:
    memory.seek(0)
    return memory.read()


def _printable(text: str) -> str:
    """Replaces characters that standard output cannot encode; frames become ASCII."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(str.maketrans("╭╮╰╯─│", "++++-|")).encode(encoding, "replace").decode(encoding)
    return text


def _unboxed(text: str) -> str:
    """Reduces tyro's framed error message to one line: its first paragraph, and the option that was probably meant."""
    lines = [line.strip().strip("│").rstrip().removeprefix(" ") for line in text.splitlines()]
    body = [line for line in lines if not line.startswith("╭")]
    end = next((index for index, line in enumerate(body) if line.startswith("──")), len(body))
    said = [line.strip() for line in body[:end] if line and not line.startswith(" " * 8)]  # deeper is help
    message = " ".join(said).rstrip(".") or "The options could not be understood"
    meant = [after.split()[0] for line, after in pairwise(body) if line == "Perhaps you meant:" and after]
    return f"{message}. Did you mean {meant[0]}?" if meant else f"{message}."


def _without_markup(line: str) -> str:
    """Removes the markup of docstrings and empty defaults from a line of help, and keeps its frame in place."""
    plain = line.replace("``", "").replace("(default: )", "")
    return plain[:-1] + " " * (len(line) - len(plain)) + "│" if plain.endswith("│") else plain


def _reason(error: Exception) -> str:
    """Describes an error on one line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename or 'standard output'}."
        return f"{text} {_SAFE}" if error.errno in _NO_ROOM and error.filename else text
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError | ArithmeticError) and text:
        return text
    return f"{type(error).__name__}: {text} (GMVQ_DEBUG=1 shows where.)"


def _interruption(interrupt: KeyboardInterrupt, arguments: list[str]) -> str:
    """Says at which step training stopped, and the command that continues."""
    step, steps = getattr(interrupt, "step", None), getattr(interrupt, "steps", None)
    if step is None:
        return "Interrupted."
    resume = (
        ["--resume"]
        if step and arguments[0] in ("train", "fit-prior", "fit-decoder") and "--resume" not in arguments
        else []
    )
    saved = "the state is saved. Go on" if step else "nothing was saved yet. Start again"
    launcher = "" if os.environ.get("WORLD_SIZE", "1") == "1" else " under the same launcher"
    return f"Stopped after step {step} of {steps}; {saved}{launcher} with: {shlex.join(['gmvq', *arguments, *resume])}"


def _complain(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        # what comes out of files may move a terminal's cursor
        plain = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in message)
        print(f"gmvq: error: {plain}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows warnings without file, line and source."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"gmvq: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _discard_output() -> None:
    """Discards buffered output, so that Python does not complain about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
