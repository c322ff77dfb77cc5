"""Writing of audio files, and players and spectrograms of reports."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmvq.data.writing import write_atomically
from gmvq.modalities.base import Picture, Sound
from gmvq.modalities.charts import LEFT, RIGHT, as_picture, new_figure, plain
from gmvq.spectra import FLOOR, LogMel, hertz_to_mel
from gmvq.types import as_stored

SHOWN_SECONDS = 10
"""Longest part of a recording in a report, taken from its middle."""

BANDS, DEPTH = 80, 80.0
"""Mel bands of a spectrogram, and decibels from its darkest to its brightest color."""

_WINDOW_SECONDS, _FRAMES = 0.032, 400
_TICKS = (500, 1000, 2000, 4000, 8000, 16000)
_INK = "#333333"
_FORMATS = {".wav": ("WAV", 1024), ".flac": ("FLAC", 8)}
"""Format and largest number of channels by file suffix."""


def encoded(samples: Tensor, rate: int, kind: str = "WAV") -> bytes:
    """Encodes a 16-bit audio file.

    Args:
        samples: Floats in [-1, 1], rounded to 16 bits, or int16 ``(C, T)``.
        rate: Samples per second, Hz.
        kind: ``WAV`` or ``FLAC``.
    """
    import soundfile

    buffer = BytesIO()
    soundfile.write(buffer, as_stored(samples, "signed").cpu().T.numpy(), rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def write_audio(path: Path, samples: Tensor, rate: int) -> None:
    """Writes a 16-bit recording, atomically.

    Args:
        path: The file: ``.wav`` or ``.flac``.
        samples: Floats ``(C, T)``, of which values outside [-1, 1] are clipped, or int16.
        rate: Samples per second, Hz.

    Raises:
        ValueError: If the format is unknown or cannot hold the recording, or samples are not finite.
        OSError: If the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"Recordings are written as .wav or .flac, got {path}. Use {path.with_suffix('.wav')}.")
    kind, most = _FORMATS[suffix]
    if samples.ndim != 2 or not 0 < samples.shape[0] <= most or samples.shape[1] == 0:
        raise ValueError(
            f"A {kind} file holds recordings (C, T) of 1 to {most} channels, got {tuple(samples.shape)} for {path}. "
            "Add an axis with [None], or mix the channels."
        )
    if not samples.isfinite().all():
        raise ValueError(f"The recording for {path} must be finite, got NaN or infinity. Check the model.")
    if kind == "FLAC" and rate > 655_350:
        raise ValueError(f"A FLAC file holds at most 655350 Hz, got {rate} for {path}. Use {path.with_suffix('.wav')}.")
    write_atomically(path, encoded(samples, rate, kind))


def shown_part(length: int, rate: int) -> slice:
    """Returns the part of a recording that a report shows."""
    most = SHOWN_SECONDS * rate
    start = max(0, length - most) // 2
    return slice(start, start + min(length, most))


def player(samples: Tensor, rate: int, text: str) -> Sound:
    """Encodes the middle of a recording ``(C, T)`` for playing; more than two channels are mixed."""
    length = samples.shape[-1]
    part = shown_part(length, rate)
    heard = samples[:, part] if samples.shape[0] <= 2 else samples[:, part].mean(0, keepdim=True)
    if part.stop - part.start < length:
        text = f"{text}: the middle {SHOWN_SECONDS} s of {length / rate:.1f} s"
    return Sound(encoded(heard, rate), text)


def loudness(samples: Tensor, rate: int) -> float:
    """Returns the level of the loudest band of a recording in dB, the reference of its spectrogram."""
    return float(_decibels(samples, rate).max())


def spectrogram(samples: Tensor, rate: int, text: str, loudest: float) -> Picture:
    """Draws mel bands over time of the middle of a recording ``(C, T)``, mixed to one channel.

    Args:
        samples: Floats ``(C, T)``.
        rate: Samples per second, Hz.
        text: Alternative text of the picture.
        loudest: Level of the brightest color in dB, from :func:`loudness`; 80 dB below is the darkest.
    """
    part = shown_part(samples.shape[-1], rate)
    seconds = (part.start / rate, part.stop / rate)
    top = max(loudest, 20 * math.log10(FLOOR) + DEPTH)
    figure = new_figure(1.5)
    ax = figure.subplots()
    ax.imshow(
        _decibels(samples, rate),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=top - DEPTH,
        vmax=top,
        extent=(*seconds, 0, 1),
    )
    ticks = [hertz for hertz in _TICKS if hertz < rate / 2]
    nyquist = hertz_to_mel(np.array(rate / 2))
    ax.set_yticks(hertz_to_mel(np.array(ticks)) / nyquist, [f"{hertz / 1000:g} kHz" for hertz in ticks])
    ax.set_xlabel("seconds", fontsize=7, color=_INK)
    plain(ax)
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.95, bottom=0.26)
    return as_picture(figure, f"{text}: mel spectrogram, {seconds[0]:.2f} to {seconds[1]:.2f} s")


def _decibels(samples: Tensor, rate: int) -> np.ndarray:
    """Computes band magnitudes ``(bands, frames)`` of the middle of a recording, mixed to one channel, in dB."""
    part = samples.detach().float().cpu().mean(0)[shown_part(samples.shape[-1], rate)]
    window = max(32, 1 << math.ceil(math.log2(_WINDOW_SECONDS * rate)))
    hop = max(1, min(window // 4, len(part) // _FRAMES))
    with torch.no_grad():
        return LogMel(rate, window, BANDS, hop)(part[None, None])[0, 0].numpy() * (20 / math.log(10))
