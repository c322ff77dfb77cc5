"""A grid of training settings: what contenders are worth where nothing is tuned for them.

All settings see as many images, whatever their batches. A contender stands for one choice of a quantizer's knobs, and
keeps it over the grid, as a user keeps defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGES = 64_000
LEARNING_RATE, BATCH_SIZE = 1e-3, 64
"""The setting in the middle of the grid."""
LEARNING_RATES, BATCH_SIZES, CODE_DIMS = (3e-4, 1e-3, 3e-3), (16, 64, 256), (4, 8, 16)
WARM_UP = 20
"""The warm-up takes one in WARM_UP steps."""
FIELD = (
    "gaussian-mixture",
    "vector-ema-4-light",
    "vector-ema-4",
    "vector-cosine",
    "vector-affine",
    "finite-scalar",
)
"""GM-VQ, the contenders beside it in the short protocols, and moving averages with the commitment as published."""
OWN_CODE_DIMS = {"gaussian-mixture": 4, "vector-ema-4-light": 4, "vector-ema-4": 4, "vector-cosine": 32}
"""Features of the codes of those contenders that can have others."""


@dataclass(frozen=True)
class Setting:
    """One place of the grid.

    Args:
        label: Name in tables.
        suffix: Ending of a contender's name, empty for the middle of the grid.
        changes: Changed fields of the training.
        options: Changed options of the quantizer.
    """

    label: str
    suffix: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def name(self, base: str) -> str:
        """Name of a contender at this place."""
        return f"{base}{self.suffix}"


def settings(base: str) -> Iterator[Setting]:
    """Yields the settings of a contender, the middle of the grid first."""
    yield Setting("the protocol's", "")
    for rate in LEARNING_RATES:
        for size in BATCH_SIZES:
            if (rate, size) != (LEARNING_RATE, BATCH_SIZE):
                steps = IMAGES // size
                changes = {"learning_rate": rate, "batch_size": size, "steps": steps, "warmup_steps": steps // WARM_UP}
                yield Setting(f"learning rate {rate:g}, batches of {size}", f":lr={rate:g},batch={size}", changes)
    for dim in CODE_DIMS if base in OWN_CODE_DIMS else ():
        is_own = dim == OWN_CODE_DIMS[base]
        options = {} if is_own else {"codebook_dim": dim}
        yield Setting(f"{dim} features", "" if is_own else f":codebook_dim={dim}", options=options)
