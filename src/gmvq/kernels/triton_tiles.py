"""What the Triton kernels share: how products are taken, padded operands, and the choice of tiles."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gmvq.kernels.triton_device import operand_kernel
from gmvq.kernels.triton_noise import INTERPRETED

ROWS, CODES = (16, 64) if INTERPRETED else (128, 256)
"""Rows and codes are padded to multiples of these, which every tile divides."""

MAX_FEATURES = 256
"""Features that a tile holds at once."""


class Units(NamedTuple):
    """How products are taken.

    Attributes:
        dtype: Of the operands.
        precision: Of float32 operands: ``"tf32"``, or ``"ieee"`` for all of their bits.
    """

    dtype: torch.dtype
    precision: str

    @property
    def rounded_bits(self) -> int:
        """Bits of a float32 that the matrix units do not read."""
        if self.dtype == torch.float32:
            return 13 if self.precision == "tf32" else 0
        return 16 if self.dtype == torch.bfloat16 else 0

    @property
    def exact(self) -> bool:
        """Whether products are in float32 throughout, for which there are no matrix units."""
        return self.dtype == torch.float32 and self.precision == "ieee"


def matrix_units(dtype: torch.dtype) -> Units:
    """The units for inputs of a precision: for float32 by ``torch.get_float32_matmul_precision()``."""
    if dtype in (torch.bfloat16, torch.float16):
        return Units(dtype, "ieee")
    precision = torch.get_float32_matmul_precision()
    return Units(torch.bfloat16 if precision == "medium" else torch.float32, "tf32" if precision == "high" else "ieee")


class Operand(NamedTuple):
    """Rows as products take them.

    Attributes:
        data: Rounded, padded with zeros ``(rows, features)``.
        halves: Half the squared norm of each rounded row, float32 ``(rows)``.
    """

    data: Tensor
    halves: Tensor


def quotient(count: int, size: int) -> int:
    """Of a division, rounded up: parts of a size that a count has."""
    return -(-count // size)


def padded_features(features: int) -> int:
    """Features of tiles: a power of two that the matrix units take, or a multiple of :data:`MAX_FEATURES`."""
    if features > MAX_FEATURES:
        return quotient(features, MAX_FEATURES) * MAX_FEATURES
    return max(16, 1 << (features - 1).bit_length())


def operand(rows: Tensor, multiple: int, units: Units) -> Operand:
    """Rounds rows ``(N, L)`` and pads them with zeros, to a multiple of rows and to the features of tiles."""
    count, features = rows.shape
    out = rows.new_empty(quotient(count, multiple) * multiple, padded_features(features), dtype=units.dtype)
    halves = rows.new_empty(len(out), dtype=torch.float32)
    if len(out):
        width = min(out.shape[1], MAX_FEATURES)
        arguments = (rows.contiguous(), out, halves, count, features, units.rounded_bits, out.shape[1], width)
        launch(operand_kernel, (len(out) // 16,), rows.device)(*arguments, 16)
    return Operand(out, halves)


def padded(vector: Tensor, length: int, value: float = 0.0) -> Tensor:
    """A vector in float32, with ``value`` up to a length."""
    return torch.nn.functional.pad(vector.float(), (0, length - len(vector)), value=value)


class Tile(NamedTuple):
    """Rows and codes that a program holds at once, its warps, and the tiles in flight."""

    rows: int
    codes: int
    warps: int
    stages: int


def tuned(
    kernel: Any,  # noqa: ANN401  Triton's kernels have no public type
    tiles: tuple[Tile, ...],
    keys: tuple[str, ...],
    shared: Callable[[Tile], int],
    device: torch.device,
) -> Callable[..., None]:
    """A launcher of a kernel with the fastest of some tiles, found at the first call for each value of its ``keys``.

    The first tile that fits, untried, where ``torch.use_deterministic_algorithms`` asks for the same bits in every
    process; one of 16 rows and 64 codes in the interpreter.

    Args:
        kernel: What to launch.
        tiles: What to try.
        keys: Names of the arguments that the choice depends on.
        shared: Bytes of shared memory that a tile takes.
        device: Where it runs.

    Returns:
        Takes a function from the tile's ``BN`` and ``BK`` to the grid, and then the kernel's arguments.
    """
    if INTERPRETED:
        tile = {"BN": 16, "BK": 64}
        return lambda grid, *arguments, **constants: launch(kernel, grid(tile), device)(*arguments, **constants, **tile)
    # where the property is unknown all tiles are tried, and those that do not fit are left out by Triton
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 1 << 20)
    fitting = tuple(tile for tile in tiles if shared(tile) <= room) or (min(tiles, key=shared),)
    configured = _tuned(kernel, fitting[:1] if torch.are_deterministic_algorithms_enabled() else fitting, keys)
    return lambda grid, *arguments, **constants: launch(configured, grid, device)(*arguments, **constants)


def launch(
    kernel: Any,  # noqa: ANN401  Triton's kernels have no public type
    grid: tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]],
    device: torch.device,
) -> Callable[..., None]:
    """A kernel on a grid and on the device of its tensors, which need not be the current one."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            # products fuse with sums; Triton 3.10 does so no longer by itself
            kernel[grid](*arguments, **constants, enable_fp_fusion=True)

    return run


@functools.cache
def _tuned(kernel: Any, tiles: tuple[Tile, ...], keys: tuple[str, ...]) -> Any:  # noqa: ANN401
    configs = [
        triton.Config({"BN": tile.rows, "BK": tile.codes}, num_warps=tile.warps, num_stages=tile.stages)
        for tile in tiles
    ]
    return triton.autotune(configs, key=list(keys))(kernel)
