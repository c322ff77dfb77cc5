import pytest
import torch

from gmvq.generation import Generator, interpolate, swap
from gmvq.modalities import Image
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.priors import AutoregressiveConfig, AutoregressivePrior, CodeShape, MaskedConfig, MaskedPrior, NGram, Sampling


def tokenizer(**changes):
    torch.manual_seed(0)
    settings = {"modality": Image(3), "codebook_size": 16, "code_dim": 4, "width": 8, "blocks": 1, "downsampling": 2}
    model = Autoencoder(AutoencoderConfig(**{**settings, **changes}))
    model(torch.rand(8, 3, 8, 8))  # the codebook starts from latents
    return model.eval()


def prior(kind="autoregressive", grid=(4, 4), size=16):
    shape = CodeShape(grid, (size,), classes=3)
    small = {"width": 16, "depth": 1, "heads": 2}
    if kind == "autoregressive":
        return AutoregressivePrior(shape, AutoregressiveConfig(**small)).eval()
    return MaskedPrior(shape, MaskedConfig(**small)).eval() if kind == "masked" else NGram(shape)


@pytest.mark.parametrize("kind", ["autoregressive", "masked", "n-gram"])
def test_images_are_the_decoded_codes_whatever_the_batch(kind):
    generator = Generator(tokenizer(), prior(kind))
    labels = torch.arange(7) % 3
    drawn = generator.sample(7, labels, Sampling(seed=2), batch_size=3)
    assert drawn.items.shape == (7, 3, *generator.size)
    assert torch.equal(drawn.codes, generator.sample(7, labels, Sampling(seed=2)).codes)
    torch.testing.assert_close(drawn.items, generator.tokenizer.decode(drawn.codes))
    assert not torch.equal(drawn.codes, generator.sample(7, labels, Sampling(seed=3)).codes)
    assert generator.sample(0).items.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("kind", ["autoregressive", "masked", "n-gram"])
