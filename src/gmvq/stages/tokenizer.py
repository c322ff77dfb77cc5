"""A tokenizer: from data to an evaluated model with its report."""

from __future__ import annotations

import math
import shutil
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from rich.console import Console
from torch import nn

from gmvq import hub
from gmvq.data import evenly_spaced
from gmvq.data.sealing import read_record
from gmvq.data.writing import naming, write_json
from gmvq.evaluation import Evaluation, evaluate
from gmvq.losses import FeatureLoss, vgg16_features
from gmvq.modalities import Data, fingerprint
from gmvq.models import AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.networks import Classifier
from gmvq.quantizers.catalogue import preset_of
from gmvq.quantizers.gaussian import GaussianBottleneck
from gmvq.reports.run_page import write_report
from gmvq.stages import codebook_size
from gmvq.stages.classifier import learned_classifier
from gmvq.stages.data import DataConfig, load_data
from gmvq.stages.layout import METRICS, RECORD, read_json, recorded, recorded_of
from gmvq.stages.stage import Stage
from gmvq.training import Training, train
from gmvq.training.monitoring import NonFiniteLossError
from gmvq.training.progress import counting
from gmvq.training.ranks import is_main, wait_for_ranks
from gmvq.training.tasks import check_sides

LEARNED = "learned"
"""Value of ``features`` for a network that is trained on the data of the run."""
SHOWN = 8
"""Largest number of items in the picture of reconstructions."""
FEATURES = "features"
"""Name of the folder of the classifier for the feature distance, if the run trains one."""
TRIALS, FOUND = "codebook-sizes", "codebook-size.json"
"""Names of the folder of the trials of codebook sizes, while they run, and of the file of what they found."""
MEASURED_IN_A_TRIAL = 1024
"""Largest number of held-out items that a trial is measured on."""


