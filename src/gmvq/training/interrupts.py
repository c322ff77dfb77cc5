"""Stops a run between two steps on Ctrl-C, termination or a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType


class Interrupted(KeyboardInterrupt):
    """Training was stopped and its state is saved; the command line exits with 130.

    Args:
        step: Number of finished steps, 0 if nothing was saved.
        steps: Total steps of the run.
        run: The run's folder.
    """

    def __init__(self, step: int, steps: int, run: Path) -> None:
        self.step, self.steps, self.run = step, steps, run
        saved = f"saved in {run}. Give the same command with --resume to go on." if step else "nothing was saved yet."
        super().__init__(f"Stopped after step {step} of {steps}; {saved}")


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a run: Ctrl-C, shutdown or the end of a job's time, and a closed terminal."""


class Interrupts:
    """Records ``SIGNALS`` while it is open; a second one interrupts at once. Under nohup, SIGHUP stays ignored.

    Attributes:
        requested: True after the first signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, signal.Handlers | int | Callable[[int, FrameType | None], object] | None] = {}

    def __enter__(self) -> Interrupts:
        """Installs the handlers if this is the main thread, the only one that Python sends signals to."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restores the former handlers."""
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
