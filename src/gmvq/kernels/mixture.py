"""The mixture step as one operator of torch, with its backward pass as another.

``torch.compile`` and ``torch.export`` see ``gmvq::mixture_step``; the device of the latents selects the implementation
when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gmvq.checks import can_look_at, is_transformed
from gmvq.kernels import mixture_blocks, reference
from gmvq.kernels.compiled import has_triton
from gmvq.kernels.mixture_types import MixtureStep, Needs, Problem, Results, Upstream

PASSED_ON = ("energy", "log_energy", "entropy", "log_density", "aggregated", "relaxed", "relaxed_energy")
"""Results that have a gradient."""

NORMALIZERS = ("peak", "normalizer", "relaxed_peak", "relaxed_normalizer")

Four = (Tensor, Tensor, Tensor, Tensor)
ResultTensors = tuple[(*Four, *Four, *Four, Tensor, Tensor)]  # type: ignore[valid-type]  # for the operator's schema

SAVED = ("energy", "log_energy", "entropy", "relaxed", "relaxed_energy", *NORMALIZERS)
"""Results that the backward pass reads."""


def mixture_step(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor | None = None,
    *,
    precisions: Tensor | None = None,
    biases: Tensor | None = None,
    prices: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    floor: float = 0.0,
) -> MixtureStep:
    r"""Posterior of a Gaussian mixture, a relaxed sample of it and its sums, in memory O(N + K).

    .. math::
        e_{nc} = p_c |z_n - \mu_c|^2 / 2, \quad j_{nc} = b_c - e_{nc}, \quad
        q_n = \mathrm{softmax}_c(j_{nc}), \quad y_n = \mathrm{softmax}_c((j_{nc} + g_{nc}) / \tau)

    The backward pass computes q and y again, with the same noise g, instead of storing them. A row that is not finite
    has NaN in its own results and gradients, and is left out of sums over rows. A code that is not finite has
    probability 0.

    Args:
        latents: z, ``(N, L)``, float32 or float64.
        codebook: mu, ``(K, L)``.
        values: Vectors that y mixes, ``(K, V)``; by default the codebook.
        precisions: p, above 0, ``(K,)``; by default 1.
        biases: b, in nats ``(K,)``; by default 0.
        prices: Cost of each code in ``priced``, in nats ``(K,)``; by default 0.
        weights: Weight of each row in ``aggregated``, without gradient, ``(N,)``; by default 1.
        temperature: tau ``()``, above 0, without gradient; None for no relaxed sample.
        seed: Seed of the noise ``()``, int64, at least 0, as :func:`gmvq.kernels.random_seed` draws it.
        floor: Lower bound of energies in ``log_energy``, in nats; 0 leaves ``log_energy`` out.

    Returns:
        Results with gradients to latents, codebook, values, precisions and biases, but no second derivatives.

    Raises:
        ValueError: If shapes, dtypes or arguments do not fit together.

    References:
        Gaussian Mixture Vector Quantization with Aggregated Categorical Posterior (Yan et al., 2024),
        https://arxiv.org/abs/2410.10180;
        recomputing in place of storing: FlashAttention (Dao et al., 2022), https://arxiv.org/abs/2205.14135

    Example:
        >>> step = mixture_step(torch.randn(100, 4), torch.randn(32, 4), temperature=torch.tensor(1.0))
        >>> step.relaxed.shape, step.aggregated.sum().round().item()
        (torch.Size([100, 4]), 100.0)
    """
    values = codebook if values is None else values
    _check(latents, codebook, values, floor)
    _check_draws(latents, temperature, seed)
    of_codes = (
        _vector(name, part, latents, codebook.shape[0], default)
        for name, part, default in (("precisions", precisions, 1.0), ("biases", biases, 0.0), ("prices", prices, 0.0))
    )
    of_rows = _vector("weights", weights, latents, latents.shape[0], 1.0)
    if temperature is not None and seed is None:
        seed = random_seed(latents.device)
    arguments = (latents, codebook, values, *of_codes, of_rows, temperature, seed, floor)
    if is_transformed():  # custom operators support neither forward-mode differentiation nor vmap
        return reference.mixture_step(*arguments)  # pyright: ignore[reportCallIssue]
    results = Results(*_forward(*arguments))
    return MixtureStep(*(getattr(results, name) for name in MixtureStep._fields))


def random_seed(device: torch.device) -> Tensor:
    """Draws a seed ``()`` from torch's generator, so that ``torch.manual_seed`` fixes the noise."""
    return torch.randint(2**62, (), device=device)


def _check(latents: Tensor, codebook: Tensor, values: Tensor, floor: float) -> None:
    if latents.dim() != 2 or codebook.dim() != 2 or latents.shape[1] != codebook.shape[1] or len(codebook) == 0:
        raise ValueError(
            f"'latents' must be (N, L) and 'codebook' (K, L) with K > 0, got {tuple(latents.shape)} and "
            f"{tuple(codebook.shape)}. Flatten the axes before the features."
        )
    if values.dim() != 2 or len(values) != len(codebook):
        raise ValueError(
            f"'values' must be (K, V) with a row for each of {len(codebook)} codes, got {tuple(values.shape)}. "
            "Leave it out to use the codebook."
        )
    dtypes = {latents.dtype, codebook.dtype, values.dtype}
    if len(dtypes) > 1 or latents.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "'latents', 'codebook' and 'values' must be of one precision, float32 or float64, got "
            f"{', '.join(sorted(map(str, dtypes)))}. Use .float()."
        )
    _check_device("codebook", codebook, latents)
    _check_device("values", values, latents)
    if not 0 <= floor < float("inf"):
        raise ValueError(f"'floor' must be a finite number of at least 0, got {floor}. Use 0.0.")


