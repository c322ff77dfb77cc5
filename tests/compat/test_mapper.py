import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours

theirs = pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"kl_loss_threshold": 0.0}, {"return_indices": True}),
        ({"deterministic_on_eval": True}, {"return_indices": True, "temperature": 0.5}),
        ({}, {"straight_through": False, "calc_aux_loss": True, "reduce_aux_kl_loss": False}),
        ({}, {"deterministic": True, "straight_through": True}),
    ],
)
def test_gives_what_theirs_gives(options, call, training):
    answers = []
    for library in (theirs, ours):
        torch.manual_seed(1)
        mapper = library.BinaryMapper(bits=4, **options).train(training)
        logits = (2 * torch.randn(3, 5, 4)).requires_grad_()
        answer = mapper(logits, **call)
        total = (answer[0] * torch.arange(16.0)).sum() + answer[-1].sum()
        gradient = torch.autograd.grad(total, logits)[0] if total.requires_grad else None
        answers.append((*(part.detach() for part in answer), gradient))
    torch.testing.assert_close(answers[1], answers[0])


def test_probabilities_are_theirs():
    module, mapper = theirs.BinaryMapper(bits=3), ours.BinaryMapper(bits=3)
    logits, indices = torch.randn(2, 5, 3), torch.randint(0, 8, (2, 5))
    one_hot = torch.nn.functional.one_hot(indices, 8).float()
    for call in ({"indices": indices}, {"one_hot": one_hot}):
        torch.testing.assert_close(mapper.log_prob(logits, **call), module.log_prob(logits, **call))
    bits = mapper.log_prob(logits, indices=indices, sum_bits=False)
    torch.testing.assert_close(bits.sum(-1), mapper.log_prob(logits, indices=indices))
    every = torch.stack([mapper.log_prob(logits, indices=torch.full((2, 5), code)) for code in range(8)])
    torch.testing.assert_close(every.exp().sum(0), torch.ones(2, 5))
    torch.testing.assert_close(mapper.binary_entropy(logits), module.binary_entropy(logits))
    torch.testing.assert_close(mapper.binary_entropy(logits), -(every.exp() * every).sum(0))


def test_bits_are_drawn_from_their_probabilities():
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0])
    one_hot, indices, _ = ours.BinaryMapper(bits=3)(logits.expand(50_000, 3), return_indices=True)
    assert torch.equal(one_hot.argmax(-1), indices)
    expected = [ours.BinaryMapper(bits=3).log_prob(logits, indices=torch.tensor(code)).exp() for code in range(8)]
    # three standard deviations of a share of 50,000 draws
    torch.testing.assert_close(one_hot.mean(0), torch.stack(expected), atol=0.007, rtol=0)


def test_extreme_logits_have_no_divergence_that_is_not_finite():
    mapper = ours.BinaryMapper(bits=4)
    logits = torch.tensor([-1e4, 1e4, 0.0, 80.0], requires_grad=True)
    one_hot, loss = mapper(logits)
    (one_hot.sum() + loss).backward()
    assert bool(logits.grad.isfinite().all())


def test_says_what_does_not_fit():
    with pytest.raises(ValueError, match="The last axis of 'logits' must have 4 bits"):
        ours.BinaryMapper(bits=4)(torch.randn(2, 3))
    with pytest.raises(ValueError, match="'indices' or 'one_hot' must be given"):
        ours.BinaryMapper(bits=4).log_prob(torch.randn(2, 4))
