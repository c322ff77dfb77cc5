"""The common procedure of all stages, from settings to a folder.

::

    check --> record --> seed --> learn --> measure --> finish
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console
from torch import nn

from gmvq import hub
from gmvq.data.locking import locked
from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import write_record
from gmvq.data.writing import naming
from gmvq.stages.layout import (
    METRICS,
    RECORD,
    REPORT,
    VERSION,
    check_folder,
    circumstances,
    finished,
    now,
    place_of,
    recorded,
    recorded_of,
)
from gmvq.training import Training
from gmvq.training.checkpoint import has_checkpoint
from gmvq.training.ranks import is_main, join_ranks, wait_for_ranks

Model = TypeVar("Model", bound=nn.Module)


class Stage(ABC, Generic[Model]):
    """A step of a run that trains a model, evaluates it and writes a folder.

    Args:
        out: The folder.
        console: Output of progress; by default standard error.

    Attributes:
        form: ``format`` of its record.
        what: Name of the stage in errors.
        part: Class of the model that it saves.
        warnings: Problems of training, available after :meth:`learn`.
    """

    form: ClassVar[str]
    what: ClassVar[str]
    part: ClassVar[type[nn.Module]]

    def __init__(self, out: str | Path, console: Console | None = None) -> None:
        self.out = Path(out)
        self.console = Console(file=sys.stderr) if console is None else console
        self.warnings: tuple[str, ...] = ()

    @property
    @abstractmethod
    def training(self) -> Training:
        """Settings of training."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns all settings as JSON types."""

    def about(self) -> dict[str, Any]:
        """Returns further entries of the record."""
        return {}

    @abstractmethod
    def learn(self, *, resume: bool) -> Model:
        """Trains and saves the model."""

    @abstractmethod
    def measure(self, model: Model) -> dict[str, Any]:
        """Computes metrics of the model, as JSON types."""

    def report(self, model: Model) -> None:
        """Writes pages and pictures; most stages have none."""

    def say(self, message: str) -> None:
        """Prints a message to the console."""
        if is_main():
            self.console.print(message, highlight=False, markup=False)

    def carry_out(
        self, *, resume: bool = False, overwrite: bool = False, command: str | None = None, report: bool = True
    ) -> dict[str, Any]:
        """Runs the whole stage.

        Args:
            resume: Continue from the folder's checkpoint, if it has one.
            overwrite: Replace the content of the folder: a finished stage, or one with other settings.
            command: Command line, for the record.
            report: Write pages and pictures.

        Returns:
            Content of ``metrics.json``; a finished stage is not trained again. Ranks other than the first get an
            empty dictionary.

        Raises:
            ValueError: If the folder holds something else, or settings contradict each other.
            InUseError: If another process writes to the folder.
            OSError: If data cannot be read or the folder cannot be written.
        """
        with locked(self.out):
            return self._carried_out(resume=resume, overwrite=overwrite, command=command, report=report)

    def _carried_out(self, *, resume: bool, overwrite: bool, command: str | None, report: bool) -> dict[str, Any]:
        join_ranks(self.training.device)
        done = self.done(overwrite=overwrite)
        # after a full disk a finished stage may lack its page, which is written without training again
        if done is not None and not (report and self._lacks_page()):
            self.say(f"The {self.what} in {self.out} is finished. To train it again, pass --overwrite.")
            return done
        resume = (resume or done is not None) and has_checkpoint(self.out)
        head = {"format": self.form, "version": VERSION, "run": self.settings()}
        record = {**head, **circumstances(command), **self.about()}
        wait_for_ranks(self.out)  # all look at the folder before the first changes it
        if is_main() and not resume:  # if the checkpoint is refused, the folder is unchanged
            self._begin(record)
        torch.manual_seed(self.training.seed)
        model = self.learn(resume=resume)
        if not is_main():
            return {}
        self.say("Measuring on all held-out data ...")
        metrics = {**self.measure(model), "warnings": list(self.warnings)}
        finish = {"fingerprint": hub.fingerprint(model), "place": place_of(self.out), "finished": now()}
        with naming("What was measured", "The model is valid: make room there and finish with --resume."):
            write_record(self.out / RECORD, {**record, **finish})
            write_record(self.out / METRICS, metrics)  # last, since it marks a stage as finished
        if report:
            self.report(model)
        return metrics

    def done(self, *, overwrite: bool = False) -> dict[str, Any] | None:
        """Returns the metrics of this stage if the folder has it finished with these settings.

        Args:
            overwrite: Replace the content of the folder, which then counts as unfinished.

        Raises:
            ValueError: If the folder holds something else.
        """
        check_folder(self.out, self.form, hub.kind_of(self.part).form, self.what)
        if overwrite or not (self.out / RECORD).exists():
            return None
        settings = self.settings()
        if recorded(self.out / RECORD) is None:
            raise DamagedFileError(f"{self.out / RECORD} is damaged. Choose another --out, or pass --overwrite.")
        different = recorded_of(self.out, settings)
        if different:
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"{self.out} holds another {self.what}, which differs in {', '.join(different[:5])}{more}. Choose "
                "another --out, or pass --overwrite."
            )
        return finished(self.out, settings)

    def _lacks_page(self) -> bool:
        """Returns True if the stage writes a page and it is missing although training is complete."""
        writes_page = type(self).report is not Stage.report
        return writes_page and not (self.out / REPORT).exists() and has_checkpoint(self.out)

    def _begin(self, record: dict[str, Any]) -> None:
        with naming("The record", "Make room there, or choose another --out."):
            self.out.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, REPORT):  # of a former stage
                (self.out / name).unlink(missing_ok=True)
            write_record(self.out / RECORD, {**record, "place": place_of(self.out)})
