import os
import pickle
import struct

import numpy as np
import pytest
import soundfile
import torch
from recordings import everything, noise, reasons, write

from gmvq.modalities import Audio
from gmvq.modalities.audio import AudioError, decoding, read_audio
from gmvq.modalities.audio.decoding import SUFFIXES, UNREADABLE, read_header

# Formats and rates


@pytest.mark.parametrize(
    ("suffix", "kind", "subtype", "error"),
    [
        ("wav", "WAV", "PCM_16", 1e-4),
        ("wav", "WAV", "FLOAT", 0),
        ("wav", "WAV", "PCM_U8", 0.01),
        ("wav", "WAV", "ULAW", 0.02),
        ("wav", "NIST", "PCM_16", 1e-4),
        ("rf64", "RF64", "PCM_24", 1e-6),
        ("w64", "W64", "PCM_16", 1e-4),
        ("FLAC", "FLAC", "PCM_24", 1e-6),
        ("ogg", "OGG", "VORBIS", 0.4),
        ("opus", "OGG", "OPUS", 0.4),
        ("mp3", "MP3", "MPEG_LAYER_III", 0.4),
        ("aiff", "AIFF", "PCM_16", 1e-4),
        ("au", "AU", "PCM_16", 1e-4),
        ("caf", "CAF", "ALAC_16", 1e-4),
        ("voc", "VOC", "PCM_16", 1e-4),
    ],
)
def test_formats(tmp_path, suffix, kind, subtype, error):
    samples = noise(30_001)
    path = write(tmp_path / f"a.{suffix}", samples, format=kind, subtype=subtype)
    header = read_header(path)
    assert (header.rate, header.channels) == (8000, 1)
    read = read_audio(path, 8000, 1)
    assert (read.dtype, read.shape) == (torch.float32, (1, header.length))
    assert np.abs(read[0, :30_001].numpy() - samples[:, 0]).max() <= error


def test_suffixes_are_those_of_libsndfile():
    known = soundfile.available_formats().keys()
    assert set(SUFFIXES.values()) <= known
    # the others: no header, matrices, a resource fork, keyboards' samples, features, and WAV by another name
    assert known - set(SUFFIXES.values()) == {"RAW", "MAT4", "MAT5", "SD2", "MPC2K", "HTK", "WAVEX"}
    assert not SUFFIXES.keys() & UNREADABLE


RATES = [(44100, 8000), (8000, 44100), (22050, 16000), (48000, 11025), (11025, 96000), (100, 8000), (8000, 8000)]


@pytest.mark.parametrize(("own", "rate"), RATES)
def test_headers_say_the_length_after_resampling(tmp_path, own, rate):
    for length in (*range(1, 30), 997, 10_000):
        path = write(tmp_path / "a.wav", noise(length), own)
        expected = read_header(path).at(rate)
        if expected:
            assert read_audio(path, rate, 1).shape == (1, expected)
        else:
            with pytest.raises(AudioError, match=f"its {length} samples are less than one at {rate} Hz"):
                read_audio(path, rate, 1)


def test_resampling_keeps_a_tone_and_removes_what_would_fold(tmp_path):
    seconds = np.arange(44_100) / 44_100
    low, high = (0.5 * np.sin(2 * np.pi * hertz * seconds) for hertz in (440, 6000))
    path = write(tmp_path / "a.wav", (low + high)[:, None], 44_100, subtype="FLOAT")
    read = read_audio(path, 8000, 1)[0].numpy()
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert np.abs(read - expected)[500:-500].max() < 1e-3


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
def test_blocks_are_seamless(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(60_000), 22_050)
    whole = read_audio(path, 22_050, 1)
    monkeypatch.setattr(decoding, "_BLOCK", 7001)
    assert torch.equal(read_audio(path, 22_050, 1), whole)
    # the last bits of MP3 depend on how its decoder was started
    assert np.allclose(soundfile.read(path, dtype="float32")[0], whole[0].numpy(), atol=1e-6)


