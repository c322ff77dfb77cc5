import math

import pytest
import torch
import torch.nn.functional as F

from gmvq.compat.taming import GumbelQuantizer, from_state_dict
from gmvq.quantizers import ChannelFirst


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def vqgan(codes):
    return {"encoder.conv_in.weight": torch.ones(1), "quantize.embedding.weight": codes}


@pytest.mark.parametrize(("legacy", "weight"), [(True, 1.0), (False, 0.25)])
def test_vector_quantizer(legacy, weight):
    codes, images = torch.randn(16, 4), torch.randn(2, 4, 3, 5)
    quantizer = from_state_dict(vqgan(codes), prefix="quantize.", legacy=legacy)
    assert isinstance(quantizer, ChannelFirst)
    values, chosen, loss, _ = quantizer(images)
    latents = images.movedim(1, -1)
    assert torch.equal(chosen, torch.cdist(latents.reshape(-1, 4), codes).argmin(-1).reshape(2, 3, 5))
    assert torch.equal(values, codes[chosen].movedim(-1, 1))
    torch.testing.assert_close(loss, (1 + weight) * F.mse_loss(latents, codes[chosen]))
    assert [name for name, _ in quantizer.named_parameters()] == ["quantizer.learned"]


def test_moving_averages_go_on():
    codes, counts = torch.randn(16, 4), torch.rand(16) + 1
    sums = codes * counts[:, None]
    state = {"embedding.weight": codes, "embedding.cluster_size": counts, "embedding.embed_avg": sums}
    quantizer = from_state_dict(state, decay=0.9, channels_first=False)
    latents = torch.randn(100, 4)
    chosen = quantizer(latents).codes
    assert torch.equal(chosen, torch.cdist(latents, codes).argmin(-1))
    quantizer.update()
    one_hot = F.one_hot(chosen, 16).float()
    counts, sums = 0.9 * counts + 0.1 * one_hot.sum(0), 0.9 * sums + 0.1 * one_hot.T @ latents
    torch.testing.assert_close(quantizer.codebook, sums / counts[:, None])


@pytest.mark.parametrize("cosine", [True, False, None])
@pytest.mark.parametrize("wrapped", [True, False])
def test_llamagen(cosine, wrapped):
    codes, images = torch.randn(16, 4), torch.randn(2, 4, 3, 5)
    state = vqgan(codes) | {"quantize.codebook_used": torch.zeros(65536)}
    state = {"model": state, "steps": 1, "optimizer": {"state": {}}} if wrapped else state
    values, chosen, loss, _ = from_state_dict(state, prefix="quantize.", cosine=cosine)(images)
    latents = images.movedim(1, -1)
    if cosine is not False:  # its own default
        latents, codes = F.normalize(latents, dim=-1), F.normalize(codes, dim=-1)
    assert torch.equal(chosen, torch.cdist(latents.reshape(-1, 4), codes).argmin(-1).reshape(2, 3, 5))
    torch.testing.assert_close(values, codes[chosen].movedim(-1, 1))
    torch.testing.assert_close(loss, 1.25 * F.mse_loss(latents, codes[chosen]))


def test_whole_checkpoints_load():
    codes = torch.randn(16, 4)
    quantizer = from_state_dict({"state_dict": vqgan(codes), "epoch": 3}, prefix="quantize.", channels_first=False)
    assert torch.equal(quantizer.codebook, codes)
    with pytest.raises(ValueError, match=r"got 'quantize\.something'"):
        from_state_dict({"model": vqgan(codes) | {"quantize.something": torch.ones(1)}}, prefix="quantize.")


USED = torch.tensor([9, 2, 14, 5, 0])


@pytest.mark.parametrize("averages", [True, False])
def test_used_codes_are_numbered_anew(averages):
    codes, counts, latents = torch.randn(16, 4), torch.rand(16) + 1, torch.randn(200, 4)
    state = {"embedding.weight": codes, "used": USED}
    if averages:
        state |= {"embedding.cluster_size": counts, "embedding.embed_avg": codes * counts[:, None]}
    quantizer = from_state_dict(state, channels_first=False)
    assert torch.equal(quantizer.codebook, codes[USED])
    chosen = quantizer.encode(latents)
    nearest = torch.cdist(latents, codes).argmin(-1)
    match = nearest[:, None] == USED
    known = match.any(-1)
    assert 20 < int(known.sum()) < 180
    assert torch.equal(chosen[known], match.long().argmax(-1)[known])  # as the original maps them
    assert torch.equal(chosen, torch.cdist(latents, codes[USED]).argmin(-1))
    if averages:
        assert torch.equal(quantizer.moving.counts, counts[USED])
        assert torch.equal(quantizer.moving.sums, (codes * counts[:, None])[USED])


