import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours

theirs = pytest.importorskip("vector_quantize_pytorch")

DEFAULTS = {"dim": 12, "codebook_size": 16, "codebook_dim": 4}


@pytest.mark.parametrize("options", [{}, {"norm": False}, {"num_codebooks": 3}, {"codebook_dim": 20}], ids=str)
def test_gives_what_theirs_gives(options):
    torch.manual_seed(0)
    module, dropin = (library.RandomProjectionQuantizer(**DEFAULTS | options) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    x = 3 * torch.randn(2, 50, 12) + 1
    labels = dropin(x)
    assert torch.equal(labels, module(x))
    assert len(labels.unique()) > 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dropin(x), labels)


def test_nothing_learns():
    dropin = ours.RandomProjectionQuantizer(**DEFAULTS).train()
    x = torch.randn(2, 50, 12)
    labels = dropin(x)
    before = {name: tensor.clone() for name, tensor in dropin.state_dict().items()}
    for _ in range(3):
        dropin(torch.randn(2, 50, 12))
    assert all(torch.equal(before[name], tensor) for name, tensor in dropin.state_dict().items())
    assert torch.equal(dropin(x), labels)
    assert not list(dropin.parameters())


def test_random_numbers_are_theirs():
    drawn = []
    for library in (theirs, ours):
        torch.manual_seed(3)
        drawn.append(library.RandomProjectionQuantizer(**DEFAULTS).rand_projs)
    assert torch.equal(*drawn)


def test_every_label_that_is_given_counts_alike():
    torch.manual_seed(0)
    module, dropin = (library.RandomProjectionQuantizer(**DEFAULTS, num_codebooks=2) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    x, labels = torch.randn(2, 50, 12), torch.randint(0, 16, (2, 50, 2))
    labels[:, 5:, 0] = -1  # the first codebook has a tenth of the labels of the second
    found = dropin(x, indices=labels)
    alone = [dropin(x, indices=torch.where(torch.arange(2) == head, labels, -1)) for head in range(2)]
    torch.testing.assert_close(found, (10 * alone[0] + 100 * alone[1]) / 110)
    torch.testing.assert_close(found, module(x, indices=labels))
    assert not dropin(x, indices=torch.full_like(labels, -1))  # theirs is NaN


def test_refuses_codes_that_would_start():
    with pytest.raises(ValueError, match="'kmeans_init' must be False"):
        ours.RandomProjectionQuantizer(**DEFAULTS, kmeans_init=True)
