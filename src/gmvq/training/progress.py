"""The line that shows how a run gets on: a bar in a terminal, now and then a line of text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SHOWN = {
    "loss": "loss {:.3f}",
    "psnr": "{:.2f} dB",
    "perplexity": "perplexity {:.0f}",
    "accuracy": "{:.1%} right",
    "held_out_loss": "loss {:.4f}",
    "bits_per_code": "{:.3f} bits a code",
    "items_per_second": "{:.0f} images/s",
}


class ProgressLine:
    """Shows step, loss, PSNR, perplexity, images per second and time left.

    Args:
        console: Where to, as ``Console(stderr=True)``; None for nowhere.
        steps: Steps of the whole run.
        step: Finished steps.
    """

    def __init__(self, console: Console | None, steps: int, step: int = 0) -> None:
        self.console = console
        self.steps = steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console is not None and console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metrics]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)
            self._task = self._bar.add_task("training", total=steps, completed=step, metrics="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Shows that a step is finished."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, metrics: Mapping[str, float | None]) -> None:
        """Shows the metrics of the last steps."""
        if self._bar is not None:
            self._bar.update(self._task, metrics=describe(metrics))

    def report(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Adds a line of its own, as for an evaluation."""
        if self.console is not None:
            self.console.print(f"step {step} of {self.steps}, held out: {describe(metrics)}", highlight=False)

    def say(self, message: str) -> None:
        """Adds a message."""
        if self.console is not None:
            self.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.stop()


def describe(metrics: Mapping[str, float | None]) -> str:
    """The metrics that are shown, in a row.

    Example:
        >>> describe({"psnr": 24.123, "mse": 0.00387, "perplexity": 410.4})
        '24.12 dB, perplexity 410'
    """
    known = {name: metrics.get(name) for name in _SHOWN}
    return ", ".join(_SHOWN[name].format(value) for name, value in known.items() if value is not None)
