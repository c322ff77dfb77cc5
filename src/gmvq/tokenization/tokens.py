"""Storage of codes: one safetensors file for a set of items.

It holds four tensors and a state of a few hundred bytes, whatever the number of items:

``codes``
    ``(N, *grid[, levels])`` if all items have one grid of tokens, else ``(tokens of all, [levels])``, item after item.
    The integers are the smallest of uint8, uint16, int32 and int64 that hold K - 1.
``sizes``
    int64 ``(N, axes)``: lengths of each item's axes beside its channels, in samples.
``names``
    uint8: the names in UTF-8, one after another.
``ends``
    int64 ``(N,)``: the end of each name in ``names``.

::

    {"tokenizer": fingerprint, "codebook_sizes": [512], "has_levels": false, "downsampling": 4, "signal": {...}}

It is sealed, see :mod:`gmvq.data.sealing`: a changed byte is refused when it is opened.

The header is written first and the codes as they are made, so that memory holds one batch, whatever the number of
items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmvq.data.parsing import DamagedFileError
from gmvq.data.sealing import DTYPES, Form, SealedFile, sealing
from gmvq.types import Signal

FORM = Form("gmvq.tokens", 1, "Make one with 'gmvq tokenize RUN DATA FILE'.")
_DTYPES = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}


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
        verify: Read the whole file once, to check it. Without, a damaged code may pass for another one: only for files
            that are too large to read, or were checked before.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFileError: If it is damaged, of another format or version, or contradicts itself.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        self._file = SealedFile(self.path, FORM)
        self.digest = self._file.digest
        if verify:
            self.verify()
        self.info = _parse(self._file)
        grids = self.info.grids
        self._is_whole = len(set(grids)) == 1
        self._check_shape(grids)
        self._ends = None if self._is_whole else np.cumsum([0, *(math.prod(grid) for grid in grids)])

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
        grid = self.info.signal.grid(self.info.sizes[index], self.info.downsampling)
        tokens = math.prod(grid)
        start = index * tokens if self._ends is None else int(self._ends[index])
        width = math.prod(self.info.levels) * DTYPES[self._file.held["codes"].dtype].itemsize
        codes = self._file.part("codes", start * width, (start + tokens) * width)
        codes = codes.reshape((*grid, *self.info.levels)).to(torch.int64)
        if not _fits(codes.numpy(), self.info):
            raise DamagedFileError(
                f"The codes in {self.path} must lie below {self.info.codebook_sizes}, item {index} has "
                f"{int(codes.min())} to {int(codes.max())}. The file is damaged: tokenize again."
            )
        return codes

    def verify(self) -> None:
        """Reads the whole file and compares it with its digest.

        Raises:
            DamagedFileError: If a byte has changed since it was written.
        """
        self._file.verify()

    def _check_shape(self, grids: Sequence[tuple[int, ...]]) -> None:
        held = self._file.held["codes"]
        head = (len(grids), *grids[0]) if self._is_whole else (self.info.tokens,)
        if held.shape != (*head, *self.info.levels):
            raise self._file.damaged("the codes do not fit the items' sizes")
        if held.dtype != (kind := token_kind(max(self.info.codebook_sizes))):
            raise self._file.damaged(f"it holds {held.dtype} in place of {kind}")


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
    grids, kind = info.grids, token_kind(max(info.codebook_sizes))
    dtype, per_token = _DTYPES[kind], math.prod(info.levels)
    places = np.cumsum([0, *(math.prod(grid) * per_token * dtype.itemsize for grid in grids)]).tolist()
    names, ends = _packed(info.names)
    head = (len(grids), *grids[0]) if len(set(grids)) == 1 else (info.tokens,)
    shapes: dict[str, tuple[str, Sequence[int]]] = {
        "codes": (kind, (*head, *info.levels)),
        "sizes": ("I64", (len(grids), info.signal.axes)),
        "names": ("U8", (len(names),)),
        "ends": ("I64", (len(grids),)),
    }
    written = np.zeros(len(grids), bool)
    with sealing(Path(path), FORM, _state_of(info), shapes) as draft:
        for indices, batch in batches:
            codes = _codes_of(batch, indices, grids, info).astype(dtype)
            # consecutive items are adjacent in the file: they are written at once
            starts = [place for place, index in enumerate(indices) if not place or index != indices[place - 1] + 1]
            for first, last in pairwise([*starts, len(indices)]):
                draft.put("codes", codes[first:last].tobytes(), places[indices[first]])
            written[list(indices)] = True
        if not written.all():
            raise ValueError(f"'batches' must hold each item, {int((~written).sum())} are missing. Encode them too.")
        draft.put("sizes", np.array(info.sizes, "<i8").tobytes())
        draft.put("names", names)
        draft.put("ends", ends.tobytes())


def _codes_of(batch: Tensor, indices: Sequence[int], grids: Sequence[tuple[int, ...]], info: TokenInfo) -> np.ndarray:
    """Checks the codes of a batch.

    Raises:
        ValueError: If they do not fit ``info``.
    """
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
    return codes


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


def _state_of(info: TokenInfo) -> dict[str, Any]:
    return {
        "tokenizer": info.tokenizer,
        "codebook_sizes": list(info.codebook_sizes),
        "has_levels": info.has_levels,
        "downsampling": info.downsampling,
        "signal": asdict(info.signal),
    }


def _packed(names: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """Returns names one after another, and the end of each; surrogates stand for bytes that are not UTF-8."""
    parts = [name.encode("utf-8", "surrogatepass") for name in names]
    return b"".join(parts), np.cumsum([len(part) for part in parts], dtype="<i8")


def _parse(file: SealedFile) -> TokenInfo:
    try:
        state = file.state
        codebook_sizes, has_levels, stride = state["codebook_sizes"], state["has_levels"], state["downsampling"]
        signal, tokenizer = Signal(**state["signal"]), state["tokenizer"]
        numbers = all(type(size) is int and 1 <= size <= 1 << 62 for size in (stride, *codebook_sizes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise file.damaged(f"its description is wrong: {error!r}") from error
    if not numbers or type(has_levels) is not bool or type(tokenizer) is not str or not codebook_sizes:
        raise file.damaged("its numbers contradict each other")
    if len(codebook_sizes) != 1 and not has_levels:
        raise file.damaged("its numbers contradict each other")
    for name, dtype in (("codes", None), ("ends", "I64"), ("sizes", "I64"), ("names", "U8")):
        if name not in file.held or dtype not in (None, file.held[name].dtype) or not file.held[name].shape:
            raise file.damaged(f"it has no {name}")
    sizes, ends = file.tensor("sizes").numpy(), file.tensor("ends").numpy()
    if not len(ends) or sizes.shape != (len(ends), signal.axes) or (sizes.size and sizes.min() < 1):
        raise file.damaged(f"its sizes do not fit its {len(ends)} items")
    names = _Names(bytes(file.tensor("names").numpy()), ends)
    if not names.are_whole():
        raise file.damaged(f"its names do not fit its {len(ends)} items")
    return TokenInfo(tokenizer, tuple(codebook_sizes), has_levels, stride, signal, names, _Sizes(sizes))


class _Names(Sequence[str]):
    """Names kept as bytes, so that millions of them take little memory."""

    def __init__(self, names: bytes, ends: np.ndarray) -> None:
        self.names, self.ends = names, ends

    def are_whole(self) -> bool:
        """Returns whether all ends are in order, and none is within a character."""
        try:
            self.names.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return False
        ordered = self.ends.ndim == 1 and self.ends[0] >= 0 and bool((self.ends[1:] >= self.ends[:-1]).all())
        if not ordered or self.ends[-1] != len(self.names):
            return False
        starts = np.frombuffer(self.names, np.uint8)[self.ends[self.ends < len(self.names)]]
        return not bool((starts >> 6 == 0b10).any())

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 (a number, or a slice)
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].decode("utf-8", "surrogatepass")


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
