"""Precision of products, padded operands and choice of tiles, for all Triton kernels."""

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
"""Numbers of rows and codes are padded to multiples of these, which every tile divides."""

MAX_FEATURES = 256
"""Features of a tile at a time."""


class Units(NamedTuple):
    """Units that compute products.

    Attributes:
        dtype: Type of the operands.
        precision: Precision of float32 operands: ``"tf32"``, or ``"ieee"`` for all bits.
    """

    dtype: torch.dtype
    precision: str

    @property
    def rounded_bits(self) -> int:
        """Last bits of a float32 that the matrix units ignore."""
        if self.dtype == torch.float32:
            return 13 if self.precision == "tf32" else 0
        return 16 if self.dtype == torch.bfloat16 else 0

    @property
    def exact(self) -> bool:
        """True if products are in exact float32, for which there are no matrix units."""
        return self.dtype == torch.float32 and self.precision == "ieee"


def matrix_units(dtype: torch.dtype) -> Units:
    """Selects the units for a type; for float32 by ``torch.get_float32_matmul_precision()``."""
    if dtype in (torch.bfloat16, torch.float16):
        return Units(dtype, "ieee")
    precision = torch.get_float32_matmul_precision()
    return Units(torch.bfloat16 if precision == "medium" else torch.float32, "tf32" if precision == "high" else "ieee")


class Operand(NamedTuple):
    """Rows in the layout of products.

    Attributes:
        data: Rounded, padded with zeros ``(rows, features)``.
        halves: Half the squared norm of each rounded row, float32 ``(rows)``.
    """

    data: Tensor
    halves: Tensor


def quotient(count: int, size: int) -> int:
    """Number of parts of a size in a count: the quotient, rounded up."""
    return -(-count // size)


def padded_features(features: int) -> int:
    """Features of tiles: a power of two that matrix units support, or a multiple of :data:`MAX_FEATURES`."""
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
    """Rows and codes of a program at a time, its warps, and the number of pipeline stages."""

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
    """Makes a launcher of a kernel, which finds the fastest tile at the first call for each value of its ``keys``.

    With ``torch.use_deterministic_algorithms``, it takes the first tile that fits without a trial, for the same bits in
    every process; in the interpreter, a tile of 16 rows and 64 codes.

    Args:
        kernel: Kernel to launch.
        tiles: Tiles to try.
        keys: Names of the arguments that the choice depends on.
        shared: Bytes of shared memory that a tile needs.
        device: Device of the kernel.

    Returns:
        A function of the grid, which is a function of the tile's ``BN`` and ``BK``, and of the kernel's arguments.
    """
    if INTERPRETED:
        tile = {"BN": 16, "BK": 64}
        return lambda grid, *arguments, **constants: launch(kernel, grid(tile), device)(*arguments, **constants, **tile)
    # if the property is unknown, all tiles are tried, and Triton leaves out those that do not fit
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 1 << 20)
    fitting = tuple(tile for tile in tiles if shared(tile) <= room) or (min(tiles, key=shared),)
    configured = _tuned(kernel, fitting[:1] if torch.are_deterministic_algorithms_enabled() else fitting, keys)
    return lambda grid, *arguments, **constants: launch(configured, grid, device)(*arguments, **constants)


def launch(
    kernel: Any,  # noqa: ANN401  Triton's kernels have no public type
    grid: tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]],
    device: torch.device,
) -> Callable[..., None]:
    """Makes a launcher of a kernel on a grid, on a device that need not be the current one."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            # fuses products with sums, which Triton 3.10 no longer does by default
            kernel[grid](*arguments, **constants, enable_fp_fusion=True)

    return run


@functools.cache
def _tuned(kernel: Any, tiles: tuple[Tile, ...], keys: tuple[str, ...]) -> Any:  # noqa: ANN401
    configs = [
        triton.Config({"BN": tile.rows, "BK": tile.codes}, num_warps=tile.warps, num_stages=tile.stages)
        for tile in tiles
    ]
    return triton.autotune(configs, key=list(keys))(kernel)
