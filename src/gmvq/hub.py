"""Models at rest: safetensors and JSON, never pickle, with a fingerprint that loading checks.

A model's folder holds ``model.safetensors`` (weights) and ``config.json``::

    {"format": "gmvq.autoencoder", "version": 1, "gmvq": "0.1.0", "config": {...}, "fingerprint": "sha256 ..."}

The fingerprint is the SHA-256 of the configuration and of all weights by name, so that codes can name their tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from gmvq.models import Autoencoder, AutoencoderConfig

FORMAT = "gmvq.autoencoder"
VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RETIRED = "_retired"
"""Attribute of a loaded model: what its file holds that no module of today has. It is part of what the model is called:
codes that were written with an old model keep their tokenizer."""


def fingerprint(model: Autoencoder) -> str:
    """SHA-256 of a model's configuration and weights, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(model.config.identity(), sort_keys=True).encode())
    for name, tensor in sorted(_state(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # a view as bytes: NumPy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state(model: Autoencoder) -> dict[str, Tensor]:
    return {**model.state_dict(), **getattr(model, RETIRED, {})}


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place at the end: a crash or a full disk leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Writes JSON atomically; NaN and infinity are refused, since JSON has neither.

    Raises:
        ValueError: If the value holds NaN or infinity.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def save(model: Autoencoder, folder: str | Path) -> Path:
    """Writes a model's weights and configuration.

    Args:
        model: The model.
        folder: Where to; made if it is not there.

    Returns:
        The folder.
    """
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model).items()}
    mark = fingerprint(model)
    write_atomically(folder / WEIGHTS, save_bytes(weights, {"fingerprint": mark}))
    config = {"format": FORMAT, "version": VERSION, "gmvq": metadata.version("gmvq"), "config": asdict(model.config)}
    write_json(folder / CONFIG, {**config, "fingerprint": mark})
    return folder


def load(folder: str | Path) -> Autoencoder:
    """Reads a model that :func:`save` wrote, in evaluation mode, on the CPU.

    Args:
        folder: A run's folder, as ``runs/photos``.

    Raises:
        FileNotFoundError: If the folder or one of its files is not there.
        ValueError: If a file is damaged, of another format, or not the one that was saved.
    """
    folder = Path(folder)
    description = _read_config(folder)
    weights_path = folder / WEIGHTS
    if not weights_path.is_file():
        raise FileNotFoundError(f"{weights_path} is not there. Train the model again, or copy the whole folder.")
    try:
        config = AutoencoderConfig(**description["config"])
        weights = load_bytes(weights_path.read_bytes())
        model = Autoencoder(config)
        model.load_state_dict(weights)
        state = model.state_dict()
        setattr(model, RETIRED, {name: tensor for name, tensor in weights.items() if name not in state})
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged ({error}). Copy it again from where it was trained.") from error
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold a model that this version can build ({error}).") from error
    found = fingerprint(model)
    if found != description.get("fingerprint"):
        raise ValueError(
            f"The fingerprint of {folder} is {found[:12]}, {CONFIG} says {str(description.get('fingerprint'))[:12]}. "
            "The files are not of one model: copy the whole folder again."
        )
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Give a run's folder, as runs/photos.")
    try:
        description = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Copy it again from where it was trained.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT!r}. Give the folder of a run made by 'gmvq train'.")
    if description.get("version") != VERSION:
        raise ValueError(f"{path} is of version {description.get('version')}, this gmvq reads {VERSION}. Upgrade gmvq.")
    return description
