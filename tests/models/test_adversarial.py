import pytest
import torch
import torch.nn.functional as F

from gmvq.losses import FeatureLoss
from gmvq.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss, gradient_penalty
from gmvq.modalities import Image
from gmvq.models import AdversarialAutoencoder, AdversarialConfig, Autoencoder, AutoencoderConfig
from gmvq.models.adversarial import DISCRIMINATOR, GENERATOR, LEARNING, OPPOSING
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.networks.discriminators import FeatureDiscriminator, PatchDiscriminator, detail

NOW = {"discriminator_start": 0.0, "start": 0.0, "warmup": 0.0}


def made(progress=0.5, features=False, **changes):
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(width=8, blocks=1, codebook_size=16))
    autoencoder(torch.rand(4, 3, 16, 16))
    autoencoder.bottleneck.updates_itself = False
    network = Classifier(ClassifierConfig(Image(3).signal, 4, width=8, features=8)).encoder.layers
    config = AdversarialConfig(**{**NOW, "width": 8, "layers": 2, **changes})
    model = AdversarialAutoencoder(autoencoder, config, FeatureLoss(network) if features else None)
    model.set_progress(progress)
    return model


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_autoencoder_learned_as_alone(model, images):
    learned = gradients(model)
    model.zero_grad()
    model.autoencoder(images).loss.backward()
    for name, gradient in gradients(model).items():
        if name.startswith("autoencoder"):
            torch.testing.assert_close(learned[name], gradient, msg=name, rtol=1e-4, atol=1e-6)


def taught(model, images):
    """The model, its discriminator with a lead on these images."""
    optimizer = torch.optim.Adam(model.discriminator.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model.discriminator.zero_grad()
        model(images).loss.backward()
        optimizer.step()
    model.zero_grad()
    return model


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("loss", ["hinge", "non-saturating"])
@pytest.mark.parametrize("norm", ["spectral", "layer", "none"])
def test_one_backward_gives_each_side_its_own_gradient(loss, norm, features):
    images = torch.rand(4, 3, 16, 16)
    model = taught(made(loss=loss, norm=norm, lecam=0.0, features=features, feature_weight=0.0), images)
    model.discriminator.eval()  # spectral normalization takes a step in each forward of training
    model(images).loss.backward()
    together = gradients(model)
    model.zero_grad()

    def told(images):
        return model.discriminator(model.features.features(images) if features else images)

    reconstruction = model.autoencoder(images)
    real, fake = told(images), told(reconstruction.items.detach())
    discriminator_loss(loss, real, fake).backward()
    own = {name: gradient for name, gradient in gradients(model).items() if name.startswith("discriminator")}
    model.zero_grad()
    fooled = generator_loss(loss, told(reconstruction.items))
    error_weight = model.autoencoder.likelihood.squared_error_weight(reconstruction.terms["mse"])
    accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    lead = (10 * (accuracy - 0.52)).clamp(0, 1)
    assert lead > 0.3
    weight = lead * adaptive_weight(fooled, reconstruction.items, images, error_weight)
    (reconstruction.loss + weight * fooled).backward()
    own |= {name: gradient for name, gradient in gradients(model).items() if name.startswith("autoencoder")}
    assert together.keys() == own.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, own[name], msg=name, rtol=1e-4, atol=1e-6)


def test_before_it_begins_the_autoencoder_learns_as_without():
    images = torch.rand(4, 3, 16, 16)
    model = made(progress=0.2, discriminator_start=0.3, start=0.4, warmup=0.2)
    out = model(images)
    alone = model.autoencoder(images)
    torch.testing.assert_close(out.loss, alone.loss)
    figures = (LEARNING, OPPOSING, *DISCRIMINATOR, *GENERATOR)
    assert {name: out.terms[name].item() for name in figures} == dict.fromkeys(figures, 0.0)
    out.loss.backward()
    assert all(parameter.grad is None for parameter in model.discriminator.parameters())
    model.set_progress(0.35)
    begun = model(images)
    assert begun.terms["discriminator"] > 0
    assert begun.terms["adversarial_weight"] == 0
    assert [begun.terms[name].item() for name in (LEARNING, OPPOSING)] == [1, 0]
    assert begun.terms.keys() == out.terms.keys()
    model.zero_grad()
    begun.loss.backward()
    check_autoencoder_learned_as_alone(model, images)


