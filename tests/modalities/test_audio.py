import json
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from modality_members import audio as member
from modality_members import tone
from PIL import Image

from gmvq.modalities import Audio, described, from_description
from gmvq.modalities.audio import pictures, read_audio

SHARED = Path(__file__).parents[3] / "shared" / "data"


# The whole


def test_a_folder_of_recordings(tmp_path):
    _, _, write_folder = member()
    write_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("not sound")
    data = Audio().load(tmp_path, held_out_fraction=0.4)
    assert data.modality == Audio(rate=8000, channels=1)
    assert (data.signal.axes, data.signal.channels, data.signal.values, data.signal.rate) == (1, 1, "signed", 8000.0)
    names = sorted([*data.train.names, *data.held_out.names])
    assert names == ["high/a.wav", "high/b.flac", "low/c.wav", "low/d.wav", "low/e.wav"]
    assert (data.classes, data.labelled, data.skipped) == (("high", "low"), True, ())
    for side in (data.train, data.held_out):
        assert side.labels.tolist() == [int(name.startswith("low")) for name in side.names]
        assert [(item.dtype, item.shape[0], item.shape[1:]) for item in side] == [
            (torch.float32, 1, size) for size in side.sizes
        ]


def test_spoken_digits():
    if not (SHARED / "fsdd").is_dir():
        pytest.skip("shared/data/fsdd is not here")
    data = Audio().load(SHARED / "fsdd" / "fsdd.tar.xz")
    assert (len(data.train), len(data.held_out)) == (2250, 250)
    assert data.modality == Audio(rate=8000, channels=1)
    assert data.classes == tuple("0123456789")
    assert data.labelled
    assert data.held_out.names[:2] == ["0_george_0.wav", "0_george_1.wav"]
    assert torch.bincount(data.held_out.labels).tolist() == [25] * 10


def test_read_speech():
    if not (SHARED / "ljspeech").is_dir():
        pytest.skip("shared/data/ljspeech is not here")
    data = Audio(rate=16000).load(SHARED / "ljspeech" / "ljspeech24.tar.xz")
    assert (len(data.train) + len(data.held_out), data.modality.rate, data.labelled) == (24, 16000, False)
    assert sum(size for side in (data.train, data.held_out) for (size,) in side.sizes) / 16000 == pytest.approx(
        164.05,
        abs=0.05,  # by the sizes of the files
    )


def test_a_model_s_modality_loads_other_data_by_its_settings(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(4410, 44100, channels=2).T.numpy(), 44100)
    soundfile.write(tmp_path / "b.wav", tone(2205, 22050).T.numpy(), 22050)
    for modality in (Audio(rate=8000, channels=1), Audio(rate=8000, channels=2)):
        data = modality.load(tmp_path)
        assert data.modality == modality
        assert {item.shape for side in (data.train, data.held_out) for item in side} == {(modality.channels, 800)}


# Settings


