"""Sums over the ranks of a process group, if there is one at the time of the call."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Returns the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this rank, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


class _AllReduceSum(torch.autograd.Function):
    """A sum over ranks whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return _reduced(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        return _reduced(grad_outputs[0])


def _reduced(values: Tensor) -> Tensor:
    # NCCL reduces CUDA tensors only, and some sums live in the memory of the CPU
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else values.device
    total = values.to(device, copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(values.device)


@torch.no_grad()
def broadcast(values: Tensor) -> Tensor:
    """Copies the first rank's tensor to all ranks, in place."""
    if world_size() > 1:
        dist.broadcast(values, 0)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, differentiably; returns the tensor itself without a process group."""
    return _AllReduceSum.apply(values) if world_size() > 1 else values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Averages a tensor over all ranks, differentiably; returns the tensor itself without a process group."""
    return sum_over_ranks(values) / world_size()


def places_per_rank(number: Tensor) -> Tensor:
    """Averages a number of places ``()`` over ranks, at least that of one place on one rank.

    Each rank's sum over its own places, divided by it, is on average over ranks the mean over the places of all.
    """
    return mean_over_ranks(number).clamp_min(1 / world_size())


def norm_over_ranks(values: Tensor) -> Tensor:
    """Computes the Euclidean norm of the elements of all ranks together, ``()``."""
    own = values.norm()
    return own if world_size() == 1 else sum_over_ranks(own.square()).sqrt()


def gather_over_ranks(values: Tensor) -> Tensor:
    """Gathers a tensor of one shape from all ranks, differentiably: ``(*)`` -> ``(ranks, *)``."""
    if world_size() == 1:
        return values[None]
    # a sum with zeros elsewhere, whose gradient is known
    place = F.one_hot(torch.tensor(rank(), device=values.device), world_size()).to(values.dtype)
    return sum_over_ranks(place.reshape(-1, *[1] * values.ndim) * values)


@torch.no_grad()
def logsumexp_over_ranks(values: Tensor) -> Tensor:
    """Computes the logarithm of the sum over all ranks of the exponentials, element by element."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts).logsumexp(0)


@torch.no_grad()
def gather_rows(rows: Tensor, kept: Tensor) -> Tensor:
    """Gathers the rows of all ranks where ``kept`` is True, in the order of ranks."""
    rows = rows[kept]
    if world_size() == 1:
        return rows
    parts: list[Tensor | None] = [None] * world_size()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat([part for part in parts if part is not None]).to(rows.device)
