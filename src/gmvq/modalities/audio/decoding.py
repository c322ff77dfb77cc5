"""Decoding of audio files: WAV, FLAC, OGG, MP3, AIFF and all other formats that libsndfile reads.

::

    file --libsndfile--> (T', C') at its own rate --channels--> (T', C) --soxr--> float32 (C, T) in [-1, 1]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUFFIXES: dict[str, str] = {
    f".{suffix}": kind
    for kind, suffixes in {
        "WAV": "wav wave bwf",
        "RF64": "rf64",
        "W64": "w64",
        "FLAC": "flac",
        "OGG": "ogg oga opus",
        "MP3": "mp3 mp2",
        "AIFF": "aif aiff aifc",
        "AU": "au snd",
        "CAF": "caf",
        "NIST": "sph nist",
        "VOC": "voc",
        "SVX": "8svx svx",
        "IRCAM": "sf ircam",
        "AVR": "avr",
        "PAF": "paf",
        "PVF": "pvf",
        "SDS": "sds",
        "WVE": "wve",
        "XI": "xi",
    }.items()
    for suffix in suffixes.split()
}
"""libsndfile's format name for each suffix of readable files, in lower case."""

COMMON_SUFFIXES = ".wav, .flac, .ogg, .opus, .mp3, .aiff, .au"
"""The most common suffixes, for messages."""

UNREADABLE = {
    f".{suffix}": f"{name} cannot be read here: convert it to FLAC or WAV"
    for name, suffixes in {
        "AAC": "m4a m4b m4p m4r aac adts",
        "WMA": "wma asf",
        "AMR": "amr awb",
        "WavPack": "wv",
        "Monkey's Audio": "ape",
        "Musepack": "mpc",
        "DTS": "dts",
        "Dolby Digital": "ac3 eac3",
        "DSD": "dsf dff",
        "Speex": "spx",
        "True Audio": "tta",
        "RealAudio": "ra",
        "Matroska sound": "mka weba",
        "headerless sound": "raw pcm",
    }.items()
    for suffix in suffixes.split()
}
"""Reasons why audio files with other suffixes cannot be read."""

LONGEST = 1 << 29
"""Largest number of samples of a recording over all channels, 2 GiB decoded: 3.4 hours of one channel at 44.1 kHz."""

LEAST_RATE, MOST_RATE = 100, 1_000_000
"""Smallest and largest sampling rate in Hz."""

_BLOCK = 1 << 20
_LOUDEST = 4.0
"""Samples of float or lossy files may exceed 1 and are clipped; beyond 12 dB they must be on another scale."""

_CUT_OFF = re.compile(r"^\s*(?:data|SSND|BODY|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""libsndfile's log message for a WAV, AIFF, AU or SVX file shorter than its header says, which it still reads."""
_OPEN_ENDS = (0xFFFFFFFF, 0x80000000, 0x7FFFF000)
"""Lengths in bytes that ffmpeg, arecord and SoX write if the length is not known in advance."""

Source = Path | BytesIO


class AudioError(ValueError):
    """A file cannot be read as a recording; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keeps the path and the reason apart for lists of skipped files."""
        super().__init__(f"Cannot read the recording '{path}': {reason}. Replace the file or remove it from the data.")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[Path, str]]:
        """Makes the error picklable for worker processes."""
        return type(self), (self.path, self.reason)


class Header(NamedTuple):
    """Properties of a recording that are known before decoding.

    Attributes:
        length: Samples per channel.
        rate: Samples per second, Hz.
        channels: Number of channels.
    """

    length: int
    rate: int
    channels: int

    def at(self, rate: int) -> int:
        """Returns the samples per channel after resampling, rounded half up as in soxr.

        Example:
            >>> Header(44100, 44100, 1).at(8000), Header(3, 2000, 1).at(1000)
            (8000, 2)
        """
        return (2 * self.length * rate + self.rate) // (2 * self.rate)


def read_header(path: Path, source: Source | None = None) -> Header:
    """Reads the header of a recording.

    Args:
        path: The file.
        source: Content of the file, if it is stored elsewhere.

    Raises:
        AudioError: If the header cannot be read, or describes an unreadable recording.
    """
    with _opened(path, source) as file:
        return _header(path, file)


