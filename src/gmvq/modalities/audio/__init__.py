"""Sound: where it comes from, how it is cut, shown and written."""

from gmvq.modalities.audio.decoding import SUFFIXES as AUDIO_SUFFIXES
from gmvq.modalities.audio.decoding import AudioError, read_audio
from gmvq.modalities.audio.modality import Audio

__all__ = ["AUDIO_SUFFIXES", "Audio", "AudioError", "read_audio"]
