"""Output during training: a progress bar in a terminal, occasional lines of text elsewhere.

::

    summary of the run, then
    terminal:   120/2,000 ━━━━━━            1:20 min  training: loss -1.203, PSNR 18.32 dB, perplexity 50
    elsewhere:  step 120 of 2,000, training: loss -1.203, PSNR 18.32 dB, ..., about 1:20 min left
    both:       step 250 of 2,000, on a sample of held-out data: PSNR 18.05 dB, perplexity 48
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from gmvq.metrics.base import Measure

_SHOWN = {
    "loss": "loss {:.3f}",
    "perplexity": "perplexity {:.0f}",
    "accuracy": "{:.1%} right",
    "held_out_loss": "loss {:.4f}",
    "bits_per_code": "{:.3f} bits per code",
    "items_per_second": "{:,.0f} items/s",
}
FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0
"""Seconds between the first two lines of text, each wait twice the last one, and the longest wait."""
SILENCE = 10.0
"""Seconds between two lines of text for work without steps."""
REFRESH = 0.25
"""Shortest time in seconds between two drawings of the bar."""
LEAST_BAR = 6
"""Smallest width of the bar in columns."""


class ProgressLine:
    """Shows step, metrics and remaining time of a run; a closed terminal is not an error.

    Args:
        console: Output, as ``Console(stderr=True)``; None for no output.
        steps: Total steps of the run.
        headline: The metric that the run is judged by, or None.
        clock: Function that returns seconds since a fixed moment.
    """

    def __init__(
        self,
        console: Console | None,
        steps: int,
        headline: Measure | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.steps, self.headline, self.clock = console, steps, headline, clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._metrics: Mapping[str, float | None] = {}
        self._wait, self._drawn = FIRST_WAIT, clock()
        self._first, self._since = 0, clock()  # where the rate is counted from: the first step is slower than others

    def start(self, step: int, summary: Mapping[str, str]) -> None:
        """Prints the summary of the run, and begins after ``step`` finished steps.

        Args:
            step: Number of finished steps.
            summary: Texts of the summary by name.
        """
        self._first, self._since, self._drawn = step, self.clock(), self.clock()
        width = max(map(len, summary), default=0)
        for name, text in summary.items():
            self.say(f"{name:<{width}}  {text}")
        if self.console is None or not self.console.is_terminal:
            return
        narrow = [
            TextColumn(f"{{task.fields[{name}]}}", table_column=Column(no_wrap=True)) for name in ("step", "left")
        ]
        bar = BarColumn(None, table_column=Column(ratio=1, min_width=LEAST_BAR))
        metrics = TextColumn("{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True))
        with self._shielded():
            self._bar = Progress(
                narrow[0], bar, narrow[1], metrics, console=self.console, expand=True, auto_refresh=False
            )
            self._task = self._bar.add_task("", total=self.steps, completed=step, step="", left="", metrics="")
            self._bar.start()

    def show(self, metrics: Mapping[str, float | None]) -> None:
        """Sets the metrics of the last training steps to show."""
        self._metrics = metrics

    def advance(self, step: int) -> None:
        """Shows that a step is finished, if it is time for an update."""
        now, last = self.clock(), step == self.steps
        is_first = step == self._first + 1
        if self._bar is not None:
            if is_first or last or now - self._drawn >= REFRESH:
                self._draw(step, now)
        elif is_first or last or now - self._drawn >= self._wait:
            self._write(step, now, is_first=is_first)
        if is_first:
            self._since, self._drawn = now, now

    def report(self, step: int, sample: str, metrics: Mapping[str, float | None]) -> None:
        """Prints a line about an evaluation.

        Args:
            step: Number of finished steps.
            sample: The evaluated data, as ``a sample of held-out data``.
            metrics: Metrics of the evaluation.
        """
        self.say(f"step {step:,} of {self.steps:,}, on {sample}: {', '.join(self._parts(metrics))}")

    def say(self, message: str) -> None:
        """Prints a message, without characters that would move the cursor."""
        with self._shielded():
            if self.console is not None:
                plain = "".join(letter for letter in message if letter.isprintable())
                self.console.print(plain, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Closes the bar."""
        with self._shielded():
            if self._bar is not None:
                self._bar.stop()

    def _write(self, step: int, now: float, *, is_first: bool) -> None:
        line = f"step {step:,} of {self.steps:,}"
        if is_first:
            line += f" took {spoken(now - self._since)}"
        if self._metrics:
            line += f", training: {', '.join(self._parts(self._metrics))}"
        if step < self.steps and not is_first:
            line += f", about {self._left(step, now)} left"
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._drawn = now
        self.say(line)

    def _draw(self, step: int, now: float) -> None:
        assert self.console is not None
        assert self._bar is not None
        counted, left = f"{step:,}/{self.steps:,}", self._left(step, now) if step > self._first + 1 else ""
        room = self.console.width - len(counted) - len(left) - LEAST_BAR - 3  # spaces between the columns
        shown = ""
        for part in self._parts(self._metrics):
            longer = f"{shown}, {part}" if shown else f"training: {part}"
            shown = longer if len(longer) <= room else shown
        self._drawn = now
        with self._shielded():
            self._bar.update(self._task, completed=step, step=counted, left=left, metrics=shown, refresh=True)

    def _left(self, step: int, now: float) -> str:
        rate = (now - self._since) / max(1, step - self._first - 1)
        return spoken(rate * (self.steps - step))

    def _parts(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Formats the loss, the headline, then the other metrics."""
        words = {key: form.format(value) for key, form in _SHOWN.items() if (value := metrics.get(key)) is not None}
        own = self.headline
        if own is not None and (value := metrics.get(own.key)) is not None:
            first = [words.pop("loss")] if "loss" in words else []
            return [*first, f"{own.name} {own.shown(value)} {own.unit}".rstrip(), *words.values()]
        return list(words.values())

    @contextmanager
    def _shielded(self) -> Iterator[None]:
        """Context manager for output that may fail: a closed terminal or pipe must not end a run."""
        try:
            yield
        except (OSError, SystemExit):  # rich exits on a broken pipe
            self.console = self._bar = None


def duration(seconds: float) -> tuple[str, str]:
    """Returns seconds as number and unit: 48 s, 3:12 min or 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return (f"{seconds:.1f}" if seconds < 10 else f"{whole}"), "s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}", "min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}", "h"


def spoken(seconds: float) -> str:
    """Formats seconds with their unit.

    Example:
        >>> spoken(0.42), spoken(192), spoken(7500)
        ('0.4 s', '3:12 min', '2:05 h')
    """
    return " ".join(duration(seconds))


@contextmanager
def counting(text: str, total: int, console: Console | None = None) -> Iterator[Callable[[float], None]]:
    """Shows how many items of a task without steps are done: a bar in a terminal, lines of text elsewhere.

    Args:
        text: Description of the task, as ``Measuring``.
        total: Number of items.
        console: Output; by default standard error.

    Yields:
        Function to call with the number of finished items.
    """
    console = Console(stderr=True) if console is None else console
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)

        def advance(done: float) -> None:
            nonlocal said
            bar.update(task, completed=done)
            if not console.is_terminal and done < total and time.monotonic() - said > SILENCE:
                console.print(f"{text}: {done:,.0f} of {total:,}", highlight=False, markup=False)
                said = time.monotonic()

        yield advance
