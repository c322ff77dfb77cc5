"""A decoder that draws what codes leave open."""

import copy

import pytest
import torch

from gmvq.data import ArrayItems
from gmvq.metrics import high_frequency_energy
from gmvq.modalities import Data, Image
from gmvq.models import Autoencoder, AutoencoderConfig, DiffusionConfig, DiffusionDecoder
from gmvq.priors import Sampling
from gmvq.training.tasks import DiffusionTask, Drawing


def tokenizer(**changes):
    torch.manual_seed(0)
    settings = {"modality": Image(1), "codebook_size": 8, "width": 8, "blocks": 1, "downsampling": 4}
    model = Autoencoder(AutoencoderConfig(**{**settings, **changes}))
    model(torch.rand(8, model.signal.channels, 16, 16))
    return model.eval()


def decoder(**changes):
    torch.manual_seed(1)
    settings = {"channels": 1, "dim": 4, "downsampling": 4, "width": 8, "blocks": 1, "steps": 3}
    return DiffusionDecoder(DiffusionConfig(**{**settings, **changes}))


def test_an_image_is_drawn_the_same_alone_and_in_a_batch_of_any_size():
    model, own = tokenizer(), decoder().eval()
    own.set_scale(0.1)
    codes = model.encode(torch.rand(3, 1, 17, 10))
    drawn = own.decode(model, codes, (17, 10), seed=2)
    assert drawn.shape == (3, 1, 17, 10)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    for index in range(3):
        alone = own.decode(model, codes[index : index + 1], (17, 10), seed=2, first=index)
        torch.testing.assert_close(alone[0], drawn[index])
    assert not torch.equal(own.decode(model, codes, (17, 10), seed=3), drawn)
    assert not torch.equal(own.decode(model, codes, (17, 10), seed=2, steps=5), drawn)
    assert own.decode(model, codes[:0], (17, 10)).shape == (0, 1, 17, 10)


def test_without_noise_an_untrained_decoder_stays_near_the_reconstruction():
    model, own = tokenizer(), decoder()
    torch.nn.init.zeros_(own.network.leave[-1].weight)
    torch.nn.init.zeros_(own.network.leave[-1].bias)
    codes = model.encode(torch.rand(2, 1, 16, 16))
    torch.testing.assert_close(own.decode(model, codes, temperature=0.0), model.decode(codes))


def test_the_network_knows_time_reconstruction_and_values():
    own = decoder().network
    for parameter in own.parameters():  # blocks begin as the identity
        torch.nn.init.normal_(parameter, std=0.1)
    noisy, known, values, times = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.rand(2, 4, 2, 2), torch.rand(2)
    at = own(noisy, known, values, times)
    given = (noisy, known, values, times)
    for changed in range(4):
        others = [each * 0.5 if place == changed else each for place, each in enumerate(given)]
        assert not torch.allclose(own(*others), at)


def test_it_learns_what_the_reconstruction_lacks():
    """Of two equally likely details it draws one, where the reconstruction is their mean."""
    torch.manual_seed(0)
    own = decoder(width=16, steps=8)
    own.set_scale(0.25)
    stripes = ((torch.arange(8) % 2).float() - 0.5).expand(1, 8, 8) / 2
    optimizer = torch.optim.Adam(own.parameters(), lr=3e-3)
    flat, values = torch.full((32, 1, 8, 8), 0.5), torch.zeros(32, 2, 2, 4)
    for _ in range(150):
        signs = torch.where(torch.rand(32, 1, 1, 1) < 0.5, -1.0, 1.0)
        loss = own(flat + signs * stripes, flat, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = own.eval().draw(flat, values)
    likeness = ((drawn - 0.5) * stripes).mean((1, 2, 3)) / stripes.square().mean()
    assert 0.2 < float((likeness > 0).float().mean()) < 0.8
    assert float((likeness.abs() > 0.7).float().mean()) > 0.8
    assert high_frequency_energy(drawn).mean() > 0.5 * high_frequency_energy(flat[:1] + stripes).mean()


def test_what_does_not_fit_gets_a_reason():
    own = decoder().eval()
    model = tokenizer(downsampling=2)
    codes = model.encode(torch.rand(1, 1, 8, 8))
    with pytest.raises(
        ValueError, match="'tokenizer' must have 1 channels, values of 4 features and tokens of 4 pixels"
    ):
        own.decode(model, codes)
    with pytest.raises(ValueError, match="got 3, 4 and 4"):
        own.check_fits(tokenizer(modality=Image(3)))
    for wrong in ({"seed": -1}, {"first": -1}):
        with pytest.raises(ValueError, match="'seed' and 'first' must be at least 0"):
            own.draw(torch.rand(1, 1, 8, 8), torch.rand(1, 2, 2, 4), **wrong)
    with pytest.raises(ValueError, match="must have at most 4,194,304 pixels"):
        own.draw(torch.zeros(1, 1, 1, 1).expand(1, 1, 4096, 4096), torch.rand(1, 2, 2, 4))
    with pytest.raises(ValueError, match="'steps' must be an integer of at least 1"):
        own.draw(torch.rand(1, 1, 8, 8), torch.rand(1, 2, 2, 4), steps=0)
    with pytest.raises(ValueError, match="'temperature' must be a finite number of at least 0"):
        own.draw(torch.rand(1, 1, 8, 8), torch.rand(1, 2, 2, 4), temperature=-1)
    with pytest.raises(ValueError, match="'deviation' must be a finite number above 0"):
        own.set_scale(0.0)
    with pytest.raises(ValueError, match="'width' must be an integer of at least 1"):
        decoder(width=0)
    with pytest.raises(ValueError, match="'downsampling' must be a power of two"):
        decoder(downsampling=3)


def test_the_tokenizer_of_a_task_is_a_copy():
    model, own = tokenizer().train(), decoder()
    images = torch.randint(256, (9, 1, 16, 16), dtype=torch.uint8)
    data = Data("noise", ArrayItems(images, 2), ArrayItems(images[:0], 2), Image(1))
    task = DiffusionTask(own, model, data, Drawing(None, False, 1))
    before = copy.deepcopy(model.state_dict())
    batch = next(iter(task.loader(4, 0, 0, 1).iterate(0, 1)))
    task.outcome(own(*task.inputs(batch, lambda images: images)), batch).loss.backward()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert task.held_out(4) is None


def test_its_noise_has_nothing_to_do_with_the_codes_of_the_same_image():
    own, images = decoder().eval(), torch.zeros(400, 1, 4, 4)
    torch.nn.init.zeros_(own.network.leave[-1].weight)
    torch.nn.init.zeros_(own.network.leave[-1].bias)
    own.set_scale(0.05)  # nothing is clipped
    noise = own.draw(images + 0.5, torch.zeros(400, 1, 1, 4)).flatten(1) - 0.5
    uniforms = Sampling().uniforms(0, 400, 16, torch.device("cpu")).float()
    together = torch.corrcoef(torch.cat([uniforms, noise, noise.abs()], dim=1).T)[:16, 16:]
    assert together.abs().max() < 0.25


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    model, own = tokenizer(), decoder()
    monkeypatch.setattr("gmvq.models.diffusion.MOST_PIXELS", 255)
    monkeypatch.setattr(model, "decode_with_values", None)
    with pytest.raises(ValueError, match=r"must have at most 255 pixels, got \(16, 16\)"):
        own.decode(model, torch.zeros(1, 4, 4, dtype=torch.int64))
