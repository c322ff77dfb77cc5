"""Types of a mixture step that all implementations share: inputs, results and gradients of N rows and K codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmvq.checks import can_look_at
from gmvq.kernels.origin import origin_of, within_reach


class MixtureStep(NamedTuple):
    """Results of a mixture step for N rows, K codes and values of V features.

    Attributes:
        codes: Most likely code of each row ``(N,)``.
        priced: Most likely code of each row under the given prices ``(N,)``.
        drawn: A code drawn from the posterior ``(N,)``; empty without a temperature.
        energy: E_q[e] in nats ``(N,)``.
        log_energy: E_q[log max(e, floor)] ``(N,)``; 0 without a floor.
        entropy: Entropy of q in nats ``(N,)``.
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

    Latents and codebook are relative to a point amid the codes. Rows that are not finite are 0, as are codes that are
    not, whose biases are minus infinity.

    Attributes:
        latents: z, ``(N, L)``.
        codebook: mu, ``(K, L)``.
        columns: mu, ``(L, K)``.
        values: Vectors that y mixes, ``(K, V)``.
        precisions: p, ``(K,)``.
        biases: b, ``(K,)``.
        weights: Weight of each row in the aggregate, ``(N,)``.
        half_squares: |z|^2 / 2, ``(N,)``; not finite if the row is not.
        half_norms: p |mu|^2 / 2, ``(K,)``.
        temperature: tau ``()``; None for no relaxed sample.
        seed: Seed of the noise ``()``, int64; None for no relaxed sample.
        floor: Lower bound of energies in ``log_energy``, in nats; 0 leaves ``log_energy`` out.
        first_row: Index of the first row, which its noise depends on.
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
        """Prepares the arguments of :func:`gmvq.kernels.mixture_step`."""
        origin = origin_of(codebook)
        latents, codebook = latents - origin, codebook - origin
        half_norms = precisions * codebook.square().sum(-1) / 2
        reached = within_reach(half_norms)
        if not (can_look_at(reached) and bool(reached.all())):
            codebook, values = (torch.where(reached[:, None], part, 0.0) for part in (codebook, values))
            half_norms, biases = torch.where(reached, half_norms, 0.0), torch.where(reached, biases, -torch.inf)
        codebook, half_squares = codebook.contiguous(), latents.square().sum(-1) / 2
        return cls(
            latents=torch.where(half_squares.isfinite()[:, None], latents, 0.0).contiguous(),
            codebook=codebook,
            columns=codebook.T.contiguous(),
            values=values.contiguous(),
            precisions=precisions.contiguous(),
            biases=biases.contiguous(),
            weights=weights.contiguous(),
            half_squares=half_squares,
            half_norms=half_norms,
            temperature=temperature,
            seed=seed,
            floor=floor,
        )

    @property
    def draws(self) -> bool:
        """True if there is a relaxed sample."""
        return self.seed is not None

    def block(self, start: int, stop: int) -> Problem:
        """The problem of the rows from ``start`` to before ``stop``."""
        rows = slice(start, stop)
        return self._replace(
            latents=self.latents[rows],
            weights=self.weights[rows],
            half_squares=self.half_squares[rows],
            first_row=self.first_row + start,
        )


def _of_rows(parts: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Views of the rows of all tensors that have one entry per row."""
    return {name: part[start:stop] for name, part in parts.items() if name != "aggregated"}


class Results(NamedTuple):
    """Results as in :class:`MixtureStep`, and normalizers for the backward pass.

    Peaks and normalizers are separate, since with large energies their sum has no digits left for the normalizer.

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
        """Allocates the results; the aggregate starts at 0."""
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
        """Views of the rows from ``start`` to before ``stop``."""
        return self._replace(**_of_rows(self._asdict(), start, stop))


class Upstream(NamedTuple):
    """Gradients of the results that have one, each of its result's shape."""

    energy: Tensor
    log_energy: Tensor
    entropy: Tensor
    log_density: Tensor
    aggregated: Tensor
    relaxed: Tensor
    relaxed_energy: Tensor

    def block(self, start: int, stop: int) -> Upstream:
        """Views of the rows from ``start`` to before ``stop``."""
        return self._replace(**_of_rows(self._asdict(), start, stop))


class Needs(NamedTuple):
    """True for each input that needs a gradient."""

    latents: bool
    codebook: bool
    values: bool
    precisions: bool
    biases: bool


class Gradients(NamedTuple):
    """Gradients of the inputs; None for those that need none."""

    latents: Tensor | None
    codebook: Tensor | None
    values: Tensor | None
    precisions: Tensor | None
    biases: Tensor | None


class CodeSums(NamedTuple):
    """Sums over the rows of a block, ``(threads, K)``.

    Attributes:
        scaled: Sum of D, the gradient of the energies times p.
        biases: Sum of the gradient of the log joint; None if not needed.
        precisions: Sum of the gradient of the energies times the energies; None if not needed.
    """

    scaled: Tensor
    biases: Tensor | None
    precisions: Tensor | None