def test_a_discriminator_that_guesses_pulls_at_nothing():
    images = torch.rand(4, 3, 16, 16)
    model = made(norm="none", lecam=0.0)
    with torch.no_grad():
        model.discriminator.layers[-1].bias.fill_(99)  # it takes all for real
    out = model(images)
    assert out.terms["discriminator_accuracy"] == 0.5
    assert out.terms["adversarial_weight"] == 0
    out.loss.backward()
    check_autoencoder_learned_as_alone(model, images)


def test_the_weight_rises_along_a_line():
    config = AdversarialConfig(weight=2.0, discriminator_start=0.1, start=0.2, warmup=0.4)
    assert [config.weight_at(progress) for progress in (0.0, 0.19, 0.2, 0.4, 0.6, 1.0)] == [0, 0, 0, 1, 2, 2]
    assert AdversarialConfig(**NOW).weight_at(0.0) == 1.0


def test_regularizers_and_features_add_their_parts_to_the_loss():
    images = torch.rand(4, 3, 16, 16)
    exact = {"norm": "none", "lecam": 0.0}  # spectral normalization takes a step in each forward
    regularized = made(**{**exact, "lecam": 20.0})
    real, fake = (regularized.discriminator(each) for each in (images, regularized.autoencoder(images).items))
    added = 20 * (real.relu().square().mean() + (-fake).relu().square().mean())
    assert added > 1e-3
    torch.testing.assert_close(regularized(images).loss, made(**exact)(images).loss + added)
    featured = made(lecam=0.0, features=True, weight=0.0, sees="pixels")
    out = featured(images)
    distance = featured.features(out.items, images)
    added = 0.01 * featured.autoencoder.likelihood.squared_error_weight(out.terms["mse"]) * distance
    torch.testing.assert_close(out.loss, made(lecam=0.0, weight=0.0)(images).loss + added)
    # a discriminator of features learns by the same ones, whether their distance counts or not
    told = [made(lecam=0.0, features=True, weight=0.0, feature_weight=weight)(images) for weight in (0.0, 0.01)]
    torch.testing.assert_close(told[1].loss - told[0].loss, added)
    assert "feature_distance" not in told[0].terms


@pytest.mark.parametrize("features", [False, True])
def test_the_gradient_penalty_is_of_the_images(features):
    images = torch.rand(4, 3, 16, 16)
    exact = {"norm": "none", "lecam": 0.0, "features": features, "feature_weight": 0.0}
    asked, model = images.clone().requires_grad_(), made(**exact)
    penalty = gradient_penalty(model.discriminator(model.features.features(asked) if features else asked), asked)
    assert penalty > 1e-6
    penalized = made(**exact, gradient_penalty=5.0)
    loss = penalized(images).loss
    torch.testing.assert_close(loss, model(images).loss + 2.5 * penalty, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(weight.grad is not None for weight in penalized.discriminator.parameters())


def test_a_discriminator_sees_features_where_there_are_some():
    assert made(features=True).sees_features
    assert not made(features=True, sees="pixels").sees_features
    assert not made().sees_features


def test_a_discriminator_of_features_judges_each_place_of_each_layer():
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator((8, 12), width=8, norm="none")
    fine, coarse = torch.rand(2, 8, 6, 4), torch.rand(2, 12, 3, 2)
    logits = discriminator([fine, coarse])
    assert logits.shape == (2, 2, 6, 4)
    assert torch.equal(logits[:, 1, ::2, ::2], logits[:, 1, 1::2, 1::2])  # a coarser place counts for four
    changed = discriminator([fine, coarse.flip(1)])
    assert torch.equal(changed[:, 0], logits[:, 0])
    assert not torch.equal(changed[:, 1], logits[:, 1])
    with pytest.raises(ValueError, match="is shorter than"):
        discriminator([fine])


def test_the_features_are_no_part_of_its_state():
    network = Classifier(ClassifierConfig(Image(3).signal, 4, width=8, features=8)).encoder.layers.train()
    model = AdversarialAutoencoder(Autoencoder(AutoencoderConfig(width=8)), features=FeatureLoss(network))
    assert not any("features" in name for name in model.state_dict())
    assert all(parameter.requires_grad for parameter in network.parameters())  # those of the caller stay as they were
    assert all(layer.training for layer in network)


def test_in_low_precision_its_losses_are_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        terms = made()(torch.rand(4, 3, 16, 16)).terms
    assert {terms[name].dtype for name in (*DISCRIMINATOR, *GENERATOR)} == {torch.float32}


def test_an_encoder_learns_against_it_before_a_decoder_that_does_not():
    model = made()
    model.autoencoder.decoder.requires_grad_(False)
    model(torch.rand(4, 3, 16, 16)).loss.backward()
    assert all(weight.grad is None for weight in model.autoencoder.decoder.parameters())
    assert any(weight.grad.abs().sum() > 0 for weight in model.autoencoder.encoder.parameters())


def test_in_evaluation_it_is_the_autoencoder():
    model, images = made().eval(), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(images).loss, model.autoencoder(images).loss)
    eight_bit = (images * 255).byte()
    model.train()
    torch.testing.assert_close(model(eight_bit).loss.isfinite(), torch.tensor(True))


