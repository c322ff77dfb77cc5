import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.conversion import dropin_of

theirs = pytest.importorskip("vector_quantize_pytorch")

DEFAULTS = {"levels": [5, 4, 3], "dim": 8}

CASES = [
    ({}, (2, 8, 10)),
    ({"levels": 5, "codebook_dim": 2}, (2, 8, 3, 4)),
    ({"dim": 3}, (2, 3, 3, 4)),
    ({"levels": [2, 3, 8]}, (2, 8, 2, 3, 2)),
    ({"num_codebooks": 2}, (2, 8, 10)),
    ({"num_codebooks": 2, "dim": 6}, (2, 6, 3, 4)),
    ({"keep_num_codebooks_dim": True}, (2, 8, 10)),
    ({"optimize_values": False}, (2, 8, 3, 4)),
    ({"dim": 3, "optimize_values": False}, (5, 3)),
    ({"commitment_loss_weight": 0.3, "quantization_loss_weight": 0.0}, (2, 8, 10)),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("options", "shape"), CASES)
def test_gives_what_theirs_gives(options, shape):
    module = theirs.LatentQuantize(**DEFAULTS | options)
    dropin = ours.LatentQuantize(**DEFAULTS | options)
    dropin.load_state_dict(module.state_dict())
    for training in (True, False):
        found = []
        for each in (dropin.train(training), module.train(training)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
            values, codes, loss = each(x)
            # theirs cuts a code off where rounding has taken it below its integer; values tell which it is
            each.zero_grad()
            (values.square().sum() + loss).backward()
            gradients = [p.grad for name, p in each.named_parameters() if "values" not in name]
            found.append((values.detach(), loss.detach(), x.grad, *gradients))
            torch.testing.assert_close(each.indices_to_codes(codes), values, atol=1e-6, rtol=1e-5)
            assert codes.shape == found[0][0].movedim(1, -1).shape[:-1] + codes.shape[len(shape) - 1 :]
        torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)
        assert torch.equal(codes.long(), dropin(x)[1])
    for project in (True, False):
        torch.testing.assert_close(dropin.indices_to_codes(codes, project), module.indices_to_codes(codes, project))
    converted = ours.convert(module)
    torch.testing.assert_close(converted(x).values, module(x)[0])
    names = ("codebook_size", "codebook_dim", "num_codebooks", "effective_codebook_dim", "has_projections", "dim")
    assert [getattr(dropin, name) for name in names] == [getattr(module, name) for name in names]
    torch.testing.assert_close(dropin.implicit_codebook, module.implicit_codebook)


def test_values_learn_neither_there_nor_here():
    for library in (theirs, ours):
        module = library.LatentQuantize(**DEFAULTS)
        values, _, loss = module(torch.randn(2, 8, 10))
        (values.sum() + loss).backward()
        assert all(p.grad is None for name, p in module.named_parameters() if "values" in name)


def test_codes_are_those_of_the_nearest_values_once_they_have_moved():
    module = theirs.LatentQuantize([5, 4], dim=2)
    with torch.no_grad():
        for values in module.values_per_latent:
            values.copy_(torch.randn_like(values))
    dropin = dropin_of(module).eval()
    x = torch.randn(2, 2, 50)
    values, codes, _ = dropin(x)
    torch.testing.assert_close(values, module(x)[0])  # theirs numbers codes as if the values were where they started
    assert torch.equal(dropin.indices_to_codes(codes), values)
    assert torch.equal(dropin.codes_to_indices(values.movedim(1, -1)), codes)
    torch.testing.assert_close(dropin.quantize(x.movedim(1, -1)), values.movedim(1, -1))


def test_levels_without_features_are_an_error_of_both_kinds():
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind, match="'codebook_dim' must be at least 1 where 'levels' is an integer"):
            ours.LatentQuantize(levels=5, dim=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_dim": 2}, "'codebook_dim' must be the number of 'levels', 3, got 2"),
        ({"in_place_codebook_optimizer": torch.optim.SGD}, "'in_place_codebook_optimizer' must be None"),
    ],
)
def test_says_what_it_cannot(options, message):
    with pytest.raises(ValueError, match=message):
        ours.LatentQuantize(**DEFAULTS | options)
