import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours

VECTOR = {"dim": 8, "codebook_size": 16}

QUANTIZERS = {
    "VectorQuantize": VECTOR,
    "ResidualVQ": {**VECTOR, "num_quantizers": 2},
    "GroupedResidualVQ": {**VECTOR, "num_quantizers": 2, "groups": 2},
    "FSQ": {"levels": [5] * 8},
    "FSP": {"levels": [5] * 8},
    "LFQ": {"dim": 8},
    "ResidualFSQ": {"levels": [5] * 8, "num_quantizers": 2},
    "GroupedResidualFSQ": {"dim": 8, "groups": 2, "levels": [5] * 4, "num_quantizers": 2},
    "ResidualLFQ": {"dim": 8, "codebook_size": 256, "num_quantizers": 2},
    "GroupedResidualLFQ": {"dim": 8, "groups": 2, "codebook_size": 16, "num_quantizers": 2},
    "SimVQ": VECTOR,
    "ResidualSimVQ": {**VECTOR, "num_quantizers": 2},
    "LatentQuantize": {"dim": 8, "levels": [5] * 8},
    "HierarchicalVQ": {**VECTOR, "scales": (1, 8), "kmeans_init": False},  # theirs starts in evaluation, too
}


def chain(library, kind):
    torch.manual_seed(0)
    return library.Sequential(
        nn.Linear(4, 8), getattr(library, kind)(**QUANTIZERS[kind]), nn.Tanh(), nn.Linear(8, 4)
    ).eval()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_gives_what_theirs_gives(kind):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    module, dropin = chain(theirs, kind), chain(ours, kind)
    dropin.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 4)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    found = dropin(x)
    assert len(found) == len(expected)
    torch.testing.assert_close(found[0], expected[0])


def test_arguments_go_to_the_quantizer():
    model = ours.Sequential(nn.Linear(4, 8), ours.VectorQuantize(**VECTOR), nn.Linear(8, 4))
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    decoded, codes, _ = model(torch.randn(2, 6, 4), mask=mask)
    assert decoded.shape == (2, 6, 4)
    assert torch.equal(codes >= 0, mask)


@pytest.mark.parametrize("number", [0, 2])
def test_there_is_one_quantizer(number):
    with pytest.raises(ValueError, match="'fns' must have exactly one quantizer"):
        ours.Sequential(nn.Linear(8, 8), *(ours.LFQ(dim=8) for _ in range(number)))
