r"""Codebook statistics: sums of the rows of each code.

.. math:: n_c = \sum_{n: c_n = c} w_n, \qquad s_c = \sum_{n: c_n = c} w_n z_n

``codes.cpp`` sums float32 on the CPU, in the order of rows and with all threads; :mod:`gmvq.kernels.triton_nearest`
sums on a GPU with Triton; torch's ``index_add_`` sums in all other cases.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from gmvq.kernels import reference
from gmvq.kernels.compiled import has_triton, library


def code_sums(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Weight and weighted sum of the latents of each code, without gradient.

    Args:
        latents: Rows ``(N, L)``.
        codes: Code of each row ``(N,)``, int64; -1 is allowed in rows of weight 0.
        weights: Weight of each row ``(N,)``, at least 0, or booleans.
        codebook_size: Number of codes K.

    Returns:
        Weights ``(K,)`` and sums ``(K, L)`` in the type of the latents.

    Raises:
        IndexError: If a code is not below K.
        ValueError: If shapes, types or devices do not fit together.

    Example:
        >>> code_sums(torch.tensor([[1.0], [2.0]]), torch.tensor([2, 2]), torch.tensor([1.0, 0.5]), 3)
        (tensor([0.0000, 0.0000, 1.5000]), tensor([[0.],
                [0.],
                [2.]]))
    """
    _check(latents, codes, weights, codebook_size)
    return _code_sums(latents.detach(), codes, weights.detach(), codebook_size)


def _check(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> None:
    if latents.ndim != 2 or not latents.is_floating_point():
        raise ValueError(
            f"'latents' must be floats of shape (N, L), got {latents.dtype} {tuple(latents.shape)}. "
            "Use .reshape(-1, dim) and .float()."
        )
    if codebook_size < 1:
        raise ValueError(f"'codebook_size' must be at least 1, got {codebook_size}. Give the number of codes.")
    for name, tensor in (("codes", codes), ("weights", weights)):
        if tensor.ndim != 1 or tensor.shape[0] != latents.shape[0]:
            raise ValueError(
                f"'{name}' must be of shape (N,) = ({latents.shape[0]},), got {tuple(tensor.shape)}. "
                "Give one for each latent."
            )
        if tensor.device != latents.device:
            raise ValueError(
                f"'{name}' must lie on the latents' device, {latents.device}, got {tensor.device}. "
                f"Use {name}.to(latents.device)."
            )
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"'codes' must be integers, got {codes.dtype}. Use .long().")


@torch.library.custom_op("gmvq::code_sums", mutates_args=())
def _code_sums(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    if latents.device.type == "cuda" and has_triton():
        from gmvq.kernels import triton_nearest  # Triton is only imported where there is a GPU

        return triton_nearest.code_sums(latents, codes, weights, codebook_size)
    kernels = library() if latents.device.type == "cpu" and latents.dtype == torch.float32 else None
    if kernels is None:
        return reference.code_sums(latents, codes, weights, codebook_size)
    counts, sums = latents.new_empty(codebook_size), latents.new_empty(codebook_size, latents.shape[1])
    inputs = (latents.contiguous(), codes.to(torch.int64).contiguous(), weights.to(torch.float32).contiguous())
    pointers = (tensor.data_ptr() for tensor in (*inputs, counts, sums))
    sizes = (len(latents), codebook_size, latents.shape[1])
    failed = _function(kernels)(*pointers, *sizes, torch.get_num_threads())
    if failed == 1:
        raise MemoryError(f"There is no memory to sort {len(latents)} rows by their code. Use a smaller batch.")
    if failed:
        raise IndexError(f"'codes' must lie below K = {codebook_size}, got {int(codes.max())}. Raise 'codebook_size'.")
    return counts, sums


@_code_sums.register_fake
def _(latents: Tensor, codes: Tensor, weights: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    return latents.new_empty(codebook_size), latents.new_empty(codebook_size, latents.shape[1])


@functools.cache
def _function(kernels: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    function = kernels.gmvq_code_sums
    function.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_size_t] * 3 + [ctypes.c_int]
    return function
