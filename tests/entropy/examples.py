"""Codes to write, by arithmetic alone, so that they are the same for ever."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.entropy import EntropyConfig


class Example(NamedTuple):
    config: EntropyConfig
    shape: tuple[int, ...]
    masked: bool = False
    packed: bool = False


EXAMPLES = {
    "vectors": Example(EntropyConfig((7,), 0), ()),
    "sequence": Example(EntropyConfig((300,), 1), (97,)),
    "image": Example(EntropyConfig((512,), 2), (13, 17)),
    "volume": Example(EntropyConfig((64,), 3), (3, 5, 7)),
    "levels": Example(EntropyConfig((64, 9, 1000), 1, has_levels=True), (40, 3)),
    "fewer levels": Example(EntropyConfig((64, 9, 1000), 2, has_levels=True), (9, 5, 2)),
    "large codebooks": Example(EntropyConfig((1 << 18, 1 << 32), 1, has_levels=True), (30, 2)),
    "one code": Example(EntropyConfig((1,), 1), (50,)),
    "two codes": Example(EntropyConfig((2,), 2), (20, 30)),
    "masked": Example(EntropyConfig((50,), 1), (61,), masked=True),
    "masked levels": Example(EntropyConfig((50, 50), 1, has_levels=True), (61, 2), masked=True),
    "packed": Example(EntropyConfig((1000,), 1), (80,), packed=True),
    "packed and masked": Example(EntropyConfig((1000,), 1), (80,), masked=True, packed=True),
}


def codes_of(example: Example, seed: int = 1) -> Tensor:
    """Draws codes with some repetition, so that there is something to learn."""
    state, found = seed, []
    sizes = example.config.codebook_sizes
    levels = example.shape[-1] if example.config.has_levels else 1
    for index in range(math.prod(example.shape)):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        size = sizes[index % levels]
        code = (state >> 33) % size if state >> 60 < 6 else (index // levels) % min(size, 5)
        found.append(-1 if example.masked and state >> 58 & 7 == 0 else code)
    return torch.tensor(found).reshape(example.shape)
