"""Saved parts: safetensors and JSON, never pickle, both sealed by a digest that loading checks.

A part's folder holds ``model.safetensors`` (weights) and ``config.json``::

    {"format": "gmvq.autoencoder", "version": 1, "gmvq": "0.1.0", "config": {...}, "fingerprint": "sha256 ...",
     "digest": "sha256 ..."}

A part is a tokenizer, a prior, a diffusion decoder, a classifier, or the entropy model of a codec. The fingerprint is
the SHA-256 of the configuration and of all weights by name; both files have it. Token files, priors, decoders and
entropy models store that of their tokenizer.

Files that may come from strangers are read in an order in which each step bounds the next: sizes, JSON, fields, shapes
of the weights against those of a model without memory, and last the weights. See :mod:`gmvq.data.sealing`.
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
from torch import Tensor, nn

from gmvq.data.locking import locked
from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import DTYPES, Form, Held, SealedFile, bytes_of, read_record, write_record, write_sealed
from gmvq.entropy import EntropyModel
from gmvq.entropy import model as entropy
from gmvq.models import Autoencoder, AutoencoderConfig, DiffusionConfig, DiffusionDecoder
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.priors import AbstractPrior, described, from_description
from gmvq.types import Signal

Part = TypeVar("Part", bound=nn.Module)

VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LARGEST_COUNT = 1 << 40
"""Largest number in a configuration."""
_LOOPS = ("blocks", "depth", "halvings", "heads", "layers", "levels", "num_quantizers")
"""Numbers of a configuration that are counts of parts with weights."""


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

    @property
    def configuration(self) -> Form:
        """Form of its ``config.json``."""
        return Form(self.form, VERSION, self.origin)

    @property
    def weights(self) -> Form:
        """Form of its ``model.safetensors``."""
        return Form(self.form, VERSION, "Copy the whole folder again from where it was made, or make it again.")


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
    Kind(
        "gmvq.codec",
        EntropyModel,
        entropy.described,
        entropy.from_description,
        "Make one with 'gmvq fit-codec RUN'.",
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
        found.update(bytes_of(tensor))
    return found.hexdigest()


def save(part: nn.Module, folder: str | Path, *, tokenizer: str | None = None) -> Path:
    """Writes a part's weights and configuration.

    Args:
        part: An autoencoder, a prior, a diffusion decoder, a classifier or an entropy model.
        folder: The folder to write; created if needed.
        tokenizer: Fingerprint of the tokenizer, for a prior, a decoder or an entropy model.

    Returns:
        The folder.

    Raises:
        ValueError: If it is another kind of object.
        InUseError: If another process writes to the folder.
        OSError: If a file cannot be written.
    """
    folder, kind = Path(folder), kind_of(type(part))
    config, state = kind.describe(part), part.state_dict()
    mark = digest(config, state)
    of = {} if tokenizer is None else {"tokenizer": tokenizer}
    description = {"format": kind.form, "version": VERSION, "gmvq": installed_version(), **of, "config": config}
    with locked(folder):
        write_sealed(folder / WEIGHTS, kind.weights, {"fingerprint": mark}, state)
        write_record(folder / CONFIG, {**description, "fingerprint": mark})
    return folder


def load(folder: str | Path, part: type[Part] = Autoencoder) -> Part:
    """Reads a part that :func:`save` wrote: in evaluation mode, on the CPU, in the precision in which it was saved.

    Args:
        folder: Folder of the part, for example ``runs/photos`` or ``runs/photos/prior``.
        part: Class of the part: ``Autoencoder``, ``AbstractPrior``, ``DiffusionDecoder``, ``Classifier`` or
            ``EntropyModel``.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        DamagedFileError: If a file is damaged, of another format, or not the saved one.
    """
    folder, kind = Path(folder), kind_of(part)
    description = read_description(folder, part)
    config, mark = description["config"], description.get("fingerprint")
    with SealedFile(folder / WEIGHTS, kind.weights) as file:
        if file.state.get("fingerprint") != mark:
            raise DamagedFileError(f"{WEIGHTS} and {CONFIG} in {folder} are not of one part. Copy both again.")
        try:
            made = _built(kind, config, file)
        except (TypeError, KeyError, IndexError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
            if isinstance(error, DamagedFileError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise DamagedFileError(f"{folder} does not hold a part that this version can build ({reason}).") from error
    if digest(kind.describe(made), made.state_dict()) != mark:
        raise DamagedFileError(f"{folder} does not have the fingerprint in its {CONFIG}. Copy it again.")
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
    description = read_record(path, kind.configuration)
    if not isinstance(description.get("config"), dict):
        raise DamagedFileError(f"{path} has no configuration. Copy it again from where it was made.")
    return description


def _built(kind: Kind, config: Mapping[str, Any], file: SealedFile) -> nn.Module:
    """Builds a part without memory first, to compare it with the file, and then with the file's weights."""
    _check_loops(config, len(file.held))
    with torch.device("meta"):
        planned = kind.build(config).state_dict()
    _check_shapes(planned, file.held)
    file.verify()
    made = kind.build(config)
    _take_types(made, file.held)
    own = made.state_dict()
    grown: dict[str, Tensor] = {}
    for name in file.held:  # one at a time: all of them together would be as large as the part
        tensor = file.tensor(name)
        if tensor.shape == own[name].shape:
            own[name].copy_(tensor)
        else:
            grown[name] = tensor
    made.load_state_dict({**own, **grown})
    return made


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


def _check_shapes(planned: Mapping[str, Tensor], held: Mapping[str, Held]) -> None:
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


def _take_types(part: nn.Module, held: Mapping[str, Held]) -> None:
    """Converts a part to the precision of the weights in a file, tensor by tensor."""
    for name, tensor in (*part.named_parameters(), *part.named_buffers()):
        if name in held and DTYPES[held[name].dtype] != tensor.dtype:
            tensor.data = tensor.data.to(DTYPES[held[name].dtype])
