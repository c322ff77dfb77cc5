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
SIZE = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0}
QUICK = Sampling(steps=8)


def code_flow(shape=SHAPE, **changes):
    torch.manual_seed(0)
    return CodeFlowPrior(shape, FlowConfig(**{**SIZE, **changes}))


def latent_flow(shape=SHAPE, **changes):
    torch.manual_seed(0)
    prior = LatentFlowPrior(shape, LatentFlowConfig(**{**SIZE, "codebook_dim": 2, **changes}))
    prior.place(torch.randn(shape.codebook_sizes[0], 2), deviation=0.05)
    return prior


FLOWS = {"codes": code_flow, "latents": latent_flow}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS)
def flow(request):
    return request.param


@pytest.mark.parametrize("shape", [SHAPE, CodeShape((3,), (5,)), CodeShape((2, 2), (5, 4))])
def test_known_codes_stay(flow, shape):
    if flow is latent_flow and shape.levels > 1:
        with pytest.raises(ValueError, match="must have one level"):
            latent_flow(shape)
        return
    prior = flow(shape).eval()
    known = torch.full((3, *shape.axes), -1)
    known.view(3, -1)[:, 0] = 2
    drawn = prior.complete(known, sampling=QUICK)
    shape.checked(drawn)
    assert (drawn.flatten(1)[:, 0] == 2).all()


def fitted(prior, codes, labels, steps=500):
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(codes), (96,))
        optimizer.zero_grad()
        prior(codes[chosen], labels[chosen]).backward()
        optimizer.step()
    return prior.eval()


def test_it_learns_classes_and_neighbours_and_completes_them(flow):
    labels = torch.arange(600) % 3
    rows = 2 * labels[:, None, None] + torch.randint(2, (600, 2, 1))  # two codes of each class, one for each row
    codes = rows.expand(-1, -1, 2).contiguous()
    prior = fitted(flow(), codes, labels)
    drawn = prior.sample(90, torch.arange(90) % 3, Sampling(seed=1, steps=30))
    assert (drawn // 2 == (torch.arange(90) % 3)[:, None, None]).float().mean() > 0.9
    assert (drawn[..., 0] == drawn[..., 1]).float().mean() > 0.85
    assert len(drawn.flatten(1).unique(dim=0)) >= 10
    known = codes[:90].clone()
    known[..., 1] = -1  # the other code of each row says what it is
    completed = prior.complete(known, labels[:90], Sampling(steps=8))
    assert (completed == codes[:90]).float().mean() > 0.97


def test_the_rates_bring_each_code_to_what_is_said(monkeypatch):
    prior = code_flow().eval()
    certain = torch.full((1, 4, 6), -50.0)
    certain[..., 3] = 50.0
    monkeypatch.setattr(prior, "_logits", lambda codes, *_: [certain.expand(len(codes), -1, -1)])
    assert (prior.sample(50, sampling=QUICK) == 3).all()


def test_the_flow_between_codes_draws_what_the_exact_posterior_says(monkeypatch):
    """Two codes that are the same, one of them known: the other follows, in any number of steps."""
    size = 40
    prior = code_flow(CodeShape((2,), (size,))).eval()

    def exact(codes, times, labels, known):
        """log p(c | c_t) where both codes are one, evenly drawn, and each is right with probability t, or known."""
        right = torch.where(known, 1.0, times[:, None])
        seen = torch.nn.functional.one_hot(codes, size) * right[..., None] + (1 - right[..., None]) / size
        return [seen.clamp_min(1e-30).log().sum(1, keepdim=True).expand(-1, 2, -1)]

    monkeypatch.setattr(prior, "_logits", exact)
    known = torch.stack([torch.arange(400) % size, torch.full((400,), -1)], dim=1)
    for steps in (1, 8):
        completed = prior.complete(known, sampling=Sampling(steps=steps))
        assert torch.equal(completed[:, 1], known[:, 0])
    drawn = prior.sample(2000, sampling=Sampling(steps=200))
    assert (drawn[:, 0] == drawn[:, 1]).float().mean() > 0.95
    counts = torch.bincount(drawn[:, 0], minlength=size) / 2000
    assert (counts - 1 / size).abs().sum() / 2 < 0.1


def test_the_velocity_of_one_code_brings_all_noise_to_it(monkeypatch):
    prior = latent_flow().eval()
    goal = (prior.codes[4] - prior.mean) / prior.scale
    # the flow to a single point: v = (z - z_t) / (1 - t)
    monkeypatch.setattr(prior, "_velocity", lambda at, times, *_: (goal - at) / (1 - times)[:, None, None])
    assert (prior.sample(20, sampling=Sampling(steps=3)) == 4).all()


def test_what_it_learns_from_stands_for_its_code():
    prior = latent_flow()
    prior.place(torch.randn(6, 2), deviation=0.8)  # as wide as the codes lie apart
    codes = torch.randint(6, (5000,))
    latents = prior.latents_of(codes)
    assert torch.equal(prior.code_of(latents), codes)
    assert (latents - prior.codes[codes]).norm(dim=1).mean() > 0.2


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
    for counts in (torch.zeros(6), torch.ones(5), -torch.ones(6)):
        with pytest.raises(ValueError, match="'counts' must be 6 numbers of at least 0"):
            prior.place(torch.randn(6, 2), counts=counts)
    with pytest.raises(ValueError, match="'known_share' must lie in"):
        FlowConfig(known_share=1.5)
    with pytest.raises(ValueError, match="'codebook_dim' must be an integer of at least 1"):
        LatentFlowConfig(codebook_dim=0)
    for change in ({"top_k": 3}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match="'top_k' and 'top_p' must be left out"):
            prior.sample(1, sampling=Sampling(**change))
    nowhere = LatentFlowPrior(SHAPE, LatentFlowConfig(**SIZE))
    for use in (lambda: nowhere.sample(1), lambda: nowhere(torch.zeros(1, 2, 2, dtype=torch.int64))):
        with pytest.raises(ValueError, match="must have a codebook, got none"):
            use()
    with pytest.raises(ValueError, match="'codes' must lie in"):
        prior(torch.full((1, 2, 2), -1))
