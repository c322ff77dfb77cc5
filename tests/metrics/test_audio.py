import json
import math

import numpy as np
import pytest
import torch

from gmvq.metrics.audio import SI_SDR_CAP, AudioDistortion, si_sdr
from gmvq.spectra import FLOOR, WINDOWS, mel_filters


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    real = 0.2 * torch.randn(shape, generator=generator)
    return real + 0.05 * torch.randn(shape, generator=generator), real


def measured(*updates, rate=8000):
    distortion = AudioDistortion(rate)
    for update in updates:
        distortion.update(*update)
    return distortion.metrics()


def mel_distance(made, real, rate):
    """The metric of one channel once more, with frames cut by hand and numpy's FFT."""
    distances = []
    for window in WINDOWS:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        filters = mel_filters(rate, window, 5 * window // 32).numpy()  # tests/test_spectra.py checks them
        logs = []
        for samples in (made, real):
            padded = np.pad(samples, window // 2)
            starts = range(0, len(samples) + 1, window // 4)
            spectrum = np.fft.rfft(np.stack([padded[start : start + window] * hann for start in starts]))
            logs.append(np.log10(np.maximum(np.abs(spectrum) @ filters.T, FLOOR)))
        distances.append(np.abs(logs[0] - logs[1]).mean())
    return np.mean(distances)


def test_metrics_equal_those_of_numpy():
    made, real = pair(3, 1, 5000)
    metrics = measured((made[:2], real[:2]), (made[2:], real[2:]))
    y, x = made[:, 0].double().numpy(), real[:, 0].double().numpy()
    assert metrics["mel_distance"] == pytest.approx(
        np.mean([mel_distance(*each, 8000) for each in zip(y, x, strict=True)]), rel=1e-9
    )
    assert metrics["mse"] == pytest.approx(((y - x) ** 2).mean(), rel=1e-12)
    ratios = []
    for each, wanted in zip(y, x, strict=True):
        each, wanted = each - each.mean(), wanted - wanted.mean()
        target = np.dot(each, wanted) / np.dot(wanted, wanted) * wanted
        ratios.append(20 * np.log10(np.linalg.norm(target) / np.linalg.norm(each - target)))
    assert metrics["si_sdr"] == pytest.approx(np.mean(ratios), rel=1e-9)


def test_identity_is_perfect():
    _, real = pair(2, 2, 300)
    assert measured((real, real)) == {"mel_distance": 0, "si_sdr": SI_SDR_CAP, "mse": 0}


def test_scale_and_offset_leave_si_sdr_as_it_is():
    made, real = pair(2, 1, 1000)
    assert torch.allclose(si_sdr(0.1 * made + 0.3, real - 0.1), si_sdr(made, real))
    assert torch.allclose(si_sdr(-made, real), si_sdr(made, real))


def test_noise_of_a_level_has_its_si_sdr_and_more_noise_is_farther():
    _, real = pair(1, 1, 40_000)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(5)) * real.std()
    metrics = [measured((real + noise * 10 ** (-level / 20), real)) for level in (60, 40, 20, 10, 0, -10)]
    # noise of 40,000 samples is orthogonal up to 1/200
    assert [each["si_sdr"] for each in metrics] == pytest.approx([60, 40, 20, 10, 0, -10], abs=0.2)
    distances = [each["mel_distance"] for each in metrics]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_a_padded_batch_equals_single_recordings():
    made, real = pair(4, 2, 2500)
    lengths = torch.tensor([2500, 1700, 31, 1])
    garbage = torch.where(torch.arange(2500) >= lengths[:, None, None], math.nan, 1.0)
    together = measured((made * garbage, real * garbage, lengths))
    singles = [(made[i : i + 1, :, :n], real[i : i + 1, :, :n]) for i, n in enumerate(lengths.tolist())]
    alone = measured(*singles)
    assert together == {key: pytest.approx(value, rel=1e-9) for key, value in alone.items()}


@pytest.mark.parametrize("length", [1, 5, 3000])
def test_silence_has_numbers_that_json_has(length):
    silence, (_, sound) = torch.zeros(1, 1, length), pair(1, 1, 3000)
    both = measured((silence, silence))
    assert both == {"mel_distance": 0, "si_sdr": None, "mse": 0}
    made = measured((silence[..., :1].expand(1, 1, 3000), sound))
    assert made["si_sdr"] == -SI_SDR_CAP
    assert made["mel_distance"] > 1
    real = measured((sound[..., :length], silence))
    assert real["si_sdr"] is None
    for metrics in (both, made, real, {}):
        json.dumps(metrics, allow_nan=False)
    # a silent recording is left out of the mean of SI-SDR, and of no other
    mixed = measured((silence, silence), (sound, sound))
    assert mixed == {"mel_distance": 0, "si_sdr": SI_SDR_CAP, "mse": 0}


def test_a_constant_has_no_sound():
    assert si_sdr(*pair(1, 1, 100)).isfinite().all()
    assert si_sdr(torch.ones(1, 1, 100), torch.full((1, 1, 100), 0.1)).isnan().all()


def test_precision_of_the_input_does_not_matter():
    made, real = (values.half() for values in pair(1, 1, 500))
    assert measured((made, real)) == measured((made.double(), real.double()))


def test_nothing_seen_is_nothing_measured():
    distortion = AudioDistortion(8000)
    distortion.update(torch.zeros(0, 1, 5), torch.zeros(0, 1, 5))
    assert (distortion.metrics(), distortion.items) == ({}, 0)
    assert distortion.of_error(0.1) == {}


def test_merged_is_a_copy_without_ranks():
    distortion = AudioDistortion(8000)
    distortion.update(*pair(2, 1, 100))
    merged = distortion.merged()
    distortion.update(*pair(1, 1, 100, seed=1))
    assert (merged.items, distortion.items) == (2, 3)
    assert merged.metrics() == measured(pair(2, 1, 100))


@pytest.mark.parametrize(
    ("made", "real", "lengths", "message"),
    [
        (torch.zeros(1, 1, 5), torch.zeros(1, 1, 6), None, "one shape"),
        (torch.zeros(1, 5), torch.zeros(1, 5), None, "one shape"),
        (torch.full((1, 1, 5), math.nan), torch.zeros(1, 1, 5), None, "'made' must be finite"),
        (torch.zeros(1, 1, 5), torch.full((1, 1, 5), math.inf), None, "'real' must be finite"),
        (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5), torch.tensor([6]), "'lengths' must be 1 integers from 1 to 5"),
        (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5), torch.tensor([0]), "'lengths' must be"),
        (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5), torch.tensor([1, 2]), "'lengths' must be"),
    ],
)
def test_what_does_not_fit_is_refused(made, real, lengths, message):
    with pytest.raises(ValueError, match=message):
        AudioDistortion(8000).update(made, real, lengths)


@pytest.mark.parametrize("block", [100, 4096])
@pytest.mark.parametrize("lengths", [None, [9001, 5000, 1]])
def test_a_long_sound_is_measured_in_blocks(monkeypatch, block, lengths):
    torch.manual_seed(0)
    lengths = None if lengths is None else torch.tensor(lengths)
    real = torch.rand(3, 2, 9001) - 0.3
    made = real + 0.1 * torch.randn(3, 2, 9001)
    whole, blocks = AudioDistortion(16_000), AudioDistortion(16_000)
    whole.update(made, real, lengths)
    ratios = si_sdr(made, real, lengths)
    seen, stft = [], torch.stft

    def spied(samples, *args, **options):
        seen.append(samples.shape[-1])
        return stft(samples, *args, **options)

    monkeypatch.setattr(torch, "stft", spied)
    for module in ("gmvq.spectra", "gmvq.metrics.audio"):
        monkeypatch.setattr(f"{module}.BLOCK", block)
    blocks.update(made, real, lengths)
    assert max(seen) <= block + 2 * 2048
    assert blocks.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    torch.testing.assert_close(si_sdr(made, real, lengths), ratios, rtol=1e-12, atol=0, equal_nan=True)
    made[-1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="'made' must be finite"):
        blocks.update(made, real, lengths)
