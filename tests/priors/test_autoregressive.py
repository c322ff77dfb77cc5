import pytest
import torch

from gmvq.priors import AutoregressiveConfig, AutoregressivePrior, CodeShape, Sampling

SHAPES = [CodeShape((3, 3), (7,), classes=3), CodeShape((2, 3), (7, 4, 5), classes=3)]


def made(shape, **changes):
    torch.manual_seed(0)
    prior = AutoregressivePrior(shape, AutoregressiveConfig(**{"width": 16, "depth": 3, "heads": 2, **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(4)
    return prior.eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["raster", "spiral"])
@torch.no_grad()
def test_logits_are_the_same_with_a_cache(shape, order):
    prior = made(shape, order=order)
    codes = torch.stack([torch.randint(size, (4, shape.places)) for size in shape.codebook_sizes], -1)
    codes, labels = codes.reshape(4, *shape.axes), torch.tensor([0, 1, 2, 0])
    whole = prior.logits(codes, labels)
    reader = prior.reader(4, labels)
    for step, known in enumerate(prior.sequence(codes).unbind(1)):
        place, level = divmod(step, shape.levels)
        torch.testing.assert_close(reader.logits(), whole[level][:, place], atol=1e-5, rtol=1e-5)
        reader.add(known)


def test_a_known_code_need_not_be_asked_for():
    prior = made(SHAPES[1])
    codes = prior.sample(2)
    sequence = prior.sequence(codes)
    asked, silent = prior.reader(2), prior.reader(2)
    with torch.no_grad():
        for known in sequence[:, :-1].unbind(1):
            asked.logits()
            for reader in (asked, silent):
                reader.add(known)
        torch.testing.assert_close(silent.logits(), asked.logits())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_learns_classes_and_neighbors(shape):
    torch.manual_seed(0)
    config = AutoregressiveConfig(width=32, depth=2, heads=2, dropout=0.0, label_dropout=0.2)
    prior = AutoregressivePrior(shape, config)
    labels = torch.arange(60) % 3
    noise = torch.randint(2, (60, *shape.axes))
    codes = labels.reshape(-1, *[1] * len(shape.axes)) + noise  # two codes of each class, shared with the next
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        prior(codes, labels).backward()
        optimizer.step()
    prior.eval()
    for guidance in (1.0, 2.0):
        drawn = prior.sample(60, labels, Sampling(guidance=guidance))
        right = (drawn - labels.reshape(-1, *[1] * len(shape.axes))).flatten(1)
        assert ((right == 0) | (right == 1)).float().mean() > 0.95
    with torch.no_grad():
        informed, uninformed = prior.log_prob(codes, labels).mean(), prior.log_prob(codes).mean()
        wrong = prior.log_prob(codes, (labels + 1) % 3).mean()
    assert informed > uninformed > wrong


def test_gradients_reach_all_weights():
    for shape in SHAPES:
        prior = made(shape).train()
        codes = torch.zeros(4, *shape.axes, dtype=torch.int64)
        prior(codes, torch.tensor([0, 1, 2, 0])).backward()
        assert all(parameter.grad is not None for parameter in prior.parameters())


def test_wrong_options_get_a_reason():
    with pytest.raises(ValueError, match="'label_dropout' must lie in"):
        AutoregressivePrior(SHAPES[0], AutoregressiveConfig(label_dropout=-0.1))
    with pytest.raises(ValueError, match="'width' must be a multiple"):
        AutoregressivePrior(SHAPES[0], AutoregressiveConfig(width=30, heads=4))
    with pytest.raises(ValueError, match="'order' must be one of"):
        AutoregressivePrior(SHAPES[0], AutoregressiveConfig(order="zigzag"))
