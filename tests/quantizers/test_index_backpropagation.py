import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.quantizers import Linear, index_backpropagation
from gmvq.quantizers.index_backpropagation import IndexBackpropagationQuantizer


def rows_of(number: int, dim: int = 3) -> Tensor:
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("cosine", [False, True])
def test_loss_and_gradients_are_those_of_the_paper(cosine):
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(
        3, 5, cosine=cosine, temperature=0.7, entropy_weight=0.3, entropy_temperature=0.5
    ).double()
    latents = rows_of(20)
    z = F.normalize(latents, dim=-1) if cosine else latents
    mu = F.normalize(quantizer.learned, dim=-1) if cosine else quantizer.learned
    logits = z @ mu.T
    p = (logits / 0.7).softmax(-1)
    hard = F.one_hot(logits.argmax(-1), 5).double()
    z_hat = (hard + p - p.detach()) @ mu
    double = F.mse_loss(z_hat, z) + F.mse_loss(z, (hard @ mu).detach()) + 0.25 * F.mse_loss(hard @ mu, z.detach())
    q = (logits / 0.5).softmax(-1)
    entropy = -(q * q.log()).sum(-1).mean() + (q.mean(0) * q.mean(0).log()).sum()
    out = quantizer(latents)
    assert torch.equal(out.values, mu[logits.argmax(-1)])
    torch.testing.assert_close(out.loss, double + 0.3 * (entropy + math.log(5)))
    direction = torch.randn_like(z_hat)
    inputs = (latents, quantizer.learned)
    ours = torch.autograd.grad((out.values * direction).sum() + out.loss, inputs)
    theirs = torch.autograd.grad((z_hat * direction).sum() + double + 0.3 * entropy, inputs)
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second)


def test_the_entropies_of_a_closed_case():
    quantizer = IndexBackpropagationQuantizer(1, 2, entropy_temperature=2.0).double()
    with torch.no_grad():
        quantizer.learned.copy_(torch.tensor([[1.0], [-1.0]]))
    p = 1 / (1 + math.exp(-1))  # logits 1 and -1 over a temperature of 2
    doubt = -p * math.log(p) - (1 - p) * math.log(1 - p)
    even = quantizer(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert even.loss.item() == pytest.approx(0.05 * doubt)  # both latents are codes
    assert even.terms["posterior_entropy"].item() == pytest.approx(doubt)
    assert even.terms["aggregated_divergence"].item() == pytest.approx(0.0, abs=1e-12)
    uneven = quantizer(torch.ones(2, 1, dtype=torch.float64))
    assert uneven.terms["aggregated_divergence"].item() == pytest.approx(math.log(2) - doubt)


def test_all_codes_learn_from_one_latent():
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(4, 16, entropy_weight=0.0, index_weight=0.0)
    quantizer(torch.randn(1, 4)).values.sum().backward()
    assert (quantizer.learned.grad.abs().sum(-1) > 0).all()


def test_blocks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(3, 8, entropy_temperature=0.5).double()
    latents = rows_of(50)
    whole, mean = quantizer(latents), quantizer.posterior_mean(latents)
    gradient = torch.autograd.grad(whole.loss, latents)
    monkeypatch.setattr(index_backpropagation, "BLOCK_ELEMENTS", 7 * 8)
    blocks = quantizer(latents)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks.loss, latents), gradient)
    torch.testing.assert_close(quantizer.posterior_mean(latents), mean)
    with torch.no_grad():
        torch.testing.assert_close(quantizer(latents).loss, whole.loss.detach())


def test_posterior_mean_sample_and_divergence_follow_the_softmax():
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(3, 4, temperature=0.5).double()
    latents = rows_of(2).detach()
    responsibilities, entropy, log_density = quantizer.posterior(latents)
    torch.testing.assert_close(responsibilities, (latents @ quantizer.codebook.T / 0.5).softmax(-1))
    assert log_density is None
    torch.testing.assert_close(quantizer.posterior_mean(latents), responsibilities @ quantizer.codebook)
    torch.testing.assert_close(quantizer.divergence(latents), math.log(4) - entropy)
    draws = quantizer.sample_posterior(latents[:1].expand(20_000, 3), torch.Generator().manual_seed(0))
    chosen = (draws.values[:, None] == quantizer.codebook).all(-1)
    # five standard deviations of a share of 20,000
    torch.testing.assert_close(chosen.double().mean(0), responsibilities[0], rtol=0, atol=5 * 0.5 / 20_000**0.5)
    torch.testing.assert_close(draws.log_posterior, responsibilities[0].log()[chosen.int().argmax(-1)])


def test_dot_products_favour_long_codes_and_cosines_do_not():
    codes = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]])
    for cosine, again in ((False, [1, 1, 2]), (True, [0, 1, 2])):
        quantizer = IndexBackpropagationQuantizer(2, 3, cosine=cosine)
        with torch.no_grad():
            quantizer.learned.copy_(codes)
        assert quantizer.encode(quantizer.codebook).tolist() == again


def test_cosine_ignores_length_and_zero_gets_no_steep_gradient():
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(4, 8, cosine=True)
    latents = torch.randn(30, 4)
    assert torch.equal(quantizer.encode(latents * 7), quantizer.encode(latents))
    torch.testing.assert_close(quantizer(latents).values.norm(dim=-1), torch.ones(30))
    zeros = torch.zeros(5, 4, requires_grad=True)
    quantizer(zeros).loss.backward()
    assert zeros.grad.abs().max() < 1e6


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_any_finite_latent_has_a_finite_loss_and_gradient(scale):
    torch.manual_seed(0)
    quantizer = IndexBackpropagationQuantizer(4, 8)
    latents = (scale * torch.randn(20, 4)).requires_grad_()
    out = quantizer(latents)
    (out.loss + out.values.sum()).backward()
    assert out.loss.isfinite()
    assert latents.grad.isfinite().all()
    assert quantizer.learned.grad.isfinite().all()


def test_temperature_may_follow_a_schedule():
    quantizer = IndexBackpropagationQuantizer(3, 4, temperature=Linear(1.0, 0.1)).double()
    latents = rows_of(5)
    before = quantizer.posterior(latents).entropy
    quantizer.set_progress(1.0)
    assert (quantizer.posterior(latents).entropy < before).all()


@pytest.mark.parametrize("name", ["index_weight", "commitment_weight", "quantization_weight", "entropy_weight"])
def test_bad_weights_get_a_reason(name):
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        IndexBackpropagationQuantizer(4, 8, **{name: -1.0})


@pytest.mark.parametrize("name", ["temperature", "entropy_temperature"])
def test_bad_temperatures_get_a_reason(name):
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        IndexBackpropagationQuantizer(4, 8, **{name: 0.0})
