r"""Distortion of recordings, perceptual and sample by sample.

For a recording x of C channels and T samples and its reconstruction y:

.. math::
    \text{mel distance} = \frac1{|\mathcal W|} \sum_{w \in \mathcal W}
        \operatorname{mean} |\log_{10} M_w(y) - \log_{10} M_w(x)|

with :math:`M_w` the magnitudes of mel bands over windows of w = 32, 64, ..., 2,048 samples (:mod:`gmvq.spectra`), in
powers of ten: 0.05 is 1 dB. Windows and bands are those of DAC, which sums over the seven windows; their duration
depends on the rate, so that only distances at one rate compare. The scale-invariant signal-to-distortion ratio of
recordings with their mean removed is

.. math::
    \text{SI-SDR} = 10 \log_{10} \frac{\lVert \alpha x \rVert^2}{\lVert \alpha x - y \rVert^2} \text{ dB}, \qquad
    \alpha = \frac{\langle y, x \rangle}{\lVert x \rVert^2}

over all channels together. It is undefined for a silent x, which is left out of its mean. It counts as at most 100 dB,
where y equals x, and as at least -100 dB, where y is orthogonal to x.

All metrics are computed in float64, whatever the input.

References:
    SDR - Half-baked or Well Done? (Le Roux et al., 2019), https://arxiv.org/abs/1811.02508;
    High-Fidelity Audio Compression with Improved RVQGAN (Kumar et al., 2023), https://arxiv.org/abs/2306.06546
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from gmvq.distributed import sum_over_ranks
from gmvq.metrics.base import Distortion, Measure
from gmvq.metrics.precision import in_float64
from gmvq.spectra import BLOCK, WINDOWS, LogMel

SI_SDR_CAP = 100.0
"""Limit in dB, of either sign, of a recording's SI-SDR in the mean."""

_SILENCE = 1e-12
"""Mean square below which a recording is silent: a sixtieth of that of the rounding to 16 bits."""


