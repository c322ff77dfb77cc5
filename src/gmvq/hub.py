"""Saved parts: safetensors and JSON, never pickle, with a fingerprint that loading checks.

A part's folder holds ``model.safetensors`` (weights) and ``config.json``::

    {"format": "gmvq.autoencoder", "version": 1, "gmvq": "0.1.0", "config": {...}, "fingerprint": "sha256 ..."}

A part is a tokenizer, a prior, a diffusion decoder or a classifier. The fingerprint is the SHA-256 of the configuration
and of all weights by name. Token files, priors and decoders store the fingerprint of their tokenizer.

Files that may come from strangers are read in an order in which each step bounds the next: sizes, JSON, fields, shapes
of the weights against those of a model without memory, and last the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from gmvq.data.writing import write_atomically, write_json
from gmvq.models import Autoencoder, AutoencoderConfig, DiffusionConfig, DiffusionDecoder
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.priors import AbstractPrior, described, from_description
from gmvq.types import Signal

Part = TypeVar("Part", bound=nn.Module)

VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LARGEST_CONFIG = 1 << 24
"""Bytes of a configuration; that of a model of text includes the vocabulary."""
LARGEST_COUNT = 1 << 40
"""Largest number in a configuration."""
_LOOPS = ("blocks", "depth", "halvings", "heads", "layers", "levels", "num_quantizers")
"""Numbers of a configuration that are counts of parts with weights."""


class DamagedFileError(ValueError):
    """Error of a file that is damaged, of another kind or version, or contradicts itself."""


class Kind(NamedTuple):
    """A kind of saved part.

    Attributes:
        form: ``format`` in its ``config.json``.
        part: Its class.
        describe: Function from the part to its configuration in JSON.
        build: Function from the configuration to the part, with new weights.
        origin: A sentence that says how to make one.
    """

    form: str
    part: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[Mapping[str, Any]], nn.Module]
    origin: str


KINDS = (
    Kind(
        "gmvq.autoencoder",
        Autoencoder,
        lambda part: part.config.described(),
        lambda config: Autoencoder(AutoencoderConfig.from_description(config)),
        "Give the folder of a run made by 'gmvq train', as runs/photos.",
    ),
    Kind("gmvq.prior", AbstractPrior, described, from_description, "Make a prior with 'gmvq fit-prior RUN'."),
    Kind(
        "gmvq.decoder",
        DiffusionDecoder,
        lambda part: asdict(part.config),
        lambda config: DiffusionDecoder(DiffusionConfig(**config)),
        "Make a decoder with 'gmvq fit-decoder RUN'.",
    ),
    Kind(
        "gmvq.classifier",
        Classifier,
        lambda part: asdict(part.config),
        lambda config: Classifier(ClassifierConfig(**{**config, "signal": Signal(**config["signal"])})),
        "Make a classifier with 'gmvq judge RUN'.",
    ),
)
"""The list of all kinds of parts."""


def kind_of(part: type[nn.Module]) -> Kind:
    """Looks up the kind of a class.

    Raises:
        ValueError: If the class is not that of a part.
    """
    for kind in KINDS:
        if issubclass(part, kind.part):
            return kind
    raise ValueError(f"'part' must be one of {', '.join(kind.part.__name__ for kind in KINDS)}, got {part.__name__}.")


def installed_version() -> str:
    """Returns the version of gmvq; ``unknown`` for a copy that is not installed."""
    try:
        return metadata.version("gmvq")
    except metadata.PackageNotFoundError:
        return "unknown"


def fingerprint(part: nn.Module) -> str:
    """Computes the SHA-256 of a part's configuration and weights, in hexadecimal."""
    return digest(kind_of(type(part)).describe(part), part.state_dict())


