import itertools
import math

import pytest
import torch

from gmvq.priors import CodeShape, MaskedConfig, MaskedPrior, Sampling, Unmasking

SHAPE = CodeShape((2, 2), (3,), classes=2)


def made(shape=SHAPE, **changes):
    torch.manual_seed(0)
    prior = MaskedPrior(shape, MaskedConfig(**{"width": 16, "depth": 2, "heads": 2, **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(8)
    return prior.eval()


def nothing(number):
    """Codes of which none is known."""
    return torch.full((number, *SHAPE.axes), -1)


def every(shape):
    return torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, *shape.axes)


def in_all_orders(prior, codes):
    """Probability of codes drawn one by one in a random order, by enumeration."""
    sequence, total = prior.sequence(codes), torch.zeros(len(codes), dtype=torch.float64)
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        hidden, nats = torch.ones_like(sequence, dtype=torch.bool), torch.zeros(len(codes))
        for step in order:
            logits = prior.logits(sequence, hidden, None)[0][:, step]
            nats = nats + logits.log_softmax(-1).gather(1, sequence[:, step : step + 1])[:, 0]
            hidden[:, step] = False
        total += nats.double().exp()
    return total / len(orders)


@torch.no_grad()
def test_one_code_in_each_step_in_any_order_is_autoregression_in_a_random_order():
    prior, codes = made(), every(SHAPE)
    expected = in_all_orders(prior, codes)
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    number = 6000
    drawn = prior.complete(nothing(number), unmasking=Unmasking(4, choice_temperature=math.inf)).flatten(1)
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81) / number
    spread = (2 * expected * (1 - expected) / (math.pi * number)).sqrt().sum() / 2
    assert (counts - expected).abs().sum() / 2 < 1.5 * spread + 0.01


@torch.no_grad()
def test_the_bound_is_the_mean_over_orders_and_below_the_likelihood():
    prior, codes = made(), every(SHAPE)[::5]
    exact = in_all_orders(prior, codes).log()
    estimate = prior.bound(codes, samples=3000)
    sequence, means = prior.sequence(codes), torch.zeros(len(codes))
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        hidden = torch.ones_like(sequence, dtype=torch.bool)
        for step in order:
            logits = prior.logits(sequence, hidden, None)[0][:, step]
            means += logits.log_softmax(-1).gather(1, sequence[:, step : step + 1])[:, 0] / len(orders)
            hidden[:, step] = False
    torch.testing.assert_close(estimate, means, atol=0.25, rtol=0.05)
    assert (means.double() <= exact + 1e-5).all()
    assert torch.equal(prior.bound(codes, samples=3), prior.bound(codes, samples=3))


def test_learning_the_bound_is_learning_the_bound():
    prior, codes = made(weighting="bound"), every(SHAPE)[[5, 40]]
    with torch.no_grad():
        losses = torch.stack([prior(codes) for _ in range(2000)])
        bounds = torch.stack([prior.bound(codes, samples=1, seed=seed).mean() for seed in range(2000)]) / -SHAPE.length
    error = ((losses.var() + bounds.var()) / len(losses)).sqrt()
    assert (losses.mean() - bounds.mean()).abs() < 4 * error


@pytest.mark.parametrize("weighting", ["mean", "bound"])
def test_it_learns_what_there_is_to_learn(weighting):
    torch.manual_seed(0)
    prior = MaskedPrior(SHAPE, MaskedConfig(width=16, depth=1, heads=2, dropout=0.0, weighting=weighting))
    rows = torch.randint(3, (64, 2, 1)).expand(-1, -1, 2)  # a row has one code, whichever
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        prior(rows).backward()
        optimizer.step()
    drawn = prior.eval().complete(nothing(200), unmasking=Unmasking(steps=4))
    assert (drawn[..., 0] == drawn[..., 1]).float().mean() > 0.95
    assert len(drawn.flatten(1).unique(dim=0)) > 6


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("hidden", [0, 1, 3, 4])
def test_the_known_stays_and_the_hidden_is_drawn(steps, hidden):
    prior, known = made(), torch.ones(3, 2, 2, dtype=torch.int64)
    known.view(3, 4)[:, :hidden] = -1
    drawn = prior.complete(known, sampling=Sampling(seed=1), unmasking=Unmasking(steps=steps))
    assert (drawn.view(3, 4)[:, hidden:] == 1).all()
    assert (drawn >= 0).all()


def test_fewer_are_hidden_after_each_step():
    for steps in (1, 2, 7, 12):
        hidden = torch.tensor([12, 49, 64])
        numbers = [hidden, *(Unmasking(steps).hidden_after(step, hidden) for step in range(1, steps + 1))]
        assert all(bool((after < before).all()) for before, after in itertools.pairwise(numbers))
        assert (numbers[-1] == 0).all()
    assert Unmasking(12).hidden_after(2, torch.tensor([2, 1, 0])).tolist() == [0, 0, 0]


def test_the_likeliest_codes_do_not_depend_on_the_seed():
    prior = made()
    unmasking = Unmasking(3, choice_temperature=0.0)
    drawn = [prior.complete(nothing(1), sampling=Sampling(0.0, seed=seed), unmasking=unmasking) for seed in range(4)]
    assert all(torch.equal(one, drawn[0]) for one in drawn)
    first = prior.logits(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), None)[0][0]
    surest = first.log_softmax(-1).max(-1).values.argmax()
    assert drawn[0].flatten()[surest] == first[surest].argmax()  # it stays from the first step


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (Unmasking, {"steps": 0}, "'steps' must be an integer of at least 1"),
        (Unmasking, {"choice_temperature": -1.0}, "'choice_temperature' must be at least 0"),
        (MaskedConfig, {"weighting": "none"}, "'weighting' must be one of mean, bound"),
    ],
)
def test_wrong_options_get_a_reason(kind, options, reason):
    with pytest.raises(ValueError, match=reason):
        kind(**options)
