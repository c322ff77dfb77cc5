r"""Log-mel spectra of sound: logarithms of the magnitudes of short windows in bands of the mel scale.

::

    (B, C, T) --windows of w samples--> |STFT| (w/2 + 1 bins) --mel filters--> bands --log--> (B, C, bands, frames)

The definition is that of HiFi-GAN (Kong et al., 2020, https://arxiv.org/abs/2010.05646) and DAC (Kumar et al., 2023,
https://arxiv.org/abs/2306.06546): Hann windows, magnitudes (not powers), Slaney's mel scale with triangles of area 1,
and a floor of 1e-5 under the logarithm, about the error of rounding to 16 bits. Beyond both ends there is silence,
where they mirror the sound, so that a padded item has exactly the spectrum of the shorter one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gmvq.checks import at_least, positive

FLOOR = 1e-5
"""Least magnitude of a band, so that silence has a logarithm."""

WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
"""Samples of the windows by which sounds are compared, as in DAC: short ones resolve time, long ones pitch."""

BLOCK = 1 << 20
"""Samples of a sound whose spectra are compared at a time: an hour of sound has a hundred times its size in spectra."""

_LINEAR_HZ, _MEL_OF_LINEAR, _MEL_OF_OCTAVES = 1000.0, 3 / 200, 27 / math.log(6.4)


def hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts hertz to Slaney's mel scale: linear up to 1 kHz, which is 15, logarithmic above.

    Example:
        >>> hertz_to_mel(np.array([200.0, 1000.0, 6400.0])).tolist()
        [3.0, 15.0, 42.0]
    """
    octaves = np.log(np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ) * _MEL_OF_OCTAVES
    return np.minimum(hertz, _LINEAR_HZ) * _MEL_OF_LINEAR + octaves


def mel_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts Slaney's mel scale to hertz: the inverse of :func:`hertz_to_mel`."""
    border = _LINEAR_HZ * _MEL_OF_LINEAR
    return np.minimum(mel, border) / _MEL_OF_LINEAR * np.exp(np.maximum(mel - border, 0) / _MEL_OF_OCTAVES)


def mel_filters(rate: float, window: int, bands: int) -> Tensor:
    """Makes triangles over the bins of a spectrum, evenly spaced in mel from 0 to half the rate, each of area 1.

    Args:
        rate: Samples per second, Hz.
        window: Samples of a window.
        bands: Number of triangles. Those without any bin are left out.

    Returns:
        Weights of bins, float64 ``(at most bands, window // 2 + 1)``, per Hz.
    """
    edges = mel_to_hertz(np.linspace(0, hertz_to_mel(np.array(rate / 2)), bands + 2))
    bins = np.arange(window // 2 + 1) * (rate / window)
    low, middle, high = (edges[start : start + bands, None] for start in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    weights = np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))
    return torch.from_numpy(weights[weights.any(1)])


class LogMel(nn.Module):
    """Natural logarithm of the magnitudes of mel bands, in frames centered at samples 0, ``hop``, 2 ``hop``, ...

    Args:
        rate: Samples per second, Hz.
        window: Samples of a window.
        bands: Mel bands; by default 5 for every 32 samples of the window, as in DAC.
        hop: Samples from frame to frame; by default a quarter of the window.
        dtype: Precision of the filters: float64 for metrics.

    Shape:
        samples ``(B, C, T)`` -> ``(B, C, bands, 1 + T // hop)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    hann: Tensor
    filters: Tensor

    def __init__(
        self,
        rate: float,
        window: int,
        bands: int | None = None,
        hop: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        positive("rate", rate)
        self.window = at_least("window", window, 8)
        bands = at_least("bands", max(1, 5 * window // 32) if bands is None else bands, 1)
        self.hop = at_least("hop", window // 4 if hop is None else hop, 1)
        self.register_buffer("hann", torch.hann_window(window, dtype=torch.float64).to(dtype), persistent=False)
        self.register_buffer("filters", mel_filters(rate, window, bands).to(dtype), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:  # noqa: D102
        return self._bands(samples, centered=True)

    def _bands(self, samples: Tensor, *, centered: bool) -> Tensor:
        """Computes the frames of samples; those that are not centered begin with the first sample."""
        dtype = torch.float64 if samples.dtype == torch.float64 else torch.float32
        with torch.autocast(samples.device.type, enabled=False):
            spectrum = torch.stft(
                samples.to(dtype).flatten(0, 1),
                self.window,
                self.hop,
                window=self.hann.to(dtype),
                center=centered,
                pad_mode="constant",
                return_complex=True,
            )
            bands = self.filters.to(dtype) @ spectrum.abs()
        return bands.clamp_min(FLOOR).log().unflatten(0, samples.shape[:2])

    def differences(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes absolute differences of the spectra of two sounds.

        Args:
            made: Floats ``(B, C, T)``.
            real: Reference of the same shape.
            lengths: Samples of each item that count ``(B,)``; None for all.

        Returns:
            The sum over the frames of each item of the mean over channels and bands ``(B,)``, and the number of its
            frames ``(B,)``: those centered no later than its end.
        """
        length, number, step = real.shape[-1], 1 + real.shape[-1] // self.hop, max(1, BLOCK // self.hop)
        if length <= BLOCK:
            frames = self._differences(made, real, lengths, None)
        else:
            spans = [slice(first, min(number, first + step)) for first in range(0, number, step)]
            frames = torch.cat([self._differences(made, real, lengths, span) for span in spans], 1)
        if lengths is None:
            return frames.sum(1), torch.full_like(frames[:, 0], frames.shape[1])
        counted = torch.arange(frames.shape[1], device=frames.device) * self.hop <= lengths.to(frames.device)[:, None]
        return frames.masked_fill(~counted, 0).sum(1), counted.sum(1).to(frames.dtype)

    def _differences(self, made: Tensor, real: Tensor, lengths: Tensor | None, frames: slice | None) -> Tensor:
        """Computes the mean absolute difference of each frame, of some or None for all, ``(B, frames)``."""
        start, padding = 0, (0, 0)
        if frames is not None:
            first = frames.start * self.hop - self.window // 2
            last = (frames.stop - 1) * self.hop - self.window // 2 + self.window
            start, stop = max(0, first), min(real.shape[-1], last)
            padding = (start - first, last - stop)
            precision = torch.promote_types(real.dtype, self.filters.dtype)
            made, real = (samples[..., start:stop].to(precision) for samples in (made, real))
        if lengths is not None:
            places = torch.arange(start, start + real.shape[-1], device=real.device)
            beyond = places >= lengths.to(real.device)[:, None, None]
            made, real = made.masked_fill(beyond, 0), real.masked_fill(beyond, 0)
        spectra = [self._bands(F.pad(samples, padding), centered=frames is None) for samples in (made, real)]
        return (spectra[0] - spectra[1]).abs().mean((1, 2))
