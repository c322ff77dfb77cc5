"""Processes of one run under ``torchrun`` or ``accelerate launch``: how they meet, wait for each other, and part.

Every process learns with its share of each batch. The first one alone writes and reports; the others wait for it where
they need what it writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from gmvq.training.checkpoint import progress_of

PATIENCE = timedelta(days=1)
"""Longest wait for work that the first process does for all, as tokenizing; a process that dies ends it at once."""

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_JOINED: list[tuple[Any, Any]] = []
"""The group of all processes, and one of the same processes whose waits are that long; empty before they meet."""


class LostProcessError(ConnectionError):
    """Another process of the run has ended; the checkpoint is valid, and the run can be resumed.

    Args:
        step: Step of the last checkpoint, 0 if there is none.
        run: The run's folder.
    """

    def __init__(self, step: int, run: Path) -> None:
        self.step, self.run = step, run
        kept = f"The checkpoint of step {step} in {run} is valid: give the same command with --resume to go on."
        super().__init__(
            "Another process of this run has ended, or does not answer; its own message or the system's says why. "
            f"{kept if step else 'There is no checkpoint yet: start again.'}"
        )


def launched() -> int:
    """Returns the number of processes that a launcher has started for this run, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns False for all but the first process under torchrun or accelerate launch."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def alone() -> Iterator[None]:
    """Context manager in which this process is the only one of its run, whoever has launched it."""
    former = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(former)


def join_ranks(device: str | None) -> None:
    """Meets the other processes of the run, if there are any; all of them must call it.

    Args:
        device: ``cpu``, or None for the fastest one.
    """
    if launched() == 1 or dist.is_initialized():
        return
    # by default, on a machine without a GPU accelerate would let each process train alone
    PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
    _JOINED[:] = [(dist.group.WORLD, dist.new_group(backend="gloo", timeout=PATIENCE))]


def wait_for_ranks(run: Path) -> None:
    """Waits until all processes of the run are here; does nothing where there is one, or they have not met.

    Args:
        run: The run's folder, for the error.

    Raises:
        LostProcessError: If one of them has ended.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        with lost_ranks_named(run):
            dist.barrier(next((patient for world, patient in _JOINED if world is dist.group.WORLD), None))


def leave_ranks() -> None:
    """Parts from the other processes at the end, without waiting for them."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def lost_ranks_named(run: Path) -> Iterator[None]:
    """Context manager that says of an error of communication which checkpoint is valid.

    Args:
        run: The run's folder.

    Raises:
        LostProcessError: In place of the error.
    """
    try:
        yield
    except RuntimeError as error:
        if launched() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        progress = progress_of(run)
        raise LostProcessError(0 if progress is None else progress[0], run) from error
