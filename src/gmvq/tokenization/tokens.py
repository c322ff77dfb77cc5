"""Storage of codes: one safetensors file for a set of items.

It holds three tensors beside metadata of a few hundred bytes, whatever the number of items:

``codes``
    ``(N, *grid[, levels])`` if all items have one grid of tokens, else ``(tokens of all, [levels])``, item after item.
    The integers are the smallest of uint8, uint16, int32 and int64 that hold K - 1.
``sizes``
    int64 ``(N, axes)``: lengths of each item's axes beside its channels, in samples.
``names``
    uint8: the names, as a JSON list in UTF-8.

::

    {"format": "gmvq.tokens", "version": "1", "tokenizer": fingerprint, "codebook_sizes": "[512]", "downsampling": "4",
     "signal": {...}, "digest": SHA-256 of the codes' bytes}

The header is written first and the codes as they are made, so that memory holds one batch, whatever the number of
items.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gmvq.data.writing import replacing
from gmvq.hub import DamagedFileError
from gmvq.types import Signal

FORMAT = "gmvq.tokens"
VERSION = 1
_DTYPES = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_NO_DIGEST = "0" * 64
_BLOCK = 1 << 24


class TokenInfo(NamedTuple):
    """Description of a file of tokens.

    Attributes:
        tokenizer: Fingerprint of the model that made the codes, see :func:`gmvq.hub.fingerprint`.
        codebook_sizes: Number of codes K at each level of a token.
        has_levels: Whether codes have an axis of levels.
        downsampling: Samples of a token along each axis.
        signal: Description of the items' tensors.
        names: Name of each item, a relative path with ``/``.
        sizes: Lengths of each item's axes beside its channels, in samples.
    """

    tokenizer: str
    codebook_sizes: tuple[int, ...]
    has_levels: bool
    downsampling: int
    signal: Signal
    names: Sequence[str]
    sizes: Sequence[tuple[int, ...]]

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Number of tokens of each item along each axis."""
        return [self.signal.grid(size, self.downsampling) for size in self.sizes]

    @property
    def tokens(self) -> int:
        """Number of tokens of all items."""
        return sum(math.prod(grid) for grid in self.grids)

    @property
    def levels(self) -> tuple[int, ...]:
        """Length of the axis of levels, as a tuple; empty without that axis."""
        return (len(self.codebook_sizes),) if self.has_levels else ()


class TokenFile:
    """A file of tokens, opened for reading; codes are read from the disk on access.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFileError: If it is damaged, of another format or version, or contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no file {self.path}. Make one with 'gmvq tokenize RUN DATA {self.path}'."
            )
        try:
            self._file: Any = safe_open(self.path, framework="np")
            metadata = self._file.metadata() or {}
            _check_format(self.path, metadata)
            names = bytes(self._file.get_tensor("names"))
            sizes = self._file.get_tensor("sizes")
            self._codes = self._file.get_slice("codes")
        except SafetensorError as error:
            raise DamagedFileError(f"{self.path} is no whole file of tokens ({error}). Tokenize again.") from error
        self.info = _parse(self.path, metadata, names, sizes)
        self.digest = str(metadata.get("digest"))
        grids = self.info.grids
        self._is_whole = len(set(grids)) == 1
        self._ends = np.cumsum([0, *(math.prod(grid) for grid in grids)]) if not self._is_whole else None
        self._check_shape(grids)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.info.names)

    def __getitem__(self, index: int) -> Tensor:
        """Reads the codes of item ``index``: int64 ``(*grid[, levels])``.

        Raises:
            IndexError: If the index is out of range.
            DamagedFileError: If a code is not in the codebook.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"'index' must be below {len(self)}, the number of items, got {index}.")
        index %= len(self)
        if self._ends is None:
            codes = self._codes[index : index + 1][0]
        else:
            grid = self.info.signal.grid(self.info.sizes[index], self.info.downsampling)
            codes = self._codes[int(self._ends[index]) : int(self._ends[index + 1])].reshape(*grid, *self.info.levels)
        codes = np.asarray(codes)
        if not _fits(codes, self.info):
            raise DamagedFileError(
                f"The codes in {self.path} must lie below {self.info.codebook_sizes}, item {index} has {codes.min()} "
                f"to {codes.max()}. The file is damaged: tokenize again."
            )
        return torch.from_numpy(codes.astype(np.int64))

    def verify(self) -> None:
        """Reads all codes and compares them with the digest in the file.

        Raises:
            DamagedFileError: If a code has changed since it was written.
        """
        with self.path.open("rb") as file:
            found = _digest_of(file)
        if found != self.digest:
            raise DamagedFileError(f"The codes in {self.path} are not those that were written. Copy or make it again.")

    def _check_shape(self, grids: Sequence[tuple[int, ...]]) -> None:
        shape = tuple(self._codes.get_shape())
        head = (len(grids), *grids[0]) if self._is_whole else (self.info.tokens,)
        if shape != (*head, *self.info.levels):
            raise DamagedFileError(f"The codes in {self.path} do not fit the items' sizes. Tokenize again.")
        if self._codes.get_dtype() != (kind := token_kind(max(self.info.codebook_sizes))):
            raise DamagedFileError(f"{self.path} holds {self._codes.get_dtype()} in place of {kind}. Tokenize again.")


