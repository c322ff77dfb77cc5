import math

import numpy as np
import pytest
import torch
from scipy.signal import get_window

from gmvq.spectra import FLOOR, WINDOWS, LogMel, hertz_to_mel, mel_filters, mel_to_hertz


def slaney(hertz):
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def triangles(rate, window, bands):
    """The filters once more, a weight at a time, with edges found by bisection."""
    edges = []
    for place in range(bands + 2):
        low, high, wanted = 0.0, rate, slaney(rate / 2) * place / (bands + 1)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if slaney(middle) < wanted else (low, middle)
        edges.append(low)
    rows = []
    for low, peak, high in zip(edges, edges[1:], edges[2:], strict=False):
        row = []
        for place in range(window // 2 + 1):
            hertz = place * rate / window
            inside = (hertz - low) / (peak - low) if hertz < peak else (high - hertz) / (high - peak)
            row.append(max(0.0, inside) * 2 / (high - low))
        if any(row):
            rows.append(row)
    return np.array(rows)


def log_mel(samples, rate, window, bands):
    """The spectrum once more: frames cut by hand, numpy's FFT of scipy's window."""
    padded, hop = np.pad(samples, window // 2), window // 4
    frames = [padded[start : start + window] for start in range(0, len(samples) + 1, hop)]
    magnitudes = np.abs(np.fft.rfft(np.array(frames) * get_window("hann", window)))
    return np.log(np.maximum(triangles(rate, window, bands) @ magnitudes.T, FLOOR))


@pytest.mark.parametrize(
    ("rate", "window", "bands"), [(8000, 256, 40), (8000, 32, 5), (44100, 2048, 320), (22050, 64, 8)]
)
def test_filters_are_those_of_slaney(rate, window, bands):
    filters = mel_filters(rate, window, bands)
    assert torch.allclose(filters, torch.from_numpy(triangles(rate, window, bands)), atol=1e-12)
    assert (filters.sum(1) > 0).all()


def test_the_scale_has_an_inverse():
    hertz = np.array([0.0, 1.0, 999.0, 1000.0, 1001.0, 22050.0])
    assert np.allclose(mel_to_hertz(hertz_to_mel(hertz)), hertz)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", [1, 37, 3000])
def test_spectra_equal_those_of_numpy(window, length):
    samples = np.random.default_rng(0).normal(size=length)
    made = LogMel(8000, window, dtype=torch.float64)(torch.from_numpy(samples)[None, None])[0, 0]
    assert made.shape[1] == 1 + length // (window // 4)
    assert np.allclose(made.numpy(), log_mel(samples, 8000, window, 5 * window // 32), atol=1e-9)


def test_a_tone_lies_in_its_band():
    rate, hertz = 16000, 1000
    tone = torch.sin(2 * math.pi * hertz * torch.arange(8000) / rate)[None, None]
    bands = LogMel(rate, 512, 80)(tone)[0, 0].mean(1)
    expected = slaney(hertz) / slaney(rate / 2) * 81 - 1
    assert abs(int(bands.argmax()) - expected) <= 1


def test_lengths_equal_shorter_sounds():
    made, real = torch.randn(2, 3, 2, 700, dtype=torch.float64)
    lengths = torch.tensor([700, 123, 1])
    for window in (32, 512):
        spectrum = LogMel(8000, window, dtype=torch.float64)
        sums, frames = spectrum.differences(made, real, lengths)
        for place, length in enumerate(lengths.tolist()):
            part = slice(place, place + 1), slice(None), slice(length)
            alone, count = spectrum.differences(made[part], real[part])
            assert torch.allclose(sums[place], alone[0], rtol=1e-12)
            assert frames[place] == count[0]


def test_half_precision_and_autocast_are_left_aside():
    spectrum, sound = LogMel(8000, 256), torch.randn(1, 1, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spectrum(sound), spectrum(sound).float())
        inside = spectrum(sound)
    assert torch.equal(inside, spectrum(sound))
    assert spectrum(sound.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": math.nan}, {"window": 4}, {"bands": 0}, {"hop": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LogMel(**{"rate": 8000, "window": 256, **options})