def test_used_codes_of_gumbel_quantize():
    codes, weight, bias = torch.randn(16, 4), torch.randn(16, 4, 1, 1), torch.randn(16)
    state = {"proj.weight": weight, "proj.bias": bias, "embed.weight": codes, "used": USED}
    images = torch.randn(2, 4, 3, 5)
    values, chosen, _, _ = from_state_dict(state).eval()(images)
    logits = F.conv2d(images, weight, bias)[:, USED]  # it chooses among these alone
    assert torch.equal(chosen, logits.argmax(1))
    assert torch.equal(values, codes[USED][chosen].movedim(-1, 1))


@pytest.mark.parametrize(
    "used", [[0, 0], [0, 16], [-1, 2], [0.0, 1.0], [[0, 1]], [], [True, False]], ids=lambda used: str(used)
)
def test_used_codes_are_checked(used):
    state = {"embedding.weight": torch.randn(16, 4), "used": torch.tensor(used)}
    with pytest.raises(ValueError, match=r"'used' must be distinct codes in \[0, 16\)"):
        from_state_dict(state)


def test_gumbel_quantize():
    codes, weight, bias = torch.randn(16, 4), torch.randn(16, 4, 1, 1), torch.randn(16)
    state = {"proj.weight": weight, "proj.bias": bias, "embed.weight": codes}
    quantizer = from_state_dict(state).eval()
    images = torch.randn(2, 4, 3, 5)
    values, chosen, loss, _ = quantizer(images)
    logits = F.conv2d(images, weight, bias)
    assert torch.equal(chosen, logits.argmax(1))
    assert torch.equal(values, codes[chosen].movedim(-1, 1))
    q = logits.softmax(1)
    torch.testing.assert_close(loss, 5e-4 * (q * (q * 16).log()).sum(1).mean())
    assert torch.equal(quantizer.encode(images), chosen)


def test_gumbel_draws_in_training_what_it_decodes():
    quantizer = GumbelQuantizer(4, 16)
    latents = torch.randn(2000, 4, requires_grad=True)
    values, codes, loss, _ = quantizer(latents)
    assert torch.equal(values, quantizer.decode(codes))
    assert not torch.equal(codes, quantizer.encode(latents))
    (values.sum() + loss).backward()
    assert all(parameter.grad is not None for parameter in (latents, *quantizer.parameters()))
    # codes are drawn from the posterior
    one = quantizer(latents[:1].expand(20000, -1)).codes
    expected = quantizer.posterior(latents[0]).responsibilities
    torch.testing.assert_close(torch.bincount(one, minlength=16) / 20000, expected, atol=0.02, rtol=0)


def test_gumbel_divergence_is_that_of_its_draws():
    quantizer = GumbelQuantizer(4, 16).eval().double()
    latents = torch.randn(3, 4, dtype=torch.float64)
    draw = quantizer.sample_posterior(latents.expand(20000, -1, -1))
    found = (draw.log_posterior - draw.log_prior).mean(0)
    torch.testing.assert_close(found, quantizer.divergence(latents), atol=0.02, rtol=0)
    posterior = quantizer.posterior(latents)
    torch.testing.assert_close(
        posterior.entropy + quantizer.divergence(latents), torch.full((3,), math.log(16)).double()
    )
    torch.testing.assert_close(quantizer.posterior_mean(latents), posterior.responsibilities @ quantizer.codebook)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (vqgan(torch.ones(8, 3)), "must have 'embedding.weight'"),
        ({"embedding.weight": torch.ones(8, 3), "embedding.embed_avg": torch.ones(8, 3)}, "must have 'embedding.clust"),
        ({"embed.weight": torch.ones(8, 3), "proj.weight": torch.ones(8, 3, 1, 1)}, "must have 'proj.bias'"),
        (
            {"proj.weight": torch.ones(8, 3, 1, 1), "proj.bias": torch.ones(8), "embed.weight": torch.ones(8, 5)},
            "'embed.weight' must have the features of the latents, 3",
        ),
    ],
)
def test_says_what_it_cannot_load(state, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state)


def test_divergence_weight_is_checked():
    with pytest.raises(ValueError, match="'divergence_weight' must be a finite number of at least 0"):
        GumbelQuantizer(4, 16, divergence_weight=-1.0)


def test_evaluation_has_the_gradient_of_the_posterior_mean():
    quantizer = GumbelQuantizer(4, 16).double().eval()
    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    out = quantizer(rows)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    (given,) = torch.autograd.grad(out.values.sum(), rows)
    mean = quantizer.posterior(rows).responsibilities @ quantizer.learned
    torch.testing.assert_close(given, torch.autograd.grad(mean.sum(), rows)[0])
