"""What the implementations of a mixture step hand each other: inputs, results and gradients of N rows and K codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MixtureStep(NamedTuple):
    """What a step of a Gaussian mixture gives for N rows, K codes and values of V features.

    Attributes:
        codes: Most likely code of each row ``(N,)``.
        priced: The same under the given prices ``(N,)``.
        drawn: A code drawn from the posterior ``(N,)``; empty without a temperature.
        energy: E_q[e] in nats ``(N,)``.
        log_energy: E_q[log max(e, floor)] ``(N,)``; 0 without a floor.
        entropy: Of q, in nats ``(N,)``.
        log_density: Logarithm of the sum of exp(j) over codes ``(N,)``.
        aggregated: Weighted sum of q over rows ``(K,)``.
        relaxed: Sum of y_c v_c ``(N, V)``; empty without a temperature.
        relaxed_energy: E_y[e] ``(N,)``; empty without a temperature.
    """

    codes: Tensor
    priced: Tensor
    drawn: Tensor
    energy: Tensor
    log_energy: Tensor
    entropy: Tensor
    log_density: Tensor
    aggregated: Tensor
    relaxed: Tensor
    relaxed_energy: Tensor


class Problem(NamedTuple):
    """A mixture step, or a block of its rows.

    Latents and codebook are centred on the codebook's mean, and rows that are not finite are 0.

    Attributes:
        latents: z, ``(N, L)``.
        codebook: mu, ``(K, L)``.
        columns: The same as ``(L, K)``.
        values: What y mixes, ``(K, V)``.
        precisions: p, ``(K,)``.
        biases: b, ``(K,)``.
        weights: Weight of each row in the aggregate, ``(N,)``.
        half_squares: |z|^2 / 2; not finite where the row is not, ``(N,)``.
        half_norms: p |mu|^2 / 2, ``(K,)``.
        temperature: tau ``()``; None draws nothing.
        seed: ``()``, int64; None draws nothing.
        floor: Least energy in nats that a logarithm is taken of; above 0 asks for these logarithms.
        first_row: Number of the first row, by which its noise is drawn.
    """

    latents: Tensor
    codebook: Tensor
    columns: Tensor
    values: Tensor
    precisions: Tensor
    biases: Tensor
    weights: Tensor
    half_squares: Tensor
    half_norms: Tensor
    temperature: Tensor | None
    seed: Tensor | None
    floor: float
    first_row: int = 0

    @classmethod
    def of(
        cls,
        latents: Tensor,
        codebook: Tensor,
        values: Tensor,
        precisions: Tensor,
        biases: Tensor,
        weights: Tensor,
        temperature: Tensor | None,
        seed: Tensor | None,
        floor: float,
    ) -> Problem:
        """Centres what :func:`gmvq.kernels.mixture_step` is given."""
        center = codebook.mean(0)
        latents, codebook = latents - center, (codebook - center).contiguous()
        half_squares = latents.square().sum(-1) / 2
        return cls(
            latents=torch.where(half_squares.isfinite()[:, None], latents, 0.0).contiguous(),
            codebook=codebook,
            columns=codebook.T.contiguous(),
            values=values.contiguous(),
            precisions=precisions.contiguous(),
            biases=biases.contiguous(),
            weights=weights.contiguous(),
            half_squares=half_squares,
            half_norms=precisions * codebook.square().sum(-1) / 2,
            temperature=temperature,
            seed=seed,
            floor=floor,
        )

    @property
    def draws(self) -> bool:
        """Whether there is a relaxed sample."""
        return self.seed is not None

    def block(self, start: int, stop: int) -> Problem:
        """The problem of the rows from ``start`` to ``stop``."""
        rows = slice(start, stop)
        return self._replace(
            latents=self.latents[rows],
            weights=self.weights[rows],
            half_squares=self.half_squares[rows],
            first_row=self.first_row + start,
        )


def _of_rows(parts: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Views of what has a place for each row: all but the sums over them."""
    return {name: part[start:stop] for name, part in parts.items() if name != "aggregated"}


class Results(NamedTuple):
    """As :class:`MixtureStep`, and what the backward pass needs beside.

    Where energies are large, the sum of a peak and of what is relative to it has no digits left for the latter.

    Attributes:
        peak: Largest j ``(N,)``.
        normalizer: Logarithm of the sum of exp(j - peak) over codes ``(N,)``.
        relaxed_peak: Largest (j + g) / tau ``(N,)``; empty without draws.
        relaxed_normalizer: Logarithm of the sum of exp((j + g) / tau - relaxed_peak) ``(N,)``; empty without draws.
    """

    codes: Tensor
    priced: Tensor
    drawn: Tensor
    energy: Tensor
    log_energy: Tensor
    entropy: Tensor
    log_density: Tensor
    aggregated: Tensor
    relaxed: Tensor
    relaxed_energy: Tensor
    peak: Tensor
    normalizer: Tensor
    relaxed_peak: Tensor
    relaxed_normalizer: Tensor

    @classmethod
    def empty(cls, problem: Problem) -> Results:
        """Room for the results; the aggregate begins at 0."""
        rows, new = len(problem.latents), problem.latents.new_empty
        drawn = rows if problem.draws else 0
        return cls(
            codes=new(rows, dtype=torch.int64),
            priced=new(rows, dtype=torch.int64),
            drawn=new(drawn, dtype=torch.int64),
            energy=new(rows),
            log_energy=new(rows),
            entropy=new(rows),
            log_density=new(rows),
            aggregated=torch.zeros_like(problem.half_norms),
            relaxed=new(drawn, problem.values.shape[1]),
            relaxed_energy=new(drawn),
            peak=new(rows),
            normalizer=new(rows),
            relaxed_peak=new(drawn),
            relaxed_normalizer=new(drawn),
        )

    def block(self, start: int, stop: int) -> Results:
        """The rows from ``start`` to ``stop``, as views."""
        return self._replace(**_of_rows(self._asdict(), start, stop))


class Upstream(NamedTuple):
    """Gradients of the results that pass one on, each of its result's shape."""

    energy: Tensor
    log_energy: Tensor
    entropy: Tensor
    log_density: Tensor
    aggregated: Tensor
    relaxed: Tensor
    relaxed_energy: Tensor

    def block(self, start: int, stop: int) -> Upstream:
        """The rows from ``start`` to ``stop``, as views."""
        return self._replace(**_of_rows(self._asdict(), start, stop))


class Needs(NamedTuple):
    """Which inputs need a gradient."""

    latents: bool
    codebook: bool
    values: bool
    precisions: bool
    biases: bool


class Gradients(NamedTuple):
    """Gradients of the inputs that have one; None where not asked for."""

    latents: Tensor | None
    codebook: Tensor | None
    values: Tensor | None
    precisions: Tensor | None
    biases: Tensor | None


class CodeSums(NamedTuple):
    """Sums over the rows of a block, ``(threads, K)``, to add to.

    Attributes:
        scaled: Of D, the gradient of the energies times p.
        biases: Of the gradient of the log joint; None if it is not asked for.
        precisions: Of the gradient of the energies times the energies; None if it is not asked for.
    """

    scaled: Tensor
    biases: Tensor | None
    precisions: Tensor | None
