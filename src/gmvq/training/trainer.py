"""Training: fits a model to data and writes a run's folder; runs can be stopped and resumed.

::

    Data --Loader--> Batch --model--> Outcome.loss --Adam--> weights --average--> model.safetensors
                                           |                    |
                                       log.jsonl    checkpoint/state.safetensors

A step depends only on the seed, its number and the state in a checkpoint, so a run that was stopped and resumed ends
with the same bits as an uninterrupted one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gmvq.data.locking import locked
from gmvq.losses import FeatureLoss
from gmvq.modalities import Data
from gmvq.models import AdversarialAutoencoder, AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.training import checkpoint as checkpoints
from gmvq.training.config import Training
from gmvq.training.loop import Loop, TrainingResult
from gmvq.training.preparation import cpu_threads
from gmvq.training.ranks import lost_ranks_named
from gmvq.training.tasks import AbstractTask, AdversarialTask, AutoencoderTask, Drawing, Model

_OPPOSED = {
    "keep_best": "The best PSNR is reached before the discriminator starts, so its effect would be lost.",
    "compile": "The adaptive weight takes gradients within a forward pass.",
}


def train(
    model: Autoencoder,
    data: Data,
    training: Training,
    out: str | Path,
    *,
    size: int | None = None,
    mirror: bool = False,
    windows_per_item: int = 1,
    adversarial: AdversarialConfig | None = None,
    features: FeatureLoss | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainingResult[Autoencoder]:
    """Trains a model and saves it, with averaged weights, in the run's folder.

    The folder gets ``model.safetensors``, ``config.json``, ``log.jsonl`` and ``checkpoint/``. An existing run is
    replaced unless ``resume``; the checkpoint of an unfinished one is kept as ``checkpoint/replaced.safetensors``. All
    random number generators are seeded. Under ``torchrun`` or ``accelerate launch`` every process calls this.

    Args:
        model: Model, trained in place; it ends with the last weights, not the averaged ones.
        data: Training items, and held-out items for evaluations.
        training: Settings of training.
        out: The run's folder.
        size: Samples of random windows along each axis, None for whole items.
        mirror: Mirror half of the items, if the modality supports it.
        windows_per_item: Number of windows of each item per epoch.
        adversarial: Settings of adversarial training, or None. They exclude ``keep_best`` and ``compile``.
        features: Feature distance to add to the loss; it needs ``adversarial``, whose ``feature_weight`` it has.
        resume: Continue from the folder's checkpoint.
        console: Output of progress, as ``rich.console.Console(stderr=True)``; None for no output.

    Returns:
        The averaged model and the training time.

    Raises:
        ValueError: If the checkpoint is of another run or damaged, or model, data and training do not match.
        FileNotFoundError: If there is nothing to resume.
        NonFiniteLossError: If the loss, a term of it, a gradient or a weight is not finite.
        Interrupted: After Ctrl-C or termination; the state is saved.
        InUseError: If another process writes to the folder.
        OSError: If the folder cannot be written; the last checkpoint stays valid.
        LostProcessError: If another process of the run has ended.
    """
    drawing = Drawing(size, mirror, windows_per_item)
    if adversarial is None:
        if features is not None:
            raise ValueError("'features' must be None without 'adversarial'. Give AdversarialConfig(weight=0.0).")
        return learn(AutoencoderTask(model, data, drawing), training, out, resume=resume, console=console)
    for name in ("keep_best", "compile"):
        if getattr(training, name):
            raise ValueError(f"'{name}' must be False with 'adversarial', got True. {_OPPOSED[name]}")
    with torch.random.fork_rng(devices=[]):  # the discriminator's initial weights depend on the seed alone
        torch.manual_seed(training.seed)
        opposed = AdversarialAutoencoder(model, adversarial, features)
    learned = learn(AdversarialTask(opposed, data, drawing), training, out, resume=resume, console=console)
    return TrainingResult(learned.model.autoencoder, *learned[1:])


def learn(
    task: AbstractTask[Model, Any],
    training: Training,
    out: str | Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> TrainingResult[Model]:
    """Trains the model of a task and saves it, with averaged weights, in the run's folder: see :func:`train`.

    Args:
        task: The task to learn.
        training: Settings of training.
        out: The run's folder.
        resume: Continue from the folder's checkpoint.
        console: Output of progress; None for no output.

    Returns:
        The averaged model and the training time.

    Raises:
        ValueError: If the checkpoint is of another run or damaged, or task and training do not match.
        FileNotFoundError: If there is nothing to resume.
        NonFiniteLossError: If the loss, a term of it, a gradient or a weight is not finite.
        Interrupted: After Ctrl-C or termination; the state is saved.
        InUseError: If another process writes to the folder.
        OSError: If the folder cannot be written; the last checkpoint stays valid.
        LostProcessError: If another process of the run has ended.
    """
    with locked(out), cpu_threads(training.threads), lost_ranks_named(Path(out)):
        return Loop(task, training, Path(out), console).run(resume=resume)


def averaged_model(out: str | Path) -> Autoencoder:
    """Loads the averaged model of a run's last checkpoint, even of a stopped run, in evaluation mode.

    Args:
        out: The run's folder.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is damaged.
    """
    checkpoint = checkpoints.read_checkpoint(Path(out))
    model = Autoencoder(AutoencoderConfig.from_description(checkpoint.configuration["model"]))
    parts = [checkpoints.with_prefix(checkpoint.tensors, name) for name in ("model", "average")]
    if "adversarial" in checkpoint.configuration:  # the tokenizer without its discriminator
        parts = [checkpoints.with_prefix(part, "autoencoder") for part in parts]
    model.load_state_dict({**parts[0], **parts[1]})
    return model.eval()
