import pytest
import torch

MASK = torch.arange(10) < torch.tensor([[10], [4]])
LENGTHS = torch.tensor([10, 4])
LEARNED = {"learnable_codebook": True, "ema_update": False}
SEPARATE = {"heads": 2, "separate_codebook_per_head": True}
IMAGE = {"shape": (2, 8, 3, 4), "accept_image_fmap": True}
VOLUME = {"shape": (2, 8, 2, 3, 2), "accept_3d_fmap": True}
FIRST = {"shape": (2, 8, 10), "channel_last": False}
MOVED = {"affine_param": True, "round_trips": False}  # theirs looks up free codes


def descent(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


DIMENSIONS = [
    {},
    {"shape": (5, 8)},
    {"shape": (1, 1, 8)},
    {"shape": (2, 10, 1), "dim": 1},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
    {"codebook_dim": 4},
    {"codebook_dim": 12},
    {"codebook_dim": 8},
    {"codebook_dim": 3, "shape": (5, 8)},
    {"codebook_dim": 4, "layernorm_after_project_in": True},
    {"layernorm_after_project_in": True},
]
HEADS = [  # theirs gives codes of shared heads in another shape, or crashes
    {"heads": 2, "codebook_dim": 4, "round_trips": False},
    {"heads": 2, "codebook_dim": 5, "round_trips": False},
    {"heads": 2, "round_trips": False},
    {"heads": 2, "codebook_dim": 4, "shape": (5, 8), "round_trips": False},
    {"heads": 1, "separate_codebook_per_head": True, "round_trips": False},
    SEPARATE,
    {"codebook_dim": 4, **SEPARATE},
    {"codebook_dim": 3, **SEPARATE},
    {"codebook_dim": 4, "shape": (5, 8), **SEPARATE},
    {"codebook_dim": 3, "layernorm_after_project_in": True, **SEPARATE},
]
COSINE = [
    {"use_cosine_sim": True},
    {"use_cosine_sim": True, "codebook_dim": 4},
    {"use_cosine_sim": True, "codebook_dim": 4, **SEPARATE},
    {"use_cosine_sim": True, "codebook_dim": 4, "heads": 2, "round_trips": False},
    {"use_cosine_sim": True, "kmeans_init": True},
    {"use_cosine_sim": True, "threshold_ema_dead_code": 2},
    {"use_cosine_sim": True, **IMAGE},
]
LEARNING = [
    {"decay": 0.99},
    {"kmeans_init": True},
    {"kmeans_init": True, "codebook_dim": 4},
    {"kmeans_init": True, **SEPARATE},
    {"threshold_ema_dead_code": 2},
    {"threshold_ema_dead_code": 2, "kmeans_init": True, "codebook_dim": 4},
    {"ema_update": False},
    {"freeze_codebook": True},
    LEARNED,
    {"codebook_dim": 4, **LEARNED},
    {**LEARNED, **SEPARATE},
    {"rotation_trick": False, "sync_update_v": 0.5, **LEARNED},
    {"directional_reparam": True, "threshold_ema_dead_code": 2},
    {"orthogonal_reg_weight": 1.0, "orthogonal_reg_max_codes": 8, **LEARNED},
    {"codebook_diversity_loss_weight": 0.1, **LEARNED},
    {"in_place_codebook_optimizer": descent, **LEARNED},
    {"commitment_weight": 0.25, "rotation_trick": False},
    {"commitment_weight": 0.0},
    {"route_gradients_to_input": False},
]
LAYOUTS = [  # theirs projects the last axis of channel-first codes
    IMAGE,
    {"codebook_dim": 4, "round_trips": False, **IMAGE},
    {"codebook_dim": 4, **IMAGE, **SEPARATE},
    {"codebook_dim": 4, "heads": 2, "round_trips": False, **IMAGE},
    VOLUME,
    {"codebook_dim": 4, "round_trips": False, **VOLUME},
    {"codebook_dim": 4, **VOLUME, **SEPARATE},
    FIRST,
    {"codebook_dim": 4, "round_trips": False, **FIRST},
    {"codebook_dim": 4, **FIRST, **SEPARATE},
]
MASKS = [  # theirs looks masked indices up as the last code
    {"call": {"mask": MASK}},
    {"call": {"lens": LENGTHS}},
    {"call": {"mask": MASK}, "codebook_dim": 4},
    {"call": {"lens": LENGTHS}, "codebook_dim": 12},
    {"call": {"mask": MASK}, "codebook_dim": 4, "heads": 2},
    {"call": {"mask": MASK}, "codebook_dim": 4, **SEPARATE},
    {"call": {"mask": MASK}, "return_zeros_for_masked_padding": False},
    {"call": {"lens": LENGTHS}, "codebook_dim": 4, "return_zeros_for_masked_padding": False},
    {"call": {"mask": MASK}, **FIRST},
    {"call": {"mask": MASK}, "return_zeros_for_masked_padding": False, **FIRST},
]
AFFINE = [MOVED, {"codebook_dim": 4, **MOVED}, {**MOVED, **LEARNED}, {"codebook_dim": 4, **MOVED, **SEPARATE}]
CALLS = [{"call": {"return_loss_breakdown": True}}, {"call": {"freeze_codebook": True}}]
CASES = [*DIMENSIONS, *HEADS, *COSINE, *LEARNING, *LAYOUTS, *[{**case, "round_trips": False} for case in MASKS], *CALLS]


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize("case", CASES)
def test_gives_what_theirs_gives(compare, case, state):
    compare("VectorQuantize", case, {"dim": 8, "codebook_size": 16}, state)


# before its first batch in training, theirs reads moments that it has not set
@pytest.mark.parametrize("case", AFFINE)
def test_affine_codes_are_theirs(compare, case):
    compare("VectorQuantize", case, {"dim": 8, "codebook_size": 16}, "trained")
