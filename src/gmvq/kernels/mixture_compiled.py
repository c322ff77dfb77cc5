"""The sweeps of a block of a mixture step, in C++ for float32 on a CPU: the functions of :mod:`mixture_plain`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from gmvq.kernels.compiled import library
from gmvq.kernels.mixture_types import CodeSums, Problem, Results, Upstream

_POINTERS = (
    *("precisions", "half_norms", "biases", "prices", "half_squares", "weights"),
    *("latents", "columns", "products", "relaxed"),
    *("most_likely", "priced", "drawn", "energy", "log_energy", "entropy", "log_density"),
    *("relaxed_energy", "peak", "normalizer", "relaxed_peak", "relaxed_normalizer", "relaxed_total", "aggregated"),
    *("energy_gradient", "log_energy_gradient", "entropy_gradient", "log_density_gradient"),
    *("relaxed_energy_gradient", "relaxed_expectation", "aggregated_gradient"),
    *("row_sums", "code_sums", "bias_gradient", "precision_gradient"),
)


MOST_FEATURES = 8
"""Number of features up to which the sweep computes the products itself: writing them to memory would take longer."""


class _Block(ctypes.Structure):
    """Mirrors ``GmvqMixtureBlock`` of ``mixture.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "codes", "first_row", "seed", "features")),
        *((name, ctypes.c_float) for name in ("inverse_temperature", "floor")),
        *((name, ctypes.c_int32) for name in ("draws", "threads")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def makes_products(block: Problem) -> bool:
    """True if the sweep computes the products and does not read them."""
    return block.latents.shape[1] <= MOST_FEATURES


def forward(  # noqa: D103
    block: Problem, prices: Tensor, products: Tensor, relaxed: Tensor | None, results: Results, aggregated: Tensor
) -> Tensor:
    totals = torch.empty_like(results.relaxed_energy)
    pointers = {"prices": prices, "relaxed_total": totals, "aggregated": aggregated}
    _call("gmvq_mixture_forward", block, results, products, relaxed, len(aggregated), pointers)
    return totals


def backward(  # noqa: D103
    block: Problem, results: Results, upstream: Upstream, products: Tensor, relaxed: Tensor | None, sums: CodeSums
) -> Tensor:
    row_sums = torch.empty_like(block.half_squares)
    pointers = {
        **{f"{name}_gradient": part for name, part in upstream._asdict().items() if name != "relaxed"},
        "row_sums": row_sums,
        "code_sums": sums.scaled,
        "bias_gradient": sums.biases,
        "precision_gradient": sums.precisions,
    }
    if relaxed is not None:
        pointers["relaxed_expectation"] = (upstream.relaxed * results.relaxed).sum(-1)
    _call("gmvq_mixture_backward", block, results, products, relaxed, len(sums.scaled), pointers)
    return row_sums


def _call(
    name: str,
    block: Problem,
    results: Results,
    products: Tensor,
    relaxed: Tensor | None,
    threads: int,
    others: Mapping[str, Tensor | None],
) -> None:
    compiled = library()
    assert compiled is not None
    pointers = {
        **{field: getattr(block, field) for field in ("precisions", "half_norms", "biases", "half_squares", "weights")},
        **{field: part for field, part in results._asdict().items() if field in _POINTERS and field != "aggregated"},
        **{"most_likely": results.codes, "products": products, "relaxed": relaxed},
        **others,
    }
    if makes_products(block):
        pointers |= {"latents": block.latents, "columns": block.columns}
    # tensors with a row per latent are sliced to the block's rows; the others were made contiguous before
    assert all(part is None or part.is_contiguous() for part in pointers.values())
    arguments = _Block(
        rows=len(block.latents),
        codes=len(block.codebook),
        first_row=block.first_row,
        features=block.latents.shape[1],
        seed=0 if block.seed is None else int(block.seed),
        inverse_temperature=0.0 if block.temperature is None else 1 / float(block.temperature),
        floor=block.floor,
        draws=block.draws,
        threads=threads,
        **{field: None if part is None else part.data_ptr() for field, part in pointers.items()},
    )
    compiled[name](ctypes.byref(arguments))
