"""Sealed files: tensors and a state in JSON, with a digest over every byte, in the format of safetensors.

::

    8 bytes   length of the header, little-endian, a multiple of 8
    header    {"__metadata__":{"digest":"...","format":"gmvq.checkpoint","version":"1","state":"{...}"},
               "weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},...}, padded with spaces
    tensors   little-endian, without gaps, types of many bytes first, so that each is aligned

The digest is the SHA-256 of the whole file in hexadecimal, with 64 zeros in its own place, which is the same in every
file. Names, types, shapes, bytes, state and padding are all under it: a file with a changed bit is refused.

JSON files are sealed by their last key, ``digest``: the SHA-256 of the object without it, with sorted keys.

A reader checks in an order in which each step bounds the next: the length of the header, its JSON, then types, shapes
and places of the tensors against the size of the file. Only then does it allocate memory for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import torch
from torch import Tensor

from gmvq.data.parsing import LARGEST_JSON, DamagedFileError, parse_json, read_json
from gmvq.data.writing import replacing, write_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in safetensors."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEAD = b'{"__metadata__":{"digest":"'
_PLACE = 8 + len(_HEAD)
_NO_DIGEST = "0" * 64
_BLOCK = 1 << 22
_MOST_AXES = 16
_LONGEST_AXIS = 1 << 48


class Form(NamedTuple):
    """A kind of file.

    Attributes:
        name: Its ``format``.
        version: Its version; readers refuse all others.
        remedy: A sentence that says what to do when such a file is damaged.
    """

    name: str
    version: int
    remedy: str


class Held(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: Name of its type, a key of :data:`DTYPES`.
        shape: Its shape.
        start: Its first byte, counted from the beginning of the file.
        stop: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Draft:
    """A sealed file while it is written."""

    def __init__(self, file: BinaryIO, held: Mapping[str, Held]) -> None:
        self.file, self.held = file, held

    def put(self, name: str, data: bytes | memoryview, first: int = 0) -> None:
        """Writes bytes of a tensor.

        Args:
            name: Name of the tensor.
            data: The bytes.
            first: Place of the first of them in the tensor.
        """
        self.file.seek(self.held[name].start + first)
        self.file.write(data)


@contextmanager
def sealing(
    path: Path,
    form: Form,
    state: Mapping[str, Any],
    shapes: Mapping[str, tuple[str, Sequence[int]]],
    former: Path | None = None,
) -> Iterator[Draft]:
    """Opens a file to write tensors into, in any order, and seals it at the end; it replaces ``path`` then.

    Args:
        path: The file.
        form: Its kind.
        state: What to keep beside the tensors, as JSON types.
        shapes: Type, a key of :data:`DTYPES`, and shape of each tensor. All of their bytes have to be put.
        former: Path of the file that is replaced from then on; by default it is removed.

    Raises:
        ValueError: If the state is too large, or holds NaN or infinity.
        OSError: If the file cannot be written.
    """
    header, held = _planned(form, state, shapes)
    with replacing(path, former) as file:
        file.write(header)
        yield Draft(file, held)
        file.flush()
        digest = _digest(file)
        file.seek(_PLACE)
        file.write(digest.encode())


def write_sealed(
    path: Path, form: Form, state: Mapping[str, Any], tensors: Mapping[str, Tensor], former: Path | None = None
) -> None:
    """Writes tensors and a state to a sealed file, whole or not at all; see :func:`sealing`."""
    shapes = {name: (name_of(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    with sealing(path, form, state, shapes, former) as draft:
        for name in draft.held:
            draft.put(name, bytes_of(tensors[name]))


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor's values in their order."""
    flat = tensor.detach().cpu().contiguous()
    flat = flat.as_strided((flat.numel(),), (1,))  # one value counts as contiguous whatever its stride
    return flat.view(torch.uint8).numpy().data  # NumPy has no bfloat16


def name_of(dtype: torch.dtype) -> str:
    """Looks up the name of a type in files.

    Raises:
        ValueError: If files have no such type.
    """
    if dtype not in _NAMES:
        raise ValueError(f"'dtype' must be one of {', '.join(map(str, _NAMES))}, got {dtype}. Convert with .to().")
    return _NAMES[dtype]


