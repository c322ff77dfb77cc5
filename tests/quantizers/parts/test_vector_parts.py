import math

import pytest
import torch
import torch.nn.functional as F

from gmvq.quantizers import (
    Affine,
    DiVeQ,
    Diversity,
    GumbelSoftmax,
    InPlaceStep,
    Orthogonal,
    StraightThrough,
    VectorQuantizer,
)


def test_affine_codes_have_the_latents_moments():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 64, decay=None, parts=[Affine(latents_decay=0.0, codes_decay=0.0)])
    for _ in range(3):
        quantizer(torch.randn(500, 4))
    rows = torch.randn(500, 4) * 3 + 7
    quantizer(rows)
    quantizer.update()
    torch.testing.assert_close(quantizer.codebook.mean(0), rows.mean(0))
    torch.testing.assert_close(quantizer.codebook.std(0, correction=0), rows.std(0, correction=0))
    back = quantizer.affine.inverse(quantizer.affine(quantizer.free_codes))
    torch.testing.assert_close(back, quantizer.free_codes)


def test_affine_moves_codes_that_no_latent_takes():
    """An encoder that jumps far away loses a free codebook but not an affine one."""
    used = {}
    for name, parts in (("plain", ()), ("affine", [Affine(latents_decay=0.5)])):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(2, 64, decay=None, parts=parts)
        quantizer(torch.randn(1000, 2))
        for _ in range(20):
            quantizer(torch.randn(1000, 2) + 50)
        used[name] = len(quantizer.encode(torch.randn(1000, 2) + 50).unique())
    assert used["plain"] < 10
    assert used["affine"] > 48


AFFINE = {
    "averages": {"decay": 0.9},
    "averages, revival": {"decay": 0.9, "revive_below": 1.0},
    "gradient, revival": {"decay": None, "revive_below": 1.0},
}
affine_options = pytest.mark.parametrize("options", AFFINE.values(), ids=AFFINE.keys())


@affine_options
def test_batches_of_one_latent_have_the_deviation_of_all(options):
    """A deviation within batches alone would fall to 0, and the inverse of the map would grow without end."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 16, parts=[Affine(0.99)], **options)
    for _ in range(1000):
        quantizer(3 * torch.randn(1, 4) + 7)
    quantizer.update()
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())
    torch.testing.assert_close(quantizer.affine.latents_mean, torch.full((4,), 7.0), rtol=0, atol=1.0)
    torch.testing.assert_close(quantizer.affine.latents_variance.sqrt(), torch.full((4,), 3.0), rtol=0, atol=1.0)


@affine_options
def test_affine_codes_outlive_a_jump_of_the_scale(options):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 16, parts=[Affine()], **options)
    for step in range(300):
        out = quantizer(torch.randn(64, 4) * (1e10 if 10 <= step < 60 else 1.0))
        assert out.values.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())


def test_running_moments_are_those_of_all_batches():
    """Of a mixture of the batches, each with its weight in the running average."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 4, decay=None, parts=[Affine(0.8, 0.6)]).double()
    batches = [torch.randn(5, 2, dtype=torch.float64) * 3 + step for step in range(6)]
    for batch in batches:
        quantizer(batch)
    quantizer.update()
    weights = [0.8**6 + 0.2 * 0.8**5, *(0.2 * 0.8 ** (5 - step) for step in range(1, 6))]  # it starts from the first
    rows = torch.cat(batches)
    shares = torch.tensor(weights, dtype=torch.float64).repeat_interleave(5)[:, None] / 5
    mean = (shares * rows).sum(0)
    torch.testing.assert_close(quantizer.affine.latents_mean, mean)
    torch.testing.assert_close(quantizer.affine.latents_variance, (shares * (rows - mean).square()).sum(0))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_step_in_place_is_the_gradient_step_of_the_codebook_loss(cosine, affine):
    torch.manual_seed(0)
    parts = [InPlaceStep(0.7), *([Affine(0.5, 0.5)] if affine else [])]
    quantizer = VectorQuantizer(3, 8, decay=None, cosine=cosine, parts=parts).double()
    for _ in range(2):
        quantizer(torch.randn(40, 3, dtype=torch.float64) * 2 + 1)
    rows = torch.randn(50, 3, dtype=torch.float64)
    quantizer.update()
    free = quantizer.free_codes.clone().requires_grad_()
    quantizer.updates_itself = False
    out = quantizer(rows)
    shown = quantizer.affine(free) if quantizer.affine else free
    shown = F.normalize(shown, dim=-1) if cosine else shown
    F.mse_loss(shown[out.codes], F.normalize(rows, dim=-1) if cosine else rows).backward()
    quantizer.update()
    torch.testing.assert_close(quantizer.free_codes, free.detach() - 0.7 * free.grad)


