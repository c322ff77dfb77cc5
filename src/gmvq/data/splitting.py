"""Split of data without one of their own: held-out items, as a pure function of their content.

::

    file | row of an array --digest_of--> 32 bytes --held_out(fraction)--> indices of the held-out items

Names, order and number of items have no effect: an item that is added to a folder moves no other item to the other
side, and all copies of an item are on one side, so that no content is both trained on and measured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def digest_of(content: str | Path | Tensor | NDArray[Any]) -> bytes:
    """Computes SHA-256 of the bytes of a file, or of the values of one item of an array in C order.

    Args:
        content: Path of a file, or an item; a tensor and an array of equal values and type have equal digests.

    Returns:
        32 bytes.

    Raises:
        OSError: If the file cannot be read.

    Example:
        >>> digest_of(torch.zeros(2, 2)) == digest_of(torch.ones(2, 2))
        False
    """
    if isinstance(content, str | Path):
        with Path(content).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    if isinstance(content, Tensor):  # through bytes, since numpy lacks some types of torch
        content = content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()


def digests_of_files(paths: Sequence[str | Path]) -> list[bytes]:
    """Computes the digest of each file, several at a time.

    Raises:
        OSError: If a file cannot be read.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib works outside the interpreter's lock
        return list(pool.map(digest_of, paths))


def held_out(digests: Sequence[bytes], fraction: float) -> list[int]:
    """Selects the items to hold out: those whose number in [0, 1) is below ``fraction``.

    The number is the first 8 bytes of the digest, over 2^64. If no item is below, the contents with the least
    number are held out; if all are, those with the greatest are kept for training.

    Args:
        digests: Digest of each item, see :func:`digest_of`.
        fraction: Share to hold out, below 1; met on average, not exactly. 0 holds none out.

    Returns:
        Ascending indices, at least one and never all; empty if there are fewer than two distinct contents, or the
        fraction is 0.

    Raises:
        ValueError: If ``fraction`` is below 0 or not below 1.

    Example:
        >>> held_out([bytes([value]) * 32 for value in (200, 10, 90, 10)], 0.1)
        [1, 3]
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"'fraction' must lie in [0, 1), got {fraction}. Take 0.1 to hold out a tenth.")
    distinct = sorted(set(digests))
    if len(distinct) < 2 or not fraction:
        return []
    below = {digest for digest in distinct if int.from_bytes(digest[:8], "big") / 2**64 < fraction}
    chosen = (below or {distinct[0]}) - ({distinct[-1]} if len(below) == len(distinct) else set())
    return [index for index, digest in enumerate(digests) if digest in chosen]
