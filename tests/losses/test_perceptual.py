import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gmvq.losses import FeatureLoss, vgg16_features


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.SiLU())


def test_the_distance_by_hand():
    layers = network().eval()
    loss, first, second = FeatureLoss(layers), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)

    def unit(values):
        return values / values.square().sum(1, keepdim=True).sqrt().clamp_min(1e-8)

    expected = [(unit(part(first)) - unit(part(second))).square().sum(1).mean() for part in (layers[:3], layers)]
    torch.testing.assert_close(loss(first, second), torch.stack(expected).mean())
    assert loss(first, first).item() == 0
    assert FeatureLoss(layers, [2])(first, second) != loss(first, second)


def test_its_network_neither_learns_nor_follows_the_batch():
    loss = FeatureLoss(network()).train()
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss(images, torch.rand(2, 3, 8, 8)).backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_gray_images_are_shown_to_all_channels():
    loss = FeatureLoss(network(), mean=(0.5, 0.5, 0.5), deviation=(0.2, 0.2, 0.2))
    gray, other = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loss(gray, other), loss(gray.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="'images' must have 1 or 3 channels"):
        loss(torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize("layers", [[], [5], [-1]])
def test_places_without_a_layer_are_refused(layers):
    with pytest.raises(ValueError, match="'layers' must be indices below 5"):
        FeatureLoss(network(), layers)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_vgg16_from_a_file_of_weights(tmp_path, suffix):
    shapes, channels, place = {}, 3, 0
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if wide:
            shapes |= {f"features.{place}.weight": (wide, channels, 3, 3), f"features.{place}.bias": (wide,)}
            channels = wide
        place += 2 if wide else 1
    state = {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    path = tmp_path / f"vgg.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    loss = vgg16_features(path)
    assert len(loss.layers) == 5  # before each halving, and at the end
    torch.testing.assert_close(loss.network[0].weight, state["features.0.weight"])
    features = loss.features(torch.rand(1, 3, 32, 32))
    assert [tuple(part.shape[1:]) for part in features] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]


def test_no_weights_or_others_get_a_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no weights at"):
        vgg16_features(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="holds no weights of VGG-16"):
        vgg16_features(tmp_path / "text.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no weights of VGG-16"):
        vgg16_features(tmp_path / "other.pth")
