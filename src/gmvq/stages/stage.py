"""The skeleton of a stage: what each does between its settings and its folder.

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
from gmvq.data.writing import naming, write_json
from gmvq.stages.layout import (
    CHECKPOINT,
    METRICS,
    RECORD,
    REPORT,
    VERSION,
    check_folder,
    circumstances,
    finished,
    is_main,
    now,
    place_of,
    recorded_of,
)
from gmvq.training import Training

Model = TypeVar("Model", bound=nn.Module)


class Stage(ABC, Generic[Model]):
    """Something that learns, is measured, and leaves a folder.

    Args:
        out: The folder.
        console: Where progress goes; by default standard error.

    Attributes:
        form: ``format`` of its record.
        what: Its name in errors.
        part: Class of what it leaves.
        warnings: What training found wrong, known once :meth:`learn` is done.
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
        """How it is trained."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings, as JSON has them."""

    def about(self) -> dict[str, Any]:
        """What else its record says."""
        return {}

    @abstractmethod
    def learn(self, *, resume: bool) -> Model:
        """Learns and saves."""

    @abstractmethod
    def measure(self, model: Model) -> dict[str, Any]:
        """Metrics of what was learned, ready for JSON."""

    def report(self, model: Model) -> None:
        """Writes pages and pictures; most have none."""

    def say(self, message: str) -> None:
        """Tells the reader of the console."""
        if is_main():
            self.console.print(message, highlight=False, markup=False)

    def carry_out(
        self, *, resume: bool = False, overwrite: bool = False, command: str | None = None, report: bool = True
    ) -> dict[str, Any]:
        """Does all of it.

        Args:
            resume: Go on from the folder's checkpoint, if it has one.
            overwrite: Replace what is in the folder: a finished stage, or one of other settings.
            command: What was typed, for the record.
            report: Write pages and pictures.

        Returns:
            What ``metrics.json`` holds; of a stage that is finished already, without learning again. Ranks other than
            the first get nothing.

        Raises:
            ValueError: If the folder holds something else, or settings contradict each other.
            OSError: If data cannot be read or the folder cannot be written.
        """
        done = self.done(overwrite=overwrite)
        # a full disk may have left a finished stage without its page, which is written without learning again
        if done is not None and not (report and self._lacks_page()):
            self.say(f"The {self.what} in {self.out} is finished. To train it anew, pass --overwrite.")
            return done
        resume = (resume or done is not None) and (self.out / CHECKPOINT).is_file()
        head = {"format": self.form, "version": VERSION, "run": self.settings()}
        record = {**head, **circumstances(command), **self.about()}
        if is_main() and not resume:  # a refused checkpoint leaves the folder as it was
            self._begin(record)
        torch.manual_seed(self.training.seed)
        model = self.learn(resume=resume)
        if not is_main():
            return {}
        self.say("Measuring on all held-out data ...")
        metrics = {**self.measure(model), "warnings": list(self.warnings)}
        finish = {"fingerprint": hub.fingerprint(model), "place": place_of(self.out), "finished": now()}
        with naming("What was measured", "The model is valid: make room there and finish with --resume."):
            write_json(self.out / RECORD, {**record, **finish})
            write_json(self.out / METRICS, metrics)  # last, since by it a stage counts as finished
        if report:
            self.report(model)
        return metrics

    def done(self, *, overwrite: bool = False) -> dict[str, Any] | None:
        """Metrics of this very stage, if its folder has it finished.

        Args:
            overwrite: Whether to replace what is in the folder, which is then not done.

        Raises:
            ValueError: If the folder holds something else.
        """
        check_folder(self.out, self.form, hub.kind_of(self.part).form, self.what)
        if overwrite or not (self.out / RECORD).exists():
            return None
        settings = self.settings()
        different = recorded_of(self.out, settings)
        if different:
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"{self.out} holds another {self.what}, which differs in {', '.join(different[:5])}{more}. Choose "
                "another --out, or pass --overwrite."
            )
        return finished(self.out, settings)

    def _lacks_page(self) -> bool:
        """True for a stage that writes a page, which is not there, where the checkpoint of its end is."""
        writes_page = type(self).report is not Stage.report
        return writes_page and not (self.out / REPORT).exists() and (self.out / CHECKPOINT).is_file()

    def _begin(self, record: dict[str, Any]) -> None:
        with naming("The record", "Make room there, or choose another --out."):
            self.out.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, REPORT):  # those of a former one
                (self.out / name).unlink(missing_ok=True)
            write_json(self.out / RECORD, {**record, "place": place_of(self.out)})
