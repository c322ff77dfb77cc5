r"""Nearest code: one operator for all devices, in memory O(N + K L).

.. math:: c_n = \arg\max_c \big(o_c - \tfrac{1}{2} |z_n - \mu_c|_w^2\big)
              = \arg\max_c \big((z_n - m) \cdot w (\mu_c - m) + o_c - \tfrac{1}{2} |\mu_c - m|_w^2\big)

with weights w of features and offsets o of codes. Around a point m amid the codes (:mod:`gmvq.kernels.origin`),
rounding errors grow with the spread of most codes and not with their distance from the origin. A code that is not
finite, or too far for its square to be a number, is never the nearest.

==========================  ==========================================================================================
float32 on the CPU          ``nearest.cpp``, which compares scores in registers; without a compiler, blocks in torch
other types on the CPU      blocks in torch, float16 and bfloat16 in float32
CUDA                        :mod:`gmvq.kernels.triton_nearest`; without Triton, and in float64, blocks in torch
==========================  ==========================================================================================
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from gmvq.kernels.compiled import has_triton, library
from gmvq.kernels.origin import origin_of

BLOCK_ELEMENTS = 1 << 20
"""Number of scores in memory at a time in torch: 4 MiB in float32, which stays in the cache."""


def nearest_code(
    latents: Tensor,
    codebook: Tensor,
    *,
    top: int | None = None,
    cosine: bool = False,
    feature_weights: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    r"""Index of the nearest code of each latent, ties to the lowest index, without gradient.

    .. math:: c_n = \arg\max_c \big(o_c - \tfrac{1}{2} \textstyle\sum_l w_l (z_{nl} - \mu_{cl})^2\big)

    A latent that is not finite has code 0.

    Args:
        latents: Rows ``(N, L)``.
        codebook: Codes ``(K, L)``.
        top: Number of codes per latent to return, the nearest first, ties in any order; None for the nearest alone.
        cosine: True to compare directions in place of points.
        feature_weights: w, at least 0, ``(L,)``; 1 by default.
        offsets: o, added to the score of each code ``(K,)``, such as the log-weights of a mixture; 0 by default.

    Returns:
        Indices ``(N,)``, or ``(N, top)``, int64.

    Raises:
        ValueError: If shapes, types or devices do not fit together, or ``offsets`` are given with ``cosine``.

    Example:
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> nearest_code(torch.tensor([[0.9, 0.2], [0.0, 2.0]]), codebook)
        tensor([1, 2])
        >>> nearest_code(torch.tensor([[0.9, 0.2]]), codebook, top=2)
        tensor([[1, 0]])
    """
    _check(latents, codebook, feature_weights, offsets)
    if top is not None and not 1 <= top <= len(codebook):
        raise ValueError(
            f"'top' must lie in [1, K = {len(codebook)}], got {top}. Lower it, or leave it out for one code."
        )
    if cosine and offsets is not None:
        raise ValueError(
            "'offsets' must be None where 'cosine' is True, since they are added to negative half squared distances, "
            "got both. Leave one out."
        )
    inputs = (latents, codebook, feature_weights, offsets)
    return _nearest_code(*(None if tensor is None else tensor.detach() for tensor in inputs), cosine, top or 0)


def _check(latents: Tensor, codebook: Tensor, feature_weights: Tensor | None, offsets: Tensor | None) -> None:
    for name, tensor, shape in (("latents", latents, "(N, L)"), ("codebook", codebook, "(K, L)")):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"'{name}' must be floats of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}. "
                "Use .reshape(-1, dim) and .float()."
            )
    if latents.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"'latents' must have the {codebook.shape[1]} features of the codes, got shape {tuple(latents.shape)}. "
            "Move features to the last axis."
        )
    if len(codebook) == 0:
        raise ValueError("'codebook' must have at least one code, got none. Give one of shape (K, L) with K > 0.")
    for name, tensor, size in (("feature_weights", feature_weights, "L"), ("offsets", offsets, "K")):
        number = codebook.shape[1] if size == "L" else codebook.shape[0]
        if tensor is not None and (tensor.shape != (number,) or not tensor.is_floating_point()):
            raise ValueError(
                f"'{name}' must be floats of shape ({size},) = ({number},), got {tensor.dtype} {tuple(tensor.shape)}. "
                f"Give one per {'feature' if size == 'L' else 'code'}."
            )
    for name, tensor in (("codebook", codebook), ("feature_weights", feature_weights), ("offsets", offsets)):
        if tensor is not None and tensor.device != latents.device:
            raise ValueError(
                f"'{name}' must lie on the latents' device, {latents.device}, got {tensor.device}. "
                f"Use {name}.to(latents.device)."
            )


@torch.library.custom_op("gmvq::nearest_code", mutates_args=())
def _nearest_code(
    latents: Tensor, codebook: Tensor, feature_weights: Tensor | None, offsets: Tensor | None, cosine: bool, top: int
) -> Tensor:
    device, dtype = latents.device.type, torch.promote_types(latents.dtype, codebook.dtype)
    triton = device == "cuda" and top == 0 and dtype != torch.float64 and has_triton()
    if not triton and dtype.itemsize < 4:
        dtype = torch.float32
    latents, codebook = latents.to(dtype), codebook.to(dtype)
    feature_weights = None if feature_weights is None else feature_weights.to(dtype)
    if device == "cpu" and dtype == torch.float32 and top == 0:
        kernels = library()
        if kernels is not None:
            return _compiled(kernels, latents, codebook, feature_weights, offsets, cosine)
    with torch.autocast(device, enabled=False):
        origin, codes, starts = _prepared(codebook, feature_weights, offsets, cosine)
        if triton:
            from gmvq.kernels import triton_nearest  # Triton is only imported where there is a GPU

            return triton_nearest.nearest_code(latents - origin, codes, starts)
        size = max(1, BLOCK_ELEMENTS // len(codebook))
        blocks = [_block(block, origin, codes, starts, top) for block in latents.split(size)]
    return torch.cat(blocks)


@_nearest_code.register_fake
def _(
    latents: Tensor, codebook: Tensor, feature_weights: Tensor | None, offsets: Tensor | None, cosine: bool, top: int
) -> Tensor:
    shape = (latents.shape[0], top) if top else (latents.shape[0],)
    return latents.new_empty(shape, dtype=torch.int64)


@functools.cache
def _function(kernels: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    function = kernels.gmvq_nearest_code
    function.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_size_t] * 3 + [ctypes.c_bool, ctypes.c_int]
    function.restype = ctypes.c_bool
    return function


def _compiled(
    kernels: ctypes.CDLL,
    latents: Tensor,
    codebook: Tensor,
    feature_weights: Tensor | None,
    offsets: Tensor | None,
    cosine: bool,
) -> Tensor:
    codes = torch.empty(len(latents), dtype=torch.int64)
    inputs = [
        None if tensor is None else tensor.to(torch.float32).contiguous()
        for tensor in (latents, codebook, feature_weights, offsets)
    ]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in inputs]
    sizes = (len(latents), len(codebook), latents.shape[1])
    if not _function(kernels)(*pointers, codes.data_ptr(), *sizes, cosine, torch.get_num_threads()):
        raise MemoryError(f"There is no memory for a second copy of the codebook, of shape {tuple(codebook.shape)}.")
    return codes


def _prepared(
    codebook: Tensor, feature_weights: Tensor | None, offsets: Tensor | None, cosine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Origin ``(L,)``, codes ``(K, L)`` and starts ``(K,)`` of the score (latents - origin) . codes + starts."""
    exact = torch.promote_types(codebook.dtype, torch.float32)
    if cosine:
        origin = torch.zeros_like(codebook[0])
        # the length of a code changes nothing, but its square may be out of range
        largest = codebook.to(exact).abs().amax(-1, keepdim=True)
        relative = codebook.to(exact) / torch.where(largest > 0, largest, 1.0)
        weighted = relative if feature_weights is None else relative * feature_weights
        squares = (weighted * relative).sum(-1)
        codes, starts = weighted / squares.sqrt().clamp_min(1e-12)[:, None], torch.zeros_like(squares)
    else:
        origin = origin_of(codebook)
        centred = codebook - origin
        codes = centred if feature_weights is None else centred * feature_weights
        squares = (codes.to(exact) * centred).sum(-1)
        starts = -squares / 2 if offsets is None else offsets.to(exact) - squares / 2
    reached = squares.isfinite()
    codes = torch.where(reached[:, None], codes, 0.0).to(codebook.dtype)
    return origin, codes, torch.where(reached, starts, -torch.inf)


def _block(rows: Tensor, origin: Tensor, codes: Tensor, starts: Tensor, top: int) -> Tensor:
    scores = torch.addmm(starts, rows - origin, codes.T)
    found = scores.topk(top).indices if top else scores.argmax(-1)
    # if all scores are NaN, the first codes are returned
    finite = rows.isfinite().all(-1)
    return torch.where(finite[:, None], found, torch.arange(top, device=rows.device)) if top else found * finite