class SealedFile:
    """A sealed file, opened for reading. Its header is checked at once, the digest by :meth:`verify`.

    Args:
        path: The file.
        form: The kind that it must be of.

    Attributes:
        held: Types and shapes of its tensors, by name.
        state: What is kept beside them.
        digest: Its digest, as written in the file.

    Raises:
        FileNotFoundError: If it does not exist.
        DamagedFileError: If the header is damaged, or of another format or version.
    """

    def __init__(self, path: str | Path, form: Form) -> None:
        self.path, self.form = Path(path), form
        if not self.path.is_file():  # a pipe would block
            raise FileNotFoundError(f"{path} is not there. {form.remedy}")
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size
        try:
            text = self._header()
            self.digest, self.state, entries = self._parsed(text)
            self.held = _checked(entries, 8 + len(text), self._size)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            if isinstance(error, DamagedFileError):
                raise
            raise self.damaged(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def damaged(self, reason: object) -> DamagedFileError:
        """Makes the error of this file, for what a reader finds wrong in it."""
        return DamagedFileError(f"{self.path} is damaged ({' '.join(str(reason).split())[:300]}). {self.form.remedy}")

    def verify(self) -> Self:
        """Reads the whole file and compares it with its digest.

        Raises:
            DamagedFileError: If a byte is not the one that was written.
        """
        found = hashlib.sha256()
        for place in range(0, self._size, _BLOCK):
            block = bytearray(self._bytes(place, min(place + _BLOCK, self._size)))
            if not place:
                block[_PLACE : _PLACE + len(_NO_DIGEST)] = _NO_DIGEST.encode()
            found.update(block)
        if found.hexdigest() != self.digest:
            raise self.damaged("its content is not what was written")
        return self

    def tensor(self, name: str) -> Tensor:
        """Reads a tensor.

        Raises:
            DamagedFileError: If it is not in the file.
        """
        if name not in self.held:
            raise self.damaged(f"it has no {name!r}")
        held = self.held[name]
        return self.part(name, 0, held.stop - held.start).reshape(held.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Reads all tensors by name."""
        return {name: self.tensor(name) for name in self.held}

    def part(self, name: str, first: int, last: int) -> Tensor:
        """Reads a range of a tensor's bytes, as values of its type ``(values,)``."""
        held = self.held[name]
        raw = torch.empty(last - first, dtype=torch.uint8)
        view = raw.numpy().data
        for place in range(0, last - first, _BLOCK):
            start = held.start + first + place
            view[place : place + _BLOCK] = self._bytes(start, min(start + _BLOCK, held.start + last))
        if held.dtype == "BOOL" and raw.numel() and int(raw.max()) > 1:
            raise self.damaged(f"{name!r} holds other bytes than 0 and 1")
        return raw.view(DTYPES[held.dtype])

    def _bytes(self, start: int, stop: int) -> bytes:
        found = os.pread(self._descriptor, stop - start, start)  # keeps no place that a forked process would share
        while len(found) < stop - start:
            more = os.pread(self._descriptor, stop - start - len(found), start + len(found))
            if not more:
                raise self.damaged("it ends early")
            found += more
        return found

    def _header(self) -> bytes:
        if self._size < _PLACE + len(_NO_DIGEST):
            raise ValueError("it ends within its header")
        (length,) = struct.unpack("<Q", self._bytes(0, 8))
        if length > min(LARGEST_JSON, self._size - 8) or length % 8:
            raise ValueError("the length of its header is wrong")
        return self._bytes(8, 8 + length)

    def _parsed(self, text: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Returns digest, state and the tensors' entries of a header."""
        entries = parse_json(text)
        about = entries.pop("__metadata__", None) if isinstance(entries, dict) else None
        about = about if isinstance(about, dict) else {}
        form, version = about.get("format"), about.get("version")
        if (form, version) != (self.form.name, str(self.form.version)):
            raise DamagedFileError(
                f"{self.path} is of format {form!r:.99} {version!r:.99}, this gmvq reads {self.form.name} "
                f"{self.form.version}. Use the version of gmvq that wrote it. {self.form.remedy}"
            )
        digest, state = str(about["digest"]), parse_json(str(about["state"]).encode())
        if not text.startswith(_HEAD + digest.encode() + b'"') or not isinstance(state, dict):
            raise ValueError("its header is not in the order of gmvq")
        return digest, state, entries


def read_sealed(path: str | Path, form: Form) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads state and tensors of a sealed file, and checks its digest.

    Raises:
        FileNotFoundError: If it does not exist.
        DamagedFileError: If it is damaged, or of another format or version.
    """
    with SealedFile(path, form) as file:
        return file.verify().state, file.tensors()


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its digest, atomically.

    Raises:
        ValueError: If the value holds NaN or infinity.
        OSError: If the file cannot be written.
    """
    write_json(path, {**value, "digest": _digest_of(value)})


def read_record(path: Path, form: Form | None = None) -> dict[str, Any]:
    """Reads what :func:`write_record` wrote, without the digest.

    Args:
        path: The file.
        form: The kind that its ``format`` and ``version`` must name.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If it is damaged, or of another format or version.
    """
    value = read_json(path)
    if form is not None:
        if not isinstance(value, dict) or value.get("format") != form.name:
            raise DamagedFileError(f"{path} is not of format {form.name!r}. {form.remedy}")
        version = value.get("version")
        if type(version) is not int or version != form.version:
            raise DamagedFileError(
                f"{path} is of version {version!r:.99}, this gmvq reads {form.version}. Use the version that wrote it."
            )
    if not isinstance(value, dict) or value.pop("digest", None) != _digest_of(value):
        raise DamagedFileError(f"{path} is damaged (its content is not what was written). Copy it again.")
    return value


def _digest_of(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # whose keys are strings, in whatever order
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _digest(file: BinaryIO) -> str:
    """Computes the digest of a whole file, which still has zeros in its place."""
    file.seek(0)
    found = hashlib.sha256()
    while block := file.read(_BLOCK):
        found.update(block)
    return found.hexdigest()


def _planned(
    form: Form, state: Mapping[str, Any], shapes: Mapping[str, tuple[str, Sequence[int]]]
) -> tuple[bytes, dict[str, Held]]:
    """Returns the header, with zeros for its digest, and the places of the tensors."""
    about = {"digest": _NO_DIGEST, "format": form.name, "version": str(form.version)}
    entries: dict[str, Any] = {"__metadata__": {**about, "state": json.dumps(state, allow_nan=False)}}
    start = 0
    for name in sorted(shapes, key=lambda name: (-DTYPES[shapes[name][0]].itemsize, name)):
        dtype, shape = shapes[name]
        stop = start + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parse_json(text)  # raises if it is larger than readers accept
    del entries["__metadata__"]
    return struct.pack("<Q", len(text)) + text, _checked(entries, 8 + len(text), 8 + len(text) + start)


def _checked(entries: Mapping[str, Any], first: int, size: int) -> dict[str, Held]:
    """Checks the entries of a header, in their order.

    Args:
        entries: Type, shape and place of each tensor.
        first: The byte after the header.
        size: Size of the file.

    Raises:
        ValueError: If they contradict each other or the size of the file.
        KeyError: If a field is missing.
        TypeError: If a field is of another kind.
    """
    held, start = {}, 0
    for name, entry in entries.items():
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in DTYPES or len(entry) != 3 or len(shape) > _MOST_AXES:
            raise ValueError(f"the type or the shape of {name!r} is unknown")
        if not all(type(length) is int and 0 <= length <= _LONGEST_AXIS for length in shape):
            raise ValueError(f"the shape of {name!r} is wrong")
        bytes_each = DTYPES[dtype].itemsize
        stop = start + math.prod(shape) * bytes_each
        if place != [start, stop] or start % bytes_each:
            raise ValueError(f"{name!r} is not where it should be")
        held[name] = Held(dtype, tuple(shape), first + start, first + stop)
        start = stop
    if first + start != size:
        raise ValueError(f"it has {size:,} bytes in place of {first + start:,}")
    return held
