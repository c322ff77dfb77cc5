import json
import math

import pytest
import torch

from gmvq import evaluation
from gmvq.data import ArrayItems, ListItems
from gmvq.evaluation import evaluate
from gmvq.metrics import mse, psnr, ssim
from gmvq.modalities import Image
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.quantizers import GaussianMixtureQuantizer, Joined, Product

QUANTIZERS = ("gaussian-mixture", "vector", "vector-ema", "none")
MIXTURE_ONLY = {"albo_bits_per_dim", "posterior_entropy", "aggregated_posterior_entropy", "mutual_information"}
NOT_AT_HAND = {"lpips"}
CODES_ONLY = {"usage", "used_codes", "perplexity", "code_entropy_bits", "bits_per_token", "bits_per_pixel"}
REQUIRED = {
    *("psnr", "ssim", "mse", "psnr_soft", "mse_soft", "psnr_sampled", "mse_sampled"),
    *("lpips", "elbo_bits_per_dim", "iwae_bits_per_dim", "items", "seconds", "items_per_second", "likelihood_items"),
    *CODES_ONLY,
    *MIXTURE_ONLY,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_images(number=6, channels=3, height=12, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, channels, height, width), generator=generator, dtype=torch.uint8)
    return ArrayItems(images, 2)


def make_model(quantizer="gaussian-mixture", channels=3, codebook_size=8, seed=0, **others):
    """A tiny model that has seen a few batches, so that its codebook and variances have started."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {"modality": Image(channels), "codebook_size": codebook_size, "code_dim": 2, "width": 16, "blocks": 1}
        model = Autoencoder(AutoencoderConfig(quantizer=quantizer, **parts, **others))
        for _ in range(3):
            model(torch.rand(8, channels, 16, 16))
            model.bottleneck.update()
    model.likelihood.calibrate(0.08)
    return model.eval()


def floats(images):
    return torch.stack([images[i] for i in range(len(images))]).float() / 255


def comparable(metrics):
    return {name: value for name, value in metrics.items() if name not in ("seconds", "items_per_second")}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_figure_is_there_and_finite_or_none(quantizer):
    result = evaluate(make_model(quantizer), make_images(), samples=2)
    assert set(result.metrics) == REQUIRED
    missing = {name for name, value in result.metrics.items() if value is None} - NOT_AT_HAND
    assert missing == {"gaussian-mixture": set(), "none": MIXTURE_ONLY | CODES_ONLY}.get(quantizer, MIXTURE_ONLY)
    assert json.loads(json.dumps(result.metrics, allow_nan=False)) == result.metrics
    assert (result.statistics is None) == (quantizer == "none")
    assert "6 images" in result.protocol
    assert ("ALBO" in result.protocol) == (quantizer == "gaussian-mixture")


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_distortion_is_that_of_the_hard_codes(quantizer):
    model, images = make_model(quantizer), make_images(height=13, width=22)
    targets = floats(images)
    reconstructed = model.decode(model.encode(targets), (13, 22))
    metrics = evaluate(model, images, batch_size=4, likelihood_limit=0).metrics
    # A batch of another size may round differently in float32.
    assert metrics["mse"] == pytest.approx(float(mse(reconstructed, targets).mean()), rel=1e-5)
    assert metrics["psnr"] == pytest.approx(float(psnr(reconstructed, targets).mean()), rel=1e-5)
    assert metrics["ssim"] == pytest.approx(float(ssim(reconstructed, targets).mean()), rel=1e-4)


def far(images, targets):
    """Stands for LPIPS, which is not a mean over pixels."""
    return (images - targets).abs().amax((1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_the_mean_over_images_of_the_hard_codes(monkeypatch, channels):
    monkeypatch.setattr("gmvq.modalities.image.modality.load_lpips", lambda: far)
    sizes = [(32, 32), (40, 33), (32, 32), (31, 64), (32, 32)]
    images = ListItems([make_images(1, channels, *size).array[0] for size in sizes], 2, list("abcde"))
    model = make_model("gaussian-mixture", channels=channels)
    each = [far(model.reconstruct(images[i][None]), images[i][None] / 255) for i in range(5)]
    result = evaluate(model, images, batch_size=2, likelihood_limit=0)
    assert result.metrics["lpips"] == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert "LPIPS is that of AlexNet" in result.protocol


def test_no_lpips_where_it_is_not_at_hand(monkeypatch):
    monkeypatch.setattr("gmvq.modalities.image.modality.load_lpips", lambda: None)
    result = evaluate(make_model("vector"), make_images(height=32, width=32), likelihood_limit=0)
    assert result.metrics["lpips"] is None
    assert "LPIPS" not in result.protocol


@pytest.mark.parametrize(("channels", "sizes"), [(3, [(32, 32), (30, 32)]), (3, [(30, 32), (32, 32)]), (4, [(32, 32)])])
def test_no_lpips_of_images_that_it_is_not_defined_for(monkeypatch, channels, sizes):
    monkeypatch.setattr("gmvq.modalities.image.modality.load_lpips", lambda: far)
    images = ListItems([torch.zeros(channels, *size, dtype=torch.uint8) for size in sizes], 2, ["a", "b"][: len(sizes)])
    assert evaluate(make_model("vector", channels=channels), images, likelihood_limit=0).metrics["lpips"] is None


def test_soft_and_sampled_decoding_stand_apart():
    model, images = make_model("gaussian-mixture"), make_images()
    targets = floats(images)
    latents = model.latents(targets)
    soft = model.likelihood.mean(model.decode_values(model.bottleneck.posterior_mean(latents)))
    metrics = evaluate(model, images, likelihood_limit=0).metrics
    assert metrics["mse_soft"] == pytest.approx(float(mse(soft.detach(), targets).mean()), rel=1e-5)
    assert len({metrics["mse"], metrics["mse_soft"], metrics["mse_sampled"]}) == 3
    hard = evaluate(make_model("vector"), images, likelihood_limit=0).metrics
    assert hard["mse"] == pytest.approx(hard["mse_soft"], rel=1e-6)
    assert hard["mse"] == pytest.approx(hard["mse_sampled"], rel=1e-6)


def test_use_of_the_codebook_is_counted_over_all_images():
    model, images = make_model("vector", codebook_size=16), make_images(number=7)
    codes = model.encode(floats(images))
    result = evaluate(model, images, batch_size=2, likelihood_limit=0)
    assert result.statistics.places[0].counts.tolist() == torch.bincount(codes.flatten(), minlength=16).tolist()
    assert result.metrics["used_codes"] == len(codes.unique())
    assert result.metrics["usage"] == len(codes.unique()) / 16
    assert result.metrics["code_entropy_bits"] == pytest.approx(math.log2(result.metrics["perplexity"]))


def test_joined_codes_are_one_for_each_token():
    model, images = make_model("vector"), make_images()
    torch.manual_seed(0)
    model.bottleneck = Joined(Product([GaussianMixtureQuantizer(1, 4), GaussianMixtureQuantizer(1, 3)]))
    for _ in range(3):
        model.train()(floats(images))
        model.bottleneck.update()
    codes = model.eval().encode(floats(images))
    result = evaluate(model, images, batch_size=2, samples=2)
    assert result.statistics.places[0].counts.tolist() == torch.bincount(codes.flatten(), minlength=12).tolist()
    assert result.metrics["bits_per_token"] == pytest.approx(math.log2(12))
    assert {name for name, value in result.metrics.items() if value is None} == {"albo_bits_per_dim"} | NOT_AT_HAND
    with torch.no_grad():
        entropy = model.bottleneck.quantizer.posterior(model.latents(floats(images))).entropy
    assert result.metrics["posterior_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-4)


def test_bits_per_pixel_count_the_tokens_of_padded_images():
    images = ListItems(
        [torch.zeros(3, 5, 9, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)], 2, ["a", "b"]
    )
    metrics = evaluate(make_model(codebook_size=8), images, likelihood_limit=0).metrics
    assert metrics["bits_per_token"] == 3
    assert metrics["bits_per_pixel"] == pytest.approx(3 * (2 * 3 + 2 * 2) / (45 + 64))


def test_codes_of_several_scales_count_each_place_of_each():
    model = make_model("hierarchical", codebook_size=16, downsampling=2)
    metrics = evaluate(model, make_images(height=16, width=16), likelihood_limit=2).metrics
    assert metrics["bits_per_token"] == 3  # 16 ** 0.75 codes
    assert metrics["bits_per_pixel"] == pytest.approx(3 * (1 + 4 + 16 + 64) / 256)
    nats = (1 + 4 + 16 + 64) * math.log(8)
    images = floats(make_images(2, height=16, width=16))
    torch.testing.assert_close(model.bottleneck.divergence(model.latents(images)).sum(), torch.tensor(2 * nats))
    assert metrics["elbo_bits_per_dim"] == metrics["iwae_bits_per_dim"]


def test_information_equals_the_posterior_of_all_tokens():
    model, images = make_model("gaussian-mixture"), make_images()
    with torch.no_grad():
        posterior = model.bottleneck.posterior(model.latents(floats(images)))
    metrics = evaluate(model, images, batch_size=2, likelihood_limit=0).metrics
    assert metrics["posterior_entropy"] == pytest.approx(float(posterior.entropy.mean()), abs=1e-4)
    aggregated = posterior.responsibilities.flatten(0, -2).mean(0)
    entropy = float(torch.special.entr(aggregated).sum())
    assert metrics["aggregated_posterior_entropy"] == pytest.approx(entropy, abs=1e-4)
    assert metrics["mutual_information"] == pytest.approx(entropy - float(posterior.entropy.mean()), abs=1e-4)


@pytest.mark.parametrize("codebook_size", [2**25, 2**36])
@pytest.mark.parametrize("quantizer", ["binary-spherical", "lookup-free"])
def test_codebooks_too_large_to_list(quantizer, codebook_size):
    model, images = make_model(quantizer, codebook_size=codebook_size), make_images()
    codes = model.encode(floats(images))
    result = evaluate(model, images, samples=2)
    assert result.metrics["used_codes"] == len(codes.unique())
    assert result.metrics["usage"] == len(codes.unique()) / codebook_size
    assert result.metrics["bits_per_token"] == math.log2(codebook_size)
    assert {name for name, value in result.metrics.items() if value is None} == MIXTURE_ONLY | NOT_AT_HAND
    assert torch.equal(result.statistics.places[0].counts.indices()[0], codes.unique())
    assert result.metrics["elbo_bits_per_dim"] is not None


def bits(nats, images):
    return -nats / (images.array.numel() * math.log(2))


@pytest.mark.parametrize("likelihood", ["gaussian", "mean-squared-error", "laplace", "bernoulli"])
def test_bounds_of_a_one_hot_posterior_are_equal_and_exact(likelihood):
    model, images = make_model("vector", likelihood=likelihood), make_images(number=3)
    targets = floats(images)
    with torch.no_grad():
        parameters = model.decode_values(model.bottleneck.decode(model.encode(targets)))
    nats = float(model.likelihood.log_prob(parameters, targets).sum()) - 3 * 9 * math.log(8)
    metrics = evaluate(model, images, samples=5).metrics
    assert metrics["elbo_bits_per_dim"] == pytest.approx(bits(nats, images), rel=1e-6)
    assert metrics["iwae_bits_per_dim"] == pytest.approx(bits(nats, images), rel=1e-6)


def test_a_one_hot_posterior_is_decoded_once(monkeypatch):
    model, images = make_model("vector"), make_images()
    calls = []
    decode_values = model.decode_values
    monkeypatch.setattr(model, "decode_values", lambda *arguments: calls.append(1) or decode_values(*arguments))
    evaluate(model, images, samples=9)
    once = len(calls)
    evaluate(model, images, samples=90)
    assert len(calls) == 2 * once


@torch.no_grad()
def test_bounds_of_a_mixture_equal_their_enumeration():
    # Items of one token and a mixture of 3 codes without noise: every expectation is a sum of 3 terms.
    model, images = make_model("gaussian-mixture", channels=1, codebook_size=3), make_images(5, 1, 4, 4)
    model.decoder.layers[-1].weight *= 30  # so that it matters which code was drawn
    targets, bottleneck = floats(images), model.bottleneck
    assert bottleneck.noise.is_none
    decoded = [model.decode_values(bottleneck.decode(torch.full((5, 1, 1), code))) for code in range(3)]
    log_likelihood = torch.stack([model.likelihood.log_prob(parameters, targets) for parameters in decoded])
    assert (log_likelihood.std(0) > 1).all()
    latents, log_prior = model.latents(targets), -math.log(3)
    posterior = bottleneck.posterior(latents).responsibilities.reshape(5, 3).T.double()
    evidence = float((log_likelihood + log_prior).logsumexp(0).sum())
    expected = float((posterior * log_likelihood).sum())
    divergence = float((posterior * (posterior.log() - log_prior)).sum())
    distance = float(bottleneck.expected_distance(latents).sum())
    aggregated = posterior.mean(1)
    shared = 5 * float((aggregated * (aggregated.log() - log_prior)).sum())
    metrics = evaluate(model, images, samples=1500).metrics
    # four standard errors of the mean over 1,500 draws
    spread = (posterior * (log_likelihood - (posterior * log_likelihood).sum(0)).square()).sum()
    error = -bits(4 * float(spread / 1500) ** 0.5, images)
    assert error < 0.1
    assert metrics["elbo_bits_per_dim"] == pytest.approx(bits(expected - divergence, images), abs=error)
    assert metrics["iwae_bits_per_dim"] == pytest.approx(bits(evidence, images), abs=error)
    assert metrics["albo_bits_per_dim"] == pytest.approx(bits(expected - distance - shared, images), abs=error)
    assert bits(evidence, images) + 0.05 < bits(expected - divergence, images)
    assert abs(distance + shared - divergence) > 1


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "none"])
def test_more_draws_tighten_the_importance_weighted_bound(quantizer):
    model, images = make_model(quantizer), make_images(number=12)
    few, many = (evaluate(model, images, samples=samples).metrics for samples in (1, 64))
    assert many["iwae_bits_per_dim"] < few["iwae_bits_per_dim"]
    assert many["iwae_bits_per_dim"] < many["elbo_bits_per_dim"]


def test_the_bounds_of_a_vae_without_information_are_exact():
    # A posterior equal to the prior has no divergence and no spread of weights but that of the likelihood.
    model, images = make_model("none", channels=1), make_images(3, 1, 8, 8)
    with torch.no_grad():
        for parameter in (*model.bottleneck.parameters(), *model.decoder.parameters()):
            parameter.zero_()
    targets = floats(images)
    nats = float(model.likelihood.log_prob(torch.zeros_like(targets), targets).sum())
    metrics = evaluate(model, images, samples=3).metrics
    assert metrics["elbo_bits_per_dim"] == pytest.approx(bits(nats, images), rel=1e-6)
    assert metrics["iwae_bits_per_dim"] == pytest.approx(bits(nats, images), rel=1e-5)


def test_bounds_of_a_large_image_are_those_of_its_centre():
    model, images = make_model("vector"), make_images(1, 3, 140, 131)
    centre = ArrayItems(images.array[:, :, 6:134, 1:129], 2)
    large, small = evaluate(model, images).metrics, evaluate(model, centre).metrics
    assert large["elbo_bits_per_dim"] == pytest.approx(small["elbo_bits_per_dim"], rel=1e-9)
    assert large["mse"] != small["mse"]


def test_limits_take_the_first_images():
    model, images = make_model("vector"), make_images(number=7)
    limited = evaluate(model, images, limit=3, likelihood_limit=2)
    assert comparable(limited.metrics) == pytest.approx(
        comparable(evaluate(model, images.subset([0, 1, 2]), likelihood_limit=2).metrics)
    )
    assert (limited.metrics["items"], limited.metrics["likelihood_items"]) == (3, 2)
    two = evaluate(model, images.subset([0, 1])).metrics
    assert limited.metrics["elbo_bits_per_dim"] == pytest.approx(two["elbo_bits_per_dim"], rel=1e-9)
    assert evaluate(model, images, limit=99, likelihood_limit=99).metrics["likelihood_items"] == 7


def test_no_bounds_on_request():
    result = evaluate(make_model(), make_images(), likelihood_limit=0)
    for name in ("elbo_bits_per_dim", "iwae_bits_per_dim", "albo_bits_per_dim"):
        assert result.metrics[name] is None
    assert result.metrics["likelihood_items"] == 0
    assert result.metrics["posterior_entropy"] is not None
    assert "Bounds" not in result.protocol


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 1, 1), (3, 1, 7), (4, 13, 5)])
def test_any_size_and_channel_count_and_a_single_image(quantizer, channels, height, width):
    model, images = make_model(quantizer, channels=channels), make_images(1, channels, height, width)
    metrics = evaluate(model, images, samples=2, batch_size=1).metrics
    assert metrics["items"] == 1
    assert 0 < metrics["mse"] < 1
    assert -1 <= metrics["ssim"] <= 1
    assert math.isfinite(metrics["iwae_bits_per_dim"])


def test_images_of_mixed_sizes():
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 8), (12, 9), (8, 8), (30, 4), (12, 9)]
    images = ListItems(
        [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes], 2, list("abcde")
    )
    model = make_model("vector")
    errors = [mse(model.reconstruct(images[i][None]), images[i][None] / 255) for i in range(5)]
    metrics = evaluate(model, images).metrics
    assert metrics["items"] == metrics["likelihood_items"] == 5
    assert metrics["mse"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)


@pytest.mark.parametrize("quantizer", ["vector", "gaussian-mixture"])
def test_small_blocks_change_nothing_but_draws(quantizer, monkeypatch):
    model, images = make_model(quantizer), make_images()
    whole = evaluate(model, images, samples=2)
    monkeypatch.setattr(evaluation, "MAX_SAMPLES", 300)  # two images of 12x12
    monkeypatch.setattr(evaluation, "MAX_DISTANCES", 40)  # five tokens of 8 codes
    blocks = evaluate(model, images, samples=2)
    assert torch.equal(whole.statistics.places[0].counts, blocks.statistics.places[0].counts)
    drawn = {"psnr_sampled", "mse_sampled", "elbo_bits_per_dim", "iwae_bits_per_dim", "albo_bits_per_dim"}
    for name, value in comparable(whole.metrics).items():
        if value is not None and (name not in drawn or quantizer == "vector"):
            assert blocks.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("quantizer", ["gaussian-mixture", "none"])
def test_a_seed_fixes_every_draw(quantizer):
    model, images = make_model(quantizer), make_images()
    first, again, other = (evaluate(model, images, samples=3, seed=seed).metrics for seed in (0, 0, 1))
    assert comparable(first) == comparable(again)
    assert first["mse_sampled"] != other["mse_sampled"]
    assert first["iwae_bits_per_dim"] != other["iwae_bits_per_dim"]
    assert first["mse"] == other["mse"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_model_and_the_global_random_state_are_left_as_they_were(quantizer):
    model, images = make_model(quantizer), make_images()
    model.train()
    model.decoder.eval()  # a part that its owner froze
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, images, samples=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_a_failure_restores_the_mode_too():
    model = make_model().train()
    with pytest.raises(ValueError, match="shape"):
        evaluate(model, make_images(channels=1))
    assert model.training


def test_weights_that_are_not_finite_are_an_error():
    model = make_model("vector")
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="must be finite"):
        evaluate(model, make_images())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "'samples' must be an integer of at least 1"),
        ({"batch_size": 0}, "'batch_size' must be an integer of at least 1"),
        ({"limit": 0}, "'limit' must be an integer of at least 1"),
        ({"likelihood_limit": -1}, "'likelihood_limit' must be an integer of at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make_model(), make_images(), **arguments)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least 1 item"):
        evaluate(make_model(), ArrayItems(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 2))
