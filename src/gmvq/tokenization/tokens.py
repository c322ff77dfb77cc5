"""Codes at rest: one safetensors file for a set of images.

If all images have one number of tokens, the file holds one tensor ``codes`` of shape ``(N, h, w)``, else one tensor
``(h, w)`` for each image: ``codes.0``, ``codes.1``, ... The integers are the smallest of uint8, uint16 and int32 that
hold K - 1. The metadata say all that decoding needs (``sizes`` is one pair if all images have one size)::

    {"format": "gmvq.tokens", "version": "1", "tokenizer": fingerprint, "codebook_size": "512", "downsampling": "4",
     "sizes": "[[height, width], ...]", "names": "[name, ...]"}

The header goes first and the codes follow as they are made, so that memory holds one batch, whatever the number of
images.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gmvq.hub import replacing

FORMAT = "gmvq.tokens"
VERSION = 1
_TENSOR = "codes"
_DTYPES = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "I32": np.dtype("<i4")}


class TokenInfo(NamedTuple):
    """What a file of tokens says of itself.

    Attributes:
        tokenizer: Fingerprint of the model that made the codes, see :func:`gmvq.hub.fingerprint`.
        codebook_size: Number of codes K.
        downsampling: Pixels of a token's side.
        names: Name of each image, a relative path with ``/``.
        sizes: Height and width of each image in pixels.
    """

    tokenizer: str
    codebook_size: int
    downsampling: int
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Height and width of each image in tokens."""
        side = self.downsampling
        return [(-(-height // side), -(-width // side)) for height, width in self.sizes]

    @property
    def tokens(self) -> int:
        """Tokens of all images."""
        return sum(height * width for height, width in self.grids)


class TokenFile:
    """A file of tokens, opened for reading; codes are read from the disk when asked for.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another format or version, or contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no file {self.path}. Make one with 'gmvq tokenize RUN DATA {self.path}'."
            )
        try:
            self._file: Any = safe_open(self.path, framework="np")
            metadata, names = self._file.metadata() or {}, set(self._file.keys())
        except SafetensorError as error:
            raise ValueError(f"{self.path} is no whole safetensors file ({error}). Tokenize again.") from error
        self.info = _parse(self.path, metadata)
        self._slices = [self._file.get_slice(_TENSOR)] if _TENSOR in names else self._find_slices(names)
        self._check_slices()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.info.names)

    def __getitem__(self, index: int) -> Tensor:
        """Codes of image ``index``: int64 ``(h, w)``.

        Raises:
            IndexError: If there is no such image.
            ValueError: If a code is none of the codebook's.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"'index' must be below {len(self)}, the number of images, got {index}.")
        index %= len(self)
        codes = self._slices[0][index : index + 1][0] if self._whole else self._slices[index][:]
        if codes.min() < 0 or codes.max() >= self.info.codebook_size:
            raise ValueError(
                f"The codes in {self.path} must be below K = {self.info.codebook_size}, image {index} has "
                f"{codes.min()} to {codes.max()}. The file is damaged: tokenize again."
            )
        return torch.from_numpy(codes.astype(np.int64))

    @property
    def _whole(self) -> bool:
        return len(self._slices[0].get_shape()) == 3

    def _find_slices(self, names: set[str]) -> list[Any]:
        wanted = [f"{_TENSOR}.{index}" for index in range(len(self))]
        if names != set(wanted):
            raise ValueError(f"{self.path} does not hold the codes of its {len(self)} images. Tokenize again.")
        return [self._file.get_slice(name) for name in wanted]

    def _check_slices(self) -> None:
        grids, shapes = self.info.grids, [tuple(part.get_shape()) for part in self._slices]
        expected = [(len(self), *grids[0])] if self._whole and len(set(grids)) == 1 else grids
        if shapes != expected:
            raise ValueError(f"The shapes of the codes in {self.path} do not fit the images' sizes. Tokenize again.")
        for part in self._slices:
            if part.get_dtype() != (kind := token_kind(self.info.codebook_size)):
                raise ValueError(f"{self.path} holds {part.get_dtype()} in place of {kind}. Tokenize again.")


def write_tokens(path: str | Path, info: TokenInfo, batches: Iterable[tuple[Sequence[int], Tensor]]) -> None:
    """Writes a file of tokens from batches in any order, whole or not at all.

    Args:
        path: The file.
        info: What it says of itself.
        batches: Indices of images and their codes, integers ``(len(indices), h, w)``; each image once.

    Raises:
        ValueError: If there is no image, shapes or codes contradict ``info``, or an image is missing.
    """
    counts = len(info.names), len(info.sizes)
    if min(counts) < 1 or counts[0] != counts[1]:
        raise ValueError(f"'info' must have as many names as sizes and at least one, got {counts}. Name each image.")
    kind, grids = token_kind(info.codebook_size), info.grids
    dtype = _DTYPES[kind]
    offsets = np.cumsum([0, *(height * width * dtype.itemsize for height, width in grids)]).tolist()
    header = _header(info, kind, offsets)
    written = np.zeros(len(grids), bool)
    with replacing(Path(path)) as file:
        file.write(header)
        for indices, codes in batches:
            for index, grid in zip(indices, codes.cpu().numpy(), strict=True):
                if grid.shape != grids[index] or grid.min() < 0 or grid.max() >= info.codebook_size:
                    raise ValueError(
                        f"The codes of image {index} must be integers below {info.codebook_size} of shape "
                        f"{grids[index]}, got {grid.min()} to {grid.max()}, {grid.shape}. Encode with the same model."
                    )
                file.seek(len(header) + offsets[index])
                file.write(grid.astype(dtype).tobytes())
                written[index] = True
        if not written.all():
            raise ValueError(f"'batches' must hold each image, {int((~written).sum())} are missing. Encode them too.")


def token_kind(codebook_size: int) -> str:
    """The smallest of ``U8``, ``U16`` and ``I32`` (safetensors' names) that holds K - 1."""
    return "U8" if codebook_size <= 1 << 8 else "U16" if codebook_size <= 1 << 16 else "I32"


def _header(info: TokenInfo, kind: str, offsets: list[int]) -> bytes:
    """The head of a safetensors file: its length as 8 bytes, little-endian, and JSON, padded to a multiple of 8."""
    grids = info.grids
    sizes = info.sizes[:1] if len(set(info.sizes)) == 1 else info.sizes
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "tokenizer": info.tokenizer,
        "codebook_size": str(info.codebook_size),
        "downsampling": str(info.downsampling),
        "sizes": json.dumps(sizes, separators=(",", ":")),
        "names": json.dumps(info.names, separators=(",", ":")),
    }
    if len(set(grids)) == 1:
        tensors = {_TENSOR: {"dtype": kind, "shape": [len(grids), *grids[0]], "data_offsets": [0, offsets[-1]]}}
    else:
        tensors = {
            f"{_TENSOR}.{index}": {"dtype": kind, "shape": list(grid), "data_offsets": offsets[index : index + 2]}
            for index, grid in enumerate(grids)
        }
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse(path: Path, metadata: dict[str, str]) -> TokenInfo:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT!r}. Give a file made by 'gmvq tokenize'.")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path} is of version {metadata.get('version')}, this gmvq reads {VERSION}. Upgrade gmvq.")
    try:
        names = tuple(json.loads(metadata["names"]))
        sizes = tuple((height, width) for height, width in json.loads(metadata["sizes"]))
        numbers = (int(metadata["codebook_size"]), int(metadata["downsampling"]))
        tokenizer = metadata["tokenizer"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The metadata of {path} are damaged ({error!r}). Tokenize again.") from error
    sizes = sizes * len(names) if len(sizes) == 1 else sizes
    whole = all(type(side) is int and side > 0 for size in sizes for side in size)
    if not names or len(names) != len(sizes) or not whole or min(numbers) < 1 or not all(type(n) is str for n in names):
        raise ValueError(f"The names, sizes or numbers in {path} contradict each other. Tokenize again.")
    return TokenInfo(tokenizer, *numbers, names, sizes)
