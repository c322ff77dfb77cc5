import pytest
import torch

WIDE = {"shape": (2, 10, 8), "dim": 8}

CASES = [
    {},
    {"dim": 4, "codebook_size": None},
    {"codebook_size": 2, "shape": (2, 10, 1)},
    {"codebook_size": 1024, "shape": (2, 10, 10)},
    WIDE,
    {"shape": (2, 10, 3), "dim": 3},
    {"projection_has_bias": False, **WIDE},
    {"has_projections": True},
    {"num_codebooks": 2, "shape": (2, 10, 8)},
    {"num_codebooks": 2, "has_projections": True, **WIDE},
    {"num_codebooks": 2, "shape": (2, 10, 6), "dim": 6},
    {"keep_num_codebooks_dim": True},
    {"codebook_scale": 0.5},
    {"spherical": True},
    {"spherical": True, "codebook_scale": 2.0},
    {"spherical": True, **WIDE},
    {"spherical": True, "num_codebooks": 2, "shape": (2, 10, 8)},
    {"soft_clamp_input_value": 3.0},
    {"soft_clamp_input_value": 3.0, **WIDE},
    {"cosine_sim_project_in": True, **WIDE},
    {"cosine_sim_project_in": True, "cosine_sim_project_in_scale": 2.0, "spherical": True, **WIDE},
    {"orthogonal_rotation": True},
    {"orthogonal_rotation": True, "num_codebooks": 2, "spherical": True, "shape": (2, 10, 8)},
    {"orthogonal_rotation": True, "num_codebooks": 3, **WIDE},
    {"channel_first": True, "shape": (2, 4, 10)},
    {"channel_first": True, "shape": (2, 8, 10), "dim": 8},
    {"shape": (2, 4, 3, 3)},
    {"shape": (2, 8, 3, 4), "dim": 8},
    {"shape": (2, 8, 3, 4), "num_codebooks": 2},
    {"shape": (2, 8, 2, 3, 2), "dim": 8},
    {"commitment_loss_weight": 0.25, "entropy_loss_weight": 0.02, "diversity_gamma": 2.5},
    {"call": {"return_loss_breakdown": True}},
    {"dtype": torch.bfloat16},
]


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize("case", CASES)
def test_gives_what_theirs_gives(compare, case, state):
    compare("LFQ", {"shape": (2, 10, 4), **case}, {"codebook_size": 16}, state)
