r"""Residual quantization whose codebooks depend on what has been decoded so far.

A residual quantizer adds one code after another, each out of a fixed codebook. But where the residuals lie depends on
the codes before: around a dense cell they are short, in a long cell they point along it. Here level m has a *base*
codebook :math:`\bar\mu^m` and a network :math:`f_m` that bends it for each partial reconstruction:

.. math::
    \hat x_0 &= 0, \qquad \mu^m_k(\hat x) = f_m(\hat x, \bar\mu^m_k), \quad f_1(\hat x, \mu) = \mu        \qquad (1) \\
    c_m &= \arg\min_k |z - \hat x_{m-1} - \mu^m_k(\hat x_{m-1})|^2                                        \qquad (2) \\
    \hat x_m &= \hat x_{m-1} + \mu^m_{c_m}(\hat x_{m-1})                                                  \qquad (3) \\
    \mathcal{L} &= \textstyle\sum_m |\mathrm{sg}[z] - \hat x_m|^2 + \beta\, |z - \mathrm{sg}[\hat x_m]|^2 \qquad (4)

::

    base codebook (K, L) --+
                           +--> f_m --> codebook of this row (K, L) --nearest--> code --> partial reconstruction --+
    partial (N, L) --------+                                                                                       |
        ^                                                                                                          |
        +--------------------------------------- next level <------------------------------------------------------+

The choice (2) needs all K codes of each row. It is made without gradient, a block of rows at a time; the chosen code is
then computed again with its gradient. So memory is O(block x K + N), not N x K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gmvq.kernels import nearest_code
from gmvq.quantizers.base import AbstractQuantizer
from gmvq.quantizers.compositions.composite import AbstractComposite
from gmvq.quantizers.compositions.places import is_complete, listed, show
from gmvq.quantizers.parts.checks import checked_codes, checked_estimator, positive_integer
from gmvq.quantizers.parts.estimators import AbstractEstimator
from gmvq.quantizers.parts.rows import mean_square
from gmvq.types import Quantized

BLOCK_ELEMENTS = 1 << 22
"""Number of features of transformed codes held at a time, in the widest layer."""

START_SCALE = 0.01
"""Size of the network's part of a code at the start, against the base code: at 0 its way in would have no gradient."""


class CodeTransform(nn.Module):
    r"""The network f: a code for each pair of a base code and a partial reconstruction.

    .. math:: h_0 = \mu + W [\mu, \hat x] + b, \qquad h_i = h_{i-1} + V_i\, \mathrm{relu}(U_i h_{i-1})

    It starts near :math:`h = \mu`, so that training begins at an ordinary residual quantizer.

    Args:
        dim: Features L of a code.
        hidden_dim: Features inside a block.
        blocks: Number of residual blocks.

    Shape:
        base codes ``(*, L)``, partial reconstructions ``(*, L)``, broadcast to each other -> codes ``(*, L)``.
    """

    def __init__(self, dim: int, hidden_dim: int, blocks: int) -> None:
        super().__init__()
        self.from_code = nn.Linear(dim, dim)
        self.from_reconstruction = nn.Linear(dim, dim, bias=False)
        ways_out = [nn.Linear(hidden_dim, dim, bias=False) for _ in range(blocks)]
        self.ways_in = nn.ModuleList(nn.Linear(dim, hidden_dim, bias=False) for _ in range(blocks))
        self.ways_out = nn.ModuleList(ways_out)
        with torch.no_grad():
            for layer in (self.from_code, self.from_reconstruction, *ways_out):
                layer.weight.mul_(START_SCALE)
            self.from_code.bias.zero_()

    def forward(self, base: Tensor, reconstruction: Tensor) -> Tensor:
        """Codes of base codes ``(*, L)`` for partial reconstructions ``(*, L)``."""
        # W [mu, x] in two parts: each is computed once for its axis where codes and rows are crossed
        h = base + self.from_code(base) + self.from_reconstruction(reconstruction)
        for way_in, way_out in zip(self.ways_in, self.ways_out, strict=True):
            h = h + way_out(way_in(h).relu())
        return h