@dataclass(frozen=True)
class Run:
    """Configuration of a tokenizer's run.

    Args:
        name: Name of the recipe.
        data: Configuration of the data.
        model: Configuration of the autoencoder; its modality is completed by the data.
        training: Settings of training.
        adversarial: Settings of the discriminator, or None.
        features: Path of the network of the feature distance, see :func:`load_features`; ``learned`` for a small one
            that is first trained on the data; None for no feature distance.
        start: Folder of a run whose weights training starts from; None for random weights.
    """

    name: str
    data: DataConfig
    model: AutoencoderConfig
    training: Training
    adversarial: AdversarialConfig | None = None
    features: str | None = None
    start: str | None = None

    def described(self) -> dict[str, Any]:
        """Returns the run as JSON types."""
        return {
            "name": self.name,
            "data": self.data.described(),
            "model": self.model.described(),
            "training": self.training.described(),
            "adversarial": None if self.adversarial is None else asdict(self.adversarial),
            "features": self.features,
            "start": self.start,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Creates the run from the result of :meth:`described`.

        Raises:
            ValueError: If a field is out of range.
            KeyError: If a field is missing.
            TypeError: If a field is unknown.
        """
        adversarial = description["adversarial"]
        return cls(
            description["name"],
            DataConfig.from_description(description["data"]),
            AutoencoderConfig.from_description(description["model"]),
            Training(**description["training"]),
            None if adversarial is None else AdversarialConfig(**adversarial),
            description["features"],
            description["start"],
        )


def fitted(run: Run, data: Data) -> Run:
    """Completes the run by its data: the modality's settings, an absolute path, a window that most items can fill.

    A window that is smaller than requested gives a warning.
    """
    source, model, size = run.data.source, replace(run.model, modality=data.modality), run.data.size
    if not run.data.is_bundled:
        source = str(Path(source).expanduser().resolve())
    if size is not None and data.signal.axes:
        side = int(statistics.median(min(lengths) for lengths in data.train.sizes))
        # whole tokens, at least two along each side
        fitting = min(size, max(side - side % model.stride, 2 * model.stride))
        if fitting < size and size != data.modality.window_size:
            warnings.warn(
                f"Windows have {fitting} samples on a side in place of {size}: half of the {data.modality.items} are "
                "smaller.",
                stacklevel=2,
            )
        size = fitting
    return replace(run, data=replace(run.data, source=source, size=size, modality=data.modality), model=model)


class TokenizerStage(Stage[Autoencoder]):
    """Trains a tokenizer.

    Args:
        run: Configuration of the run.
        out: The run's folder.
        console: Output of progress; by default standard error.
        data: The data, if they are already loaded.

    Raises:
        ValueError: If settings and data contradict each other.
        OSError: If the data cannot be read.
    """

    form: ClassVar[str] = "gmvq.run"
    what: ClassVar[str] = "run"
    part: ClassVar[type[nn.Module]] = Autoencoder

    def __init__(self, run: Run, out: str | Path, console: Console | None = None, data: Data | None = None) -> None:
        super().__init__(out, console)
        self.data = load_data(run.data) if data is None else data
        self.run = fitted(run, self.data)
        self.times: dict[str, float] = {}
        self.evaluation: Evaluation | None = None
        self.divergence: NonFiniteLossError | None = None
        if self.run.adversarial is not None:
            check_sides(self.run.adversarial, self.data, self.run.data.size)

    @property
    def training(self) -> Training:  # noqa: D102
        return self.run.training

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {**self.run.described(), "fingerprint": fingerprint(self.data)}

    def about(self) -> dict[str, Any]:  # noqa: D102
        data = self.data
        return {
            "data": {
                "name": data.name,
                "fingerprint": fingerprint(data),
                "train": len(data.train),
                "held_out": len(data.held_out),
                "classes": list(data.classes),
                "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in data.skipped],
            }
        }

    def learn(self, *, resume: bool) -> Autoencoder:  # noqa: D102
        run = self._sized(resume=resume)
        features = None if run.features is None else self._features(run.features)
        torch.manual_seed(run.training.seed)
        model = Autoencoder(run.model)
        items = self.data.train
        model.standardize(items[index][None] for index in range(len(items)))
        if run.start is not None:
            self._take_weights(model, run.start)
        trained = train(
            model,
            self.data,
            run.training,
            self.out,
            size=run.data.size,
            mirror=run.data.mirror,
            adversarial=run.adversarial,
            features=features,
            resume=resume,
            console=self.console,
        )
        self.warnings = trained.warnings
        self.times = {"seconds": trained.seconds, "items_per_second": trained.items_per_second}
        return trained.model

    def _sized(self, *, resume: bool) -> Run:
        """Returns the run with a number of codes, which trials find if it has none.

        Raises:
            ValueError: If the run starts from another, or has no codes.
            NonFiniteLossError: If every trial diverges.
        """
        run = self.run
        if not isinstance(run.model.codebook_size, str):
            return run
        if run.start is not None:
            raise ValueError("'codebook_size' must be that of the run to start from, got 'auto'. Give its number.")
        if preset_of(run.model.quantizer).make is GaussianBottleneck:
            raise ValueError(f"'codebook_size' of {run.model.quantizer} cannot be 'auto': it has no codes.")
        there = read_json(self.out / FOUND) if resume else None
        if there is None:
            self.say("Looking for the number of codes by shorter trials ...")
            found = codebook_size.tried(self._bits_of)
            chosen = min(found, key=lambda size: found[size])
            if math.isinf(found[chosen]) and self.divergence is not None:
                raise self.divergence
            finite = {size: bits for size, bits in sorted(found.items()) if math.isfinite(bits)}
            there = {"codebook_size": chosen, "elbo_bits_per_dim": {f"{size}": bits for size, bits in finite.items()}}
            said = ", ".join(f"{size:,}: {bits:.4f}" for size, bits in finite.items())
            self.say(f"{chosen:,} codes. Bits per dimension of held-out items, codes included: {said}")
            if is_main():
                with naming("What the trials found", "Make room there: the same command goes on after the trials."):
                    write_json(self.out / FOUND, there)
                shutil.rmtree(self.out / TRIALS)
            wait_for_ranks(self.out)
        return replace(run, model=replace(run.model, codebook_size=int(there["codebook_size"])))

    def _bits_of(self, size: int) -> float:
        """Trains for a part of the steps with a number of codes; returns bits per dimension of held-out items."""
        own = self.run
        training, model = codebook_size.of_a_trial(own.training), replace(own.model, codebook_size=size)
        data = replace(own.data, evaluated=min(MEASURED_IN_A_TRIAL, own.data.evaluated or MEASURED_IN_A_TRIAL))
        trial = replace(own, data=data, model=model, training=training, adversarial=None, features=None)
        folder = self.out / TRIALS / f"{size}"
        stage = TokenizerStage(trial, folder, self.console, self.data)
        try:
            # a trial that was interrupted goes on; one of another run is trained again
            stage.carry_out(resume=True, overwrite=recorded_of(folder, stage.settings()) != [], report=False)
        except NonFiniteLossError as error:
            self.divergence = error
            return math.inf
        wait_for_ranks(folder)
        return float(read_record(folder / METRICS)["elbo_bits_per_dim"])

    def measure(self, model: Autoencoder) -> dict[str, Any]:
        """Computes the metrics of :func:`gmvq.evaluation.evaluate` with hard codes.

        ``seconds`` and ``items_per_second`` are those of training, ``coding_seconds`` and ``coding_items_per_second``
        those of coding.
        """
        items, limit = self.data.held_out, self.run.data.evaluated
        with counting("Measuring", len(items) if limit is None else min(limit, len(items)), self.console) as advance:
            self.evaluation = evaluate(model, items, limit=limit, on_progress=advance)
        return {**metrics_of(self.evaluation), **self.times}

    def report(self, model: Autoencoder) -> None:  # noqa: D102
        assert self.evaluation is not None
        self._write_sheet(model)
        write_report(self.out, model, self.data.held_out, statistics=self.evaluation.statistics)

    def _write_sheet(self, model: Autoencoder) -> None:
        """Writes originals above their reconstructions to one picture, if the modality can arrange them."""
        if not model.modality.lays_out:
            return
        items = [self.data.held_out[index][None] for index in evenly_spaced(len(self.data.held_out), SHOWN)]
        real = [model.signal.checked(item)[0] for item in items]
        made = [model.reconstruct(item.to(model.device))[0].cpu() for item in items]
        with naming("The sheet of reconstructions", "The model and its metrics are valid: make room there."):
            name = f"reconstructions{model.modality.suffix}"
            model.modality.write(self.out / name, [*real, *made], columns=len(real))

    def _features(self, named: str) -> FeatureLoss:
        """Loads the feature distance that the run names."""
        if named != LEARNED:
            return load_features(named)
        # its initial weights differ from a judge's, so that a judge does not share its errors by chance
        classifier = learned_classifier(self.data, self.out / FEATURES, console=self.console, seed=1)
        return FeatureLoss(classifier.encoder.layers)

    def _take_weights(self, model: Autoencoder, start: str) -> None:
        """Loads the weights of another run.

        Raises:
            ValueError: If its model has another configuration.
        """
        former = hub.load(start)
        own, theirs = (replace(part.config, modality=former.modality).described() for part in (model, former))
        if own != theirs or former.signal != model.signal:
            different = sorted(name for name in own if own[name] != theirs[name]) or ["modality"]
            raise ValueError(
                f"The model of {start} differs in {', '.join(different)}. Start from one with equal settings, or leave "
                "--from out."
            )
        model.load_state_dict(former.state_dict())


def load_features(path: str | Path) -> FeatureLoss:
    """Loads a feature distance.

    Args:
        path: A file with the weights of torchvision's VGG-16, or the folder of a classifier, as ``gmvq judge RUN``
            writes to ``RUN/classifier``.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it is neither of these.
    """
    path = Path(path)
    if path.is_dir():
        return FeatureLoss(hub.load(path, Classifier).encoder.layers)
    return vgg16_features(path)


def metrics_of(measured: Evaluation) -> dict[str, Any]:
    """Returns the metrics of an evaluation as JSON types; its times are named as those of coding."""
    metrics: dict[str, Any] = dict(measured.metrics)
    for name in ("seconds", "items_per_second"):
        metrics[f"coding_{name}"] = metrics.pop(name)
    return {
        **metrics,
        "headline": measured.headline,
        "modality": measured.modality,
        "protocol": measured.protocol,
    }


def read_run(folder: str | Path) -> Run:
    """Reads the run of a folder.

    Raises:
        FileNotFoundError: If the folder has no record of a run.
        ValueError: If the record has another version.
    """
    path = Path(folder) / RECORD
    record = recorded(path)
    if record is None:
        raise FileNotFoundError(f"{path} is missing or damaged. Give the folder of a run made by 'gmvq train'.")
    try:
        fields = {name: value for name, value in record["run"].items() if name != "fingerprint"}
        return Run.from_description(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise hub.DamagedFileError(f"{path} is not of this version of gmvq ({error!r}). Train again.") from error
