"""What the classes do beside quantizing: loading, freezing, layouts that theirs cannot."""

import pytest
import torch
from torch import nn

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.conversion import dropin_of

VECTOR = {"dim": 8, "codebook_size": 16}
RESIDUAL = {**VECTOR, "num_quantizers": 3}
SEPARATE = {"heads": 2, "separate_codebook_per_head": True}
MASK = torch.arange(10) < torch.tensor([[10], [4]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def theirs():
    return pytest.importorskip("vector_quantize_pytorch")


def test_a_checkpoint_of_a_whole_model_loads(theirs):
    def model(library):
        return nn.ModuleDict(
            {
                "encoder": nn.Linear(4, 8),
                "vq": library.ResidualVQ(**RESIDUAL, codebook_dim=4),
                "fsq": library.FSQ(levels=[5, 5]),
                "lfq": library.LFQ(dim=8, codebook_size=16),
                "list": nn.ModuleList([library.VectorQuantize(**VECTOR), library.SimVQ(**VECTOR)]),
            }
        )

    module = model(theirs)
    module["vq"](torch.randn(2, 10, 8))
    mine = model(ours)
    mine.load_state_dict(module.state_dict())
    x = torch.randn(2, 10, 8)
    assert torch.equal(mine["vq"].eval()(x)[1], module["vq"].eval()(x)[1])
    assert torch.equal(mine["list"][1](x)[1], module["list"][1](x)[1])
    another = model(ours)
    another.load_state_dict(mine.state_dict())  # and ours
    assert torch.equal(another["vq"].eval()(x)[0], mine["vq"](x)[0])


def test_loading_stays_strict(theirs):
    state = theirs.VectorQuantize(**VECTOR, codebook_dim=4).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for quantizer"):
        ours.VectorQuantize(dim=8, codebook_size=32, codebook_dim=4).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*project_in\.weight"):
        ours.VectorQuantize(**VECTOR).load_state_dict(state)
    del state["project_out.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*project_out\.weight"):
        ours.VectorQuantize(**VECTOR, codebook_dim=4).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.VectorQuantize(**VECTOR).load_state_dict({})
    moved = theirs.VectorQuantize(**VECTOR, affine_param=True)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*codebook_mean"):
        ours.VectorQuantize(**VECTOR).load_state_dict(moved.state_dict())


def test_a_fresh_affine_module_starts_from_its_first_batch(theirs):
    dropin = dropin_of(theirs.VectorQuantize(**VECTOR, affine_param=True))
    x = 3 * torch.randn(2, 50, 8) + 1
    dropin(x)
    dropin.update()
    assert bool(dropin.codebook.isfinite().all())
    torch.testing.assert_close(dropin.members[0].affine.latents_mean, x.flatten(0, 1).mean(0))


def test_levels_that_have_started_drop_at_once(theirs):
    module = theirs.ResidualVQ(**RESIDUAL, quantize_dropout=True)
    levels = {int((dropin_of(module)(torch.randn(1, 1, 8))[1] >= 0).sum()) for _ in range(30)}
    assert levels == {1, 2, 3}


def test_a_frozen_module_stays_frozen(theirs):
    quantizer = ours.convert(theirs.VectorQuantize(**VECTOR, freeze_codebook=True))
    before = quantizer.codebook.clone()
    for _ in range(2):
        quantizer(torch.randn(2, 10, 8))
    assert torch.equal(quantizer.codebook, before)


def test_codebooks_of_old_versions_load(theirs):
    module = theirs.VectorQuantize(**VECTOR).eval()
    state = module.state_dict()
    old = {name: tensor[0] if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    old |= {"_codebook.initted": torch.ones(1), "_codebook.cluster_size": state["_codebook.cluster_size"][0]}
    dropin = ours.VectorQuantize(**VECTOR)
    dropin.load_state_dict(old)
    assert torch.equal(dropin.codebook, module.codebook)


def test_a_converted_module_shares_no_memory(theirs):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for module in (theirs.VectorQuantize(**VECTOR), theirs.SimVQ(**VECTOR, codebook_transform=network)):
        before = ours.convert(module).code_vectors.detach().clone()
        quantizer = ours.convert(module)
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.add_(1)
        assert torch.equal(quantizer.code_vectors, before)


def test_a_converted_module_keeps_its_type(theirs):
    module = theirs.VectorQuantize(**VECTOR, codebook_dim=4).double()
    quantizer = ours.convert(module)
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    assert quantizer.code_vectors.dtype == torch.float64
    torch.testing.assert_close(quantizer.eval()(x).values, module.eval()(x)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_values_are_the_codes(training):
    for dropin in (ours.VectorQuantize(**VECTOR), ours.VectorQuantize(**VECTOR, codebook_dim=4, **SEPARATE)):
        dropin.train(training)
        for _ in range(3):
            values, codes, _ = dropin(torch.randn(2, 10, 8))
            assert torch.equal(values, dropin.get_output_from_indices(codes))


@pytest.mark.parametrize(
    "options", [{"codebook_dim": 4}, {"codebook_dim": 4, "heads": 2}, {"codebook_dim": 4, **SEPARATE}]
)
def test_masks_train_with_projections_and_heads(options):
    dropin = ours.VectorQuantize(**VECTOR, **options)
    x = torch.randn(2, 10, 8, requires_grad=True)
    values, codes, loss = dropin(x, mask=MASK)
    (values.sum() + loss).backward()
    assert not values[~MASK].any()
    assert bool((codes[~MASK] == -1).all())
    assert not x.grad[~MASK].any()
    assert bool(x.grad[MASK].any())


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4}, {"codebook_dim": 4, "heads": 2}])
def test_images_round_trip(options):
    dropin = ours.VectorQuantize(**VECTOR, **options, accept_image_fmap=True).eval()
    values, codes, _ = dropin(torch.randn(2, 8, 3, 4))
    assert torch.equal(dropin.get_output_from_indices(codes), values)
    heads, code_dim = options.get("heads", 1), options.get("codebook_dim", 8)
    assert dropin.get_codes_from_indices(codes).shape == (2, heads * code_dim, 3, 4)


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
def test_images_in_residual_quantizers(kind):
    dropin = getattr(ours, kind)(**RESIDUAL, codebook_dim=4, accept_image_fmap=True)
    values, codes, losses = dropin(torch.randn(2, 8, 3, 4))
    assert values.shape == (2, 8, 3, 4)
    assert codes.shape[-4:] == (2, 3, 4, 3)
    assert losses.shape[-1] == 3
    torch.testing.assert_close(dropin.get_output_from_indices(codes), values)


def test_a_latent_that_is_no_number_moves_no_code():
    dropin = ours.VectorQuantize(**VECTOR)
    x = torch.randn(2, 10, 8)
    x[0, 3] = torch.nan
    values, codes, loss = dropin(x)
    dropin.update()
    assert bool(values[0, 3].isnan().all())
    assert codes[0, 3] == -1
    assert bool(loss.isfinite())
    assert bool(dropin.codebook.isfinite().all())


def test_no_codebook_of_scalars_or_signs_is_held():
    assert ours.FSQ(levels=[256] * 5)(torch.randn(2, 10, 5))[1].dtype == torch.int64
    assert int(ours.LFQ(codebook_size=2**40).eval()(torch.ones(1, 1, 40)).indices) == 2**40 - 1


def test_any_leading_axes():
    for dropin in (ours.VectorQuantize(**VECTOR), ours.ResidualVQ(**RESIDUAL)):
        assert dropin(torch.randn(2, 3, 4, 8))[1].shape[:3] == (2, 3, 4)
    for dropin in (ours.FSQ(levels=[5] * 8), ours.LFQ(dim=8), ours.ResidualFSQ(levels=[5] * 8, num_quantizers=2)):
        assert dropin(torch.randn(2, 8))[1].shape[:1] == (2,)
    assert ours.ResidualVQ(**RESIDUAL, channel_last=False)(torch.randn(2, 8, 5))[1].shape == (2, 5, 3)


def test_lengths_with_channels_first():
    dropin = ours.VectorQuantize(**VECTOR, channel_last=False)
    values, codes, _ = dropin(torch.randn(2, 8, 10), lens=torch.tensor([10, 4]))
    assert torch.equal(codes >= 0, MASK)
    assert not values[1, :, 4:].any()


def test_channel_first_indices_of_residual_scalars_round_trip():
    dropin = ours.ResidualFSQ(levels=[5, 5], num_quantizers=3, dim=8, is_channel_first=True)
    values, codes, every = dropin(torch.randn(2, 8, 10), return_all_codes=True)
    assert torch.equal(dropin.get_output_from_indices(codes), values)
    assert every.shape == (3, 2, 10, 2)


def test_rotated_residual_scalars_round_trip():
    dropin = ours.ResidualFSQ(levels=[5, 5, 5], num_quantizers=3, orthogonal_rotation=True)
    values, codes, every = dropin(torch.randn(2, 10, 3), return_all_codes=True)
    torch.testing.assert_close(dropin.get_output_from_indices(codes), values)
    torch.testing.assert_close(every.sum(0), values)


def test_fewer_levels_are_coarser():
    for dropin in (ours.ResidualVQ(**RESIDUAL), ours.ResidualFSQ(levels=[5] * 8, num_quantizers=3)):
        x = torch.randn(2, 10, 8)
        codes = dropin.eval()(x)[1]
        errors = [(dropin.get_output_from_indices(codes[..., :n]) - x).square().mean() for n in (1, 2, 3)]
        assert errors == sorted(errors, reverse=True)
        every = dropin.get_codes_from_indices(codes[..., :2])
        assert every.shape == (3, 2, 10, 8)
        assert not every[2].any()


def test_beam_search_is_no_worse():
    x = torch.randn(4, 100, 8)
    plain = ours.ResidualVQ(**RESIDUAL).eval()
    searching = ours.ResidualVQ(**RESIDUAL, beam_size=4).eval()
    searching.load_state_dict(plain.state_dict())
    errors = [(module(x)[0] - x).square().sum(-1) for module in (searching, plain)]
    assert bool((errors[0] <= errors[1] + 1e-5).all())
    assert float(errors[0].mean()) < float(errors[1].mean())


def test_beam_search_goes_by_the_error_of_the_sum(theirs):
    module = theirs.ResidualVQ(**RESIDUAL, beam_size=4).eval()
    x = torch.randn(4, 100, 8)
    found = ours.convert(module)(x).values
    assert float((found - x).square().mean()) < float((module(x)[0] - x).square().mean())


@pytest.mark.parametrize("options", [{}, {"learnable_codebook": True, "ema_update": False}], ids=str)
def test_freezing_for_a_call(options):
    dropin = ours.VectorQuantize(**VECTOR, **options, codebook_dim=4)
    before = dropin.codebook.detach().clone()
    values, _, loss = dropin(torch.randn(2, 10, 8, requires_grad=True), freeze_codebook=True)
    (values.sum() + loss).backward()
    dropin.update()
    assert torch.equal(dropin.codebook, before)
    assert all(parameter.grad is not None for parameter in dropin.quantizer.project_in.parameters())
    member = dropin.members[0]
    assert not member.frozen
    assert member.learned is None or (member.learned.grad is None and member.learned.requires_grad)
    dropin(torch.randn(2, 10, 8))
    dropin.update()
    assert bool(options) or not torch.equal(dropin.codebook, before)


def test_a_frozen_codebook_learns_in_a_call_that_says_so():
    dropin = ours.VectorQuantize(**VECTOR, freeze_codebook=True)
    before = dropin.codebook.clone()
    dropin(torch.randn(2, 10, 8))
    dropin.update()
    assert torch.equal(dropin.codebook, before)
    dropin(torch.randn(2, 10, 8), freeze_codebook=False)
    assert dropin.members[0].frozen
    dropin.members[0].update()
    assert not torch.equal(dropin.codebook, before)


def test_codes_can_be_set():
    for options in ({}, {"learnable_codebook": True, "ema_update": False}, SEPARATE):
        dropin = ours.VectorQuantize(**VECTOR, **options)
        codes = torch.randn_like(dropin.codebook)
        dropin.codebook = codes
        values, indices, _ = dropin(torch.randn(2, 10, 8))
        assert torch.equal(dropin.get_output_from_indices(indices), values)
        dropin.codebook = codes
        assert torch.equal(dropin.codebook, codes)


def test_the_loss_is_a_tensor_of_its_own():
    for dropin in (ours.VectorQuantize(**VECTOR), ours.ResidualVQ(**RESIDUAL), ours.LFQ(dim=8)):
        dropin.eval()
        loss = dropin(torch.randn(2, 10, 8))[2]
        loss += 3
        assert not dropin(torch.randn(2, 10, 8))[2].any()


def test_losses_break_down():
    options = {"learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": 2.0}
    dropin = ours.VectorQuantize(**VECTOR, **options, codebook_diversity_loss_weight=0.5, commitment_weight=0.25)
    _, _, loss, parts = dropin(torch.randn(2, 10, 8), return_loss_breakdown=True)
    expected = 0.25 * parts.commitment + 0.5 * parts.codebook_diversity + 2 * parts.orthogonal_reg
    torch.testing.assert_close(loss, expected)
    answer, parts = ours.LFQ(dim=8, commitment_loss_weight=0.3)(torch.randn(2, 10, 8), return_loss_breakdown=True)
    expected = (
        0.1 * (parts.per_sample_entropy + torch.tensor(256.0).log() - parts.batch_entropy) + 0.3 * parts.commitment
    )
    torch.testing.assert_close(answer.entropy_aux_loss, expected)


def test_masks_of_binary_quantizers_mark_codes():
    answer = ours.LFQ(dim=8)(torch.randn(2, 10, 8), mask=MASK)
    assert torch.equal(answer.indices >= 0, MASK)
    assert not answer.quantized[~MASK].any()


def test_scalar_indices_and_values():
    for symmetric in (False, True):
        dropin = ours.FSQ(levels=[5, 4, 3], preserve_symmetry=symmetric)
        indices = torch.arange(60)
        assert torch.equal(dropin.codes_to_indices(dropin.implicit_codebook), indices)
        levels = dropin.indices_to_level_indices(indices)
        assert torch.equal(levels @ torch.tensor([1, 5, 20]), indices)


SIMPLE = (
    *("num_codebooks", "codebook_dim", "effective_codebook_dim", "codebook_sizes", "shared_codebook"),
    *("commitment_weight", "use_cosine_sim", "separate_codebook_per_head"),
)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VectorQuantize", {**VECTOR, **SEPARATE, "commitment_weight": 0.3, "use_cosine_sim": True}),
        ("ResidualVQ", {"dim": 8, "codebook_size": (16, 8), "codebook_dim": 4}),
        ("ResidualVQ", {**RESIDUAL, "shared_codebook": True}),
        ("FSQ", {"levels": [5, 4], "dim": 8, "num_codebooks": 2}),
        ("FSQ", {"levels": [5, 4, 3]}),
        ("LFQ", {"dim": 8, "codebook_size": 16, "num_codebooks": 3}),
        ("LFQ", {"dim": 6}),
        ("SimVQ", {**VECTOR, "commitment_weight": 0.3}),
    ],
    ids=str,
)
def test_simple_attributes_are_theirs(theirs, kind, options):
    module, dropin = getattr(theirs, kind)(**options), getattr(ours, kind)(**options)
    names = [name for name in SIMPLE if hasattr(module, name)]
    assert {name: getattr(dropin, name) for name in names} == {name: getattr(module, name) for name in names}
    assert [name for name in SIMPLE if hasattr(dropin, name)] == names