def write_tokens(path: str | Path, info: TokenInfo, batches: Iterable[tuple[Sequence[int], Tensor]]) -> None:
    """Writes a file of tokens from batches in any order, whole or not at all.

    Args:
        path: The file.
        info: Description of the file.
        batches: Indices of items and their codes, integers ``(len(indices), *grid[, levels])``; each item once.

    Raises:
        ValueError: If there is no item, shapes or codes contradict ``info``, or an item is missing.
        OSError: If the file cannot be written.
    """
    counts = len(info.names), len(info.sizes)
    if min(counts) < 1 or counts[0] != counts[1]:
        raise ValueError(f"'info' must have as many names as sizes and at least one, got {counts}. Name each item.")
    grids, per_token = info.grids, math.prod(info.levels)
    dtype = _DTYPES[token_kind(max(info.codebook_sizes))]
    ends = np.cumsum([0, *(math.prod(grid) * per_token * dtype.itemsize for grid in grids)]).tolist()
    header, tail = _header(info, grids, ends[-1])
    written = np.zeros(len(grids), bool)
    with replacing(Path(path)) as file:
        file.write(header)
        for indices, batch in batches:
            codes = batch.cpu().numpy()
            for index in indices:
                if len(codes) != len(indices) or codes.shape[1:] != (*grids[index], *info.levels):
                    raise ValueError(
                        f"The codes of item {index} must be of shape {(*grids[index], *info.levels)}, got "
                        f"{codes.shape[1:]}. Encode with the same model."
                    )
            if not _fits(codes, info):
                raise ValueError(
                    f"The codes of item {indices[0]} and those after it must be integers below {info.codebook_sizes}, "
                    f"got {codes.dtype} {codes.min()} to {codes.max()}. Encode with the same model."
                )
            codes = codes.astype(dtype)
            # consecutive items are adjacent in the file: they are written at once
            starts = [place for place, index in enumerate(indices) if not place or index != indices[place - 1] + 1]
            for first, last in pairwise([*starts, len(indices)]):
                file.seek(len(header) + ends[indices[first]])
                file.write(codes[first:last].tobytes())
            written[list(indices)] = True
        if not written.all():
            raise ValueError(f"'batches' must hold each item, {int((~written).sum())} are missing. Encode them too.")
        file.seek(len(header) + ends[-1])
        file.write(tail)
        file.flush()
        with Path(file.name).open("rb") as again:
            digest = _digest_of(again)
        file.seek(header.index(_NO_DIGEST.encode()))
        file.write(digest.encode())


def token_kind(codebook_size: int) -> str:
    """Returns the smallest of ``U8``, ``U16``, ``I32`` and ``I64`` (safetensors' names) that holds K - 1."""
    for kind, bits in (("U8", 8), ("U16", 16), ("I32", 31)):
        if codebook_size <= 1 << bits:
            return kind
    return "I64"