def test_settings_survive_json():
    modality, _, _ = member()
    assert from_description(json.loads(json.dumps(described(modality)))) == modality
    assert described(Audio()) == {"kind": "audio", "rate": None, "channels": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 99}, "'rate' must be an integer of at least 100"),
        ({"rate": 8000.5}, "'rate' must be an integer"),
        ({"rate": 2_000_000}, "'rate' must be at most 1000000 Hz"),
        ({"channels": 0}, "'channels' must be an integer of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Audio(**options)


@pytest.mark.parametrize(
    "use",
    [
        lambda audio: audio.signal,
        lambda audio: audio.distortion(),
        lambda audio: audio.write(Path("a.wav"), [tone(5)]),
        lambda audio: audio.exhibit("a", tone(5)),
    ],
)
def test_what_needs_a_rate_asks_for_it(use):
    with pytest.raises(ValueError, match="'rate' of the recordings must be known"):
        use(Audio())


def test_recognizes_files_by_their_names():
    assert all(Audio().recognizes(Path(name)) for name in ("a.wav", "b.FLAC", "c.opus", "d.mp3"))
    assert not any(Audio().recognizes(Path(name)) for name in ("a.png", "b.npy", "c.txt", "d"))


def test_there_are_no_bundled_recordings():
    with pytest.raises(ValueError, match="Bundled data of recordings are none"):
        Audio().load("bundled:speech")


# Window


@pytest.mark.parametrize("start", [0.0, 0.5, 0.999999])
def test_windows_are_stretches(start):
    modality, item, _ = member()
    before = item.clone()
    window = modality.window(item, 4096, np.array([start, 0.3, 0.9]))
    first = int(start * (5000 - 4096 + 1))
    assert torch.equal(window, item[:, first : first + 4096])
    assert torch.equal(modality.window(item, 4096, np.array([start, 0.7, 0.1])), -window)
    assert torch.equal(item, before)


def test_short_recordings_are_whole():
    modality, item, _ = member()
    for size in (None, 5000, 6000):
        assert torch.equal(modality.window(item, size, np.array([0.7, 0.7, 0.7])), item)


# Write


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "C.WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read(tmp_path, name, channels):
    item = torch.cat([tone(3000, channels=channels), torch.tensor([[-1.0, 1.0, 0.0]] * channels)], 1)
    modality = Audio(rate=22050, channels=channels)
    modality.write(tmp_path / name, [item])
    assert soundfile.info(tmp_path / name).subtype == "PCM_16"
    with pytest.warns(UserWarning, match="holds one recording"):
        data = Audio().load(tmp_path)
    assert data.modality == modality
    # half a step of rounding, and the largest value is one step below 1
    assert (data.train[0] - item).abs().max() <= 1 / 32768
    assert (data.train[0] - item)[:, :3000].abs().max() <= 0.5 / 32768
    # what was read has no more to lose
    modality.write(tmp_path / f"again-{name}", [data.train[0]])
    assert torch.equal(read_audio(tmp_path / f"again-{name}", 22050, channels), data.train[0])


def test_writing_clips_and_refuses(tmp_path):
    modality = Audio(rate=8000, channels=1)
    modality.write(tmp_path / "a.wav", [torch.tensor([[2.0, -2.0]])])
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [32767, -32768]
    for items, name, message in (
        ([tone(5), tone(5)], "b.wav", "'items' must be one recording"),
        ([tone(5)], "b.mp3", r"written as .wav or .flac, got .*b.mp3. Use .*b.wav"),
        ([tone(5)[0]], "b.wav", r"holds recordings \(C, T\)"),
        ([tone(0)], "b.wav", r"holds recordings \(C, T\)"),
        ([tone(5, channels=9)], "b.flac", "A FLAC file holds recordings .* of 1 to 8 channels"),
        ([torch.tensor([[0.0, math.nan]])], "b.wav", "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            modality.write(tmp_path / name, items)
    with pytest.raises(ValueError, match="at most 655350 Hz"):
        Audio(rate=700_000).write(tmp_path / "b.flac", [tone(5)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


# Distortion and exhibits


def test_distortion_is_that_of_the_rate():
    modality, item, _ = member()
    for quick in (False, True):
        distortion = modality.distortion(quick=quick)
        distortion.update(item[None], item[None])
        assert distortion.metrics() == {"mel_distance": 0, "si_sdr": 100, "mse": 0}
    assert set(distortion.metrics()) == {measure.key for measure in modality.measures}
    assert distortion.headline in distortion.metrics()


def test_exhibits():
    modality, item, _ = member()
    exhibit = modality.exhibit("beep", item, 0.5 * item, torch.arange(158).reshape(79, 2))
    distortion = modality.distortion()
    distortion.update(0.5 * item[None], item[None])
    assert exhibit.note == f"mel distance {distortion.metrics()['mel_distance']:.3f}, SI-SDR 100.0 dB"
    for sound, picture in (exhibit.real, exhibit.made):
        samples, rate = soundfile.read(BytesIO(sound.data))
        assert (samples.shape, rate) == ((5000,), 8000)
        with Image.open(BytesIO(picture.data)) as image:
            assert (image.format, image.size) == ("PNG", (960, 300))
    assert [part.text for part in exhibit.made] == [
        "beep, reconstructed",
        "beep, reconstructed: mel spectrogram, 0.00 to 0.62 s",
    ]
    assert exhibit.codes[0].text == "Codes of beep"
    assert exhibit == modality.exhibit("beep", item, 0.5 * item, torch.arange(158).reshape(79, 2))
    alone = modality.exhibit("drawn", item)
    assert (alone.note, alone.made, alone.codes) == ("", (), ())


def test_a_long_recording_is_shown_in_part(monkeypatch):
    monkeypatch.setattr("gmvq.modalities.audio.modality.code_strip", lambda codes, text, steps: codes)
    rate = 1000
    exhibit = Audio(rate=rate, channels=3).exhibit("long", tone(30_000, rate, channels=3), codes=torch.arange(300))
    sound, picture = exhibit.real
    assert sound.text == "long: the middle 10 s of 30.0 s"
    assert soundfile.read(BytesIO(sound.data))[0].shape == (10_000,)  # mixed, since players have two sides at most
    assert picture.text == "long: mel spectrogram, 10.00 to 20.00 s"
    assert torch.equal(exhibit.codes[0], torch.arange(100, 200))


@pytest.mark.parametrize("rate", [100, 8000, 192_000])
@pytest.mark.parametrize("length", [1, 50, 20_000])
def test_exhibits_of_any_size_and_of_silence(rate, length):
    modality = Audio(rate=rate, channels=1)
    exhibit = modality.exhibit(
        "silence", torch.zeros(1, length), torch.zeros(1, length), torch.zeros(1, dtype=torch.int64)
    )
    assert exhibit.note == "mel distance 0.000"
    assert exhibit.real[1].data == exhibit.made[1].data


def test_the_spectrogram_shows_the_pitch():
    decibels = pictures._decibels(tone(8000, hertz=1000), 8000)
    assert decibels.shape == (80, 1 + 8000 // 20)
    # 1 kHz is 15 of the 35.2 mel up to 4 kHz
    assert abs(int(decibels[:, 200:-20].mean(1).argmax()) - (15 / 35.2 * 81 - 1)) <= 1
