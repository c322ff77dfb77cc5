import pytest
import torch
from torch import nn


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def narrow_network():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))


def biased():
    return nn.Linear(8, 8)


def larger(codes):
    return codes * 4


CASES = [
    {},
    {"shape": (5, 8)},
    {"shape": (2, 3, 4, 8)},
    {"rotation_trick": False},
    {"frozen_codebook_dim": 5},
    {"frozen_codebook_dim": 12},
    {"codebook_transform": biased},
    {"codebook_transform": network},
    {"codebook_transform": narrow_network, "frozen_codebook_dim": 5},
    {"init_fn": larger},
    {"commitment_weight": 0.5, "input_to_quantize_commit_loss_weight": 0.1},
    {"channel_first": True, "shape": (2, 8, 10)},
    {"channel_first": True, "shape": (2, 8, 3, 4)},
    {"channel_first": True, "shape": (2, 8, 2, 3, 2)},
    {"channel_first": True, "shape": (2, 8, 3, 4), "frozen_codebook_dim": 5, "codebook_transform": narrow_network},
    {"dtype": torch.float32, "codebook_size": 200},
]


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize("case", CASES)
def test_gives_what_theirs_gives(compare, case, state):
    compare("SimVQ", case, {"dim": 8, "codebook_size": 16}, state)