def digest(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 of a configuration in JSON and of tensors by name, in hexadecimal."""
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # a view as bytes: NumPy has no bfloat16
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(part: nn.Module, folder: str | Path, *, tokenizer: str | None = None) -> Path:
    """Writes a part's weights and configuration.

    Args:
        part: An autoencoder, a prior, a diffusion decoder or a classifier.
        folder: The folder to write; created if needed.
        tokenizer: Fingerprint of the tokenizer, for a prior or a decoder.

    Returns:
        The folder.

    Raises:
        ValueError: If it is another kind of object.
        OSError: If a file cannot be written.
    """
    folder, kind = Path(folder), kind_of(type(part))
    config, state = kind.describe(part), part.state_dict()
    mark = digest(config, state)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, save_bytes(weights, {"fingerprint": mark}))
    of = {} if tokenizer is None else {"tokenizer": tokenizer}
    description = {"format": kind.form, "version": VERSION, "gmvq": installed_version(), **of, "config": config}
    write_json(folder / CONFIG, {**description, "fingerprint": mark})
    return folder


def load(folder: str | Path, part: type[Part] = Autoencoder) -> Part:
    """Reads a part that :func:`save` wrote: in evaluation mode, on the CPU, in the precision in which it was saved.

    Args:
        folder: Folder of the part, for example ``runs/photos`` or ``runs/photos/prior``.
        part: Class of the part: ``Autoencoder``, ``AbstractPrior``, ``DiffusionDecoder`` or ``Classifier``.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        DamagedFileError: If a file is damaged, of another format, or not the saved one.
    """
    folder, kind = Path(folder), kind_of(part)
    description = read_description(folder, part)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Make it again, or copy the whole folder.")
    config = description["config"]
    try:
        held = _header(path)
        _check_loops(config, len(held))
        with torch.device("meta"):
            planned = kind.build(config).state_dict()
        _check_shapes(planned, held)
        made = kind.build(config)
        weights = load_bytes(path.read_bytes())
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error}). Copy it again from where it was made.") from error
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DamagedFileError(f"{folder} does not hold a part that this version can build ({reason}).") from error
    _take_types(made, weights)
    made.load_state_dict(weights)
    found = digest(kind.describe(made), made.state_dict())
    if found != description.get("fingerprint"):
        raise DamagedFileError(
            f"The fingerprint of {folder} is {found[:12]}, {CONFIG} says {str(description.get('fingerprint'))[:12]!r}. "
            "The files are not of one part: copy the whole folder again."
        )
    return cast("Part", made.eval())


def tokenizer_of(folder: str | Path, part: type[nn.Module]) -> str:
    """Reads the fingerprint of the tokenizer that a saved prior or decoder was fitted to.

    Raises:
        FileNotFoundError: If the folder has no such part.
        DamagedFileError: If its configuration is damaged, or names no tokenizer.
    """
    mark = read_description(Path(folder), part).get("tokenizer")
    if not isinstance(mark, str):
        raise DamagedFileError(f"{Path(folder) / CONFIG} names no tokenizer. {kind_of(part).origin}")
    return mark


def read_description(folder: Path, part: type[nn.Module]) -> dict[str, Any]:
    """Reads the ``config.json`` of a part.

    Raises:
        FileNotFoundError: If it does not exist.
        DamagedFileError: If it is damaged, or of another format or version.
    """
    path, kind = folder / CONFIG, kind_of(part)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. {kind.origin}")
    if path.stat().st_size > LARGEST_CONFIG:
        raise DamagedFileError(f"{path} is larger than {LARGEST_CONFIG >> 20} MiB: it is no configuration of gmvq.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not JSON ({error}). Copy it again from where it was made.") from error
    if not isinstance(description, dict) or description.get("format") != kind.form:
        raise DamagedFileError(f"{path} is not of format {kind.form!r}. {kind.origin}")
    version = description.get("version")
    if version is True or version != VERSION:
        raise DamagedFileError(f"{path} is of version {version!r}, this gmvq reads {VERSION}. Upgrade gmvq.")
    if not isinstance(description.get("config"), dict):
        raise DamagedFileError(f"{path} has no configuration. Copy it again from where it was made.")
    return description


class _Held(NamedTuple):
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str


def _header(path: Path) -> dict[str, _Held]:
    """Reads shapes and types of the tensors of a file, without the tensors."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        return {name: _Held(tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}


def _check_loops(value: object, tensors: int, name: str = "") -> None:
    """Refuses numbers with which building would never end: a configuration of a few bytes can ask for anything.

    Raises:
        ValueError: If a number is too large.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_loops(inner, tensors, str(key))
    elif isinstance(value, list):
        for inner in value:
            _check_loops(inner, tensors, "")
    elif isinstance(value, int | float) and abs(value) > (most := tensors + 64 if name in _LOOPS else LARGEST_COUNT):
        raise ValueError(f"'{name}' must be at most {most}, got {value!r}")


def _check_shapes(planned: Mapping[str, Tensor], held: Mapping[str, _Held]) -> None:
    """Compares the tensors of the configuration with those of the file.

    Raises:
        ValueError: If names, shapes or kinds of numbers differ.
    """
    differing = sorted(planned.keys() ^ held.keys())
    if differing:
        raise ValueError(f"the weights lack, or have beside those of the configuration, {', '.join(differing[:5])}")
    for name, tensor in planned.items():
        if not tensor.numel():  # a table that grows with what was counted
            continue
        is_float = held[name].dtype.startswith(("F", "BF"))
        if tuple(tensor.shape) != held[name].shape or tensor.is_floating_point() != is_float:
            raise ValueError(
                f"{name} has the shape {held[name].shape} of {held[name].dtype}, by the configuration "
                f"{tuple(tensor.shape)} of {tensor.dtype}"
            )


def _take_types(part: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Converts a part to the precision of its weights, tensor by tensor."""
    for name, tensor in (*part.named_parameters(), *part.named_buffers()):
        if name in weights and weights[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(weights[name].dtype)
