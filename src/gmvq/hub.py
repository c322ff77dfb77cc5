"""Models at rest: safetensors and JSON, never pickle, with a fingerprint that loading checks.

A model's folder holds ``model.safetensors`` (weights) and ``config.json``::

    {"format": "gmvq.autoencoder", "version": 1, "gmvq": "0.1.0", "config": {...}, "fingerprint": "sha256 ..."}

The fingerprint is the SHA-256 of the configuration and of all weights by name, so that codes can name their tokenizer.
A prior's folder is the same, of the format ``gmvq.prior``, and that of a diffusion decoder, ``gmvq.decoder``; their
configuration names the tokenizer of their codes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from gmvq.models import Autoencoder, AutoencoderConfig, DiffusionConfig, DiffusionDecoder
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.priors import AbstractPrior, described, from_description

Built = TypeVar("Built")
Part = TypeVar("Part", bound=nn.Module)

FORMAT = "gmvq.autoencoder"
PRIOR_FORMAT = "gmvq.prior"
CLASSIFIER_FORMAT = "gmvq.classifier"
DECODER_FORMAT = "gmvq.decoder"
VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_MAKE = {
    FORMAT: ("Give a run's folder, as runs/photos.", "Give the folder of a run made by 'gmvq train'."),
    CLASSIFIER_FORMAT: ("Make it with 'gmvq judge RUN'.", "Give the folder of a classifier made by 'gmvq judge'."),
    DECODER_FORMAT: ("Make it with 'gmvq fit-decoder RUN'.", "Give the folder of one made by 'gmvq fit-decoder'."),
    PRIOR_FORMAT: ("Make it with 'gmvq fit-prior RUN'.", "Give the folder of a prior made by 'gmvq fit-prior'."),
}
RETIRED = "_retired"
"""Attribute of a loaded model: what its file holds that no module of today has. It is part of what the model is called:
codes that were written with an old model keep their tokenizer."""


class StoredPrior(NamedTuple):
    """A prior at rest.

    Attributes:
        prior: The prior.
        tokenizer: Fingerprint of the tokenizer whose codes it is of.
    """

    prior: AbstractPrior
    tokenizer: str


class StoredDecoder(NamedTuple):
    """A diffusion decoder at rest.

    Attributes:
        decoder: The decoder.
        tokenizer: Fingerprint of the tokenizer whose codes it decodes.
    """

    decoder: DiffusionDecoder
    tokenizer: str


def fingerprint(model: Autoencoder) -> str:
    """SHA-256 of a model's configuration and weights, in hexadecimal."""
    return digest(model.config.identity(), _state(model))


