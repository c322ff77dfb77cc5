import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.conversion import dropin_of

MASK = torch.arange(10) < torch.tensor([[10], [4]])

BINARY = [
    {},
    {"dim": 4, "shape": (2, 10, 4)},
    {"shape": (3, 7, 8)},
    {"soft_clamp_input_value": 2.0},
    {"spherical": True, "round_trips": False},  # theirs looks codes up before it scales them to the sphere
    {"call": {"return_all_codes": True}},
    {"dim": 4, "shape": (2, 4, 3, 5), "round_trips": False},  # theirs looks up with channels last
    {"dim": 4, "channel_first": True, "shape": (2, 4, 10), "round_trips": False},
    {"quantize_dropout": True},
    {"num_quantizers": 1},
]

LINEAR = [
    {},
    {"rotation_trick": False},
    {"shape": (2, 3, 4, 8)},
    {"call": {"return_all_codes": True}},
    {"channel_first": True, "shape": (2, 8, 10)},
    {"channel_first": True, "shape": (2, 8, 3, 4), "call": {"return_all_codes": True}},
    {"frozen_codebook_dim": 5},
    {"commitment_weight": 0.5, "quantize_dropout": True},
]

GROUPED_BINARY = [{}, {"groups": 1}, {"codebook_size": 4}, {"call": {"return_all_codes": True}}]

GROUPED_SCALAR = [
    {},
    {"groups": 4, "levels": [5, 3]},
    {"bound_hard_clamp": False, "call": {"return_all_codes": True}},
]

KINDS = {
    "ResidualLFQ": ({"dim": 8, "codebook_size": 16, "num_quantizers": 3}, BINARY),
    "ResidualSimVQ": ({"dim": 8, "codebook_size": 16, "num_quantizers": 3}, LINEAR),
    "GroupedResidualLFQ": ({"dim": 8, "groups": 2, "codebook_size": 16, "num_quantizers": 3}, GROUPED_BINARY),
    "GroupedResidualFSQ": ({"dim": 8, "groups": 2, "levels": [5, 4], "num_quantizers": 3}, GROUPED_SCALAR),
}


@pytest.fixture
def theirs():
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("state", ["fresh", "trained"])
@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, (_, cases) in KINDS.items() for case in cases])
def test_gives_what_theirs_gives(compare, kind, case, state):
    compare(kind, case, KINDS[kind][0], state)


