import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours

theirs = pytest.importorskip("vector_quantize_pytorch")

IMAGES = {"dim": 8, "codebook_size": 16, "scales": (1, 2, 4), "accept_image_fmap": True, "kmeans_init": False}
SEQUENCES = {**IMAGES, "accept_image_fmap": False, "scales": (1, 3, 6)}
MASK = torch.arange(6) < torch.tensor([[6], [4]])
CALM = {"threshold_ema_dead_code": 0}

CASES = [
    ({}, (2, 8, 4, 4), {}),
    ({}, (2, 8, 5, 3), {}),
    ({"scales": ((1, 1), (2, 3), (4, 6))}, (2, 8, 4, 6), {}),
    ({"shared_codebook": False, "codebook_size": (4, 8, 16)}, (2, 8, 4, 4), {}),
    ({"share_quant_resi": 0}, (2, 8, 4, 4), {}),
    ({"share_quant_resi": 2, "quant_resi": -0.3}, (2, 8, 4, 4), {}),
    ({"quant_resi": 0.0}, (2, 8, 4, 4), {"return_cutoff": True}),
    ({"channel_first": False}, (2, 4, 4, 8), {}),
    ({"accept_image_fmap": False, "accept_3d_fmap": True, "scales": (1, 2)}, (2, 8, 2, 2, 2), {}),
    (SEQUENCES, (2, 8, 6), {}),
    (SEQUENCES, (2, 8, 6), {"mask": MASK}),
    ({**SEQUENCES, "channel_first": False}, (2, 6, 8), {"lens": torch.tensor([6, 4])}),
    ({}, (2, 8, 4, 4), {"mask": torch.tensor([0, 1])[:, None, None].expand(2, 4, 4) + torch.eye(4) > 0}),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("options", "shape", "call"), CASES)
def test_gives_what_theirs_gives(options, shape, call):
    module, dropin = (library.HierarchicalVQ(**IMAGES | options) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    x = torch.randn(shape)
    module.eval(), dropin.eval()
    found, expected = dropin(x, **call), module(x, **call)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    assert len(found) == len(expected)
    assert not found[2].any()
    size = shape[1:-1] if options.get("channel_first") is False else shape[2:]
    again = dropin.get_output_from_indices(found[1], full_shape=size)
    torch.testing.assert_close(again, module.get_output_from_indices(expected[1], full_shape=size))
    if not call.keys() & {"mask", "lens"}:
        torch.testing.assert_close(again, found[0])
    names = ("dim", "scales", "num_levels", "level_shapes", "codebook_sizes")
    assert [getattr(dropin, name) for name in names] == [getattr(module, name) for name in names]


def test_training_goes_on_as_theirs():
    module, dropin = (library.HierarchicalVQ(**IMAGES, **CALM) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (dropin, module)]
    for _ in range(4):
        x = torch.randn(16, 8, 4, 4)
        found = []
        for each, optimizer in zip((dropin, module), optimizers, strict=True):
            latents = x.clone().requires_grad_()
            values, codes, loss = each(latents)
            optimizer.zero_grad()
            (values.square().mean() + loss).backward()
            optimizer.step()
            found.append(
                (values.detach(), loss.detach(), latents.grad, torch.cat([level.flatten() for level in codes]))
            )
        assert float((found[0][3] == found[1][3]).float().mean()) > 0.99
        # theirs adds 1e-5 to all counts
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-3, rtol=1e-2)


def test_dropped_levels_are_theirs():
    options = {**IMAGES, **CALM, "nested_dropout": 0.7, "decay": 0.9}
    module, dropin = (library.HierarchicalVQ(**options) for library in (theirs, ours))
    dropin.load_state_dict(module.state_dict())
    cutoffs = []
    for seed in range(12):
        x = torch.randn(4, 8, 4, 4)
        found = []
        for each in (dropin, module):
            torch.manual_seed(seed)
            found.append(each(x, return_cutoff=True))
        assert found[0][3] == found[1][3]
        torch.testing.assert_close(found[0][2], found[1][2], atol=1e-3, rtol=1e-3)
        cutoffs.append(found[0][3])
    assert set(cutoffs) == {None, 0, 1}
    assert dropin.eval()(x, return_cutoff=True)[3] is None


def test_a_masked_place_changes_nothing():
    dropin = ours.HierarchicalVQ(**SEQUENCES, quant_resi=0.0).eval()
    x = torch.randn(2, 8, 6)
    other = torch.where(MASK[:, None], x, 100.0)
    values, codes, _ = dropin(x, mask=MASK)
    assert torch.equal(dropin(other, mask=MASK)[0], values)
    assert not values.movedim(1, -1)[~MASK].any()
    assert torch.equal(codes[2] >= 0, MASK)


def test_update_reads_the_last_statistics():
    dropin = ours.HierarchicalVQ(**IMAGES, **CALM)
    dropin(torch.randn(4, 8, 4, 4))
    before = dropin.vq.members[0].code_vectors.clone()
    dropin.update()
    assert not torch.equal(dropin.vq.members[0].code_vectors, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept_3d_fmap": True}, "must not both be True"),
        ({"scales": (4, 2)}, "'scales' must go from coarse to fine"),
        ({"scales": ()}, "'scales' must have an integer of at least 1"),
        ({"scales": ((1, 1, 1), (2, 2, 2))}, "'scales' must have an integer of at least 1"),
        ({"codebook_size": (4, 8, 16)}, "'codebook_size' must be an integer"),
        ({"nested_dropout": 2.0}, r"'nested_dropout' must lie in \[0, 1\]"),
        ({"nested_dropout_min_levels": 0}, "'nested_dropout_min_levels' must be at least 1"),
    ],
)
def test_says_what_it_cannot(options, message):
    with pytest.raises(ValueError, match=message):
        ours.HierarchicalVQ(**IMAGES | options)


def test_says_what_does_not_fit():
    dropin = ours.HierarchicalVQ(**IMAGES)
    x = torch.randn(2, 8, 4, 4)
    with pytest.raises(ValueError, match="'x' must have 2 spatial axes and 8 features second"):
        dropin(torch.randn(2, 8, 4))
    with pytest.raises(ValueError, match="'mask' must have the batch and spatial axes"):
        dropin(x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="'lens' must be None"):
        dropin(x, lens=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="'indices' must be None"):
        dropin(x, indices=torch.zeros(1))
    with pytest.raises(ValueError, match="'indices' must have 3 levels"):
        dropin.get_output_from_indices(dropin(x)[1][:2])
