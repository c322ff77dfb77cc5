import pytest
import torch

from gmvq.priors import (
    CodeFlowPrior,
    CodeShape,
    FlowConfig,
    LatentFlowConfig,
    LatentFlowPrior,
    NoLikelihoodError,
    Sampling,
)

SHAPE = CodeShape((2, 2), (6,), classes=3)
SIZE = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0, "steps": 8}


def code_flow(shape=SHAPE, **changes):
    torch.manual_seed(0)
    return CodeFlowPrior(shape, FlowConfig(**{**SIZE, **changes}))


def latent_flow(shape=SHAPE, **changes):
    torch.manual_seed(0)
    prior = LatentFlowPrior(shape, LatentFlowConfig(**{**SIZE, "code_dim": 2, **changes}))
    prior.place(torch.randn(shape.codebook_sizes[0], 2), deviation=0.05)
    return prior


FLOWS = {"codes": code_flow, "latents": latent_flow}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS)
def flow(request):
    return request.param


def test_samples_are_codes_and_the_same_alone_and_in_a_batch(flow):
    prior, labels = flow().eval(), torch.tensor([0, 1, 2, 0])
    for sampling in (Sampling(seed=2), Sampling(guidance=2.0, temperature=0.5)):
        batch = prior.sample(4, labels, sampling)
        prior.shape.checked(batch)
        single = [prior.sample(1, labels[i : i + 1], sampling, first=i) for i in range(4)]
        assert torch.equal(torch.cat(single), batch)
    assert prior.sample(0).shape == (0, 2, 2)
    assert not torch.equal(prior.sample(9), prior.sample(9, sampling=Sampling(seed=1)))


@pytest.mark.parametrize("shape", [SHAPE, CodeShape((3,), (5,)), CodeShape((2, 2), (5, 4))])
def test_known_codes_stay(flow, shape):
    if flow is latent_flow and shape.levels > 1:
        with pytest.raises(ValueError, match="must have one level"):
            latent_flow(shape)
        return
    prior = flow(shape).eval()
    known = torch.full((3, *shape.axes), -1)
    known.view(3, -1)[:, 0] = 2
    drawn = prior.complete(known)
    shape.checked(drawn)
    assert (drawn.flatten(1)[:, 0] == 2).all()


def test_it_learns_classes_and_neighbours(flow):
    prior = flow(steps=30)
    labels = torch.arange(96) % 3
    rows = 2 * labels[:, None, None] + torch.randint(2, (96, 2, 1))  # two codes of each class, one for each row
    codes = rows.expand(-1, -1, 2).contiguous()
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        prior(codes, labels).backward()
        optimizer.step()
    drawn = prior.eval().sample(90, torch.arange(90) % 3, Sampling(seed=1))
    assert (drawn // 2 == (torch.arange(90) % 3)[:, None, None]).float().mean() > 0.9
    assert (drawn[..., 0] == drawn[..., 1]).float().mean() > 0.85
    assert len(drawn.flatten(1).unique(dim=0)) >= 10


def test_the_rates_bring_each_code_to_what_is_said(monkeypatch):
    prior = code_flow(steps=5).eval()
    certain = torch.full((1, 4, 6), -50.0)
    certain[..., 3] = 50.0
    monkeypatch.setattr(prior, "_logits", lambda codes, *_: [certain.expand(len(codes), -1, -1)])
    assert (prior.sample(50) == 3).all()


def test_the_velocity_of_one_code_brings_all_noise_to_it(monkeypatch):
    prior = latent_flow(steps=3).eval()
    goal = (prior.codes[4] - prior.mean) / prior.scale
    # the flow to a single point: v = (z - z_t) / (1 - t)
    monkeypatch.setattr(prior, "_velocity", lambda at, times, _: (goal - at) / (1 - times)[:, None, None])
    assert (prior.sample(20) == 4).all()


def test_latents_are_scaled_by_the_codes_in_use():
    prior = latent_flow()
    codes, counts = torch.randn(6, 2) * 5 + 3, torch.tensor([4.0, 1, 0, 0, 2, 1])
    prior.place(codes, 0.5, counts)
    drawn = codes[torch.multinomial(counts, 200_000, replacement=True)] + 0.5 * torch.randn(200_000, 2)
    torch.testing.assert_close(prior.mean, drawn.mean(0), rtol=0.02, atol=0.05)
    torch.testing.assert_close(prior.scale, drawn.std(0), rtol=0.02, atol=0.02)


def test_it_says_that_it_has_no_likelihood(flow):
    prior = flow()
    assert not prior.has_likelihood
    with pytest.raises(NoLikelihoodError, match="has no likelihood of codes"):
        prior.log_prob(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="'guidance' must be 1 without labels"):
        prior.sample(1, sampling=Sampling(guidance=2.0))


def test_what_cannot_be_placed_gets_a_reason():
    prior = latent_flow()
    with pytest.raises(ValueError, match="'codebook' must be finite"):
        prior.place(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="'codebook' must be finite"):
        prior.place(torch.full((6, 2), torch.nan))
    with pytest.raises(ValueError, match="'deviation' must be a finite number"):
        prior.place(torch.zeros(6, 2), -1.0)
    with pytest.raises(ValueError, match="'steps' must be an integer of at least 1"):
        FlowConfig(steps=0)
    with pytest.raises(ValueError, match="'code_dim' must be an integer of at least 1"):
        LatentFlowConfig(code_dim=0)
