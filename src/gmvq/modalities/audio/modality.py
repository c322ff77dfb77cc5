"""Audio: items are float32 ``(C, T)`` in [-1, 1], all at one sampling rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmvq.checks import at_least
from gmvq.metrics.audio import AudioDistortion
from gmvq.metrics.base import Measure
from gmvq.modalities.audio.decoding import LEAST_RATE, MOST_RATE, SUFFIXES
from gmvq.modalities.audio.pictures import loudness, player, shown_part, spectrogram, write_audio
from gmvq.modalities.audio.sources import read_source
from gmvq.modalities.base import Data, Exhibit, Modality, register
from gmvq.modalities.charts import code_strip
from gmvq.types import Signal


@register
@dataclass(frozen=True)
class Audio(Modality):
    """Audio recordings: speech, music, noises.

    Args:
        rate: Sampling rate that all recordings are resampled to, Hz; by default the most common rate of the data.
        channels: Number of channels of all recordings, where 1 is the mean of a file's channels; by default that of the
            files if they agree, else 1.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[str] = "audio"
    item: ClassVar[str] = "recording"
    items: ClassVar[str] = "recordings"
    sample: ClassVar[str] = "sample"
    wanted: ClassVar[str] = (
        "the path of a folder of recordings (WAV, FLAC, OGG, MP3, AIFF, ...), flat or nested, of an archive of them "
        "(.tar, .tar.xz, .zip), of one file, or of a .npy array (N, T) or (N, C, T)"
    )
    measures: ClassVar[tuple[Measure, ...]] = AudioDistortion.measures
    window_size: ClassVar[int | None] = 4096
    downsampling: ClassVar[int] = 64

    rate: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if (
            self.rate is not None
            and at_least("rate", self.rate, LEAST_RATE, "Give it in Hz, for example 16000.") > MOST_RATE
        ):
            raise ValueError(f"'rate' must be at most {MOST_RATE} Hz, got {self.rate}. Use for example 48000.")
        if self.channels is not None:
            at_least("channels", self.channels, 1)

    @property
    def signal(self) -> Signal:  # noqa: D102
        return Signal("audio", 1, 1 if self.channels is None else self.channels, "signed", float(self._known))

    @property
    def suffix(self) -> str:  # noqa: D102
        return ".wav"

    def read(self, path: Path, held_out_fraction: float, memory_bytes: int) -> Data:
        """Reads recordings and splits them.

        The path is a folder, nested and mixed with other files, a single file, an archive, which is held compressed in
        memory, or a ``.npy`` array of equally long recordings, which needs ``rate``. A file is read whole, up to 2 GiB
        decoded. See :func:`gmvq.modalities.audio.sources.read_source` for the split and the labels.
        """
        found = read_source(path, self.rate, self.channels, held_out_fraction, memory_bytes)
        modality = replace(self, rate=found.rate, channels=found.channels)
        return Data(found.name, found.train, found.held_out, modality, found.skipped, found.classes)

    def recognizes(self, source: Path) -> bool:  # noqa: D102
        return source.suffix.lower() in SUFFIXES

    def window(self, item: Tensor, size: int | None, chance: NDArray[np.float64]) -> Tensor:
        """Cuts a stretch of consecutive samples; keeps shorter ones whole; inverts the sign if chance is below 1/2."""
        length = item.shape[-1]
        if size is not None and length > size:
            start = min(int(chance[0] * (length - size + 1)), length - size)
            item = item[..., start : start + size]
        return -item if chance[2] < 0.5 else item

    def distortion(self, *, quick: bool = False) -> AudioDistortion:
        """Creates an accumulator of mel distance, SI-SDR and squared error, all cheap: ``quick`` is ignored."""
        return AudioDistortion(self._known)

    def exhibit(  # noqa: D102
        self, name: str, real: Tensor, made: Tensor | None = None, codes: Tensor | None = None
    ) -> Exhibit:
        rate = self._known
        real = self.signal.checked(real[None].cpu())[0]
        made = None if made is None else made.detach().float().cpu()
        loudest = loudness(real, rate)
        note = "" if made is None else self._note(made, real)
        strip = ()
        if codes is not None:
            part, tokens = shown_part(real.shape[-1], rate), len(codes)
            first = part.start * tokens // real.shape[-1]
            last = -(-part.stop * tokens // real.shape[-1])
            strip = (code_strip(codes[first:last], f"Codes of {name}", steps=1),)  # steps=1: show all these codes
        return Exhibit(
            name,
            note,
            (player(real, rate, name), spectrogram(real, rate, name, loudest)),
            ()
            if made is None
            else (
                player(made, rate, f"{name}, reconstructed"),
                spectrogram(made, rate, f"{name}, reconstructed", loudest),
            ),
            strip,
        )

    def write(self, path: Path, items: Sequence[Tensor], *, columns: int = 8) -> None:
        """Writes a 16-bit WAV file, or, for a ``.flac`` path, a FLAC file."""
        if len(items) != 1:
            raise ValueError(
                f"'items' must be one recording for {path}, got {len(items)}. Give each a file of its own."
            )
        write_audio(path, items[0], self._known)

    @property
    def _known(self) -> int:
        if self.rate is None:
            raise ValueError("'rate' of the recordings must be known, got None. Use for example Audio(rate=16000).")
        return self.rate

    def _note(self, made: Tensor, real: Tensor) -> str:
        distortion = self.distortion()
        distortion.update(made[None], real[None])
        metrics = distortion.metrics()
        ratio = "" if metrics["si_sdr"] is None else f", SI-SDR {metrics['si_sdr']:.1f} dB"
        return f"mel distance {metrics['mel_distance']:.3f}{ratio}"
