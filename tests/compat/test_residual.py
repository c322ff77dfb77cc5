import pytest
import torch

MASK = torch.arange(10) < torch.tensor([[10], [4]])
LEARNED = {"learnable_codebook": True, "ema_update": False}

RESIDUAL = [
    {},
    {"shape": (5, 8)},
    {"num_quantizers": 1},
    {"num_quantizers": 8},
    {"codebook_dim": 4},
    {"codebook_dim": 12},
    {"codebook_dim": 4, "shape": (5, 8)},
    {"shared_codebook": True},
    {"shared_codebook": True, "codebook_dim": 4},
    {"shared_codebook": True, "kmeans_init": True, "threshold_ema_dead_code": 2},
    {"codebook_size": (16, 8, 4)},
    {"codebook_size": (16, 8, 4), "codebook_dim": 4},
    {"quantize_dropout": True},
    {"quantize_dropout": True, "quantize_dropout_cutoff_index": 1, "quantize_dropout_multiple_of": 2},
    {"use_cosine_sim": True},
    {"use_cosine_sim": True, "codebook_dim": 4},
    {"kmeans_init": True, "shape": (4, 50, 8)},
    {"kmeans_init": True, "shape": (4, 50, 8), "threshold_ema_dead_code": 2, "decay": 0.9},
    {"rotation_trick": False, "commitment_weight": 0.25},
    LEARNED,
    {"codebook_dim": 4, **LEARNED},
    {"shared_codebook": True, **LEARNED},
    {"ema_update": False},
    {"freeze_codebook": True},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16, "num_quantizers": 1},
    {"call": {"freeze_codebook": True}},
    {"call": {"return_all_codes": True}},
    {"call": {"return_all_codes": True}, "codebook_dim": 4},
    {"call": {"return_all_codes": True}, "codebook_size": (16, 8, 4)},
    {"call": {"return_all_codes": True, "mask": MASK}},
    {"call": {"mask": MASK}},
    {"call": {"mask": MASK}, "codebook_dim": 4, "round_trips": False},  # theirs gives the bias of the way out
    {"call": {"mask": MASK}, "use_cosine_sim": True},
    {"call": {"mask": MASK}, "return_zeros_for_masked_padding": False, "num_quantizers": 1},
]
GROUPED = [
    {"groups": 1},
    {"groups": 2},
    {"groups": 4},
    {"groups": 2, "shape": (5, 8)},
    {"groups": 2, "codebook_dim": 3},
    {"groups": 2, "codebook_dim": 6},
    {"groups": 2, "shared_codebook": True},
    {"groups": 2, "use_cosine_sim": True},
    {"groups": 2, "kmeans_init": True, "shape": (4, 50, 8)},
    {"groups": 2, "quantize_dropout": True},
    {"groups": 2, "codebook_size": (16, 16)},
    {"groups": 2, **LEARNED},
    {"groups": 2, "call": {"mask": MASK}},
    {"groups": 2, "call": {"return_all_codes": True}},
]


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize("case", RESIDUAL)
def test_gives_what_theirs_gives(compare, case, state):
    sizes = {} if "codebook_size" in case else {"num_quantizers": 3}
    compare("ResidualVQ", case, {"dim": 8, "codebook_size": 16, **sizes}, state)


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize("case", GROUPED)
def test_groups_give_what_theirs_give(compare, case, state):
    sizes = {} if isinstance(case.get("codebook_size"), tuple) else {"num_quantizers": 3}
    compare("GroupedResidualVQ", case, {"dim": 8, "codebook_size": 16, **sizes}, state)


# before its first batch in training, theirs reads moments that it has not set; it looks up free codes
@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_affine_codes_are_theirs(compare, kind):
    case = {"affine_param": True, "round_trips": False}
    compare(kind, case, {"dim": 8, "codebook_size": 16, "num_quantizers": 3}, "trained")
