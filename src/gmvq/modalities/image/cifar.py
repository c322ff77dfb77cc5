"""CIFAR-10 from Python pickles, binary batches, their archives, and WebP sheets.

The official files are pickles, and loading a pickle can run code. This reader runs nothing: it replaces the few NumPy
names in such files by classes that only keep the bytes, and rejects every other name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from gmvq.data import archives
from gmvq.data.items import ArrayItems, Skipped
from gmvq.modalities.base import listed
from gmvq.modalities.image.decoding import convert_channels, read_image
from gmvq.modalities.image.formats import Parts, digests_of

_SHEET_ROWS, _SHEET_COLUMNS, _SIDE = 25, 40, 32
_VALUES = 3 * _SIDE * _SIDE
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_PICKLES = (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARIES = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_SHEET_NAME = re.compile(r"(train|test)_(\d+)\.webp$")

Rows = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


def read_cifar(source: Path, channels: int | None) -> Parts | None:
    """Reads CIFAR-10 from a folder or a ``.tar.gz``, the test batch as held-out part.

    Args:
        source: The folder of the batches, a folder with ``cifar-10-batches-py`` or ``-bin``, or their archive.
        channels: 1, 3, 4 or None for 3.

    Returns:
        Images ``(N, 3, 32, 32)`` with labels; None if there are no such files. Missing or damaged batches are listed as
        skipped.

    Raises:
        ValueError: If the files exist and no training batch can be read.
    """
    if source.is_file():
        return _read_batches(_archive_members(source), source, channels)
    for folder in (source, *(source / name for name in _FOLDERS)):
        if not folder.is_dir():
            continue
        names = {path.name for path in folder.iterdir()}
        if "train_labels.bin" in names and any(_SHEET_NAME.match(name) for name in names):
            return _read_sheets(folder, channels)
        files = {name: (folder / name).read_bytes for name in (*_all(_PICKLES), *_all(_BINARIES)) if name in names}
        parts = _read_batches(files, folder, channels)
        if parts is not None:
            return parts
    return None


def load_batch(data: bytes) -> Rows:
    """Reads one official batch, ``data`` uint8 ``(N, 3072)`` and ``labels``, without running the pickle's code.

    Returns:
        uint8 ``(N, 3, 32, 32)`` and int64 ``(N,)`` or None.

    Raises:
        ValueError: If the pickle is damaged, refers to anything but numpy arrays, or holds no batch.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"it is damaged or unsafe: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly any exception
        raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of a dictionary with 'data' and 'labels'")
    fields = {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    pixels = fields.get("data")
    if not isinstance(pixels, _Array):
        raise ValueError(f"it has no array 'data', only {sorted(fields)}")
    rows = pixels.read()
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != _VALUES:
        raise ValueError(f"'data' must be uint8 (N, {_VALUES}), got {rows.dtype} {rows.shape}")
    labels = _labels(fields.get("labels"))
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"it has {len(labels)} labels for {len(rows)} images")
    return rows.reshape(-1, 3, _SIDE, _SIDE), labels


class _Dtype:
    """Replaces numpy.dtype in a pickle."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else str(state[1])
        if order == ">":
            self.code = ">" + self.code.lstrip("<>|=")

    def plain(self) -> np.dtype[Any]:
        if self.code.lstrip("<>|=") not in {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}:
            raise ValueError(f"arrays must hold integers, got type {self.code!r}")
        return np.dtype(self.code)


class _Array:
    """Replaces numpy.ndarray in a pickle: keeps shape, type and bytes without interpreting them."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    @classmethod
    def from_buffer(cls, buffer: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
        array = cls()
        array.state = (1, shape, dtype, order == "F", buffer)
        return array

    def read(self) -> NDArray[Any]:
        try:
            _, shape, dtype, fortran, raw = self.state
            return np.frombuffer(raw, dtype.plain()).reshape(shape, order="F" if fortran else "C")
        except (TypeError, AttributeError) as error:
            raise ValueError(f"it holds a damaged array: {error}") from error


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Replaces _codecs.encode, which Python 3 uses for bytes in old pickles; other uses are rejected."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Array.from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler of plain containers, numbers, strings and the classes above; it imports nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401  (the type of the base class)
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module_name}.{global_name} is not allowed") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("references to other files are not allowed")


def _labels(value: object) -> NDArray[np.int64] | None:
    if value is None:
        return None
    if isinstance(value, _Array):
        return value.read().astype(np.int64).reshape(-1)
    if isinstance(value, list) and all(type(label) is int for label in value):
        return np.array(value, np.int64)
    raise ValueError("'labels' must be a list of integers")


def _load_binary(data: bytes) -> Rows:
    if not data or len(data) % (1 + _VALUES):
        raise ValueError(
            f"it is truncated: {len(data)} bytes are not a multiple of {1 + _VALUES}, the size of an image"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _VALUES)
    return rows[:, 1:].reshape(-1, 3, _SIDE, _SIDE), rows[:, 0].astype(np.int64)


