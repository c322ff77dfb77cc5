import pytest
import torch
import torch.nn.functional as F

from gmvq.compat.vqtorch import from_state_dict
from gmvq.quantizers import ChannelFirst, Product, Residual


def nearest(latents, codes):
    return torch.cdist(latents, codes).argmin(-1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_vector_quant():
    codes = torch.randn(16, 4)
    quantizer = from_state_dict(
        {"codebook.weight": codes, "data_initialized": torch.ones(1), "_counts": torch.ones(16)}
    )
    images = torch.randn(2, 4, 3, 5)
    values, chosen, loss, _ = quantizer(images)
    latents = images.movedim(1, -1)
    assert torch.equal(chosen, nearest(latents.reshape(-1, 4), codes).reshape(2, 3, 5))
    assert torch.equal(values, codes[chosen].movedim(-1, 1))
    torch.testing.assert_close(loss, 1.05 * F.mse_loss(latents, codes[chosen]))


def test_codes_learn_on_from_where_they_are():
    codes = torch.randn(16, 4)
    quantizer = from_state_dict({"codebook.weight": codes}, channels_first=False)
    quantizer(torch.randn(50, 4) * 100)  # no k-means of the first batch
    assert torch.equal(quantizer.codebook, codes)


@pytest.mark.parametrize("groups", [1, 2])
def test_learned_affine_map(groups):
    codes, scale, bias = torch.randn(16, 4), torch.randn(groups, 4), torch.randn(groups, 4)
    state = {"codebook.weight": codes, "affine_transform.scale": scale, "affine_transform.bias": bias}
    quantizer = from_state_dict(state, affine_lr=0.5, channels_first=False)
    runs = codes.reshape(groups, -1, 4)
    expected = torch.stack([(1 + 0.5 * s) * run + 0.5 * b for s, b, run in zip(scale, bias, runs, strict=True)])
    torch.testing.assert_close(quantizer.codebook, expected.reshape(16, 4))
    with pytest.raises(ValueError, match="'affine_lr' must be that of the layer"):
        from_state_dict(state)


def test_affine_map_of_running_moments():
    latents, codes = 3 * torch.randn(200, 4) + 1, torch.randn(16, 4)
    state = {
        "vq.codebook.weight": codes,
        "vq.affine_transform.running_statistics_initialized": torch.ones(1),
        "vq.affine_transform.running_ze_mean": latents.mean(0, keepdim=True),
        "vq.affine_transform.running_ze_var": latents.var(0, keepdim=True),
        "vq.affine_transform.running_c_mean": codes.mean(0, keepdim=True),
        "vq.affine_transform.running_c_var": codes.var(0, keepdim=True),
        "encoder.weight": torch.ones(1),
    }
    moved = from_state_dict(state, prefix="vq.", channels_first=False).codebook
    torch.testing.assert_close(moved.mean(0), latents.mean(0))
    torch.testing.assert_close(moved.var(0), latents.var(0))


def test_groups():
    codes, latents = torch.randn(8, 3), torch.randn(20, 6)
    shared = from_state_dict({"codebook.weight": codes}, groups=2, channels_first=False)
    assert isinstance(shared, Product)
    assert torch.equal(shared.encode(latents), nearest(latents.reshape(20, 2, 3), codes))
    separate = from_state_dict({"codebook.weight": codes}, groups=2, share=False, channels_first=False)
    parts = [nearest(latents[:, :3], codes[:4]), nearest(latents[:, 3:], codes[4:])]
    assert torch.equal(separate.encode(latents), torch.stack(parts, -1))


@pytest.mark.parametrize("share", [True, False])
def test_residual(share):
    codes, latents = torch.randn(8, 3), torch.randn(20, 3)
    quantizer = from_state_dict({"codebook.weight": codes}, groups=2, share=share, residual=True, channels_first=False)
    assert isinstance(quantizer, Residual)
    first, second = (codes, codes) if share else codes.chunk(2)
    chosen = nearest(latents, first)
    rest = nearest(latents - first[chosen], second)
    values, found, _, _ = quantizer(latents)
    assert torch.equal(found, torch.stack([chosen, rest], -1))
    torch.testing.assert_close(values, first[chosen] + second[rest])


def test_cosine():
    codes, latents = torch.randn(8, 3), torch.randn(20, 3)
    values, chosen, _, _ = from_state_dict({"codebook.weight": codes}, cosine=True, channels_first=False)(latents)
    expected = (F.normalize(latents, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
    assert torch.equal(chosen, expected)
    torch.testing.assert_close(values, F.normalize(codes, dim=-1)[expected])


@pytest.mark.parametrize(
    ("state", "arguments", "message"),
    [
        ({"embedding.weight": torch.ones(8, 3)}, {}, "'state_dict' must have 'codebook.weight'"),
        ({"codebook.weight": torch.ones(8, 3)}, {"prefix": "vq."}, "must have 'vq.codebook.weight'"),
        ({"codebook.weight": torch.ones(8, 3), "norm_layer.weight": torch.ones(3)}, {}, "normalization layer"),
        ({"codebook.weight": torch.ones(8, 3)}, {"groups": 3, "share": False}, "'groups' must divide"),
        ({"codebook.weight": torch.ones(8, 3)}, {"beta": 2.0}, "'beta' must lie in"),
    ],
)
def test_says_what_it_cannot_load(state, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, **arguments)


def test_default_is_channels_first():
    assert isinstance(from_state_dict({"codebook.weight": torch.ones(8, 3)}), ChannelFirst)
