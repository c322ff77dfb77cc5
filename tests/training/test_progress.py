"""What a run says: lines of text at growing intervals, or a bar that fits its terminal."""

import os
import re
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console

from gmvq.metrics.base import Measure
from gmvq.training.progress import LONGEST_WAIT, ProgressLine, duration

PSNR = Measure("psnr", "PSNR", "dB", form=".2f")
METRICS = {"loss": -12.3456, "psnr": 21.654, "perplexity": 410.4, "items_per_second": 12345.6, "learning_rate": 0.1}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(console, seconds_per_step, steps, *, step=0, summary=None):
    """Says what a run of equally long steps says, whose log has a line every 10 steps."""
    clock = Clock()
    progress = ProgressLine(console, steps, PSNR, clock)
    progress.start(step, summary or {})
    while step < steps:
        step += 1
        clock.now += seconds_per_step
        if step % 10 == 0:
            progress.show(METRICS)
        progress.advance(step)
    progress.close()


def elsewhere():
    return Console(file=StringIO(), force_terminal=False, width=80)


def terminal(width):
    return Console(file=StringIO(), force_terminal=True, width=width, legacy_windows=False)


def drawn(console):
    """What a terminal has shown, line by line, without what moves its cursor or colors it."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]", "\r", re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()))
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize("seconds_per_step", [0.01, 0.5, 7.0, 100.0])
def test_lines_of_text_come_from_the_first_step_on_and_never_stop(seconds_per_step):
    console, steps = elsewhere(), max(3, int(1000 / seconds_per_step))
    run(console, seconds_per_step, steps)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith(f"step 1 of {steps:,} took ")
    said = [int(re.match(r"step ([\d,]+) of", line)[1].replace(",", "")) for line in lines]
    waits = [(b - a) * seconds_per_step for a, b in pairwise(said)]
    assert max(waits) <= LONGEST_WAIT + seconds_per_step
    assert said[-1] == steps
    assert len(lines) < 50


def test_a_line_says_metrics_under_their_names_and_the_time_left():
    console = elsewhere()
    run(console, 1.0, 100)
    line = console.file.getvalue().splitlines()[4]
    assert line == (
        "step 31 of 100, training: loss -12.346, PSNR 21.65 dB, perplexity 410, 12,346 items/s, about 1:09 min left"
    )


def test_the_time_left_does_not_count_the_first_step():
    console, clock = elsewhere(), Clock()
    progress = ProgressLine(console, 101, None, clock)
    progress.start(0, {})
    for step, seconds in ((1, 60.0), (2, 1.0), (3, 1.0)):
        clock.now += seconds
        progress.advance(step)
    assert console.file.getvalue().splitlines() == ["step 1 of 101 took 1:00 min", "step 3 of 101, about 1:38 min left"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("steps", [200, 2_000_000])
def test_the_bar_fits_its_terminal(width, steps):
    console = terminal(width)
    run(console, 30.0, steps, step=steps - 30)
    lines = drawn(console)
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    assert re.match(rf"{steps:,}/{steps:,} +━+ +0\.0 s", lines[-1])
    before = next(line for line in lines if line.startswith(f"{steps - 15:,}/{steps:,}"))
    assert "7:30 min" in before
    assert ("training: loss -12.346" in before) == (width >= 60)
    assert ("PSNR 21.65 dB" in before) == (width >= 80)


def test_a_long_summary_and_names_of_files_are_said_as_they_are():
    console = terminal(80)
    name = "x" * 100
    run(console, 1.0, 2, summary={"data": f"{name}\x1b[2J[bold]: 3 images", "device": "cpu"})
    shown = console.file.getvalue()
    assert f"data    {name}[2J[bold]: 3 images\n" in shown
    assert "device  cpu\n" in shown


def test_an_evaluation_says_of_what_it_is():
    console = elsewhere()
    ProgressLine(console, 2000, PSNR).report(250, "the central parts of held-out images", {**METRICS, "usage": 1.0})
    assert console.file.getvalue() == (
        "step 250 of 2,000, on the central parts of held-out images: loss -12.346, PSNR 21.65 dB, perplexity 410, "
        "12,346 items/s\n"
    )


class Gone(StringIO):
    """A terminal that was closed, or a pipe whose reader left."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError()])
def test_a_console_that_is_gone_does_not_end_a_run(monkeypatch, is_terminal, error):
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # rich would close our standard output
    run(Console(file=Gone(error), force_terminal=is_terminal), 1.0, 20, summary={"data": "x"})


@pytest.mark.parametrize(("seconds", "shown"), [(4.26, ("4.3", "s")), (59.4, ("59", "s")), (3599, ("59:59", "min"))])
def test_duration(seconds, shown):
    assert duration(seconds) == shown
