r"""vector-quantize-pytorch's ``RandomProjectionQuantizer``, by our ``VectorQuantize`` of cosines that does not learn.

.. math:: c_h = \arg\max_k \frac{n(x) A_h}{|n(x) A_h|} \cdot \mu_{hk}
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmvq.compat.vector import VectorQuantize


class RandomProjectionQuantizer(nn.Module):
    r"""Labels latents by random projections and random codebooks, with the interface of vector-quantize-pytorch.

    Several codebooks have a second random map, from the ``num_codebooks`` projections to as many times their features:
    the original has it, and its state fixes which labels are meant. :class:`gmvq.RandomProjectionQuantizer`, one for
    each codebook, is the paper's form.

    Args:
        dim: Features of a latent.
        codebook_size: Number of codes K of a codebook.
        codebook_dim: Features of a projection.
        num_codebooks: Number of labels h of a latent.
        norm: True to scale each latent to mean 0 and variance 1.
        **options: Other keyword arguments of :class:`~gmvq.compat.vector.VectorQuantize`; not ``kmeans_init``.

    Shape:
        x ``(B, N, dim)`` -> indices ``(B, N)``, or with several codebooks ``(B, N, num_codebooks)``.

    Raises:
        ValueError: If an option is not supported.

    References:
        Self-supervised Learning with Random-projection Quantizer for Speech Recognition (Chiu et al., 2022),
        https://arxiv.org/abs/2202.01855

    Example:
        >>> RandomProjectionQuantizer(dim=80, codebook_size=64, codebook_dim=16)(torch.randn(2, 10, 80)).shape
        torch.Size([2, 10])
    """

    rand_projs: Tensor
    """A, ``(num_codebooks, dim, codebook_dim)``."""

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        if options.get("kmeans_init"):
            raise ValueError(
                "'kmeans_init' must be False, got True: nothing learns here, codes are random. Leave it out: codes "
                "that have started load without it."
            )
        self.dim = dim
        self.num_codebooks = num_codebooks
        self.normalizes = norm
        self.register_buffer("rand_projs", nn.init.xavier_normal_(torch.empty(num_codebooks, dim, codebook_dim)))
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **options,
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes K of a codebook."""
        return self.vq.codebook_size

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Labels x.

        Args:
            x: Latents ``(B, N, dim)``.
            indices: Labels of which the cross-entropy is wanted, as ``VectorQuantize`` takes them.

        Returns:
            Indices, or the cross-entropy ``()`` of the given ones.
        """
        x = F.layer_norm(x, (self.dim,)) if self.normalizes else x
        # in the type of the module: labels are the same under autocast
        rows = torch.einsum("bnd,hde->bnhe", x.to(self.rand_projs.dtype), self.rand_projs).flatten(2)
        self.vq.eval()  # nothing learns, whatever mode the model around it is in
        if indices is None:
            return self.vq(rows)[1]
        return self.vq(rows, indices=indices)[1]