def _all(names: tuple[tuple[str, ...], str]) -> tuple[str, ...]:
    return (*names[0], names[1])


def _archive_members(path: Path) -> dict[str, Callable[[], bytes]]:
    wanted = {*_all(_PICKLES), *_all(_BINARIES)}
    contents: dict[str, bytes] = {}
    try:
        for member, _, content in archives.members(path):
            name = Path(member).name
            if name in wanted:
                contents[name] = content()
    except archives.DAMAGED as error:
        reason = archives.reason_of(error)
        raise ValueError(f"Cannot read the archive '{path}': {reason}. Download it again.") from error
    return {name: (lambda data=data: data) for name, data in contents.items()}


def _read_batches(files: Mapping[str, Callable[[], bytes]], place: Path, channels: int | None) -> Parts | None:
    for (train_names, test_name), load in ((_PICKLES, load_batch), (_BINARIES, _load_binary)):
        if not any(name in files for name in train_names):
            continue
        skipped: list[Skipped] = []
        rows: dict[str, Rows] = {}
        for name in (*train_names, test_name):
            try:
                if name not in files:
                    raise ValueError("it is missing from CIFAR-10")
                rows[name] = load(files[name]())
            except (OSError, ValueError) as error:
                skipped.append(Skipped(place / name, str(error)))
        train = [rows[name] for name in train_names if name in rows]
        if not train:
            what = f"No training batch of CIFAR-10 in '{place}' can be read: {listed(skipped)}"
            raise ValueError(f"{what}. Download it again.")
        test = [rows[test_name]] if test_name in rows else []
        return _to_parts(train, test, channels, skipped)
    return None


def _read_sheets(folder: Path, channels: int | None) -> Parts:
    skipped: list[Skipped] = []
    sides: dict[str, list[Rows]] = {}
    for side in ("train", "test"):
        sheets = sorted(path for path in folder.iterdir() if (m := _SHEET_NAME.match(path.name)) and m[1] == side)
        sides[side] = _read_side(sheets, folder / f"{side}_labels.bin", skipped)
    if not sides["train"]:
        raise ValueError(f"No training sheet of CIFAR-10 in '{folder}' can be read: {listed(skipped)}.")
    return _to_parts(sides["train"], sides["test"], channels, skipped)


def _read_side(sheets: list[Path], labels_path: Path, skipped: list[Skipped]) -> list[Rows]:
    per_sheet = _SHEET_ROWS * _SHEET_COLUMNS
    labels = np.fromfile(labels_path, np.uint8).astype(np.int64) if labels_path.is_file() else None
    last = int(_SHEET_NAME.match(sheets[-1].name)[2]) if sheets else -1  # pyright: ignore[reportOptionalSubscript]
    if sheets and (labels is None or len(labels) < (last + 1) * per_sheet):
        count = 0 if labels is None else len(labels)
        skipped.append(Skipped(labels_path, f"it has {count} labels for {(last + 1) * per_sheet} images"))
        labels = None
    rows: list[Rows] = []
    for path in sheets:
        try:
            pixels = _cut_sheet(path)
        except ValueError as error:
            skipped.append(Skipped(path, getattr(error, "reason", str(error))))
            continue
        start = per_sheet * int(path.stem.split("_")[1])
        rows.append((pixels, None if labels is None else labels[start : start + per_sheet]))
    return rows


def _cut_sheet(path: Path) -> NDArray[np.uint8]:
    sheet = read_image(path, 3).numpy()
    expected = (3, _SHEET_ROWS * _SIDE, _SHEET_COLUMNS * _SIDE)
    if sheet.shape != expected:
        raise ValueError(f"it has shape {sheet.shape} instead of {expected}")
    tiles = sheet.reshape(3, _SHEET_ROWS, _SIDE, _SHEET_COLUMNS, _SIDE)
    return tiles.transpose(1, 3, 0, 2, 4).reshape(-1, 3, _SIDE, _SIDE)


def _to_parts(train: list[Rows], test: list[Rows], channels: int | None, skipped: list[Skipped]) -> Parts:
    if test:
        return Parts(_to_images(train, channels), _to_images(test, channels), tuple(skipped))
    digests = tuple(digest for pixels, _ in train for digest in digests_of(pixels))
    return Parts(_to_images(train, channels), None, tuple(skipped), digests)


def _to_images(rows: list[Rows], channels: int | None) -> ArrayItems:
    pixels = np.concatenate([images for images, _ in rows])
    if channels not in (None, 3):
        pixels = np.ascontiguousarray(convert_channels(pixels.transpose(0, 2, 3, 1), channels).transpose(0, 3, 1, 2))
    known = [labels for _, labels in rows if labels is not None]
    labels = torch.from_numpy(np.concatenate(known)) if len(known) == len(rows) else None
    return ArrayItems(torch.from_numpy(pixels), 2, labels)
