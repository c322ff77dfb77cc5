import math

import pytest
import torch

from gmvq.losses.spectral import SpectralLoss


def test_identity_costs_nothing_and_a_factor_its_logarithm():
    loss, sound = SpectralLoss(8000), torch.randn(2, 1, 4096)
    assert loss(sound, sound) == 0
    assert loss(3 * sound, sound) == pytest.approx(math.log(3), rel=1e-3)
    assert loss(-sound, sound) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("length", [1, 20, 700, 4096])
def test_gradients_reach_every_sample(length):
    made, real = (torch.randn(2, 2, length, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    made.requires_grad_()
    value = SpectralLoss(8000)(made, real)
    value.backward()
    assert value.ndim == 0
    assert value > 0
    assert (made.grad != 0).all()
    assert made.grad.isfinite().all()


def test_silence_is_finite():
    made = torch.zeros(1, 1, 3000, requires_grad=True)
    value = SpectralLoss(8000)(made, torch.randn(1, 1, 3000))
    value.backward()
    assert value.isfinite()
    assert made.grad.isfinite().all()
    assert SpectralLoss(8000)(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9)) == 0


def test_samples_beyond_the_lengths_do_not_count():
    loss, lengths = SpectralLoss(8000), torch.tensor([900, 400])
    made, real = torch.randn(2, 2, 1, 900)
    made.requires_grad_()
    value = loss(made, real, lengths)
    value.backward()
    assert (made.grad[1, :, 400:] == 0).all()
    changed = torch.where(torch.arange(900) >= lengths[:, None, None], math.nan, made.detach())
    assert loss(changed, real, lengths) == value
    # frames of all items weigh the same: one window, so that the mean can be taken apart
    single = SpectralLoss(8000, windows=(64,))
    parts = [single(made[i : i + 1, :, :n], real[i : i + 1, :, :n]) * (1 + n // 16) for i, n in enumerate((900, 400))]
    assert torch.allclose(single(made, real, lengths), sum(parts) / (57 + 26))


def test_a_waveform_is_learned():
    """Gradients lead to the sound: 150 steps from noise bring the loss below half of it."""
    generator = torch.Generator().manual_seed(0)
    real = torch.sin(torch.arange(2048) * 0.3)[None, None] * 0.5
    made = (0.1 * torch.randn(real.shape, generator=generator)).requires_grad_()
    loss, optimizer = SpectralLoss(8000), torch.optim.Adam([made], 0.01)
    first = loss(made, real).detach()
    for _ in range(150):
        optimizer.zero_grad()
        loss(made, real).backward()
        optimizer.step()
    assert loss(made, real) < first / 2


@pytest.mark.parametrize("shapes", [((1, 1, 5), (1, 1, 6)), ((1, 5), (1, 5)), ((1, 1, 0), (1, 1, 0))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"must have one shape \(B, C, T\)"):
        SpectralLoss(8000)(*map(torch.zeros, shapes))
    with pytest.raises(ValueError, match="'windows' must be at least one"):
        SpectralLoss(8000, windows=())
