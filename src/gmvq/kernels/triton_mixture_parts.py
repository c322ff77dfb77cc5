"""Operands of the mixture step's kernels, padded, and the blocks and parts of rows that they are launched on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.kernels.mixture_types import Problem
from gmvq.kernels.triton_tiles import CODES, MAX_FEATURES, ROWS, Operand, Units, matrix_units, operand, padded, quotient

LN2, LOG2E = math.log(2), math.log2(math.e)
"""Nats per bit, and bits per nat."""

NOTHING = -1e30
"""Log-weight of padding among codes: finite, since 0 times infinity is not 0."""

BLOCK_BYTES = 1 << 26
"""Size of a block of some rows and all codes: 64 MiB each for products, D and y."""

# torch 2.8 and newer
_HAS_OUT_DTYPE = "out_dtype" in (torch.mm.__doc__ or "")


class Operands(NamedTuple):
    """A problem in the layout of the kernels, padded to N' rows and K' codes.

    Attributes:
        latents: z, ``(N', L')``.
        codebook: mu, ``(K', L')``.
        values: v, ``(K', V')``.
        columns: p, p |mu|^2 / 2 and b, each divided by the logarithm of 2, ``(3, K')``, for exponentials to base 2.
        units: Units that compute products.
    """

    latents: Operand
    codebook: Operand
    values: Tensor
    columns: Tensor
    units: Units

    @classmethod
    def of(cls, problem: Problem) -> Operands:
        """Rounds and pads a problem."""
        units = matrix_units(problem.latents.dtype)
        latents, codebook = operand(problem.latents, ROWS, units), operand(problem.codebook, CODES, units)
        values = operand(problem.values, CODES, units).data
        codes = len(codebook.data)
        precisions = padded(problem.precisions, codes) * LOG2E
        biases = (padded(problem.biases, codes, NOTHING) * LOG2E).clamp_min(NOTHING)
        return cls(latents, codebook, values, torch.stack([precisions, precisions * codebook.halves, biases]), units)

    @property
    def rows(self) -> int:
        """Padded number of rows N'."""
        return len(self.latents.data)

    @property
    def codes(self) -> int:
        """Padded number of codes K'."""
        return len(self.codebook.data)

    @property
    def fused(self) -> bool:
        """True if kernels compute the products of latents, codebook and values themselves."""
        return not self.units.exact and max(self.latents.data.shape[1], self.values.shape[1]) <= MAX_FEATURES

    def bytes_of(self, latents: int, values: int) -> int:
        """Size in bytes of a number of latents or codes, and of a number of values or their gradients."""
        elements = latents * self.latents.data.shape[1] + values * self.values.shape[1]
        return elements * self.latents.data.element_size()

    def blocks(self, bytes_of_a_pair: int) -> Iterator[slice]:
        """Splits rows into parts whose pairs with codes fit into :data:`BLOCK_BYTES`; one part if pairs need none."""
        fitting = BLOCK_BYTES // (bytes_of_a_pair * self.codes * ROWS) * ROWS if bytes_of_a_pair else self.rows
        for first in range(0, self.rows, max(ROWS, fitting)):
            yield slice(first, min(first + max(ROWS, fitting), self.rows))


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies matrices in float32, with operands that are rounded for it."""
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == torch.float32:
            return left @ right
        if left.device.type == "cuda" and _HAS_OUT_DTYPE:
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.float() @ right.float()


def row_parts(rows: int, codes: int, device: torch.device) -> tuple[int, int]:
    """Number and size of the parts of rows with separate sums, so that a small codebook keeps the whole GPU busy."""
    programs = 8 if device.type == "cpu" else 4 * torch.cuda.get_device_properties(device).multi_processor_count
    size = quotient(rows, ROWS * max(1, min(programs * 64 // codes, rows // (2 * ROWS)))) * ROWS
    return quotient(rows, size), size


def noise_of(problem: Problem, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Seed and temperature, read by kernels on the device without synchronization; ``nothing`` if there are none."""
    if problem.seed is None or problem.temperature is None:
        return nothing, nothing
    return problem.seed, problem.temperature
