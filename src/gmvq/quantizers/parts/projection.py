"""The linear map around codes of a lower dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmvq.quantizers.parts.codebook import snapshot


class Projection(nn.Module):
    r"""A learned linear map to a lower dimension, and back.

    .. math:: z = (x - b) D (D^T D)^{-1}, \qquad x' = z D^T + b

    The way in is the pseudo-inverse of the way out, so that going out and in again changes nothing: the codes of
    decoded codes are the codes.

    Args:
        dim: Features outside.
        code_dim: Features L inside, at most ``dim``.
        scale: Standard deviation inside against that outside, at the start.
    """

    directions: Tensor
    """D transposed, ``(L, dim)``."""

    def __init__(self, dim: int, code_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        # D^T, whose rows lie together in memory, as files of tensors and averages over models want them
        self.directions = nn.Parameter((torch.linalg.qr(torch.randn(dim, code_dim)).Q / scale).T.contiguous())
        self.offset = nn.Parameter(torch.zeros(dim))

    def project_in(self, latents: Tensor) -> Tensor:
        """Takes ``(N, dim)`` to ``(N, L)``."""
        return self.difference_in(latents - self.offset.to(latents.dtype))

    def difference_in(self, differences: Tensor) -> Tensor:
        """Takes differences of latents ``(N, dim)`` to those of what :meth:`project_in` makes of them ``(N, L)``."""
        directions = snapshot(self.directions, self.training).T.to(differences.dtype)
        return torch.linalg.solve(directions.T @ directions, differences @ directions, left=False)

    def project_out(self, values: Tensor) -> Tensor:
        """Takes ``(N, L)`` to ``(N, dim)``."""
        return values @ snapshot(self.directions, self.training).to(values.dtype) + self.offset.to(values.dtype)

    @torch.no_grad()
    def stretch(self, by: Tensor) -> None:
        """Multiplies what :meth:`project_in` gives by a symmetric map ``(L, L)``, and undoes it on the way out."""
        self.directions.copy_(torch.linalg.solve(by.to(self.directions.dtype), self.directions))
