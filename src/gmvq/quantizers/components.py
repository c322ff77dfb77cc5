"""A Gaussian mixture as the kernels take it: in units of its standard deviation."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from gmvq.kernels import MixtureStep, mixture_step, squared_distances


class Components(NamedTuple):
    """A mixture in units of sigma, for the kernels.

    Attributes:
        scale: What multiplies latents, ``(L,)``.
        codebook: Codes times ``scale``, ``(K, L)``.
        precisions: What multiplies half the squared distances, ``(K,)``.
        biases: log p(c), and the normalizers where they differ between codes, ``(K,)``.
    """

    scale: Tensor
    codebook: Tensor
    precisions: Tensor
    biases: Tensor

    def part(self, codes: Tensor) -> Components:
        """The components of some codes ``(M,)``."""
        return Components(self.scale, self.codebook[codes], self.precisions[codes], self.biases[codes])

    def log_joint(self, rows: Tensor) -> Tensor:
        """Log p(c) - d_c / 2 sigma^2 ``(N, K)``, but for what all codes share: for few codes or few rows."""
        return self.biases - self.precisions * squared_distances(rows * self.scale, self.codebook) / 2

    def energies_of(self, rows: Tensor, codes: Tensor) -> Tensor:
        """d_c / 2 sigma^2 of a code for each row, ``(N,)``."""
        return self.precisions[codes] * (rows * self.scale - self.codebook[codes]).square().sum(-1) / 2

    def step(self, rows: Tensor, **options: Any) -> MixtureStep:  # noqa: ANN401  those of the kernel
        """The kernel's results for rows ``(N, L)``."""
        parts = {"precisions": self.precisions, "biases": self.biases, **options}
        return mixture_step(rows * self.scale, self.codebook, **parts)
