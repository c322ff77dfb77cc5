"""What means nothing here is refused, with the parameter, the rule, the value and a remedy."""

import dataclasses
import inspect
import re

import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours

LEARNED = {"learnable_codebook": True, "ema_update": False}
VECTOR = {"dim": 8, "codebook_size": 16}
RESIDUAL = {**VECTOR, "num_quantizers": 3}
SCALAR = {"levels": [5, 4, 3]}
LEVELS = {"levels": [5] * 8, "num_quantizers": 2}


def adam(parameters):
    return torch.optim.Adam(parameters)


def descent(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def without_addresses(value):
    """The same names of tests in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


REFUSED = [
    ("VectorQuantize", {**VECTOR, "eps": 1e-3}, "'eps' must be 1e-05 here, got 0.001"),
    ("VectorQuantize", {**VECTOR, "kmeans_iters": 5}, "'kmeans_iters' must be 10"),
    ("VectorQuantize", {**VECTOR, "sync_kmeans": False}, "'sync_kmeans' must be True"),
    ("VectorQuantize", {**VECTOR, "sync_codebook": False}, "'sync_codebook' must be None or True"),
    ("VectorQuantize", {**VECTOR, "straight_through": True}, "Set rotation_trick=False"),
    (
        "VectorQuantize",
        {**VECTOR, "vq_bridge": nn.Linear(8, 8), "learnable_codebook": False},
        "'vq_bridge' must be None",
    ),
    (
        "VectorQuantize",
        {**VECTOR, "vq_bridge": nn.Linear(8, 8), "heads": 2, "separate_codebook_per_head": True},
        "'vq_bridge' must be None for separate codebooks",
    ),
    ("VectorQuantize", {**VECTOR, **LEARNED, "use_cosine_sim": True}, "'use_cosine_sim' must be False"),
    ("VectorQuantize", {**VECTOR, "decay": 1.5}, r"'decay' must lie in \[0, 1\], got 1.5"),
    ("VectorQuantize", {**VECTOR, "decay": -0.1}, r"'decay' must lie in \[0, 1\]"),
    ("VectorQuantize", {**VECTOR, "manual_ema_update": True}, r"call .update\(\)"),
    ("VectorQuantize", {**VECTOR, "learnable_codebook": True}, "Set ema_update=False"),
    ("VectorQuantize", {**VECTOR, "orthogonal_reg_weight": 10.0}, "must be 0 for moving averages"),
    ("VectorQuantize", {**VECTOR, **LEARNED, "sync_update_v": 0.5}, "Set rotation_trick=False"),
    ("VectorQuantize", {**VECTOR, "rotation_trick": False, "sync_update_v": 0.5}, "learnable_codebook=True"),
    ("VectorQuantize", {**VECTOR, "directional_reparam": True, "rotation_trick": True}, "Leave one out"),
    (
        "VectorQuantize",
        {**VECTOR, "ema_update": False, "threshold_ema_dead_code": 2},
        "'threshold_ema_dead_code' must",
    ),
    (
        "VectorQuantize",
        {**VECTOR, "in_place_codebook_optimizer": descent},
        "'in_place_codebook_optimizer' must",
    ),
    ("VectorQuantize", {"dim": 8, "codebook_size": 0}, "'codebook_size' must be"),
    ("ResidualVQ", {**RESIDUAL, "heads": 2}, "'heads' must be 1"),
    ("ResidualVQ", {**RESIDUAL, "beam_score_quantizer_weights": [1.0, 0.5, 0.1]}, "'beam_score_quantizer_weights'"),
    ("ResidualVQ", {**RESIDUAL, "quant_grad_frac": 1.5}, r"'quant_grad_frac' must lie in \[0, 1\]"),
    (
        "ResidualVQ",
        {**RESIDUAL, "implicit_neural_codebook": True, "beam_size": 2},
        "'beam_size' must be None with 'implicit_neural_codebook'",
    ),
    (
        "ResidualVQ",
        {**RESIDUAL, "implicit_neural_codebook": True, "commitment_use_cross_entropy_loss": True},
        "'commitment_use_cross_entropy_loss' must be False",
    ),
    (
        "ResidualVQ",
        {**RESIDUAL, **LEARNED, "shared_codebook": True, "in_place_codebook_optimizer": descent},
        "'in_place_codebook_optimizer' must be None with 'shared_codebook'",
    ),
    (
        "ResidualVQ",
        {**RESIDUAL, "quantize_dropout": True, "quantize_dropout_cutoff_index": 3},
        r"'quantize_dropout_cutoff_index' must lie in \[0, 3\)",
    ),
    ("ResidualVQ", {**RESIDUAL, "kmeans_iters": 5}, "'kmeans_iters' must be 10"),
    ("ResidualVQ", VECTOR, "'num_quantizers' must be the number of levels"),
    ("ResidualVQ", {"dim": 8, "codebook_size": (4, 8), "num_quantizers": 3}, "'num_quantizers' must be the number"),
    (
        "ResidualVQ",
        {"dim": 8, "codebook_size": (4, 8), "shared_codebook": True},
        "'codebook_size' must be one integer with 'shared_codebook'",
    ),
    ("GroupedResidualVQ", {**RESIDUAL, "groups": 3}, "'groups' must divide 'dim' = 8, got 3"),
    ("FSQ", {**SCALAR, "scale": 2.0}, "no effect in the original either"),
    ("FSQ", {**SCALAR, "force_quantization_f32": False}, "'force_quantization_f32'"),
    ("FSQ", {**SCALAR, "allowed_dtypes": (torch.float16,)}, "'allowed_dtypes'"),
    ("FSQ", {**SCALAR, "num_codebooks": 2, "keep_num_codebooks_dim": False}, "'keep_num_codebooks_dim' must be True"),
    ("FSQ", {"levels": [2, 2]}, "symmetric=True"),
    ("ResidualFSQ", {**SCALAR, "num_quantizers": 2, "num_codebooks": 2}, "'num_codebooks' must be 1"),
    ("ResidualFSQ", {**SCALAR, "num_quantizers": 2, "soft_clamp_input_value": 2.0}, "set bound_hard_clamp=False"),
    ("LFQ", {}, "'dim' or 'codebook_size' must be given"),
    ("LFQ", {"dim": 4, "frac_per_sample_entropy": 1.5}, r"'frac_per_sample_entropy' must lie in \(0, 1\]"),
    ("LFQ", {"codebook_size": 16, "num_codebooks": 2, "experimental_softplus_entropy_loss": True}, "for 2 codebooks"),
    ("LFQ", {"dim": 4, "num_codebooks": 2, "keep_num_codebooks_dim": False}, "'keep_num_codebooks_dim' must be True"),
    ("LFQ", {"dim": 4, "soft_clamp_input_value": 0.5}, "at least 'codebook_scale'"),
    ("LFQ", {"codebook_size": 15}, "'codebook_size' must be a power of 2"),
    ("SimVQ", {"dim": 8, "codebook_size": 16, "codebook_transform": nn.Linear(8, 4)}, "'transform' must take"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED, ids=without_addresses)
def test_says_what_means_nothing_here(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, kind)(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", VECTOR),
        ("ResidualVQ", RESIDUAL),
        ("GroupedResidualVQ", RESIDUAL),
        ("FSQ", SCALAR),
        ("ResidualFSQ", {**SCALAR, "num_quantizers": 2}),
        ("LFQ", {"dim": 4}),
        ("SimVQ", VECTOR),
    ],
)
def test_unknown_options_are_no_options(kind, options):
    with pytest.raises(TypeError, match="codebok_size"):
        getattr(ours, kind)(**options, codebok_size=16)


@pytest.mark.parametrize(
    ("kind", "options", "call", "message"),
    [
        ("VectorQuantize", VECTOR, {"topk": 0}, "'topk' must be at least 1"),
        ("VectorQuantize", {**VECTOR, "heads": 2}, {"topk": 2}, "for one head"),
        (
            "VectorQuantize",
            {**VECTOR, **LEARNED, "in_place_codebook_optimizer": descent},
            {"topk": 2},
            "'topk' must be",
        ),
        ("VectorQuantize", {**VECTOR, **LEARNED}, {"ema_update": True}, "'ema_update' must be None or False"),
        ("VectorQuantize", {**VECTOR, "threshold_ema_dead_code": 2}, {"ema_update": False}, "Use freeze_codebook=True"),
        ("VectorQuantize", VECTOR, {"codebook_transform_fn": torch.tanh}, "implicit_neural_codebook=True"),
        ("VectorQuantize", VECTOR, {"mask": torch.ones(2, 10)}, "'mask' must be boolean"),
        ("ResidualVQ", RESIDUAL, {"beam_size": 2}, "'beam_size' must be None in training"),
        ("ResidualVQ", RESIDUAL, {"indices": torch.zeros(2, 10, 3)}, "cross_entropy"),
        ("GroupedResidualVQ", RESIDUAL, {"indices": torch.zeros(1, 2, 10, 3)}, "'indices' must be None"),
        ("LFQ", {"dim": 8}, {"inv_temperature": 0.0}, "'inv_temperature' must be above 0"),
        ("LFQ", {"dim": 8}, {"mask": torch.ones(3, dtype=torch.bool)}, "'mask' must have shape"),
    ],
)
def test_says_what_a_call_cannot_do(kind, options, call, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, kind)(**options)(torch.randn(2, 10, 8), **call)


def test_arguments_of_a_call_at_rest_are_accepted():
    x = torch.randn(2, 10, 8)
    assert len(ours.VectorQuantize(**VECTOR)(x, topk=None, accum_ema_update=False)) == 3
    assert len(ours.ResidualVQ(**RESIDUAL)(x, beam_size=None)) == 3
    with pytest.raises(TypeError, match="'top'"):
        ours.VectorQuantize(**VECTOR)(x, top=2)


def test_arguments_go_by_place_as_in_theirs():
    assert ours.VectorQuantize(8, 16, 4, 2).heads == 2
    assert ours.FSQ([5, 5], 8).dim == 8
    assert ours.SimVQ(8, 16).codebook_size == 16


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", {**VECTOR, "eps": 1e-3, "kmeans_iters": 5}),
        ("VectorQuantize", {**VECTOR, "stochastic_sample_codes": True, "sample_codebook_temp": 0.5}),
        ("VectorQuantize", {**VECTOR, "rotation_trick": False, "straight_through": True}),
        ("VectorQuantize", {**VECTOR, "orthogonal_reg_weight": 10.0, "commitment_use_cross_entropy_loss": True}),
        ("VectorQuantize", {**VECTOR, **LEARNED, "sync_update_v": 0.5}),
        ("VectorQuantize", {**VECTOR, **LEARNED, "in_place_codebook_optimizer": adam}),
        ("VectorQuantize", {**VECTOR, "manual_ema_update": True}),
        ("ResidualVQ", {**RESIDUAL, "quant_grad_frac": 0.5, "stochastic_sample_codes": True}),
        ("LFQ", {"dim": 8, "frac_per_sample_entropy": 0.5, "straight_through_activation": nn.Tanh()}),
        ("FSQ", {"levels": [5] * 8, "force_quantization_f32": False}),
    ],
)
def test_convert_for_evaluation_leaves_training_out(kind, options):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    module = getattr(theirs, kind)(**options).eval()
    with pytest.raises(ValueError, match="must"):
        ours.convert(module)
    x = torch.randn(2, 10, 8)
    values, codes, _, _ = ours.convert(module, training=False)(x)
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(values, expected[0])
    assert torch.equal(codes, expected[1].long())


def test_convert_knows_its_modules():
    with pytest.raises(ValueError, match=r"'module' must be one of VectorQuantize, .* got Linear"):
        ours.convert(nn.Linear(2, 2))


def test_convert_knows_subclasses():
    theirs = pytest.importorskip("vector_quantize_pytorch")

    class Mine(theirs.VectorQuantize):
        pass

    assert ours.convert(Mine(dim=8, codebook_size=16)).codebook_size == 16


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", VECTOR),
        ("ResidualVQ", RESIDUAL),
        ("GroupedResidualVQ", RESIDUAL),
        ("FSQ", SCALAR),
        ("ResidualFSQ", {**SCALAR, "num_quantizers": 2}),
        ("LFQ", {"dim": 4}),
        ("SimVQ", VECTOR),
    ],
)
def test_all_arguments_are_known(kind, options):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    dropin, original = getattr(ours, kind)(**options), getattr(theirs, kind)
    rest = {"self", "kwargs", "vq_kwargs"}
    known = {each.name for each in dataclasses.fields(dropin.options)} | {"groups"}
    assert {*inspect.signature(original.__init__).parameters} - rest <= known
    called = inspect.signature(original.forward).parameters
    assert {*called} - rest <= {*inspect.signature(getattr(ours, kind).forward).parameters}
    assert [*called][1:3] == [*inspect.signature(getattr(ours, kind).forward).parameters][1:3]
