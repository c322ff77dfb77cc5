import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from gmvq.quantizers import (
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    NoGradient,
    Orthogonal,
    Residual,
    Rotation,
    SimVQ,
    StraightThrough,
    VectorQuantizer,
)
from gmvq.quantizers.parts.clustering import k_means
from gmvq.quantizers.parts.codebook import MovingAverageCodebook


def test_loss_is_that_of_the_paper():
    rows = torch.randn(20, 3, requires_grad=True)
    quantizer = VectorQuantizer(3, 4, decay=None, commitment_weight=0.5)
    out = quantizer(rows)
    nearest = quantizer.codebook[torch.cdist(rows, quantizer.codebook).argmin(-1)]
    torch.testing.assert_close(out.loss, 1.5 * F.mse_loss(rows, nearest))
    out.loss.backward()
    torch.testing.assert_close(rows.grad, 0.5 * 2 * (rows - nearest).detach() / rows.numel())


def test_moving_average_is_that_of_the_paper():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 3, decay=0.8, kmeans_start=False)
    rows = torch.randn(50, 2)
    counts, sums, codes = torch.ones(3), quantizer.codebook.clone(), quantizer.codebook.clone()
    for _ in range(3):
        chosen = torch.cdist(rows, codes).argmin(-1)
        assert torch.equal(quantizer(rows).codes, chosen)
        one_hot = F.one_hot(chosen, 3).float()
        counts = 0.8 * counts + 0.2 * one_hot.sum(0)
        sums = 0.8 * sums + 0.2 * one_hot.T @ rows
        codes = sums / counts[:, None]
    quantizer.update()
    torch.testing.assert_close(quantizer.codebook, codes)


@pytest.mark.parametrize("decay", [0.5, None])
def test_revival_puts_dead_codes_at_latents(decay):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 64, decay=decay, revive_below=0.5)
    rows = torch.randn(500, 2)
    quantizer(rows)
    quantizer.moving.place(torch.full((64, 2), 1e3), torch.ones(64))
    if decay is None:
        quantizer.learned.data.fill_(1e3)
    for _ in range(10 if decay else 100):
        quantizer(rows)
    assert len(quantizer.encode(rows).unique()) > 48


def test_cosine_ignores_length():
    quantizer = VectorQuantizer(4, 8, cosine=True)
    rows = torch.randn(30, 4)
    out = quantizer(rows)
    assert torch.equal(quantizer.encode(rows * 7), quantizer.encode(rows))
    torch.testing.assert_close(out.values.norm(dim=-1), torch.ones(30))


def test_a_second_update_folds_nothing():
    quantizer = VectorQuantizer(2, 4, decay=0.5)
    quantizer(torch.randn(30, 2))
    quantizer.update()
    before = quantizer.codebook.clone()
    quantizer.update()
    assert torch.equal(quantizer.codebook, before)


def test_straight_through_is_the_identity():
    rows, values = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    out = StraightThrough()(rows, values)
    assert torch.equal(out, values)
    weight = torch.randn(5, 3)
    (out * weight).sum().backward()
    assert torch.equal(rows.grad, weight)


def test_rotation_turns_the_gradient_as_it_turns_the_latent():
    rows, values = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row, value: Rotation()(row[None], value[None])[0]))(
        rows, values
    )
    torch.testing.assert_close(torch.einsum("nij,nj->ni", jacobian, rows), values)
    scale = values.norm(dim=-1) / rows.norm(dim=-1)
    gram = torch.einsum("nij,nik->njk", jacobian, jacobian)
    torch.testing.assert_close(gram, scale.square()[:, None, None] * torch.eye(4, dtype=torch.float64).expand(50, 4, 4))


def test_no_gradient_has_none():
    rows = torch.randn(3, 2, requires_grad=True)
    assert not NoGradient()(rows, torch.randn(3, 2)).requires_grad


def test_k_means_comes_near_that_of_scikit_learn():
    centers = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 5
    rows = (centers[:, None] + torch.randn(8, 100, 3, generator=torch.Generator().manual_seed(1))).flatten(0, 1)
    codes = k_means(rows, 24, iterations=30)
    inertia = torch.cdist(rows, codes).min(-1).values.square().sum().item()
    expected = KMeans(24, n_init=1, random_state=0).fit(rows.numpy()).inertia_
    assert inertia < 1.25 * expected


def test_k_means_of_fewer_rows_than_codes_keeps_them():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    codes = k_means(rows, 10)
    assert torch.cdist(rows, codes).min(-1).values.max() == 0
    assert len(codes.unique(dim=0)) == 10


def test_an_empty_first_batch_leaves_the_start_to_the_next():
    codebook = MovingAverageCodebook(4, 2, 0.9)
    assert not codebook.start(torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool))
    assert not codebook.has_started
    assert codebook.start(torch.randn(9, 2), torch.ones(9, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decay": 1.0}, "'decay'"),
        ({"commitment_weight": -1.0}, "'commitment_weight'"),
        ({"revive_below": -1.0}, "'revive_below'"),
    ],
)
def test_bad_arguments_get_a_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        VectorQuantizer(4, 8, **options)


@pytest.mark.parametrize(
    "options", [{"cosine": True}, {"parts": [Orthogonal()]}, {"estimator": GumbelSoftmax(hard=True)}], ids=str
)
def test_two_forwards_before_a_backward_while_codes_are_revived(options):
    quantizer = VectorQuantizer(4, 16, decay=None, revive_below=5.0, **options)
    outs = [quantizer(torch.randn(50, 4, requires_grad=True)) for _ in range(3)]
    sum(out.values.sum() + out.loss for out in outs).backward()
    assert quantizer.learned.grad.isfinite().all()


def test_a_frozen_codebook_stays_whatever_is_pending():
    for quantizer in (VectorQuantizer(4, 8, decay=0.5), GaussianMixtureQuantizer(4, 8)):
        quantizer(torch.randn(50, 4))
        before = quantizer.freeze().codebook.clone()
        quantizer.update()
        assert torch.equal(quantizer.codebook, before)


def test_unfreezing_leaves_alone_what_was_frozen_before():
    transform = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
    assert not SimVQ(4, 8, transform=transform).freeze().unfreeze().transform.weight.requires_grad
    residual = Residual([VectorQuantizer(4, 8, decay=None) for _ in range(2)])
    residual.freeze_levels(0)
    residual.freeze().unfreeze()
    assert [member.frozen for member in residual.members] == [True, False]
    assert [member.learned.requires_grad for member in residual.members] == [False, True]


def test_a_zero_latent_has_a_gradient_of_reasonable_size():
    quantizer = VectorQuantizer(4, 8, cosine=True)
    rows = torch.cat([torch.zeros(1, 4), torch.randn(30, 4)]).requires_grad_()
    quantizer(rows).values.sum().backward()
    assert rows.grad[0].abs().max() < 1e5