def losses_and_gradients(module, x, seed):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    values, codes, losses = module(x)
    module.zero_grad()
    (values.square().sum() + losses.sum()).backward()
    learned = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return values.detach(), codes, losses.detach(), x.grad, *learned


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("kind", ["ResidualLFQ", "GroupedResidualLFQ"])
def test_a_step_of_signs_is_theirs_but_for_a_constant(theirs, kind, drops):
    options = KINDS[kind][0] | {"quantize_dropout": drops, "commitment_loss_weight": 0.25}
    module = getattr(theirs, kind)(**options)
    dropin = dropin_of(module)
    x = 0.05 * torch.randn(4, 50, 8)  # where a temperature of 0.01 leaves doubt
    for seed in range(4):  # another number of levels each
        found, expected = (losses_and_gradients(each, x, seed) for each in (dropin, module))
        assert torch.equal(found[1], expected[1].long())
        # each level's loss is larger by the constant of LFQ
        level = torch.tensor(16.0).log() * 0.1 * (expected[2] != 0)
        torch.testing.assert_close(found[2], expected[2] + level, atol=1e-4, rtol=1e-4)
        for one, other in zip(found[3:], expected[3:], strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("drops", [False, True])
def test_a_step_of_linear_codes_is_theirs(theirs, drops):
    module = theirs.ResidualSimVQ(**KINDS["ResidualSimVQ"][0], quantize_dropout=drops)
    dropin = dropin_of(module)
    x = torch.randn(4, 50, 8)
    for seed in range(4):
        found, expected = (losses_and_gradients(each, x, seed) for each in (dropin, module))
        assert torch.equal(found[1], expected[1])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_dropout_leaves_as_many_levels(theirs):
    options = {"dim": 4, "codebook_size": 16, "num_quantizers": 7, "quantize_dropout": True}
    options |= {"quantize_dropout_cutoff_index": 1, "quantize_dropout_multiple_of": 2}
    x = torch.randn(1, 3, 4)
    modules = [library.ResidualLFQ(**options) for library in (theirs, ours)]
    seen = [
        [int((module(x, rand_quantize_dropout_fixed_seed=seed)[1][0, 0] >= 0).sum()) for seed in range(40)]
        for module in modules
    ]
    assert seen[0] == seen[1]
    assert set(seen[1]) == {2, 4, 6, 7}
    assert bool((modules[1].eval()(x)[1] >= 0).all())


def test_groups_of_scalars_drop_the_levels_of_theirs(theirs):
    module = theirs.GroupedResidualFSQ(**KINDS["GroupedResidualFSQ"][0], quantize_dropout=True)
    dropin = dropin_of(module)
    x = torch.randn(2, 10, 8)
    left = set()
    for seed in range(8):
        found = []
        for each in (dropin, module):
            torch.manual_seed(seed)
            found.append(each(x))
        assert torch.equal(found[0][1], found[1][1].long())
        torch.testing.assert_close(found[0][0], found[1][0])
        left.add(int((found[0][1][0, 0, 0] >= 0).sum()))
    assert left == {1, 2, 3}


def test_levels_halve_what_is_left():
    dropin = ours.ResidualLFQ(dim=8, codebook_size=256, num_quantizers=6).eval()
    x = torch.rand(2, 10, 8) * 2 - 1
    codes = dropin(x)[1]
    errors = [float((dropin.get_output_from_indices(codes[..., :n]) - x).abs().max()) for n in range(1, 7)]
    assert all(error <= 2.0**-level + 1e-6 for level, error in enumerate(errors))


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        ("ResidualLFQ", {}, (2, 8, 3, 5)),
        ("ResidualLFQ", {"channel_first": True}, (2, 8, 10)),
        ("ResidualSimVQ", {"channel_first": True}, (2, 8, 2, 3, 2)),
        ("GroupedResidualFSQ", {"accept_image_fmap": True}, (2, 8, 3, 5)),
        ("GroupedResidualLFQ", {"accept_image_fmap": True}, (2, 8, 3, 5)),
    ],
)
def test_images_round_trip(kind, options, shape):
    dropin = getattr(ours, kind)(**KINDS[kind][0] | options).eval()
    values, indices, *_ = dropin(torch.randn(shape))
    assert values.shape == shape
    spatial = (3, *shape[2:]) if kind == "GroupedResidualFSQ" else (*shape[2:], 3)
    assert tuple(indices.shape[-len(spatial) :]) == spatial
    torch.testing.assert_close(dropin.get_output_from_indices(indices), values)


def test_masked_places_have_no_codes():
    values, codes, losses = ours.ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3)(torch.randn(2, 10, 4), MASK)
    assert torch.equal((codes >= 0).all(-1), MASK)
    assert not values[~MASK].any()
    assert losses.shape == (3,)


def test_losses_are_those_of_each_level():
    torch.manual_seed(0)
    dropin = ours.ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=3, commitment_weight=0.5)
    x = torch.randn(2, 10, 8)
    _, codes, losses = dropin(x)
    levels = dropin.get_codes_from_indices(codes)
    errors = torch.stack([(x - levels[: n + 1].sum(0)).square().mean() for n in range(3)])
    torch.testing.assert_close(losses, 0.5 * 1.25 * errors)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ResidualLFQ", {"num_codebooks": 2}, "'num_codebooks' and 'has_projections' must be 1 and False"),
        ("ResidualLFQ", {"quantize_dropout_cutoff_index": 3}, r"'quantize_dropout_cutoff_index' must lie in \[0, 3\)"),
        ("ResidualLFQ", {"quantize_dropout_multiple_of": 0}, "'quantize_dropout_multiple_of' must be at least 1"),
        ("ResidualSimVQ", {"heads": 2}, "'heads' must be 1"),
        ("GroupedResidualLFQ", {"groups": 3}, "'groups' must divide 'dim' = 8, got 3"),
    ],
)
def test_says_what_it_cannot(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ours, kind)(**KINDS[kind][0] | options)


def test_features_of_groups_are_checked():
    with pytest.raises(ValueError, match="Axis -1 of 'x' must have 8 features"):
        ours.GroupedResidualLFQ(**KINDS["GroupedResidualLFQ"][0])(torch.randn(2, 10, 4))


def test_a_network_of_each_level_is_converted(theirs):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module = theirs.ResidualSimVQ(**KINDS["ResidualSimVQ"][0], codebook_transform=network).eval()
    x = torch.randn(2, 10, 8)
    assert torch.equal(ours.convert(module)(x).codes, module(x)[1])
