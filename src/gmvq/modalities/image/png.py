"""Checksums of PNG files, which Pillow does not verify where the pixels are.

::

    signature, then chunks until IEND: length (4 bytes), name (4), content (length), CRC-32 of name and content (4)

Source: Portable Network Graphics (PNG) Specification, W3C, https://www.w3.org/TR/png/
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

_SIGNATURE = 8
_BLOCK = 1 << 20


def check_chunks(file: BinaryIO) -> None:
    """Compares each chunk with its checksum; the position in the file is kept.

    Args:
        file: A PNG file, open for reading.

    Raises:
        ValueError: If a chunk is cut off or differs from its checksum.
    """
    before = file.tell()
    file.seek(_SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        found, left = zlib.crc32(name), length
        while left and (block := file.read(min(left, _BLOCK))):
            found, left = zlib.crc32(block, found), left - len(block)
        checksum = file.read(4)
        label = name.decode("ascii", "replace")
        if left or len(checksum) < 4:
            raise ValueError(f"it is cut off within its chunk {label}")
        if found != int.from_bytes(checksum, "big"):
            raise ValueError(f"it is damaged: its chunk {label} differs from its checksum")
        if name == b"IEND":
            break
    file.seek(before)