class ImplicitResidual(AbstractComposite):
    r"""A residual quantizer (QINCo) whose codebooks are functions of the partial reconstruction.

    .. math:: c_m = \arg\min_k |z - \hat x_{m-1} - f_m(\hat x_{m-1}, \bar\mu^m_k)|^2, \quad
              \hat x_m = \hat x_{m-1} + f_m(\hat x_{m-1}, \bar\mu^m_{c_m})                            \qquad (2, 3)

    Members give the base codebooks: any quantizer with one code for a latent and an explicit codebook. A codebook that
    learns by gradient, as of ``VectorQuantizer(dim, K, decay=None)``, learns from this quantizer's loss through f. In
    training each member is also shown the residuals of its level, so that it starts at their k-means and moving
    averages follow them; what else a member does alone (its choice of a code, its loss, its estimator) has no part.
    Parameters that only this needs, as a variance or a way in, get no gradient here, which data parallel training takes
    for an error: their ``requires_grad`` is switched off. The loss is a squared error whatever those of the members.
    The networks and the choice run in the type of the parameters.

    Decoding is sequential, and any number of leading codes decodes: ``decode(codes[..., :n])``. The codes of decoded
    codes need not be the codes, as in every residual quantizer.

    Args:
        quantizers: The member of each level, or one that serves all (a shared base codebook).
        num_quantizers: Number of levels M that one shared member serves.
        hidden_dim: Features inside the blocks of f.
        blocks: Number of residual blocks of f; 0 leaves an affine map.
        commitment_weight: beta.
        estimator: How the gradient passes the choice of codes.

    Shape:
        latents ``(*, dim)`` -> values ``(*, dim)``, codes ``(*, M)``, loss ``()``: the squared errors of the partial
        reconstructions and beta times the commitment, each summed over levels; terms ``()``.

    Raises:
        ValueError: If an argument is out of range, or a member has no codebook of its own or other features.

    References:
        Residual Quantization with Implicit Neural Codebooks (Huijben et al., 2024), https://arxiv.org/abs/2401.14732

    Example:
        >>> from gmvq import VectorQuantizer
        >>> levels = [VectorQuantizer(8, 32, decay=None) for _ in range(3)]
        >>> quantizer = ImplicitResidual(levels, hidden_dim=16)
        >>> values, codes, loss, terms = quantizer(torch.randn(2, 40, 8))
        >>> codes.shape
        torch.Size([2, 40, 3])
        >>> torch.equal(values, quantizer.decode(codes))
        True
        >>> quantizer.decode(codes[..., :1]).shape  # a coarser reconstruction from the first codes
        torch.Size([2, 40, 8])
    """

    citations: tuple[str, ...] = ("qinco_huijben2024",)
    adds_losses: ClassVar[bool] = False
    loss_in_nats: ClassVar[bool] = False  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        quantizers: AbstractQuantizer | Sequence[AbstractQuantizer],
        num_quantizers: int | None = None,
        *,
        hidden_dim: int = 256,
        blocks: int = 2,
        commitment_weight: float = 0.25,
        estimator: AbstractEstimator | None = None,
    ) -> None:
        places = listed(quantizers, num_quantizers, "num_quantizers")
        _check_members(places)
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0:
            raise ValueError(f"'blocks' must be an integer of at least 0, got {blocks!r}. Use for example 2.")
        if not (math.isfinite(commitment_weight) and commitment_weight >= 0):
            raise ValueError(f"'commitment_weight' must be at least 0, got {commitment_weight}. Use for example 0.25.")
        hidden_dim = positive_integer("hidden_dim", hidden_dim)
        estimator = checked_estimator(estimator)
        super().__init__(places[0].dim, places)
        for member in self.places:
            _switch_off_beside_codebook(member)
        self.commitment_weight = commitment_weight
        self.estimator = estimator
        self.width = max(self.dim, hidden_dim if blocks else 0)
        # the first level has nothing to depend on
        self.transforms = nn.ModuleList(CodeTransform(self.dim, hidden_dim, blocks) for _ in places[1:])

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 1 and 1 <= shape[0] <= len(self.places)

    def _base(self, level: int) -> Tensor:
        """Base codebook of a level, ``(K, L)``, in the type of the parameters."""
        return self.places[level].codebook.to(self.training_progress.dtype)

    def _codes_of(self, level: int, base: Tensor, reconstruction: Tensor) -> Tensor:
        """Codes f(xhat, mu) of base codes and partial reconstructions, ``(*, L)``."""
        return self.transforms[level - 1](base, reconstruction) if level else base  # (1)

    @torch.no_grad()
    def _choose(self, level: int, base: Tensor, reconstruction: Tensor, residual: Tensor) -> Tensor:
        """Code of each row ``(N,)``: the nearest of the codes that its reconstruction gives."""
        if not level:
            return nearest_code(residual, base)
        rows = max(1, BLOCK_ELEMENTS // (len(base) * self.width))
        if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
            # the number of blocks would fix the number of rows that an exported graph takes
            return self._nearest(level, base, reconstruction, residual)
        blocks = zip(reconstruction.split(rows), residual.split(rows), strict=True)
        return torch.cat([self._nearest(level, base, *block) for block in blocks])

    def _nearest(self, level: int, base: Tensor, reconstruction: Tensor, residual: Tensor) -> Tensor:
        codes = self._codes_of(level, base, reconstruction[:, None])  # (N, K, L)
        return (codes - residual[:, None]).square().sum(-1).argmin(-1)  # (2)

    def _step(self, level: int, reconstruction: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """A level's code of each row ``(N,)``, and the partial reconstruction with it, ``(N, L)``."""
        base = self._base(level)
        chosen = self._choose(level, base, reconstruction, residual.to(base.dtype))
        return chosen, reconstruction + self._codes_of(level, base[chosen], reconstruction)  # (3)

    @torch.no_grad()
    def _start(self, rows: Tensor, kept: Tensor) -> set[int]:
        """Shows members of several levels their residuals while they wait for rows; returns the levels that did.

        It comes before the codes are chosen for good: a code that waits moves to a residual of a later level, and an
        earlier one may have chosen it, since the network puts it nearer than the code that has the row.
        """
        reconstruction = torch.zeros_like(rows, dtype=self.training_progress.dtype)
        shown: set[int] = set()
        for level, member in enumerate(self.places):
            if all(is_complete(other) for other in self.places):
                break
            residual = rows - reconstruction
            if not is_complete(member):
                show(member, residual, kept)
                shown.add(level)
            _, reconstruction = self._step(level, reconstruction, residual)
        return shown

    def _forward_rows(self, rows: Tensor, kept: Tensor) -> Quantized:
        reconstruction = torch.zeros_like(rows, dtype=self.training_progress.dtype)
        codes, error, commitment, terms = [], rows.new_zeros(()), rows.new_zeros(()), {}
        seen: list[tuple[AbstractQuantizer, Tensor]] = []
        shared = len(self.members) < len(self.places)
        shown = self._start(rows.detach(), kept) if self.learning and shared else ()
        for level, member in enumerate(self.places):
            residual = (rows - reconstruction).detach()
            if is_complete(member):
                seen += [] if level in shown else [(member, residual)]
            elif self.learning and level not in shown:
                show(member, residual, kept)
            chosen, reconstruction = self._step(level, reconstruction, residual)
            level_error = mean_square(rows.detach() - reconstruction, kept)
            error = error + level_error  # (4)
            commitment = commitment + mean_square(rows - reconstruction.detach(), kept)
            terms[f"{level}.error"] = level_error.detach()
            codes.append(chosen)
        loss = error + self.commitment_weight * commitment
        values = self.estimator(rows, reconstruction.to(rows.dtype))
        if self.learning:  # last, since a repeated forward does not draw the random numbers of their statistics
            with torch.no_grad():
                for member, residual in seen:
                    member(residual, kept)
        return Quantized(values, torch.stack(codes, -1), loss, {"commitment": commitment.detach(), **terms})

    def _encode_rows(self, rows: Tensor) -> Tensor:
        reconstruction = torch.zeros_like(rows, dtype=self.training_progress.dtype)
        codes = []
        for level in range(len(self.places)):
            chosen, reconstruction = self._step(level, reconstruction, rows - reconstruction)
            codes.append(chosen)
        return torch.stack(codes, -1)

    def _decode_rows(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        reconstruction = self.training_progress.new_zeros(codes.shape[0], self.dim)
        for level, chosen in enumerate(codes.unbind(-1)):
            base = self._base(level)
            chosen = checked_codes(chosen, len(base))
            code = self._codes_of(level, base[chosen.clamp_min(0)], reconstruction)
            reconstruction = reconstruction + torch.where(chosen[:, None] >= 0, code, 0)  # (3)
        return reconstruction


def _check_members(members: Sequence[AbstractQuantizer]) -> None:
    for level, member in enumerate(members):
        if member.code_shape != ():
            raise ValueError(
                f"'quantizers' must have one code for each latent, got a {type(member).__name__} with codes of shape "
                f"{member.code_shape} at level {level}. Pass a quantizer with a codebook, as VectorQuantizer."
            )
        if member.dim != members[0].dim:
            raise ValueError(
                f"'quantizers' must all have the same 'dim', got {members[0].dim} at level 0 and {member.dim} at level "
                f"{level}. Wrap those of fewer features in Projected."
            )


def _switch_off_beside_codebook(member: AbstractQuantizer) -> None:
    """Takes the gradient from all parameters that the codebook does not depend on."""
    learned = [parameter for parameter in member.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        total = member.codebook.sum()
    if learned and total.requires_grad:
        reached = torch.autograd.grad(total, learned, allow_unused=True)
    else:
        reached = [None] * len(learned)
    for parameter, gradient in zip(learned, reached, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