def read_audio(path: Path, rate: int, channels: int, source: Source | None = None) -> Tensor:
    """Decodes a recording.

    Args:
        path: The file.
        rate: Samples per second of the result, Hz.
        channels: Channels of the result: 1 is the mean of the file's channels; a file of one channel is repeated.
        source: Content of the file, if it is stored elsewhere.

    Returns:
        float32 ``(channels, T)`` in [-1, 1], where T is ``read_header(path).at(rate)``.

    Raises:
        AudioError: If it cannot be read, is truncated, has values that are not finite or outside the scale of audio,
            or has a number of channels that cannot be converted.
    """
    import soxr

    with _opened(path, source) as file:
        header = _header(path, file)
        length = header.at(rate)
        if length == 0:
            raise AudioError(path, f"its {header.length} samples are less than one at {rate} Hz")
        if length * channels > LONGEST:
            raise AudioError(path, f"at {rate} Hz it has {length} samples, more than {LONGEST // channels}: split it")
        samples = _decoded(path, file, header, channels)
    if header.rate != rate:
        samples = soxr.resample(samples, header.rate, rate, quality="HQ")
    assert samples.shape == (length, channels)
    return torch.from_numpy(np.ascontiguousarray(np.clip(samples, -1, 1, out=samples).T))


def converted(samples: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Converts samples ``(..., C')`` to another number of channels: the mean of all, or one channel repeated.

    Raises:
        ValueError: If neither gives that number of channels.
    """
    own = samples.shape[-1]
    if own == channels:
        return samples
    if channels == 1:
        return samples.mean(-1, keepdims=True, dtype=np.float32)
    if own == 1:
        return samples.repeat(channels, -1)
    raise ValueError(f"it has {own} channels instead of {channels}")


@contextmanager
def _opened(path: Path, source: Source | None) -> Iterator[Any]:
    """Opens a ``soundfile.SoundFile``; errors while it is open name the path."""
    import soundfile

    source = path if source is None else source
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:  # so that the system's errors keep their messages
                empty = not file.read(1)
        else:
            empty = not source.getbuffer().nbytes
        if empty:
            raise AudioError(path, "it is empty")
        with soundfile.SoundFile(source) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(path, _reason(error)) from error
    except OSError as error:
        raise AudioError(path, error.strerror or type(error).__name__) from error


def _reason(error: Any) -> str:  # noqa: ANN401
    words = (error.error_string or "").rstrip(".")
    if error.code in (1, 7):  # 7 is the code of an MP3 file without a complete frame
        return "it is not an audio file of a known format"
    return f"it is damaged ({words})" if words else "it is damaged"


def _header(path: Path, file: Any) -> Header:  # noqa: ANN401
    header = Header(file.frames, file.samplerate, file.channels)
    if not LEAST_RATE <= header.rate <= MOST_RATE:
        raise AudioError(path, f"its header says {header.rate} Hz, which no recording has")
    if header.length <= 0:
        raise AudioError(path, "it has no samples")
    if header.length == np.iinfo(np.int64).max:
        raise AudioError(path, "its header does not say how long it is: convert it again")
    if header.length * header.channels > LONGEST:
        most = LONGEST // header.channels
        raise AudioError(path, f"its header says {header.length} samples, more than {most}: split it")
    cut = _CUT_OFF.search(file.extra_info)
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _OPEN_ENDS:
        raise AudioError(path, f"it is cut off: {cut[2]} of {cut[1]} bytes of samples are there")
    return header


def _decoded(path: Path, file: Any, header: Header, channels: int) -> NDArray[np.float32]:  # noqa: ANN401
    """Decodes all samples ``(T', channels)`` block by block, so that a false header takes no memory."""
    samples, found, loudest = np.empty((header.length, channels), np.float32), 0, 0.0  # pages are taken when written to
    # soundfile seeks after each block, and after seeking an MP3 frame lacks the preceding bits that it needs
    most = header.length if file.format == "MP3" else _BLOCK
    while len(block := file.read(most, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise AudioError(path, "it has NaN or infinity among its samples")
        loudest = max(loudest, float(np.abs(block).max()))
        try:
            samples[found : found + len(block)] = converted(block, channels)[: max(0, header.length - found)]
        except ValueError as error:
            raise AudioError(path, str(error)) from error
        found += len(block)
    if found != header.length:
        raise AudioError(path, f"it is cut off: {found} of {header.length} samples are there")
    if loudest > _LOUDEST:
        raise AudioError(path, f"its samples reach {loudest:.4g} and not 1: scale them")
    return samples
