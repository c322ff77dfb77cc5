"""The file of compressed codes: a header of at most 24 bytes for most items, and the codes in segments.

::

    4 bytes   "gmvq"
    1 byte    version, times 16, plus flags: 1 packed, 2 masked, 4 several segments, 8 a rate
    4 bytes   of the tokenizer's fingerprint
    4 bytes   of the entropy model's fingerprint
    varints   4 x levels + axes, size of the item along each axis, rate in Hz if there is one

    one segment       its codes, then CRC-32 of all bytes before
    several segments  varints: rows of the grid in a segment, number of segments, bytes of each; CRC-32 of all bytes
                      before; then each segment: 1 where its codes are packed, else 0, its codes, CRC-32 of them

Varints have 7 bits a byte, the lowest first; all other numbers are little-endian. A segment has some rows of the first
axis of the grid, and is coded by itself: a damaged one leaves the others, and a reader can begin at any of them. Codes
are packed where that takes fewer bytes, so that no item takes more than log2(K) bits a code and its header.

A reader checks before it takes memory: a segment of n bytes cannot hold more than 22,800 (n + 8) decisions, since
none is more certain than 1 - 2^-12. Codes without a decision, of codebooks of one code, may be up to 2^20.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from gmvq.data.parsing import DamagedFileError
from gmvq.entropy.model import MOST_LEVELS

MAGIC = b"gmvq"
VERSION = 1
LONGEST_AXIS = 1 << 40
MOST_SEGMENTS = 1 << 20
SYMBOLS_OF_BYTE = 22_800
_PACKED, _MASKED, _SEGMENTED, _RATE = 1, 2, 4, 8
_CRC, _FIXED = 4, 13


class Segment(NamedTuple):
    """Coded rows of a grid.

    Attributes:
        data: The bytes.
        packed: True if all codes were written as equally likely.
    """

    data: bytes
    packed: bool


class Header(NamedTuple):
    """What a file says beside its codes.

    Attributes:
        tokenizer: First 8 digits of the tokenizer's fingerprint.
        model: First 8 digits of the entropy model's fingerprint.
        levels: Number of levels of the codes.
        size: Lengths of the item's axes beside its channels, in samples.
        rate: Samples per second, Hz; None for items without a clock.
        masked: Whether some codes are -1.
    """

    tokenizer: str
    model: str
    levels: int
    size: tuple[int, ...]
    rate: int | None = None
    masked: bool = False


class Container(NamedTuple):
    """A parsed file.

    Attributes:
        header: Its header.
        rows: Rows of the grid in each segment but the last; None for one segment.
        segments: The segments; None in place of a damaged one.
    """

    header: Header
    rows: int | None
    segments: list[Segment | None]


def write(header: Header, rows: int, segments: Sequence[Segment]) -> bytes:
    """Makes the bytes of a file.

    Args:
        header: What it says beside the codes.
        rows: Rows of the grid in each segment but the last.
        segments: The coded segments, at least one.
    """
    several = len(segments) > 1
    flags = _MASKED * header.masked | _SEGMENTED * several | _RATE * (header.rate is not None)
    flags |= _PACKED * (not several and segments[0].packed)
    made = bytearray(MAGIC)
    made.append(VERSION << 4 | flags)
    made += bytes.fromhex(header.tokenizer + header.model)
    numbers = [header.levels << 2 | len(header.size), *header.size]
    numbers += [] if header.rate is None else [header.rate]
    if not several:
        made += b"".join(map(_varint, numbers)) + segments[0].data
        return bytes(made + _crc(made))
    bodies = [bytes([segment.packed]) + segment.data for segment in segments]
    made += b"".join(map(_varint, [*numbers, rows, len(segments), *(len(body) + _CRC for body in bodies)]))
    made += _crc(made)
    return bytes(made) + b"".join(body + _crc(body) for body in bodies)


def read(data: bytes) -> Container:
    """Parses a file; damaged segments are None.

    Raises:
        DamagedFileError: If the header is damaged, or the file is of another kind or version.
    """
    if data[:4] != MAGIC:
        raise DamagedFileError("It is no file of compressed codes, which begins with 'gmvq'. Make one with compress.")
    if len(data) < _FIXED + _CRC:
        damaged("it ends too early")
    version, flags = data[4] >> 4, data[4] & 15
    if version != VERSION:
        raise DamagedFileError(f"It is of version {version}, this gmvq reads version {VERSION}. Install a newer gmvq.")
    several, end = bool(flags & _SEGMENTED), len(data) - _CRC
    if not several and _crc(data[:end]) != data[end:]:
        damaged("its content is not what was written")
    cursor = _Cursor(data, _FIXED, end)
    form = cursor.number(MOST_LEVELS << 2 | 3)
    levels, axes = form >> 2, form & 3
    size = tuple(cursor.number(LONGEST_AXIS) for _ in range(axes))
    rate = cursor.number(LONGEST_AXIS) if flags & _RATE else None
    if not levels or not all(size) or rate == 0:
        damaged("its numbers contradict each other")
    header = Header(data[5:9].hex(), data[9:13].hex(), levels, size, rate, bool(flags & _MASKED))
    if not several:
        return Container(header, None, [Segment(data[cursor.place : end], bool(flags & _PACKED))])
    rows = cursor.number(LONGEST_AXIS)
    lengths = [cursor.number(len(data)) for _ in range(cursor.number(min(MOST_SEGMENTS, len(data))))]
    start = cursor.place + _CRC
    if _crc(data[: cursor.place]) != data[cursor.place : start] or not rows or min(lengths, default=0) <= _CRC:
        damaged("its header is not what was written")
    segments: list[Segment | None] = []
    for length in lengths:
        body, check = data[start : start + length - _CRC], data[start + length - _CRC : start + length]
        whole = len(check) == _CRC and _crc(body) == check and body[0] < 2
        segments.append(Segment(body[1:], bool(body[0])) if whole else None)
        start += length
    if start < len(data):
        damaged("there are bytes after its end")
    return Container(header, rows, segments)


def check_amount(symbols: int, segment: Segment) -> None:
    """Refuses a segment whose bytes cannot hold its symbols, before memory is taken for them.

    Raises:
        DamagedFileError: If there are too many symbols.
    """
    if symbols > max(1 << 20, SYMBOLS_OF_BYTE * (len(segment.data) + 8)) or symbols > 1 << 31:
        damaged(f"{len(segment.data):,} bytes cannot hold {symbols:,} codes")


def rows_of(grid: Sequence[int], levels: int, most: int) -> int:
    """Computes how many rows of the grid are in a segment of at most ``most`` codes, evenly divided.

    Example:
        >>> rows_of((1000,), 1, 300)
        250
    """
    if not grid:
        return 1
    fitting = max(1, most // max(1, math.prod(grid[1:]) * levels))
    number = min(-(-grid[0] // fitting), MOST_SEGMENTS)
    return -(-grid[0] // number)


def damaged(reason: str) -> NoReturn:
    """Raises the error of a damaged file."""
    raise DamagedFileError(f"The compressed file is damaged ({reason}). Copy it again from where it was made.")


def _crc(data: bytes | bytearray) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC, "little")


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


class _Cursor:
    """Reads varints."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        self.data, self.place, self.end = data, place, end

    def number(self, most: int) -> int:
        """Reads a number.

        Raises:
            DamagedFileError: If the data end, or it is larger than ``most``.
        """
        found = shift = 0
        byte = 128
        while byte > 127:
            if self.place >= self.end:
                damaged("it ends too early")
            if shift > 42:
                damaged("a number is too large")
            byte = self.data[self.place]
            found |= (byte & 127) << shift
            shift += 7
            self.place += 1
        if found > most:
            damaged("a number is too large")
        return found
