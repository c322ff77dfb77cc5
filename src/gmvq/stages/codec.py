"""The codec of a tokenizer: its entropy model, fitted to the codes of the training items.

::

    RUN --load--> tokenizer, items --encode--> codes --fit--> OUT/{model.safetensors, metrics.json}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from torch import nn

from gmvq import hub
from gmvq.checks import at_least, device
from gmvq.codec import CODEC, Codec, config_of, measured, vectors_of
from gmvq.data import Items, evenly_spaced
from gmvq.data.locking import locked
from gmvq.entropy import EntropyModel, fit
from gmvq.modalities import Data, fingerprint
from gmvq.stages.data import data_of_run
from gmvq.stages.layout import METRICS, RECORD, recorded
from gmvq.stages.stage import Stage
from gmvq.stages.tokenizer import read_run
from gmvq.training import Training
from gmvq.training.ranks import is_main, wait_for_ranks

MEASURED, MEASURED_CODES = 100, 200_000
"""Largest numbers of held-out items that are compressed, and of their codes."""


@dataclass(frozen=True)
class CodecRun:
    """The fitting of a codec.

    Args:
        most: Largest number of codes to fit to.
        device: Device of the tokenizer; by default the fastest.

    Raises:
        ValueError: If the number is less than 1, or the device is not available.
    """

    most: int = 500_000
    device: str | None = None

    def __post_init__(self) -> None:
        at_least("most", self.most, 1)
        device("device", self.device)


class CodecStage(Stage[EntropyModel]):
    """Fits the entropy model of a tokenizer's codes and measures it on held-out items.

    Items are whole, as they are compressed, and evenly spaced among the training items if these have too many codes.

    Args:
        folder: The tokenizer's run.
        run: Settings.
        out: Folder of the codec; ``codec`` in the run's folder by default.
        console: Output of progress; by default standard error.
        data: The data, if they are already loaded.
        source: Path of the data; by default that of the run's record.

    Raises:
        FileNotFoundError: If the run does not exist.
        ValueError: If the tokenizer has no code at each place.
        OSError: If data cannot be read.
    """

    form: ClassVar[str] = "gmvq.codec-run"
    what: ClassVar[str] = "codec"
    part: ClassVar[type[nn.Module]] = EntropyModel

    def __init__(
        self,
        folder: str | Path,
        run: CodecRun | None = None,
        out: str | Path | None = None,
        console: Console | None = None,
        data: Data | None = None,
        source: str | Path | None = None,
    ) -> None:
        super().__init__(Path(folder) / CODEC if out is None else out, console)
        self.run = CodecRun() if run is None else run
        self.tokenizer = hub.load(folder).to(device("device", self.run.device))
        self.config = config_of(self.tokenizer)
        self.mark = hub.fingerprint(self.tokenizer)
        self.data = data_of_run(folder, read_run(folder).data, source) if data is None else data

    @property
    def training(self) -> Training:  # noqa: D102
        return Training(steps=1, device=self.run.device)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"most": self.run.most, "tokenizer": self.mark, "fingerprint": fingerprint(self.data)}

    def learn(self, *, resume: bool) -> EntropyModel:  # noqa: D102
        if is_main():
            hub.save(self._fitted(), self.out, tokenizer=self.mark)
        wait_for_ranks(self.out)
        return hub.load(self.out, EntropyModel)

    def _fitted(self) -> EntropyModel:
        codec = Codec(self.tokenizer)
        items = self._chosen(self.data.train, self.run.most)
        self.say(f"Fitting to the codes of {self.data.modality.counted(len(items))} ...")
        codes = []
        for index in range(len(items)):
            codes.append(codec.encode(items[index]))
            items.let_go(index)
        vectors = [None if rows is None else rows.numpy() for rows in vectors_of(self.tokenizer)]
        return fit(self.config, vectors, codes)

    def measure(self, model: EntropyModel) -> dict[str, Any]:
        """Compresses held-out items: see :func:`gmvq.codec.measured`, and ``protocol``, which says how."""
        items = self._chosen(self.data.held_out, MEASURED_CODES)
        items = items.subset(range(min(MEASURED, len(items))))
        of = f"{self.data.modality.counted(len(items), 'held-out')} of {len(self.data.held_out)}"
        return {
            **measured(Codec(self.tokenizer, model), items),
            "modality": self.data.modality.kind,
            "protocol": f"Files of {of}, their headers included.",
        }

    def _chosen(self, items: Items, most: int) -> Items:
        """Returns at least one of the items, evenly spaced, whose codes are at most ``most``."""
        levels = len(self.config.codebook_sizes)
        codes = levels * sum(math.prod(self.tokenizer.grid(size)) for size in items.sizes)
        number = max(1, int(len(items) * most / max(1, codes)))
        return items if number >= len(items) else items.subset(evenly_spaced(len(items), number))


def fit_codec(
    folder: str | Path,
    run: CodecRun | None = None,
    out: str | Path | None = None,
    *,
    console: Console | None = None,
    data: Data | None = None,
    source: str | Path | None = None,
    **how: Any,  # noqa: ANN401 (arguments of Stage.carry_out)
) -> dict[str, Any]:
    """Fits the codec of a tokenizer: see :class:`CodecStage` and :meth:`gmvq.stages.stage.Stage.carry_out`."""
    out = Path(folder) / CODEC if out is None else Path(out)
    with locked(out):  # before the data are loaded
        return CodecStage(folder, run, out, console, data, source).carry_out(**how)


def refit_codec(
    folder: str | Path, data: Data, console: Console | None, command: str | None, device: str | None
) -> None:
    """Fits the codec of a tokenizer, in place of one of another tokenizer; does nothing for one without code maps.

    A finished codec of this tokenizer stays, whatever its settings: there may be files that need it.

    Args:
        folder: The tokenizer's run.
        data: Its data.
        console: Output of progress; by default standard error.
        command: Command line, for the record.
        device: Device of the tokenizer; by default the fastest.
    """
    tokenizer = hub.load(folder)
    if tokenizer.codebook_size is None or not tokenizer.has_code_maps:
        return
    stage = CodecStage(folder, CodecRun(device=device), console=console, data=data)
    there = (recorded(stage.out / RECORD) or {}).get("run") or {}
    if there.get("tokenizer") != stage.mark or recorded(stage.out / METRICS) is None:
        stage.carry_out(overwrite=True, command=command)