def test_channels_are_mixed_or_repeated(tmp_path):
    samples = noise(100, 3)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert torch.equal(read_audio(path, 8000, 3), torch.from_numpy(samples.T))
    assert torch.allclose(read_audio(path, 8000, 1), torch.from_numpy(samples.mean(1, keepdims=True).T))
    with pytest.raises(AudioError, match="it has 3 channels instead of 2"):
        read_audio(path, 8000, 2)
    mono = write(tmp_path / "b.wav", noise(100))
    assert torch.equal(read_audio(mono, 8000, 2), read_audio(mono, 8000, 1).expand(2, -1))


def test_what_passes_one_is_clipped(tmp_path):
    path = write(tmp_path / "a.wav", np.array([[0.5], [1.5], [-3.0]]), subtype="FLOAT")
    assert read_audio(path, 8000, 1).tolist() == [[0.5, 1.0, -1.0]]
    square = np.sign(np.sin(np.arange(4000) / 20))[:, None]  # resampling overshoots beside each edge
    assert read_audio(write(tmp_path / "b.wav", square), 11_025, 1).abs().max() == 1


def test_the_most_common_rate_and_the_channels_that_all_have(tmp_path):
    for seed, (rate, channels) in enumerate([(8000, 2), (16000, 2), (16000, 2), (8000, 2), (44100, 2)]):
        write(tmp_path / f"{seed}.wav", noise(rate // 10, channels, seed), rate)
    data = Audio().load(tmp_path)
    assert data.modality == Audio(rate=8000, channels=2)  # of two as common ones, the lower
    assert {item.shape for item in everything(data).values()} == {(2, 800)}
    write(tmp_path / "5.wav", noise(1600), 16000)
    assert Audio().load(tmp_path).modality == Audio(rate=16000, channels=1)


# Files that cannot be read


def patched(data, start, format, *values):
    return data[:start] + struct.pack(format, *values) + data[start + struct.calcsize(format) :]


def test_damaged_files_are_skipped_with_a_reason(good):
    wav = write(good / "cut.wav", noise(30_001)).read_bytes()
    flac = write(good / "cut.flac", noise(30_001)).read_bytes()
    at = wav.find(b"data") + 4
    for suffix in ("mp3", "aiff", "au", "caf"):
        write(good / f"cut.{suffix}", noise(30_001))
    for path in good.glob("cut.*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    write(good / "flipped.flac", noise(30_001))
    (good / "flipped.flac").write_bytes(flac[:20_000] + bytes(range(50)) + flac[20_050:])
    for name, content in {
        "empty.wav": b"",
        "text.wav": b"hello\n" * 500,
        "zeros.flac": bytes(5000),
        "huge.wav": patched(wav, at, "<I", 0xFFFFFF00),
        "huge.flac": patched(flac, 21, ">BI", flac[21] & 0xF0, 1 << 31),
        "lying.flac": patched(flac, 21, ">BI", flac[21] & 0xF0, 1 << 28),
        "unknown.flac": patched(flac, 21, ">BI", flac[21] & 0xF0, 0),
        "slow.wav": patched(wav, 24, "<I", 1),
        "wide.wav": patched(wav, 22, "<H", 60_000),
    }.items():
        (good / name).write_bytes(content)
    for name, value in (("nan.wav", np.nan), ("infinite.wav", np.inf), ("scale.wav", 20_000)):
        samples = noise(100)
        samples[7] = value
        write(good / name, samples, subtype="FLOAT")
    write(good / "none.wav", noise(0))
    with pytest.warns(UserWarning, match=r"Skipped 20 file\(s\)"):
        data = Audio().load(good)
    assert set(everything(data)) == {"good0.wav", "good1.wav", "good2.wav"}
    assert list(data.skipped) == sorted(data.skipped)
    found = reasons(data)
    for name, reason in {
        "cut.wav": "it is cut off: 39986 of 60002 bytes of samples are there",
        "cut.aiff": "it is cut off: 39991 of 60010 bytes of samples are there",
        "cut.au": "it is cut off: 39993 of 60002 bytes of samples are there",
        "cut.mp3": "it is cut off: 19055 of 30001 samples are there",
        "cut.flac": "it is damaged",
        "cut.caf": "it is damaged",
        "flipped.flac": "it is damaged",
        "lying.flac": "it is damaged",
        "wide.wav": "it is damaged (Too many channels",
        "empty.wav": "it is empty",
        "none.wav": "it has no samples",
        "text.wav": "it is not an audio file of a known format",
        "zeros.flac": "it is not an audio file of a known format",
        "huge.wav": "it is cut off: 60002 of 4294967040 bytes of samples are there",
        "huge.flac": "its header says 2147483648 samples, more than 536870912: split it",
        "unknown.flac": "its header does not say how long it is: convert it again",
        "slow.wav": "its header says 1 Hz, which no recording has",
        "nan.wav": "it has NaN or infinity among its samples",
        "infinite.wav": "it has NaN or infinity among its samples",
        "scale.wav": "its samples reach 2e+04 and not 1: scale them",
    }.items():
        assert found.pop(name).startswith(reason)
    assert not found


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_recordings_of_streams_have_no_length_and_are_read(tmp_path, size):
    path = write(tmp_path / "a.wav", noise(1000))
    whole = read_audio(path, 8000, 1)
    path.write_bytes(patched(path.read_bytes(), path.read_bytes().find(b"data") + 4, "<I", size))
    assert torch.equal(read_audio(path, 8000, 1), whole)


def test_recordings_that_grow_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "LONGEST", 5000)
    path = write(tmp_path / "a.wav", noise(4000))
    with pytest.raises(AudioError, match="at 16000 Hz it has 8000 samples, more than 5000: split it"):
        read_audio(path, 16_000, 1)
    with pytest.raises(AudioError, match="it has 4000 samples, more than 2500"):
        read_audio(path, 8000, 2)


def test_what_is_no_file_or_of_no_known_format_is_named(good):
    os.mkfifo(good / "pipe.wav")
    (good / "gone.wav").symlink_to(good / "nowhere")
    (good / "song.M4A").touch()
    (good / "old.wma").touch()
    write(good / "folder.wav" / "inside.flac", noise(500, seed=9))
    with pytest.warns(UserWarning, match="AAC cannot be read here"):
        data = Audio().load(good)
    assert reasons(data) == {
        "pipe.wav": "it is no regular file",
        "gone.wav": "No such file or directory",
        "song.M4A": "AAC cannot be read here: convert it to FLAC or WAV",
        "old.wma": "WMA cannot be read here: convert it to FLAC or WAV",
    }
    assert "folder.wav/inside.flac" in everything(data)


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ([], ".", r"No recordings in .* that end in \.wav, .* Check the path\.$"),
        (
            ["x.tar.xz", "y.tar.xz", "z.npy"],
            ".",
            r"It holds x\.tar\.xz, y\.tar\.xz, z\.npy: pass the path of one of these",
        ),
        (["x.tar.xz", "y.npy"], ".", r"Cannot read the archive '.*x\.tar\.xz': empty file\. Unpack it"),
        (["a.m4a"], ".", "No recording in .* can be read. Skipped: .*AAC cannot be read"),
        (["a.wav"], ".", "No recording in .* can be read. Skipped: .*it is empty"),
        (["a.wav"], "a.wav", "No recording in .* can be read. Skipped: .*it is empty"),
        (["a.m4a"], "a.m4a", r"Cannot read '.*a\.m4a' as sound: AAC cannot be read here"),
        (["a.txt"], "a.txt", r"Cannot read '.*a\.txt' as sound: recordings end in"),
        (["train/a.wav", "test/b.txt"], ".", "No recordings in '.*test'"),
        (["train/a.wav", "test/b.wav"], ".", "No recording in '.*train' can be read"),
    ],
)
def test_where_nothing_can_be_read(tmp_path, names, path, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        Audio().load(tmp_path / path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="is no regular file"):
        Audio().load(tmp_path / "a.wav")


def test_errors_cross_to_other_processes(tmp_path):
    error = AudioError(tmp_path / "a.wav", "it is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.reason) == (str(error), error.path, error.reason)