def test_what_is_shown_stays_and_what_is_hidden_is_drawn(kind):
    generator = Generator(tokenizer(), prior(kind))
    images, mask = torch.rand(5, 3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[5:] = True  # not at the border of a token: all of a token that is touched is drawn
    drawn = generator.complete(images, mask, sampling=Sampling(seed=1))
    assert torch.equal(drawn.items[:, :, :5], images[:, :, :5])
    assert not torch.equal(drawn.codes[0, 2:], drawn.codes[1, 2:])
    hidden = torch.where(mask, torch.nan, images).nanmean((2, 3), keepdim=True)
    assert torch.equal(drawn.codes[:, :2], generator.tokenizer.encode(torch.where(mask, hidden, images))[:, :2])
    raw = generator.complete(images, mask, sampling=Sampling(seed=1), keep=False)
    torch.testing.assert_close(raw.items, generator.tokenizer.decode(drawn.codes))
    other = images.clone()
    other[:, :, 5:] = 0.5  # what is hidden has no part in anything
    assert torch.equal(generator.complete(other, mask, sampling=Sampling(seed=1)).codes, drawn.codes)
    eight_bit = (images * 255).round().byte()
    assert generator.complete(eight_bit, mask.expand(5, -1, -1)).items.shape == images.shape


@pytest.mark.parametrize("quantizer", ["residual", "product"])
def test_codes_of_several_levels_are_drawn_and_completed_level_by_level(quantizer):
    model = tokenizer(quantizer=quantizer, codebook_size=64, code_dim=6, quantizer_options={"levels": 3})
    assert model.level_sizes == (4, 4, 4)
    torch.manual_seed(1)
    shape = CodeShape((4, 4), model.level_sizes)
    generator = Generator(model, AutoregressivePrior(shape, AutoregressiveConfig(width=16, depth=1, heads=2)).eval())
    drawn = generator.sample(3)
    assert drawn.codes.shape == (3, 4, 4, 3)
    assert torch.equal(drawn.codes, generator.prior.sample(3))
    torch.testing.assert_close(drawn.items, model.decode(drawn.codes))
    images, mask = torch.rand(2, 3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[4:] = True
    completed = generator.complete(images, mask)
    hidden = torch.where(mask, torch.nan, images).nanmean((2, 3), keepdim=True)
    assert torch.equal(completed.codes[:, :2], model.encode(torch.where(mask, hidden, images))[:, :2])
    with pytest.raises(ValueError, match="must be of 4 x 4 x 4 codes"):
        Generator(model, AutoregressivePrior(CodeShape((4, 4), (64,)), AutoregressiveConfig(16, 1, heads=2)).eval())
    assert generator.sample(0).codes.shape == (0, 4, 4, 3)


def test_an_interpolation_goes_from_one_to_the_other():
    model = tokenizer()
    first, second = torch.rand(2, 3, 9, 7), torch.rand(2, 3, 9, 7)
    between = interpolate(model, first, second, 5)
    assert between.shape == (5, 2, 3, 9, 7)
    torch.testing.assert_close(between[0], model.reconstruct(first))
    torch.testing.assert_close(between[-1], model.reconstruct(second))


def test_what_is_not_finite_is_not_interpolated():
    images = torch.rand(2, 3, 8, 8)
    for wrong in (torch.full_like(images, torch.nan), torch.full_like(images, torch.inf)):
        for pair in ((images, wrong), (wrong, images)):
            with pytest.raises(ValueError, match="must be finite"):
                interpolate(tokenizer(), *pair, 3)


def test_codes_of_one_image_are_put_into_another():
    model = tokenizer()
    first, second = torch.rand(2, 3, 9, 7), torch.rand(2, 3, 9, 7)
    mask = torch.zeros(9, 7, dtype=torch.bool)
    mask[8, 6] = True  # the last token, of which the images have a quarter
    swapped = swap(model, first, second, mask)
    expected = model.encode(first)
    expected[:, -1, -1] = model.encode(second)[:, -1, -1]
    assert torch.equal(swapped.codes, expected)
    torch.testing.assert_close(swapped.items, model.decode(expected, (9, 7)))
    each = torch.stack([mask, ~torch.zeros_like(mask)])
    assert torch.equal(swap(model, first, second, each).codes[1], model.encode(second)[1])
    with pytest.raises(ValueError, match="'mask' be boolean of their size"):
        swap(model, first, second, mask[:8])
    with pytest.raises(ValueError, match="must have one shape"):
        swap(model, first, second[..., :6], mask)
    with pytest.raises(ValueError, match="'tokenizer' must have codes for each place"):
        swap(tokenizer(quantizer="none"), first, second, mask)


def test_what_does_not_fit_gets_a_reason():
    with pytest.raises(ValueError, match="'prior' must be of 16 codes at each place of 2 axes"):
        Generator(tokenizer(), prior(size=8))
    with pytest.raises(ValueError, match="'tokenizer' must have codes for each place"):
        Generator(tokenizer(quantizer="none"), prior())
    generator = Generator(tokenizer(), prior())
    with pytest.raises(ValueError, match="'items' must have 8x8 samples"):
        generator.complete(torch.rand(1, 3, 6, 8), torch.zeros(6, 8, dtype=torch.bool))
    for mask in (torch.zeros(8, 8), torch.zeros(3, 8, 8) > 0, torch.zeros(1, 1, 8, 8) > 0):
        with pytest.raises(ValueError, match="'mask' be boolean"):
            generator.complete(torch.rand(1, 3, 8, 8), mask)
    with pytest.raises(ValueError, match="'labels' must be 2 integers"):
        generator.sample(2, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="'steps' must be an integer of at least 2"):
        interpolate(tokenizer(), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), 1)
    with pytest.raises(ValueError, match="must have one shape"):
        interpolate(tokenizer(), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 6, 8), 3)
