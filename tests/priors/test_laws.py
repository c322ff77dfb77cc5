"""Laws that all priors keep, over one list of them: a new prior is tested by one more line."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from gmvq.priors import (
    AutoregressiveConfig,
    AutoregressivePrior,
    CodeFlowPrior,
    CodeShape,
    FlowConfig,
    Frequencies,
    LatentFlowConfig,
    LatentFlowPrior,
    MaskedConfig,
    MaskedPrior,
    NGram,
    Sampling,
)

SHAPES = {
    "one level": CodeShape((2, 2), (3,), classes=2),
    "two levels": CodeShape((2, 2), (3, 2), classes=2),
    "sequence": CodeShape((5,), (3,), classes=2),
    "one place": CodeShape((1, 1), (4,), classes=1),
    "one code": CodeShape((2, 3), (1,), classes=2),
    "no axes": CodeShape((), (5,), classes=2),
    "no axes, levels": CodeShape((), (3, 2, 2), classes=2),
}
SMALL = {"width": 16, "depth": 2, "heads": 2}


def autoregressive(shape, order="raster"):
    return AutoregressivePrior(shape, AutoregressiveConfig(**SMALL, order=order))


PRIORS = {
    "frequencies": Frequencies,
    "n-gram": NGram,
    "autoregressive": autoregressive,
    "autoregressive, spiral": lambda shape: autoregressive(shape, "spiral"),
    "autoregressive, coarse": lambda shape: autoregressive(shape, "coarse"),
    "masked": lambda shape: MaskedPrior(shape, MaskedConfig(**SMALL)),
    "masked, columns": lambda shape: MaskedPrior(shape, MaskedConfig(**SMALL, order="columns")),
}


def latent_flow(shape):
    prior = LatentFlowPrior(shape, LatentFlowConfig(**SMALL, codebook_dim=2))
    prior.place(torch.randn(shape.codebook_sizes[0], 2), deviation=0.1)
    return prior


FLOWS = {
    "flow of codes": lambda shape: CodeFlowPrior(shape, FlowConfig(**SMALL)),
    "flow of latents": latent_flow,
}


def every(shape):
    """All codes of a shape."""
    sizes = shape.codebook_sizes * shape.places
    return torch.tensor(list(itertools.product(*map(range, sizes)))).reshape(-1, *shape.axes)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


@pytest.fixture(params=PRIORS.values(), ids=PRIORS)
def prior(request, shape):
    """A prior far from even: counted from a few codes, or with large weights."""
    return made_of(request.param, shape)


@pytest.fixture(params=[*PRIORS.values(), *FLOWS.values()], ids=[*PRIORS, *FLOWS])
def drawing(request, shape):
    """A prior that draws codes, whether it has a likelihood or not."""
    if request.param is latent_flow and shape.levels > 1:
        pytest.skip("a flow of latents has one level")
    return made_of(request.param, shape)


def made_of(make, shape, factor=8):
    torch.manual_seed(0)
    made = make(shape)
    if isinstance(made, (Frequencies, NGram)):
        codes = every(shape)
        made.fit([codes[torch.randint(len(codes), (20,))] for _ in range(2)])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    return made.eval()


@torch.no_grad()
def test_the_probabilities_of_all_codes_sum_to_one(prior):
    codes = every(prior.shape)
    nats = prior.log_prob(codes)
    assert nats.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    if prior.shape.classes == 2 and prior.shape.codebook_sizes != (1,):
        labels = torch.ones(len(codes), dtype=torch.int64)
        assert prior.log_prob(codes, labels).double().exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert nats.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("label", [None, 0])
def test_read_code_by_code_they_are_as_likely(prior, label):
    codes = every(prior.shape)[::7]
    labels = None if label is None else torch.full((len(codes),), label)
    sequence = prior.sequence(codes)
    total = torch.zeros(len(codes))
    for step in range(prior.shape.length):
        probabilities = prior.next_probabilities(sequence[:, :step], labels)
        assert probabilities.shape == (len(codes), prior.shape.codebook_sizes[step % prior.shape.levels])
        total += probabilities.gather(1, sequence[:, step : step + 1])[:, 0].log()
    torch.testing.assert_close(total, prior.log_prob(codes, labels), atol=2e-5, rtol=1e-5)


def test_a_sequence_is_the_codes_in_another_order(prior):
    codes = every(prior.shape)[:50]
    sequence = prior.sequence(codes)
    assert torch.equal(prior.codes_of(sequence), codes)
    assert torch.equal(sequence.sort(1).values, codes.reshape(sequence.shape).sort(1).values)


def test_a_sample_is_the_same_alone_and_in_a_batch(drawing):
    labels = torch.arange(6) % drawing.shape.classes
    cuts = {} if isinstance(drawing, LatentFlowPrior) else {"top_k": 2, "top_p": 0.9}
    for sampling in (Sampling(seed=3, steps=6), Sampling(temperature=0.7, guidance=1.5, steps=5, **cuts)):
        batch = drawing.sample(6, labels, sampling)
        drawing.shape.checked(batch)
        single = torch.cat([drawing.sample(1, labels[i : i + 1], sampling, first=i) for i in range(6)])
        assert torch.equal(batch, single)
    assert drawing.sample(0).shape == (0, *drawing.shape.axes)


@torch.no_grad()
def test_samples_are_distributed_as_their_likelihood_says(prior):
    number = 4000
    codes = every(prior.shape)
    drawn = prior.complete_in_order(torch.full((number, *prior.shape.axes), -1)).reshape(number, -1)
    sizes = torch.tensor(prior.shape.codebook_sizes * prior.shape.places)
    radix = torch.cat([sizes.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.int64)])
    counts = torch.bincount((drawn * radix).sum(1), minlength=len(codes)) / number
    probabilities = prior.log_prob(codes).double().exp()
    # the expected total variation distance between ``number`` draws and their own distribution
    expected = (2 * probabilities * (1 - probabilities) / (math.pi * number)).sqrt().sum() / 2
    assert (counts - probabilities).abs().sum() / 2 < 1.5 * expected + 0.01


def test_known_codes_stay(drawing):
    codes = every(drawing.shape)[:4]
    known = codes.clone()
    known.reshape(len(codes), -1)[:, 1:] = -1
    completed = drawing.complete(known)
    assert torch.equal(completed.view(len(codes), -1)[:, 0], codes.view(len(codes), -1)[:, 0])
    assert torch.equal(drawing.complete(codes), codes)


def test_a_completion_is_the_same_alone_and_beside_others(drawing):
    codes = every(drawing.shape)[-3:]
    known = codes.clone()
    for index, row in enumerate(known.view(len(known), -1)):  # as many hidden as there are, and fewer
        row[: row.numel() // (index + 1)] = -1
    sampling = Sampling(seed=4)
    batch = drawing.complete(known, sampling=sampling)
    single = [drawing.complete(known[i : i + 1], sampling=sampling, first=i) for i in range(len(known))]
    assert torch.equal(batch, torch.cat(single))


def test_bits_are_those_of_the_likelihood(prior):
    codes = every(prior.shape)[:10]
    with torch.no_grad():
        nats = prior.quick_log_prob(codes).double()
    expected = -nats.mean().item() / prior.shape.length / math.log(2)
    tolerance = 0.2 if isinstance(prior, MaskedPrior) else 1e-5  # a bound by draws that depend on the batch
    assert prior.bits_per_code(codes, batch_size=4) == pytest.approx(expected, rel=tolerance, abs=1e-6)


def test_state_survives_saving(prior, shape):
    again = type(prior)(shape) if isinstance(prior, (Frequencies, NGram)) else type(prior)(shape, prior.config)
    again.load_state_dict(prior.state_dict())
    codes = every(shape)[:9]
    with torch.no_grad():
        assert torch.equal(again.eval().log_prob(codes), prior.log_prob(codes))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_likelihoods_of_other_precision_are_close(make, shape, dtype):
    rounded = made_of(make, shape, factor=4).to(dtype)
    same_weights = copy.deepcopy(rounded).float()
    codes = every(shape)[::11]
    labels = torch.zeros(len(codes), dtype=torch.int64)
    # activations alone are rounded, to 8 or 11 bits: a few steps of that size for each code and each nat
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3, torch.float64: 1e-4}[dtype]

    def assert_close(found, expected):
        assert ((found - expected).abs() / (shape.length + expected.abs())).max() < tolerance

    for label in (None, labels):
        found, expected = rounded.log_prob(codes, label), same_weights.log_prob(codes, label)
        assert found.dtype == torch.float32
        assert_close(found, expected)
        found, expected = rounded.quick_log_prob(codes, label), same_weights.quick_log_prob(codes, label)
        assert found.dtype == torch.float32
        assert_close(found, expected)
        difference = rounded.bits_per_code(codes, label) - same_weights.bits_per_code(codes, label)
        assert abs(difference) < 2 * tolerance
    # a reader says the same, normalized in float32: what it gives adds up to the likelihood
    sequence, total = rounded.sequence(codes), torch.zeros(len(codes))
    for step in range(shape.length):
        probabilities = rounded.next_probabilities(sequence[:, :step], labels)
        assert (probabilities.sum(1) - 1).abs().max() < 1e-5
        total += probabilities.gather(1, sequence[:, step : step + 1])[:, 0].log()
    assert_close(total, rounded.log_prob(codes, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_drawn_in_any_precision(drawing, dtype):
    made = copy.deepcopy(drawing).to(dtype)
    labels = torch.arange(4) % made.shape.classes
    for sampling in (Sampling(seed=1, steps=3), Sampling(guidance=1.5, temperature=0.5, steps=3)):
        codes = made.sample(4, labels, sampling)
        assert codes.dtype == torch.int64
        made.shape.checked(codes)
    known = codes.clone()
    known.view(4, -1)[:, ::2] = -1
    completed = made.complete(known, labels)
    assert torch.equal(torch.where(known < 0, known, completed), known)
    if not isinstance(made, (Frequencies, NGram)):
        loss = made(codes, labels)  # and it learns
        loss.backward()
        assert loss.isfinite()
        assert loss.dtype in (torch.float32, torch.float64)


def test_state_keeps_its_precision(drawing):
    made = copy.deepcopy(drawing).bfloat16()
    state = made.state_dict()
    again = type(made)(made.shape) if isinstance(made, (Frequencies, NGram)) else type(made)(made.shape, made.config)
    again.bfloat16().load_state_dict(state)
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(again.eval().sample(3), made.sample(3))


def test_counts_are_exact_in_half_precision(shape):
    codes = every(shape)[:1].expand(3000, *shape.axes)  # above 2048 integers are not whole in half precision
    for kind in (Frequencies, NGram):
        whole, half = kind(shape), kind(shape).half()
        whole.fit([codes])
        half.fit([codes])
        assert torch.equal(half.half().log_prob(codes[:2]), whole.log_prob(codes[:2]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda codes: codes.float(), "'codes' must be integers of shape"),
        (lambda codes: codes[..., None, None], "'codes' must be integers of shape"),
        (lambda codes: codes + 9, "'codes' must lie in"),
        (lambda codes: codes - 1, "'codes' must lie in"),
    ],
)
def test_wrong_codes_get_a_reason(prior, change, reason):
    with pytest.raises(ValueError, match=reason):
        prior.log_prob(change(torch.zeros(1, *prior.shape.axes, dtype=torch.int64)))


def test_wrong_labels_get_a_reason(prior):
    codes = torch.zeros(2, *prior.shape.axes, dtype=torch.int64)
    for labels, reason in (
        (torch.tensor([0, 9]), "'labels' must lie in"),
        (torch.tensor([0.5, 0.5]), "'labels' must be 2 integers"),
        (torch.tensor([0]), "'labels' must be 2 integers"),
        (torch.tensor([True, False]), "'labels' must be 2 integers"),
        ([0], "'labels' must be 2 integers"),
        ([0, 0.5], "'labels' must be 2 integers"),
        ([0, None], "'labels' must be a tensor, an array or lists"),
        (["cat", "dog"], "'labels' must be a tensor, an array or lists"),
        ([[0], [0, 0]], "'labels' must be a tensor, an array or lists"),
        (0, "'labels' must be 2 integers"),
        (np.array([0, 9]), "'labels' must lie in"),
    ):
        with pytest.raises(ValueError, match=reason):
            prior.log_prob(codes, labels)
        with pytest.raises(ValueError, match=reason):
            prior.sample(2, labels)
        with pytest.raises(ValueError, match=reason):
            prior.reader(2, labels)
        with pytest.raises(ValueError, match=reason):
            prior.bits_per_code(codes, labels)
    with pytest.raises(ValueError, match="'guidance' must be 1 without labels"):
        prior.sample(2, sampling=Sampling(guidance=2.0))
    if prior.shape.length > 1:
        with pytest.raises(ValueError, match="'known' must lie in"):
            prior.next_probabilities(torch.full((1, 1), 9))
    with pytest.raises(ValueError, match="'known' must be"):
        prior.next_probabilities(torch.zeros(1, prior.shape.length, dtype=torch.int64))
    with pytest.raises(ValueError, match="'number' must be an integer of at least 0"):
        prior.sample(-1)
    with pytest.raises(ValueError, match="'number' must be an integer of at least 0"):
        prior.sample(2.5)
    with pytest.raises(ValueError, match="'codes' must be of at least one item"):
        prior.bits_per_code(codes[:0])


def test_lists_and_arrays_are_as_good_as_tensors(drawing):
    codes = every(drawing.shape)[-2:]
    labels = torch.zeros(len(codes), dtype=torch.int64)
    known = codes.clone()
    known.view(len(codes), -1)[:, 0] = -1
    sampling = Sampling(steps=3)
    expected = drawing.sample(len(codes), labels, sampling), drawing.complete(known, labels, sampling)
    for as_other in (torch.Tensor.tolist, torch.Tensor.numpy, lambda values: values.numpy().astype(np.int16)):
        drawn = drawing.sample(np.int64(len(codes)), as_other(labels), sampling)
        assert torch.equal(drawn, expected[0])
        assert torch.equal(drawing.complete(as_other(known), as_other(labels), sampling), expected[1])
        if drawing.has_likelihood:
            with torch.no_grad():
                likelihoods = drawing.log_prob(as_other(codes), as_other(labels))
                assert torch.equal(likelihoods, drawing.log_prob(codes, labels))
            assert drawing.bits_per_code(as_other(codes), as_other(labels)) == drawing.bits_per_code(codes, labels)
            first = drawing.sequence(codes)[:, : drawing.shape.length - 1]
            expected_next = drawing.next_probabilities(first, labels)
            assert torch.equal(drawing.next_probabilities(first.numpy(), as_other(labels)), expected_next)
    assert drawing.sample(0, []).shape == (0, *drawing.shape.axes)
