"""Audio: reading, windows, display and writing."""

from gmvq.modalities.audio.decoding import SUFFIXES as AUDIO_SUFFIXES
from gmvq.modalities.audio.decoding import AudioError, read_audio
from gmvq.modalities.audio.modality import Audio

__all__ = ["AUDIO_SUFFIXES", "Audio", "AudioError", "read_audio"]
