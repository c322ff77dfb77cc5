"""A run from its data to its report, and what it leaves in its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq import hub
from gmvq.data import Data, evenly_spaced, fingerprint
from gmvq.evaluation import Evaluation, evaluate
from gmvq.losses import FeatureLoss, vgg16_features
from gmvq.models import AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.recipes.catalogue import LEARNED, DataConfig, Run, fitted, load_data
from gmvq.recipes.classifying import learned_classifier
from gmvq.recipes.layout import CHECKPOINT, METRICS, PICTURE, RECORD, REPORT, is_main, read_json
from gmvq.training import Training, provenance, train
from gmvq.training.figures import save_reconstructions
from gmvq.training.report import write_report
from gmvq.training.tasks import check_sides

FORMAT = "gmvq.run"
VERSION = 1
FEATURES = "features"
"""Where a run's folder has the classifier that it compares features by, if it learned one."""
_PICTURED = 8
"""Most images in the picture."""


def run(
    recipe: Run,
    out: str | Path,
    *,
    resume: bool = False,
    data: Data | None = None,
    command: str | None = None,
    report: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains a model, measures it on held-out images, and writes all of it into a folder.

    Args:
        recipe: What to do.
        out: The run's folder. A former run with the same settings is replaced.
        resume: Go on from the folder's checkpoint, if it has one.
        data: The data, if they are loaded already.
        command: What was typed, for the record.
        report: Write ``report.html`` and ``reconstructions.png``.
        console: Where progress goes; by default standard error.

    Returns:
        What ``metrics.json`` holds: figures of :func:`gmvq.evaluation.evaluate` on held-out images with hard codes;
        ``seconds`` and ``images_per_second`` are of training, those of coding are ``coding_seconds`` and
        ``coding_images_per_second``.

    Raises:
        ValueError: If the folder holds another run, or something in the run contradicts itself.
        OSError: If the data cannot be read or the folder cannot be written.
        NonFiniteLossError: If training diverges.
    """
    out = Path(out)
    console = Console(file=sys.stderr) if console is None else console
    data = load_data(recipe.data) if data is None else data
    recipe = fitted(recipe, data)
    check_folder(out, recipe)
    if recipe.adversarial is not None:
        check_sides(recipe.adversarial, data, recipe.data.crop)
    features = None if recipe.features is None else _features(recipe.features, data, out, console)
    resume = resume and (out / CHECKPOINT).is_file()
    if not resume and (out / METRICS).exists():
        console.print(f"Replacing the run in {out}, which has the same settings.", highlight=False, markup=False)
    record = _record(recipe, data, command)
    if is_main():
        for name in (METRICS, REPORT, PICTURE):  # those of a former run
            (out / name).unlink(missing_ok=True)
        hub.write_json(out / RECORD, record)
    torch.manual_seed(recipe.training.seed)
    trained = train(
        Autoencoder(recipe.model),
        data,
        recipe.training,
        out,
        crop=recipe.data.crop,
        flip=recipe.data.flip,
        adversarial=recipe.adversarial,
        features=features,
        resume=resume,
        console=console,
    )
    if not is_main():
        return {}
    console.print("Measuring on held-out images ...", highlight=False, markup=False)
    measured = evaluate(trained.model, data.held_out, limit=recipe.data.evaluated)
    times = {"seconds": trained.seconds, "images_per_second": trained.images_per_second}
    metrics = {**figures_of(measured), **times}
    hub.write_json(out / METRICS, metrics)
    hub.write_json(out / RECORD, {**record, "fingerprint": hub.fingerprint(trained.model), "finished": now()})
    if report:
        _write_pictures(out, trained.model, data, measured)
    return metrics


def _features(named: str, data: Data, out: Path, console: Console) -> FeatureLoss:
    """The distance of features that a recipe names."""
    if named != LEARNED:
        return load_features(named)
    # other first weights than a judge's, which says more of what did not learn the same by the same chance
    classifier = learned_classifier(data, out / FEATURES, console=console, seed=1)
    return FeatureLoss(classifier.encoder.layers)


def load_features(path: str | Path) -> FeatureLoss:
    """A distance of features, by the network at a path.

    Args:
        path: A file with the weights of torchvision's VGG-16, or the folder of a classifier, as ``gmvq judge RUN``
            leaves in ``RUN/classifier``.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is neither.
    """
    path = Path(path)
    if path.is_dir():
        return FeatureLoss(hub.load_classifier(path).encoder.layers)
    return vgg16_features(path)


def figures_of(measured: Evaluation) -> dict[str, Any]:
    """What an evaluation measured, ready for JSON; its times are those of coding, and say so."""
    metrics: dict[str, Any] = dict(measured.metrics)
    for name in ("seconds", "images_per_second"):
        metrics[f"coding_{name}"] = metrics.pop(name)
    return {**metrics, "protocol": measured.protocol}


def check_folder(out: str | Path, recipe: Run, data: Data | None = None) -> None:
    """Checks that a folder is free for a run: new, empty of models, or of a former run with the same settings.

    Args:
        out: The folder.
        recipe: The run, as :func:`gmvq.recipes.fitted` returned it.
        data: Check that a former run learned from these data, too.

    Raises:
        ValueError: If the folder holds another run, or a model that no run made.
    """
    out = Path(out)
    record = read_json(out / RECORD)
    if record is None:
        if (out / hub.CONFIG).exists() or (out / RECORD).exists():
            raise ValueError(f"{out} holds a model or a record that no run of gmvq made. Choose another --out.")
        return
    there, now = _leaves(_completed(record.get("run") or {})), _leaves(json.loads(json.dumps(asdict(recipe))))
    if data is not None:
        there["data fingerprint"], now["data fingerprint"] = (
            (record.get("data") or {}).get("fingerprint"),
            fingerprint(data),
        )
    # no step depends on these, so that a run may go on with others
    free = {"training.checkpoint_every", "training.tensorboard", "training.threads"}
    different = [name for name in sorted({*there, *now} - free) if there.get(name) != now.get(name)]
    if different:
        fields = ", ".join(f"{name} ({there.get(name)!r} there, {now.get(name)!r} now)" for name in different[:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(
            f"{out} holds another run, which differs in {fields}{more}. Choose another --out, or remove it."
        )


def check_part(out: Path, model: str, record: str, what: str) -> None:
    """Refuses a folder of something else than a certain part of a run, which would be overwritten.

    Args:
        out: The folder.
        model: Format of the models that may be there.
        record: Format of the records.
        what: What the part is called.

    Raises:
        ValueError: If there is a model or a record of another format.
    """
    for name, form in ((hub.CONFIG, model), (RECORD, record)):
        found = (read_json(out / name) or {}).get("format")
        if (out / name).exists() and found != form:
            raise ValueError(
                f"'out' must be a folder of its own for the {what}, and {out / name} is {json.dumps(found)}. Choose "
                "another --out."
            )


def finished(folder: str | Path, recipe: Any, tokenizer: str | None = None) -> dict[str, Any] | None:  # noqa: ANN401
    """The figures of a finished run, of a prior or of a decoder in a folder, if it is of these settings.

    Args:
        folder: The folder.
        recipe: The dataclass of its settings; a tokenizer's as :func:`gmvq.recipes.fitted` returned it.
        tokenizer: Fingerprint of the tokenizer that a prior or a decoder must be of.
    """
    folder = Path(folder)
    record, metrics, model = (read_json(folder / name) for name in (RECORD, METRICS, hub.CONFIG))
    if record is None or metrics is None or model is None:
        return None
    if tokenizer is not None and (model.get("config") or {}).get("tokenizer") != tokenizer:
        return None
    same = _leaves(record.get("run") or {}) == _leaves(json.loads(json.dumps(asdict(recipe))))
    return metrics if same else None


def read_run(folder: str | Path) -> Run:
    """The run that a folder is of.

    Raises:
        FileNotFoundError: If the folder has no record of a run.
        ValueError: If it is not of this version.
    """
    path = Path(folder) / RECORD
    record = read_json(path)
    if record is None:
        raise FileNotFoundError(f"{path} is not there or damaged. Give the folder of a run, or the data with --data.")
    try:
        fields = record["run"]
        data, model = DataConfig(**fields["data"]), AutoencoderConfig(**fields["model"])
        adversarial = fields.get("adversarial")
        return Run(
            fields["name"],
            data,
            model,
            Training(**fields["training"]),
            None if adversarial is None else AdversarialConfig(**adversarial),
            fields.get("features"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of this version of gmvq ({error!r}). Give the data with --data.") from error


def _write_pictures(out: Path, model: Autoencoder, data: Data, measured: Evaluation) -> None:
    originals = [data.held_out[index] for index in evenly_spaced(len(data.held_out), _PICTURED)]
    device = next(model.parameters()).device
    decoded = [model.reconstruct(image[None].to(device))[0].cpu() for image in originals]
    save_reconstructions(out / PICTURE, originals, decoded)
    write_report(out, model, data.held_out, counts=None if measured.statistics is None else measured.statistics.counts)


def _record(recipe: Run, data: Data, command: str | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": asdict(recipe),
        **circumstances(command),
        "data": {
            "name": data.name,
            "fingerprint": fingerprint(data),
            "train": len(data.train),
            "held_out": len(data.held_out),
            "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in data.skipped],
        },
    }


def circumstances(command: str | None) -> dict[str, Any]:
    """What was typed, with what, on what and when."""
    return {
        "command": command,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commit": provenance.commit(),
        "started": now(),
    }


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _completed(run: Mapping[str, Any]) -> dict[str, Any]:
    """A former run's settings, with the defaults of fields that are newer than its record."""
    parts = {"data": DataConfig(), "model": AutoencoderConfig(), "training": Training()}
    defaults = {name: json.loads(json.dumps(asdict(part))) for name, part in parts.items()}
    known = {name: {**defaults[name], **run[name]} for name in parts if isinstance(run.get(name), Mapping)}
    return {**run, **known}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves
