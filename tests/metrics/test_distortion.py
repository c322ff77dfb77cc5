import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gmvq.metrics.distortion import (
    PSNR_CAP,
    ImageDistortion,
    high_frequency_energy,
    mse,
    psnr,
)
from gmvq.metrics.similarity import ms_ssim, ssim, ssim_window


def pair(*shape, seed=0, noise=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(shape, generator=generator, dtype=dtype)
    images = (targets + noise * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)
    return images, targets


def oracle(image, target, **arguments):
    return structural_similarity(
        image.numpy(), target.numpy(), data_range=1, channel_axis=0, use_sample_covariance=False, **arguments
    )


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    channels=st.sampled_from([1, 3, 4]),
    noise=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_ssim_equals_skimage(height, width, channels, noise, seed):
    images, targets = pair(2, channels, height, width, seed=seed, noise=noise)
    expected = [
        oracle(image, target, gaussian_weights=True, sigma=1.5) for image, target in zip(images, targets, strict=True)
    ]
    # Both in float64; the filters differ in the order of their sums.
    np.testing.assert_allclose(ssim(images, targets), expected, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(1, 10),
    long=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
    upright=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_ssim_of_small_images_equals_skimage_with_an_even_window(short, long, channels, upright, seed):
    long = max(short, long)
    images, targets = pair(1, channels, *((long, short) if upright else (short, long)), seed=seed)
    size = min(7, short if short % 2 else short - 1)
    assert len(ssim_window(short)) == size
    expected = oracle(images[0], targets[0], gaussian_weights=False, win_size=size)
    np.testing.assert_allclose(ssim(images, targets), [expected], rtol=0, atol=1e-11)


def test_ssim_of_float32_photographs_equals_skimage():
    from skimage.data import astronaut

    target = torch.from_numpy(astronaut()[:96, :80].copy()).movedim(-1, 0).float() / 255
    image = (target * 0.9 + 0.05).roll(1, dims=1)
    expected = oracle(image.double(), target.double(), gaussian_weights=True, sigma=1.5)
    assert float(ssim(image[None], target[None])) == pytest.approx(expected, abs=1e-11)


def test_ssim_properties():
    images, targets = pair(3, 3, 20, 17)
    assert torch.equal(ssim(targets, targets), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(ssim(images, targets), ssim(targets, images))
    assert (ssim(images, targets).abs() <= 1).all()
    flat = torch.full((1, 1, 11, 11), 0.5)
    assert float(ssim(flat, flat)) == 1.0


def test_the_window_sums_to_one():
    for side in range(1, 20):
        window = ssim_window(side)
        assert len(window) % 2 == 1
        assert len(window) <= side
        assert sum(window) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mse_and_psnr_equal_numpy_and_skimage(dtype):
    images, targets = (values.to(dtype) for values in pair(4, 3, 9, 7))
    errors, decibels = mse(images, targets), psnr(images, targets)
    assert errors.dtype == decibels.dtype == torch.float64
    for index in range(4):
        image, target = images[index].double().numpy(), targets[index].double().numpy()
        assert float(errors[index]) == pytest.approx(np.mean((image - target) ** 2), rel=1e-12)
        assert float(decibels[index]) == pytest.approx(peak_signal_noise_ratio(target, image, data_range=1), rel=1e-12)


def test_batched_equals_single():
    images, targets = pair(3, 3, 16, 12)
    for figure in (mse, psnr, ssim):
        single = torch.cat([figure(images[i : i + 1], targets[i : i + 1]) for i in range(3)])
        assert torch.allclose(figure(images, targets), single, rtol=1e-12)


def test_psnr_of_identical_images_is_infinite_and_capped_in_the_mean():
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(psnr(images, images)) == math.inf
    distortion = ImageDistortion()
    distortion.update(images, images)
    assert (distortion.mse, distortion.psnr, distortion.ssim) == (0.0, PSNR_CAP, 1.0)
    distortion.update(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.1))
    assert distortion.psnr == pytest.approx((PSNR_CAP + 20) / 2, rel=1e-6)


def test_the_mean_is_over_images_not_pixels():
    distortion = ImageDistortion()
    distortion.update(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1, dtype=torch.float64))
    distortion.update(torch.zeros(1, 3, 30, 20), torch.full((1, 3, 30, 20), 0.01, dtype=torch.float64))
    assert distortion.images == 2
    assert distortion.mse == pytest.approx((1e-2 + 1e-4) / 2, rel=1e-6)
    assert distortion.psnr == pytest.approx((20 + 40) / 2, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**16))
def test_streaming_equals_the_mean_of_all(parts, seed):
    images, targets = pair(9, 1, 12, 11, seed=seed, dtype=torch.float32)
    distortion = ImageDistortion()
    for image, target in zip(images.chunk(parts), targets.chunk(parts), strict=True):
        distortion.update(image, target)
    assert distortion.images == 9
    assert distortion.mse == pytest.approx(float(mse(images, targets).mean()), rel=1e-12)
    assert distortion.psnr == pytest.approx(float(psnr(images, targets).mean()), rel=1e-12)
    assert distortion.ssim == pytest.approx(float(ssim(images, targets).mean()), rel=1e-12)
    assert distortion.merged().psnr == distortion.psnr


def test_without_structure():
    distortion = ImageDistortion(structure=False)
    distortion.update(*pair(2, 1, 12, 12))
    assert distortion.merged().mse == distortion.mse > 0
    with pytest.raises(ValueError, match="structure"):
        _ = distortion.ssim


def test_empty():
    empty = torch.zeros(0, 3, 12, 12)
    assert mse(empty, empty).shape == ssim(empty, empty).shape == (0,)
    distortion = ImageDistortion()
    distortion.update(empty, empty)
    with pytest.raises(ValueError, match="at least 1 image"):
        _ = distortion.mse


def poisoned(value):
    images = torch.full((1, 1, 12, 12), 0.5)
    images[0, 0, 3, 4] = value
    return images


@pytest.mark.parametrize("figure", [mse, psnr, ssim])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1, -0.1])
def test_values_that_are_not_finite_or_in_range_are_refused(figure, value):
    good = torch.zeros(1, 1, 12, 12)
    with pytest.raises(ValueError, match="'images' must be finite and in"):
        figure(poisoned(value), good)
    with pytest.raises(ValueError, match="'targets' must be finite and in"):
        figure(good, poisoned(value))


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 0, 8), "shape"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), "floats"),
    ],
)
def test_bad_input_is_refused(images, targets, message):
    for figure in (mse, psnr, ssim):
        with pytest.raises(ValueError, match=message):
            figure(images, targets)


def test_high_frequency_energy_is_the_mean_square_of_the_laplacian():
    images = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64).expand(3, 1, 3, 3)
    expected = torch.nn.functional.conv2d(images, kernel, groups=3).square().mean((1, 2, 3))
    torch.testing.assert_close(high_frequency_energy(images), expected)
    ramp = torch.linspace(0, 1, 9)[:, None].expand(1, 1, 9, 7)
    assert float(high_frequency_energy(ramp)) == pytest.approx(0, abs=1e-12)
    assert high_frequency_energy(torch.nn.functional.avg_pool2d(images, 3, 1, 1)).max() < expected.min()
    with pytest.raises(ValueError, match="sides of at least 3 pixels"):
        high_frequency_energy(images[..., :2])


def test_ms_ssim_is_that_of_its_scales():
    noise = torch.Generator().manual_seed(0)
    targets = torch.rand(2, 3, 180, 200, generator=noise)
    images = (targets + 0.2 * torch.randn(targets.shape, generator=noise)).clamp(0, 1)
    found = ms_ssim(images, targets)
    assert torch.equal(ms_ssim(targets, targets), torch.ones(2, dtype=torch.float64))
    assert (ms_ssim(images * 0.5 + 0.25 * targets, targets) > found).all()
    # the product of contrasts and structures at all scales and of the last luminance
    expected = torch.ones(2, 3, dtype=torch.float64)
    pair = [images.double(), targets.double()]
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        for batch, channel in np.ndindex(2, 3):
            one, other = (each[batch, channel].numpy() for each in pair)
            _, whole = structural_similarity(
                one, other, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
            )
            mean_x, mean_y = (ndimage.gaussian_filter(each, 1.5, truncate=3.5) for each in (one, other))
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            value = (whole if scale == 4 else whole / luminance)[5:-5, 5:-5].mean()
            expected[batch, channel] *= value**power
        pair = [torch.nn.functional.avg_pool2d(each, 2) for each in pair]
    assert torch.allclose(found, expected.mean(1), atol=1e-9)
    with pytest.raises(ValueError, match="at least 176"):
        ms_ssim(images[..., :175], targets[..., :175])
