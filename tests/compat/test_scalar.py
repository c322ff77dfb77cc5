import pytest
import torch

WIDE = {"shape": (2, 10, 8), "dim": 8}
SYMMETRIC = {"preserve_symmetry": True}
ROTATED = {"levels": [5, 5, 5], "orthogonal_rotation": True}

SCALAR = [
    {},
    {"levels": [8, 5, 5]},
    {"levels": [8, 8, 8]},
    {"levels": [7, 15, 3]},
    {"levels": [1000], "shape": (2, 10, 1)},
    {"levels": (8, 8, 8, 5, 5, 5), "shape": (2, 10, 6)},
    WIDE,
    {"shape": (2, 10, 4), "dim": 4},
    {"projection_has_bias": False, **WIDE},
    {"num_codebooks": 2, "shape": (2, 10, 6)},
    {"num_codebooks": 2, **WIDE},
    {"num_codebooks": 3, **WIDE},
    {"keep_num_codebooks_dim": True},
    {"levels": [5, 4, 2], **SYMMETRIC},
    {"levels": [2, 2, 2, 2], **SYMMETRIC, **WIDE},
    {"levels": [5, 4, 2], "noise_dropout": 0.5, **SYMMETRIC},
    {"bound_hard_clamp": True},
    {"bound_hard_clamp": True, **SYMMETRIC},
    ROTATED,
    {"num_codebooks": 2, "shape": (2, 10, 6), **ROTATED},
    {**ROTATED, **WIDE},
    {"num_codebooks": 2, **ROTATED, **WIDE},
    {"channel_first": True, "shape": (2, 3, 10)},
    {"channel_first": True, "dim": 8, "shape": (2, 8, 10)},
    {"shape": (2, 3, 4, 5)},
    {"num_codebooks": 2, "shape": (2, 6, 4, 5)},
    {"dim": 8, "shape": (2, 8, 3, 4)},
    {"dim": 8, "num_codebooks": 2, "shape": (2, 8, 3, 4)},
    {"dim": 8, "shape": (2, 8, 2, 3, 2)},
    {"return_indices": False, "round_trips": False},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
]
RESIDUAL = [
    {},
    {"levels": [8, 8, 8]},
    {"levels": [5, 4, 2]},
    {"num_quantizers": 6},
    WIDE,
    {"shape": (2, 10, 2), "dim": 2},
    {"quantize_dropout": True},
    {"bound_hard_clamp": False},
    {"bound_hard_clamp": False, "soft_clamp_input_value": 2.0},
    {"bound_hard_clamp": False, "soft_clamp_input_value": [2.0, 1.5, 1.2]},
    {"bound_hard_clamp": False, "soft_clamp_input_value": 2.0, **WIDE},
    {"round_trips": False, **ROTATED},  # theirs looks codes up without the rotation
    {"round_trips": False, **ROTATED, **WIDE},
    {"call": {"return_all_codes": True}},
    {"call": {"return_all_codes": True}, **WIDE},
    {"dtype": torch.float64},
    # theirs cannot look its own channel-first indices up
    {"is_channel_first": True, "shape": (2, 3, 10), "round_trips": False},
    {"is_channel_first": True, "shape": (2, 8, 10), "dim": 8, "round_trips": False},
    {"is_channel_first": True, "shape": (2, 8, 3, 4), "dim": 8, "round_trips": False},
]


@pytest.mark.parametrize("case", SCALAR)
def test_gives_what_theirs_gives(compare, case):
    compare("FSQ", {"shape": (2, 10, 3), **case}, {"levels": [5, 4, 3]})


@pytest.mark.parametrize("case", RESIDUAL)
def test_residual_gives_what_theirs_gives(compare, case):
    compare("ResidualFSQ", {"shape": (2, 10, 3), **case}, {"levels": [5, 4, 3], "num_quantizers": 3})