def test_regularizers_by_hand():
    codes = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    rows, kept = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]).double(), torch.tensor([True, True, False])
    # the cosines off the diagonal are 1/sqrt(2), 0, 1/sqrt(2), each twice
    torch.testing.assert_close(Orthogonal(2.0)(codes, rows, kept), torch.tensor(2 * 2 / 9, dtype=torch.float64))
    soft = (-0.5 * torch.cdist(rows[:2], codes).square()).softmax(-1).mean(0)
    expected = 3 * (soft * (soft * 3).log()).sum()
    torch.testing.assert_close(Diversity(3.0, sharpness=0.5)(codes, rows, kept), expected)


def test_regularizers_are_never_negative_and_their_gradient_is_finite():
    for loss in (Orthogonal(), Orthogonal(max_codes=3), Diversity()):
        for codes in (torch.zeros(5, 2), torch.randn(5, 2) * 1e4, torch.ones(5, 2)):
            codes = codes.requires_grad_()
            value = loss(codes, torch.randn(7, 2), torch.ones(7, dtype=torch.bool))
            value.backward()
            assert value >= 0
            assert codes.grad.isfinite().all()


def test_synchronization_gives_the_codebook_its_share():
    for share in (0.0, 0.25):
        quantizer = VectorQuantizer(3, 4, decay=None, estimator=StraightThrough(share))
        out = quantizer(torch.randn(20, 3, requires_grad=True))
        quantizer.learned.grad = None
        out.values.sum().backward()
        counts = torch.bincount(out.codes, minlength=4).float()
        expected = share * counts[:, None].expand(4, 3)
        gradient = torch.zeros(4, 3) if quantizer.learned.grad is None else quantizer.learned.grad
        torch.testing.assert_close(gradient, expected)


def test_diveq_gradient_is_that_of_the_moved_latent():
    torch.manual_seed(0)
    latents = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64)
    out = DiVeQ(deviation=0.0)(latents, codes)
    assert torch.equal(out, codes)
    (out * weight).sum().backward()
    # without deviation the moved latent is the code, and its direction e is held: d = I - e e^T and e e^T
    e = F.normalize((codes - latents).detach(), dim=-1)
    along = (weight * e).sum(-1, keepdim=True) * e
    torch.testing.assert_close(latents.grad, weight - along)
    torch.testing.assert_close(codes.grad, along)


def test_diveq_trains_codes_by_the_task_alone():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 4, decay=None, kmeans_start=False, commitment_weight=0.0, estimator=DiVeQ())
    rows = torch.randn(200, 2)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    errors = []
    for _ in range(60):
        loss = F.mse_loss(quantizer(rows).values, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.6 * errors[0]


def test_gumbel_straight_through_draws_codes():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 8, decay=None, estimator=GumbelSoftmax(0.5, hard=True))
    rows = torch.randn(1, 2).expand(4000, 2)
    quantizer(torch.randn(500, 2))
    out = quantizer(rows)
    assert torch.equal(out.values, quantizer.decode(out.codes))
    drawn = torch.bincount(out.codes, minlength=8) / 4000
    expected = (-torch.cdist(rows[:1], quantizer.codebook).square()).softmax(-1)[0]
    torch.testing.assert_close(drawn, expected, atol=4 * math.sqrt(0.25 / 4000), rtol=0)
    assert len(quantizer.eval()(rows).codes.unique()) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Affine(latents_decay=1.0), "'latents_decay'"),
        (lambda: InPlaceStep(0.0), "'learning_rate'"),
        (lambda: InPlaceStep(1.0, steps=0), "'steps'"),
        (lambda: Orthogonal(-1.0), "'weight'"),
        (lambda: Orthogonal(max_codes=0), "'max_codes'"),
        (lambda: Diversity(sharpness=math.nan), "'sharpness'"),
        (lambda: DiVeQ(-1.0), "'deviation'"),
        (lambda: StraightThrough(-0.1), "'synchronization'"),
        (lambda: VectorQuantizer(4, 4, parts=[Orthogonal()]), "decay=None"),
        (lambda: VectorQuantizer(4, 4, parts=[InPlaceStep(1.0)]), "decay=None"),
        (lambda: VectorQuantizer(4, 4, decay=None, parts=[Affine(), Affine()]), "one of a kind"),
        (lambda: VectorQuantizer(4, 4, decay=None, parts=["affine"]), "'parts' must be"),
    ],
)
def test_bad_arguments_get_a_reason(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
