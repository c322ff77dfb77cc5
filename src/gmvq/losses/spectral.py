r"""A perceptual distance of sounds, beside a likelihood that compares sample by sample.

With :math:`M_w` the magnitudes of mel bands over windows of w samples (:mod:`gmvq.spectra`),

.. math:: \frac1{|\mathcal W|} \sum_{w \in \mathcal W} \operatorname{mean} |\ln M_w(y) - \ln M_w(x)|

References:
    High-Fidelity Audio Compression with Improved RVQGAN (Kumar et al., 2023), https://arxiv.org/abs/2306.06546
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gmvq.distributed import places_per_rank
from gmvq.spectra import WINDOWS, LogMel


class SpectralLoss(nn.Module):
    """Mean distance of log-mel spectra over windows of several lengths.

    It is in nats for each value of a spectrum: the negative log-likelihood, up to a constant, under a Laplace
    distribution of scale 1 about the logarithm. Beside a likelihood in nats for each data dimension, at a weight of 1,
    a sample and a value of a spectrum weigh the same. A factor of two in loudness costs 0.69.

    Args:
        rate: Samples per second, Hz.
        windows: Samples of each window. Sounds may be shorter.

    Shape:
        made and real ``(B, C, T)``, lengths ``(B,)`` or None -> ``()``.

    Raises:
        ValueError: If an argument is out of range, or shapes differ.

    Example:
        >>> sound = torch.rand(1, 1, 4000) - 0.5
        >>> loss = SpectralLoss(8000)
        >>> float(loss(sound, sound)), round(float(loss(0.5 * sound, sound)), 1)
        (0.0, 0.7)
    """

    def __init__(self, rate: float, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        if not windows:
            raise ValueError("'windows' must be at least one length in samples, got none. The default is 32 to 2,048.")
        self.spectra = nn.ModuleList(LogMel(rate, window) for window in windows)

    def forward(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:  # noqa: D102
        if real.ndim != 3 or made.shape != real.shape or 0 in real.shape:
            raise ValueError(
                f"'made' and 'real' must have one shape (B, C, T) with samples in it, got {tuple(made.shape)} and "
                f"{tuple(real.shape)}. Add the axis of the batch with [None]."
            )
        means = []
        for spectrum in self.spectra:
            assert isinstance(spectrum, LogMel)
            sums, frames = spectrum.differences(made, real, lengths)
            # ranks may have different numbers of frames only where sounds have lengths of their own
            number = frames.sum() if lengths is None else places_per_rank(frames.sum())
            means.append(sums.sum() / number)
        return torch.stack(means).mean()
