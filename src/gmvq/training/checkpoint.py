"""Checkpoints of a run: everything that the next step depends on, in one file.

``checkpoint/state.safetensors`` holds as tensors the weights, their average, the optimizer's moments and the metrics
not yet logged, and the rest as JSON in its header, without pickle; see :mod:`gmvq.data.sealing`. When the next one is
whole on the disk, the last becomes ``checkpoint/previous.safetensors``: a kill or a full disk leaves the last one
intact, and a damaged file the one before.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import Form, SealedFile, read_sealed, write_sealed
from gmvq.data.writing import naming, synchronize

FORM = Form("gmvq.checkpoint", 1, "Copy it again, or train again without --resume.")
FOLDER = "checkpoint"
FILE = "state.safetensors"
PREVIOUS = "previous.safetensors"
REPLACED = "replaced.safetensors"


class Checkpoint(NamedTuple):
    """State of a run after an optimizer step.

    Attributes:
        step: Number of finished steps.
        seconds: Training time so far.
        configuration: Model, training and data of the run. Only a run with the same configuration can resume from it.
        tensors: State by name, as ``model.encoder.layers.0.weight``.
        random: States of the random number generators of each rank.
        scaler: State of the loss scaler of fp16, or None.
    """

    step: int
    seconds: float
    configuration: dict[str, Any]
    tensors: dict[str, Tensor]
    random: list[dict[str, Any]]
    scaler: dict[str, Any] | None = None


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes the checkpoint of a run and keeps the last one.

    Args:
        run: The run's folder.
        checkpoint: State of the run.

    Returns:
        Path of the checkpoint.

    Raises:
        OSError: If it cannot be written, as on a full disk; the message says which checkpoint is still valid.
    """
    path = run / FOLDER / FILE
    state = {name: value for name, value in checkpoint._asdict().items() if name != "tensors"}
    with naming(f"The checkpoint of step {checkpoint.step}", lambda: f"{_still_there(run)} Make room there."):
        write_sealed(path, FORM, state, checkpoint.tensors, former=path.with_name(PREVIOUS))
    return path


def read_checkpoint(run: Path, say: Callable[[str], None] = warnings.warn) -> Checkpoint:
    """Reads the checkpoint of a run, or the one before if that is damaged or missing.

    Args:
        run: The run's folder.
        say: Function that takes a line about going back to the one before.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        DamagedFileError: If all are damaged, or of another format or version.
    """
    path, previous = (run / FOLDER / name for name in (FILE, PREVIOUS))
    if not has_checkpoint(run):
        raise FileNotFoundError(f"There is no checkpoint in {path.parent}. Train without --resume, or check --out.")
    try:
        return _read(path)
    except (FileNotFoundError, DamagedFileError) as error:
        try:
            found = _read(previous)
        except (FileNotFoundError, DamagedFileError):
            raise error from None
        reason = str(error).partition(FORM.remedy)[0].strip()
        say(f"{reason} Continuing from the checkpoint before it, of step {found.step}.")
        return found


def has_checkpoint(run: Path) -> bool:
    """Returns whether there is something to resume in a run's folder."""
    return any((run / FOLDER / name).is_file() for name in (FILE, PREVIOUS))


def promote(run: Path) -> None:
    """Puts the checkpoint before the last in the place of the last, which is damaged: else it would be kept next."""
    folder = run / FOLDER
    (folder / PREVIOUS).replace(folder / FILE)
    synchronize(folder)


def progress_of(run: Path) -> tuple[int, int] | None:
    """Returns the finished and total steps of the last checkpoint that can be read, None if there is none."""
    return _progress(run / FOLDER / FILE) or _progress(run / FOLDER / PREVIOUS)


def set_aside(run: Path) -> Path | None:
    """Moves the checkpoint of a former run away, so that no run resumes from it by mistake.

    Returns:
        New path of the checkpoint of an unfinished run; None if there was none to keep.
    """
    kept = None
    for path in (run / FOLDER / name for name in (FILE, PREVIOUS)):
        progress = _progress(path) if kept is None else None
        if progress is not None and progress[0] < progress[1]:
            kept = path.replace(path.with_name(REPLACED))
        path.unlink(missing_ok=True)
    return kept


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Checks that a checkpoint belongs to the run that resumes from it.

    Args:
        saved: Configuration of the checkpoint, nested.
        current: Configuration of the resuming run.

    Raises:
        ValueError: If they differ; the message names each differing field.
    """
    old, new = dict(_flatten(saved)), dict(_flatten(current))
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if different:
        fields = ", ".join(f"'{name}' ({old.get(name)!r} there, {new.get(name)!r} now)" for name in different)
        raise ValueError(
            f"The checkpoint is of another run: {fields}. Give the values that it was started with, or another --out."
        )


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the states of all random number generators of this process as JSON types."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _to_hex(torch.get_rng_state()),
    }
    if device.type != "cpu":
        state["device"] = _to_hex(torch.get_device_module(device).get_rng_state())
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores the result of :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(_from_hex(state["device"]))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a model by name, with a prefix."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns an optimizer's state by parameter and name, without settings such as the learning rate."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the result of :func:`optimizer_tensors`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in with_prefix(tensors, "optimizer").items():
        index, name = key.split(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # a moment has its parameter's memory format, which the file does not store
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose name starts with a prefix and a dot, under their names without both."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _read(path: Path) -> Checkpoint:
    state, tensors = read_sealed(path, FORM)
    try:
        return Checkpoint(tensors=tensors, **state)
    except TypeError as error:
        raise DamagedFileError(f"{path} is no whole checkpoint ({error}). {FORM.remedy}") from error


def _progress(path: Path) -> tuple[int, int] | None:
    try:
        with SealedFile(path, FORM) as file:
            state = file.verify().state
        return int(state["step"]), int(state["configuration"]["training"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _still_there(run: Path) -> str:
    progress = progress_of(run)
    return f"That of step {progress[0]} is still valid; --resume continues it." if progress else "There is none before."


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _to_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