def _fits(codes: np.ndarray, info: TokenInfo) -> bool:
    """Returns whether codes of an item are in the codebooks of their levels."""
    if not codes.size:
        return True
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
        return False
    if not info.has_levels:
        return bool(codes.max() < info.codebook_sizes[0])
    return bool((codes < np.array(info.codebook_sizes)).all())


def _header(info: TokenInfo, grids: Sequence[tuple[int, ...]], size: int) -> tuple[bytes, bytes]:
    """Returns the head of a safetensors file, with room for the digest, and the bytes that follow the codes.

    The head is its length as 8 bytes, little-endian, and JSON, padded to a multiple of 8.
    """
    whole = len(set(grids)) == 1
    shape = [*((len(grids), *grids[0]) if whole else (info.tokens,)), *info.levels]
    sizes = np.array(info.sizes, "<i8").reshape(len(info.sizes), info.signal.axes).tobytes()
    names = json.dumps(list(info.names), separators=(",", ":")).encode()  # ASCII, whatever the names
    padding = -size % 8  # tensors begin at multiples of their items
    parts = [("codes", token_kind(max(info.codebook_sizes)), shape, 0, size)]
    start = size + padding
    if padding:
        parts.append(("padding", "U8", [padding], size, start))
    parts.append(("sizes", "I64", [len(info.sizes), info.signal.axes], start, start + len(sizes)))
    parts.append(("names", "U8", [len(names)], start + len(sizes), start + len(sizes) + len(names)))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "tokenizer": info.tokenizer,
        "codebook_sizes": json.dumps(info.codebook_sizes),
        "has_levels": json.dumps(info.has_levels),
        "downsampling": str(info.downsampling),
        "signal": json.dumps(asdict(info.signal)),
        "digest": _NO_DIGEST,
    }
    tensors = {
        name: {"dtype": kind, "shape": list(shape), "data_offsets": [first, last]}
        for name, kind, shape, first, last in parts
    }
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, bytes(padding) + sizes + names


def _digest_of(file: BinaryIO) -> str:
    """Computes SHA-256 of all that follows the head of a safetensors file: codes, sizes and names."""
    (length,) = struct.unpack("<Q", file.read(8))
    file.seek(8 + length)
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DamagedFileError(f"{path} is not of format {FORMAT!r}. Give a file made by 'gmvq tokenize'.")
    if metadata.get("version") != str(VERSION):
        raise DamagedFileError(
            f"{path} is of version {metadata.get('version')!r}, this gmvq reads {VERSION}. Upgrade gmvq."
        )


def _parse(path: Path, metadata: dict[str, str], names: bytes, sizes: np.ndarray) -> TokenInfo:
    try:
        listed = json.loads(names)
        codebook_sizes = tuple(json.loads(metadata["codebook_sizes"]))
        has_levels, stride = json.loads(metadata["has_levels"]), int(metadata["downsampling"])
        signal, tokenizer = Signal(**json.loads(metadata["signal"])), metadata["tokenizer"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"The metadata of {path} are damaged ({error!r}). Tokenize again.") from error
    numbers = all(type(size) is int and 1 <= size <= 1 << 62 for size in (stride, *codebook_sizes))
    named = isinstance(listed, list) and listed and all(type(name) is str for name in listed)
    if not numbers or not named or type(has_levels) is not bool or (len(codebook_sizes) != 1 and not has_levels):
        raise DamagedFileError(f"The names or numbers in {path} contradict each other. Tokenize again.")
    if sizes.dtype != np.int64 or sizes.shape != (len(listed), signal.axes) or (sizes.size and sizes.min() < 1):
        raise DamagedFileError(f"The sizes in {path} do not fit its {len(listed)} items. Tokenize again.")
    return TokenInfo(tokenizer, codebook_sizes, has_levels, stride, signal, tuple(listed), _Sizes(sizes))


class _Sizes(Sequence[tuple[int, ...]]):
    """Sizes as tuples, kept in one array, so that millions of them take little memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 (a number, or a slice)
        if isinstance(index, slice):
            return [tuple(row) for row in self.array[index].tolist()]
        return tuple(self.array[index].tolist())