def digest(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a configuration, as JSON has it, and of tensors by name, in hexadecimal."""
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # a view as bytes: NumPy has no bfloat16
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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
    return _write(Path(folder), FORMAT, asdict(model.config), _state(model), fingerprint(model))


def save_prior(prior: AbstractPrior, tokenizer: str, folder: str | Path) -> Path:
    """Writes a prior's weights and configuration.

    Args:
        prior: The prior.
        tokenizer: Fingerprint of the tokenizer whose codes it is of.
        folder: Where to; made if it is not there.

    Returns:
        The folder.
    """
    return _save(prior, PRIOR_FORMAT, {**described(prior), "tokenizer": tokenizer}, folder)


def load(folder: str | Path) -> Autoencoder:
    """Reads a model that :func:`save` wrote, in evaluation mode, on the CPU.

    Args:
        folder: A run's folder, as ``runs/photos``.

    Raises:
        FileNotFoundError: If the folder or one of its files is not there.
        ValueError: If a file is damaged, of another format, or not the one that was saved.
    """

    def built(config: Mapping[str, Any], weights: dict[str, Tensor]) -> tuple[Autoencoder, str]:
        model = Autoencoder(AutoencoderConfig(**config))
        model.load_state_dict(weights)
        state = model.state_dict()
        setattr(model, RETIRED, {name: tensor for name, tensor in weights.items() if name not in state})
        return model, fingerprint(model)

    return _read(Path(folder), FORMAT, built).eval()


def load_prior(folder: str | Path) -> StoredPrior:
    """Reads a prior that :func:`save_prior` wrote, in evaluation mode, on the CPU.

    Args:
        folder: A prior's folder, as ``runs/photos/prior``.

    Raises:
        FileNotFoundError: If the folder or one of its files is not there.
        ValueError: If a file is damaged, of another format, or not the one that was saved.
    """
    return _loaded(
        folder, PRIOR_FORMAT, from_description, lambda prior, config: StoredPrior(prior, config["tokenizer"])
    )


def save_decoder(decoder: DiffusionDecoder, tokenizer: str, folder: str | Path) -> Path:
    """Writes a diffusion decoder's weights and configuration.

    Args:
        decoder: The decoder.
        tokenizer: Fingerprint of the tokenizer whose codes it decodes.
        folder: Where to; made if it is not there.

    Returns:
        The folder.
    """
    return _save(decoder, DECODER_FORMAT, {"decoder": asdict(decoder.config), "tokenizer": tokenizer}, folder)


def load_decoder(folder: str | Path) -> StoredDecoder:
    """Reads a diffusion decoder that :func:`save_decoder` wrote, in evaluation mode, on the CPU.

    Args:
        folder: A decoder's folder, as ``runs/photos/decoder``.

    Raises:
        FileNotFoundError: If the folder or one of its files is not there.
        ValueError: If a file is damaged, of another format, or not the one that was saved.
    """
    return _loaded(
        folder,
        DECODER_FORMAT,
        lambda config: DiffusionDecoder(DiffusionConfig(**config["decoder"])),
        lambda decoder, config: StoredDecoder(decoder, config["tokenizer"]),
    )


def save_classifier(classifier: Classifier, folder: str | Path) -> Path:
    """Writes a classifier's weights and configuration.

    Args:
        classifier: The classifier.
        folder: Where to; made if it is not there.

    Returns:
        The folder.
    """
    return _save(classifier, CLASSIFIER_FORMAT, asdict(classifier.config), folder)


def load_classifier(folder: str | Path) -> Classifier:
    """Reads a classifier that :func:`save_classifier` wrote, in evaluation mode, on the CPU.

    Args:
        folder: Its folder.

    Raises:
        FileNotFoundError: If the folder or one of its files is not there.
        ValueError: If a file is damaged, of another format, or not the one that was saved.
    """
    return _loaded(
        folder,
        CLASSIFIER_FORMAT,
        lambda config: Classifier(ClassifierConfig(**config)),
        lambda classifier, _: classifier,
    )


def _save(module: nn.Module, form: str, config: Mapping[str, Any], folder: str | Path) -> Path:
    """Writes a part of a run, called by its configuration and weights."""
    state = module.state_dict()
    return _write(Path(folder), form, config, state, digest(config, state))


def _loaded(
    folder: str | Path,
    form: str,
    make: Callable[[Mapping[str, Any]], Part],
    stored: Callable[[Part, Mapping[str, Any]], Built],
) -> Built:
    """Reads what :func:`_save` wrote, in evaluation mode, on the CPU."""

    def built(config: Mapping[str, Any], weights: dict[str, Tensor]) -> tuple[Built, str]:
        part = make(config)
        part.load_state_dict(weights)
        return stored(part.eval(), config), digest(dict(config), part.state_dict())

    return _read(Path(folder), form, built)


def _write(folder: Path, form: str, config: Mapping[str, Any], state: Mapping[str, Tensor], mark: str) -> Path:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, save_bytes(weights, {"fingerprint": mark}))
    description = {"format": form, "version": VERSION, "gmvq": metadata.version("gmvq"), "config": config}
    write_json(folder / CONFIG, {**description, "fingerprint": mark})
    return folder


def _read(folder: Path, form: str, built: Callable[[Mapping[str, Any], dict[str, Tensor]], tuple[Built, str]]) -> Built:
    """What a configuration and weights make, whose fingerprint must be the one that was saved."""
    description = _read_config(folder, form)
    weights_path = folder / WEIGHTS
    if not weights_path.is_file():
        raise FileNotFoundError(f"{weights_path} is not there. Train the model again, or copy the whole folder.")
    try:
        made, found = built(description["config"], load_bytes(weights_path.read_bytes()))
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged ({error}). Copy it again from where it was trained.") from error
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold a model that this version can build ({error}).") from error
    if found != description.get("fingerprint"):
        raise ValueError(
            f"The fingerprint of {folder} is {found[:12]}, {CONFIG} says {str(description.get('fingerprint'))[:12]}. "
            "The files are not of one model: copy the whole folder again."
        )
    return made


def _read_config(folder: Path, form: str) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. {_MAKE[form][0]}")
    try:
        description = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Copy it again from where it was trained.") from error
    if not isinstance(description, dict) or description.get("format") != form:
        raise ValueError(f"{path} is not of format {form!r}. {_MAKE[form][1]}")
    if description.get("version") != VERSION:
        raise ValueError(f"{path} is of version {description.get('version')}, this gmvq reads {VERSION}. Upgrade gmvq.")
    return description