def si_sdr(made: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Computes the scale-invariant signal-to-distortion ratio of each recording in dB, from -100 to 100.

    Args:
        made: Floats ``(B, C, T)``.
        real: Reference of the same shape.
        lengths: Samples of each item that count ``(B,)``; None for all.

    Returns:
        float64 ``(B,)``; NaN where the real recording is silent.

    Raises:
        ValueError: If the shapes differ, or values that count are not finite.

    Example:
        >>> tone, noise = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]), torch.tensor([[[0.1, 0.1, -0.1, -0.1]]])
        >>> round(float(si_sdr(0.5 * (tone + noise), tone)), 4)
        20.0
    """
    counts = _checked(made, real, lengths)
    totals = _of_blocks(_blocks(made, real, counts), _per_channel)
    means = [total / counts[:, None, None] for total in totals]

    def centered() -> Iterator[tuple[Tensor, Tensor]]:
        for y, x, mask in _blocks(made, real, counts):
            yield (y - means[0]) * mask, (x - means[1]) * mask

    energy, product = _of_blocks(centered(), lambda y, x: (x.square().sum((1, 2)), (y * x).sum((1, 2))))
    alpha = (product / energy)[:, None, None]
    target, rest = _of_blocks(
        centered(), lambda y, x: ((alpha * x).square().sum((1, 2)), (alpha * x - y).square().sum((1, 2)))
    )
    decibels = (10 * (target / rest).log10()).nan_to_num(nan=-SI_SDR_CAP, posinf=SI_SDR_CAP, neginf=-SI_SDR_CAP)
    silent = energy <= _SILENCE * counts * real.shape[1]
    return decibels.clamp(-SI_SDR_CAP, SI_SDR_CAP).masked_fill(silent, math.nan)


class AudioDistortion(Distortion):
    """Mel distance, SI-SDR and squared error over the recordings of a data set, streamed.

    The metrics are those of the items that this process has seen. Under ``torch.distributed`` take them from
    :meth:`merged`, which every rank must call. The protocol is that of the module's docstring.

    Args:
        rate: Samples per second, Hz.

    Raises:
        ValueError: If the rate is not above 0.

    Example:
        >>> distortion = AudioDistortion(8000)
        >>> real = torch.rand(1, 1, 4000) - 0.5
        >>> distortion.update(0.1 * real, real)
        >>> metrics = distortion.metrics()
        >>> round(metrics["mel_distance"], 3), metrics["si_sdr"]
        (1.0, 100.0)
    """

    headline: ClassVar[str] = "mel_distance"
    higher_is_better: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "mel_distance",
            "Mel distance",
            "",
            "Distance of log-mel spectra in powers of ten, over windows of 32 to 2,048 samples: how it sounds.",
            "Lower is better; 0.05 is 1 dB.",
            ".3f",
        ),
        Measure(
            "si_sdr",
            "SI-SDR",
            "dB",
            "Scale-invariant signal-to-distortion ratio: how the waves agree, whatever their loudness.",
            "Higher is better; below 0 dB the wave differs more than it agrees, and can still sound alike.",
            ".2f",
        ),
        Measure("mse", "MSE", "", "Mean squared error of samples in [-1, 1].", "Lower is better.", ".3g"),
    )
    protocol: str = (
        "Mel distance (base-10 logarithms, windows of 32 to 2,048 samples), SI-SDR and MSE are means over recordings; "
        f"SI-SDR counts as at most {SI_SDR_CAP:g} dB, and silent recordings have none."
    )

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._spectra = [LogMel(rate, window, dtype=torch.float64) for window in WINDOWS]
        self._sums = torch.zeros(5, dtype=torch.float64)  # items, mel distance, MSE, items that sound, SI-SDR

    def update(self, made: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        """Adds recordings.

        Args:
            made: Floats ``(B, C, T)``.
            real: Reference of the same shape.
            lengths: Samples of each item that count ``(B,)``; None for all.

        Raises:
            ValueError: If the shapes differ, or values that count are not finite.
        """
        counts = _checked(made, real, lengths)
        if len(real) == 0:
            return
        if real.shape[-1] <= BLOCK:
            made, real, _ = next(_blocks(made, real, counts))
        mel = torch.zeros(len(real), dtype=torch.float64)
        for spectrum in self._spectra:
            sums, frames = spectrum.differences(made.detach().cpu(), real.detach().cpu(), counts)
            mel += sums / frames / (len(self._spectra) * math.log(10))
        (squared,) = _of_blocks(_blocks(made, real, counts), lambda y, x: ((y - x).square().sum((1, 2)),))
        squared = squared / (counts * real.shape[1])
        decibels = si_sdr(made, real, counts)
        sounds = ~decibels.isnan()
        columns = torch.ones_like(mel), mel, squared, sounds.double(), decibels.nan_to_num(nan=0.0)
        self._sums += torch.stack(columns).sum(1)

    def metrics(self) -> dict[str, float | None]:
        """Returns ``mel_distance`` (powers of ten), ``si_sdr`` (dB; None if all are silent) and ``mse``."""
        items, mel, squared, sounding, decibels = self._sums.tolist()
        if not items:
            return {}
        ratio = decibels / sounding if sounding else None
        return {"mel_distance": mel / items, "si_sdr": ratio, "mse": squared / items}

    @property
    def items(self) -> int:
        """Number of recordings seen."""
        return int(self._sums[0])

    def merged(self) -> AudioDistortion:
        """Sums over all ranks into a new accumulator; without a process group it is a copy.

        This is a collective: when a process group exists at the call, every rank must call it.
        """
        merged = AudioDistortion(self.rate)
        merged._sums = sum_over_ranks(self._sums).clone()
        return merged


def _checked(made: Tensor, real: Tensor, lengths: Tensor | None) -> Tensor:
    """Checks sounds, and returns the samples of each that count ``(B,)``."""
    if real.ndim != 3 or made.shape != real.shape or 0 in real.shape[1:]:
        raise ValueError(
            f"'made' and 'real' must have one shape (B, C, T) with samples in it, got {tuple(made.shape)} and "
            f"{tuple(real.shape)}. Add the axis of the batch with [None]."
        )
    batch, _, length = real.shape
    if lengths is None:
        lengths = torch.full((batch,), length)
    elif lengths.shape != (batch,) or (batch and not 0 < int(lengths.min()) <= int(lengths.max()) <= length):
        raise ValueError(
            f"'lengths' must be {batch} integers from 1 to {length}, got {lengths.tolist()}. Leave them out where "
            "all samples count."
        )
    counts = lengths.cpu()
    for y, x, _ in _blocks(made, real, counts):
        for name, values in (("made", y), ("real", x)):
            if not values.isfinite().all():
                raise ValueError(f"'{name}' must be finite, got NaN or infinity. Check the model and the data.")
    return counts


def _blocks(made: Tensor, real: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields both in float64 on the CPU, 0 beyond their lengths, and a mask of samples that count ``(B, 1, t)``.

    An hour of sound in float64, with all that is computed from it, would not fit in memory.
    """
    for start in range(0, real.shape[-1], BLOCK):
        stop = min(real.shape[-1], start + BLOCK)
        mask = torch.arange(start, stop) < counts[:, None, None]
        y, x = (
            in_float64(values[..., start:stop].detach()).cpu().masked_fill(~mask, 0) for values in (made, real)
        )  # fmt: skip
        yield y, x, mask


def _of_blocks(
    blocks: Iterable[tuple[Tensor, ...]], sums: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Adds up sums of both sounds, or of terms of them, over all blocks."""
    totals: list[Tensor] = []
    for y, x, *_ in blocks:
        found = sums(y, x)
        totals = [total + each for total, each in zip(totals, found, strict=True)] if totals else list(found)
    return totals


def _per_channel(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return y.sum(-1, keepdim=True), x.sum(-1, keepdim=True)