@pytest.mark.parametrize(
    "options",
    [{}, {"preserve_symmetry": True}, {"bound_hard_clamp": True}, {"preserve_symmetry": True, "noise_dropout": 0.5}],
    ids=str,
)
def test_features_round_as_theirs(theirs, options):
    module, dropin = theirs.FSQ(levels=[8, 5, 4], **options), ours.FSQ(levels=[8, 5, 4], **options)
    z, weights = 2 * torch.randn(2, 10, 1, 3), torch.randn(2, 10, 1, 3)
    calls = [("quantize", {}), ("bound", {}), ("bound", {"hard_clamp": True})]
    for name, arguments in calls:
        found = []
        for each in (dropin, module):
            latents = z.clone().requires_grad_()
            values = getattr(each, name)(latents, **arguments)
            found.append((values, *torch.autograd.grad((values * weights).sum(), latents)))
        torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ValueError, match=r"'eps' must be 0\.001"):
        dropin.bound(z, eps=0.1)


@pytest.mark.parametrize("options", [{}, {"codebook_scale": 0.5}, {"spherical": True}], ids=str)
def test_bits_are_codes_as_theirs(theirs, options):
    module, dropin = theirs.LFQ(codebook_size=16, **options), ours.LFQ(codebook_size=16, **options)
    bits = torch.rand(3, 5, 4) > 0.5
    for each in (bits, bits.long(), bits.float()):
        torch.testing.assert_close(dropin.bits_to_codes(each), module.bits_to_codes(bits.float()))


CONVERTED = {
    "VectorQuantize": VECTOR,
    "SimVQ": VECTOR,
    "FSQ": {"levels": [5, 5]},
    "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 3},
    "GroupedResidualFSQ": {"dim": 8, "levels": [5, 5], "num_quantizers": 3},
    "LFQ": {"codebook_size": 16},
    "LatentQuantize": {"levels": [5, 5], "dim": 8},
    **dict.fromkeys(
        ("ResidualVQ", "GroupedResidualVQ", "ResidualLFQ", "GroupedResidualLFQ", "ResidualSimVQ"), RESIDUAL
    ),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_attributes_are_theirs(theirs, kind):
    module = getattr(theirs, kind)(**CONVERTED[kind])
    dropin = dropin_of(module)
    names = ("dim", "codebook_size", "num_quantizers", "heads", "codebook", "codebooks", "implicit_codebook")
    for name in (*names, *SIMPLE):
        if hasattr(module, name):
            expected, found = getattr(module, name), getattr(dropin, name)
            torch.testing.assert_close(found, expected) if isinstance(expected, torch.Tensor) else None
            assert isinstance(expected, torch.Tensor) or found == expected