def test_a_discriminator_soon_tells_images_that_lack_detail():
    """As reconstructions do: far smaller than what varies from image to image."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, width=16, layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(40):
        fake = F.interpolate(torch.rand(16, 3, 3, 3), 16, mode="bicubic").clamp(0, 1)
        real = fake + 0.03 * torch.randn_like(fake)
        optimizer.zero_grad()
        discriminator_loss("hinge", discriminator(real), discriminator(fake)).backward()
        optimizer.step()
    assert (discriminator(real) > 0).float().mean() > 0.9
    assert (discriminator(fake) < 0).float().mean() > 0.9


def test_detail_is_seen_whatever_its_contrast():
    torch.manual_seed(0)
    texture = torch.rand(2, 3, 16, 16) - 0.5
    strong, weak = (detail(0.5 + contrast * texture) for contrast in (0.8, 0.2))
    assert 0.5 < strong.std() < 2
    torch.testing.assert_close(strong, weak, rtol=0.1, atol=0.01)
    assert detail(torch.full((1, 3, 8, 8), 0.3)).abs().max() < 1e-5
    assert detail(torch.full((1, 3, 8, 8), 0.3) + 0.002 * torch.randn(1, 3, 8, 8)).std() < 0.2  # even, up to rounding
    assert detail(strong.bfloat16()).dtype == torch.float32


def test_a_discriminator_learns_to_tell():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, width=8, layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(80):
        real, fake = torch.rand(16, 1, 8, 8).round(), torch.rand(16, 1, 8, 8)
        loss = (1 - discriminator(real)).relu().mean() + (1 + discriminator(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (discriminator(real) > 0).float().mean() > 0.9
    assert (discriminator(fake) < 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (AdversarialConfig, {"weight": -1.0}, "'weight' must be a finite number of at least 0"),
        (AdversarialConfig, {"discriminator_start": 0.5, "start": 0.4}, "'discriminator_start', 'start' and the end"),
        (AdversarialConfig, {"start": 0.9, "warmup": 0.2}, "'discriminator_start', 'start' and the end"),
        (AdversarialConfig, {"loss": "wasserstein"}, "'loss' must be one of hinge"),
        (AdversarialConfig, {"norm": "batch"}, "'norm' must be one of spectral"),
        (AdversarialConfig, {"sees": "codes"}, "'sees' must be one of features, pixels"),
        (FeatureDiscriminator, {"channels": ()}, "'channels' must be those of at least one layer"),
        (FeatureDiscriminator, {"channels": (8, 0)}, "'channels' must be an integer of at least 1"),
        (FeatureDiscriminator, {"channels": (8,), "width": 0}, "'width' must be an integer of at least 1"),
        (FeatureDiscriminator, {"channels": (8,), "norm": "batch"}, "'norm' must be one of spectral"),
        (AdversarialConfig, {"layers": 0}, "'layers' must be an integer of at least 1"),
        (PatchDiscriminator, {"channels": 0}, "'channels' must be an integer of at least 1"),
        (PatchDiscriminator, {"channels": 3, "norm": "batch"}, "'norm' must be one of spectral"),
    ],
)
def test_wrong_options_get_a_reason(kind, options, reason):
    with pytest.raises(ValueError, match=reason):
        kind(**options)


def test_images_too_small_for_the_discriminator_get_a_reason():
    with pytest.raises(ValueError, match="must have sides of at least 8 pixels"):
        PatchDiscriminator(3)(torch.rand(1, 3, 4, 8))