def _check_draws(latents: Tensor, temperature: Tensor | None, seed: Tensor | None) -> None:
    if seed is not None and temperature is None:
        raise ValueError("'temperature' must be given with a 'seed', got None: without it nothing is drawn. Give both.")
    for name, part in (("temperature", temperature), ("seed", seed)):
        if part is None:
            continue
        if not isinstance(part, Tensor) or part.dim() != 0 or part.is_floating_point() != (name == "temperature"):
            kind = "a float" if name == "temperature" else "an int64"
            raise ValueError(f"'{name}' must be {kind} tensor of shape (), got {part!r}. Use torch.tensor.")
        _check_device(name, part, latents)
    if temperature is not None and can_look_at(temperature) and not float(temperature) > 0:
        raise ValueError(f"'temperature' must be above 0, got {float(temperature)}. Use torch.tensor(1.0).")


def _vector(name: str, part: Tensor | None, latents: Tensor, length: int, default: float) -> Tensor:
    if part is None:
        return latents.new_full((length,), default)
    if part.shape != (length,):
        raise ValueError(
            f"'{name}' must be of shape ({length},), one per {'latent' if name == 'weights' else 'code'}, got "
            f"{tuple(part.shape)}. Expand it."
        )
    _check_device(name, part, latents)
    return part.to(latents.dtype)


def _check_device(name: str, part: Tensor, latents: Tensor) -> None:
    if part.device != latents.device:
        raise ValueError(
            f"'{name}' must lie on the latents' device, {latents.device}, got {part.device}. "
            f"Use {name}.to(latents.device)."
        )


def _implementation(latents: Tensor) -> Any:  # noqa: ANN401  a module
    if latents.device.type == "cuda" and latents.dtype == torch.float32 and has_triton():
        from gmvq.kernels import triton_mixture

        return triton_mixture
    return mixture_blocks


@torch.library.custom_op("gmvq::mixture_step", mutates_args=())
def _forward(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor,
    precisions: Tensor,
    biases: Tensor,
    prices: Tensor,
    weights: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    floor: float,
) -> ResultTensors:
    problem = Problem.of(latents, codebook, values, precisions, biases, weights, temperature, seed, floor)
    with torch.autocast(latents.device.type, enabled=False):
        return tuple(_implementation(latents).forward(problem, prices.contiguous()))


@_forward.register_fake
def _(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor,
    precisions: Tensor,
    biases: Tensor,
    prices: Tensor,
    weights: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    floor: float,
) -> tuple[Tensor, ...]:
    # a shape in place of a length: when tracing it may be a symbol
    rows = latents.shape[0]
    drawn = 0 if seed is None else rows
    codes = (latents.new_empty(count, dtype=torch.int64) for count in (rows, rows, drawn))
    of_rows = (latents.new_empty(rows) for _ in range(4))
    relaxed = (latents.new_empty(drawn, values.shape[1]), latents.new_empty(drawn))
    normalizers = (latents.new_empty(count) for count in (rows, rows, drawn, drawn))
    return (*codes, *of_rows, torch.empty_like(biases), *relaxed, *normalizers)


@torch.library.custom_op("gmvq::mixture_step_backward", mutates_args=())
def _backward(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor,
    precisions: Tensor,
    biases: Tensor,
    weights: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    floor: float,
    saved: Sequence[Tensor],
    upstream: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = Problem.of(latents, codebook, values, precisions, biases, weights, temperature, seed, floor)
    nothing = dict.fromkeys(Results._fields, latents.new_empty(0))
    results = Results(**{**nothing, **dict(zip(SAVED, saved, strict=True))})
    above = Upstream(*(part.contiguous() for part in upstream))
    if problem.draws:  # in rows that are not finite; their other gradients are 0 times NaN
        finite = problem.half_squares.isfinite()[:, None]
        above = above._replace(relaxed=torch.where(finite, above.relaxed, 0.0))
    with torch.autocast(latents.device.type, enabled=False):
        found = _implementation(latents).backward(problem, results, above, Needs(*needs))
    empty = latents.new_empty
    of_latents, of_codebook, of_values, of_precisions, of_biases = (empty(0) if x is None else x for x in found)
    return of_latents, of_codebook, of_values, of_precisions, of_biases


@_backward.register_fake
def _(
    latents: Tensor,
    codebook: Tensor,
    values: Tensor,
    precisions: Tensor,
    biases: Tensor,
    weights: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    floor: float,
    saved: Sequence[Tensor],
    upstream: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = (latents, codebook, values, precisions, biases)
    parts = [torch.empty_like(x) if needed else x.new_empty(0) for x, needed in zip(inputs, needs, strict=True)]
    return tuple(parts)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    latents, codebook, values, precisions, biases, _, weights, temperature, seed, ctx.floor = inputs
    results = Results(*output)
    ctx.mark_non_differentiable(*(part for name, part in results._asdict().items() if name not in PASSED_ON))
    saved = (getattr(results, name) for name in SAVED)
    ctx.save_for_backward(latents, codebook, values, precisions, biases, weights, temperature, seed, *saved)


def _of_upstream(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    # read once, since activation checkpointing unpacks them at each read
    latents, codebook, values, precisions, biases, weights, temperature, seed, *saved = ctx.saved_tensors
    above = Results(*gradients)
    needs = [ctx.needs_input_grad[place] for place in range(5)]
    found = _backward(
        latents,
        codebook,
        values,
        precisions,
        biases,
        weights,
        temperature,
        seed,
        ctx.floor,
        saved,
        [getattr(above, name) for name in PASSED_ON],
        needs,
    )
    return (*(part if needed else None for part, needed in zip(found, needs, strict=True)), *[None] * 5)


_forward.register_autograd(_of_upstream, setup_context=_setup_context)
