"""LPIPS with stand-ins for the packages that bring it, since none of them is installed with the tests."""

import importlib.abc
import logging
import sys
import types
import warnings

import pytest
import torch
from torch import nn

from gmvq.metrics import load_lpips, perceptual

FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
NAMES = ("lpips", "torchmetrics", "torchvision")
WEIGHTS = {"AlexNet_Weights": "alex", "VGG16_Weights": "vgg", "SqueezeNet1_1_Weights": "squeeze"}


class Network(nn.Module):
    """Takes images as LPIPS does, and remembers them."""

    def __init__(self, net="alex", verbose=True):
        super().__init__()
        assert not verbose
        self.net, self.seen = net, []
        self.layer = nn.Linear(4, 4)  # draws from the global generator
        self.dropout = nn.Dropout()

    def forward(self, first, second):
        self.seen.append((first, second))
        return self.dropout((first - second).square().mean((1, 2, 3), keepdim=True)) + 0 * self.layer.weight[0, 0]


class Blocked(importlib.abc.MetaPathFinder):
    """As if nothing of the name were installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(fullname)


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No package, no weights, nothing said yet, and any download is an error."""
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = perceptual.util.find_spec
    monkeypatch.setattr(perceptual.util, "find_spec", lambda name: None if name in NAMES else find_spec(name))
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download"))
    perceptual._say.cache_clear()


@pytest.fixture
def at_hand(monkeypatch, tmp_path):
    """A function that makes packages and the weights of a network importable."""

    def make(*packages, network="alex"):
        models = types.ModuleType("torchvision.models")
        models.get_weight = lambda name: types.SimpleNamespace(
            url=f"https://download.pytorch.org/models/{FILES[WEIGHTS[name.removesuffix('.IMAGENET1K_V1')]]}"
        )
        of_lpips, image = types.ModuleType("lpips"), types.ModuleType("torchmetrics.image.lpip")
        of_lpips.made, of_lpips.LPIPS = [], lambda **options: kept(Network(**options))
        image.made = of_lpips.made
        image.LearnedPerceptualImagePatchSimilarity = lambda network: types.SimpleNamespace(
            net=kept(Network(network, verbose=False))
        )

        def kept(module):
            warnings.warn("the parameter 'pretrained' is deprecated", UserWarning, stacklevel=1)
            of_lpips.made.append(module)
            return module

        known = {"lpips": of_lpips, "torchmetrics": types.ModuleType("torchmetrics")}
        for name in packages:
            monkeypatch.setitem(sys.modules, name, known[name])
        monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", image)
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.models", models)
        if network is not None:
            (tmp_path / "checkpoints").mkdir()
            (tmp_path / "checkpoints" / FILES[network]).touch()
        return of_lpips.made

    return make


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator), torch.rand(*shape, generator=generator)


@pytest.mark.parametrize("package", ["lpips", "torchmetrics"])
def test_distances_of_each_image_scaled_to_the_network(at_hand, package):
    made = at_hand(package)
    distance = load_lpips()
    images, targets = pair(5, 3, 32, 40)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0.0, 1.0
    given = distance(images, targets)
    (network,) = made
    ((first, second),) = network.seen
    assert torch.equal(first, 2 * images - 1)
    assert torch.equal(second, 2 * targets - 1)
    assert (float(first.min()), float(first.max())) == (-1.0, 1.0)
    assert given.shape == (5,)
    torch.testing.assert_close(given, 4 * (images - targets).square().mean((1, 2, 3)))
    assert not given.requires_grad
    assert network.net == "alex"
    assert not any(module.training for module in network.modules())


def test_gray_images_are_repeated(at_hand):
    made = at_hand("lpips")
    images, targets = pair(2, 1, 32, 32)
    distance = load_lpips()
    torch.testing.assert_close(distance(images, targets), 4 * (images - targets).square().mean((1, 2, 3)))
    assert torch.equal(made[0].seen[0][0], (2 * images - 1).repeat(1, 3, 1, 1))
    assert distance(images.double(), targets.double()).dtype == torch.float32
    assert distance(images[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_each_network_has_its_weights(at_hand, network):
    made = at_hand("lpips", network=network)
    assert load_lpips(network) is not None
    assert [module.net for module in made] == [network]
    assert all(load_lpips(other) is None for other in FILES if other != network)


def test_lpips_comes_before_torchmetrics(at_hand, monkeypatch):
    made = at_hand("lpips", "torchmetrics")
    monkeypatch.delitem(sys.modules, "torchmetrics.image.lpip")
    assert load_lpips() is not None
    assert len(made) == 1


def test_loading_draws_no_random_number(at_hand):
    at_hand("lpips")
    state = torch.get_rng_state()
    assert load_lpips() is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_absence_is_said_once_and_how_to_end_it(caplog):
    caplog.set_level(logging.INFO, "gmvq")
    assert load_lpips() is None
    assert load_lpips() is None
    assert [record.getMessage() for record in caplog.records] == [
        "LPIPS is not measured: neither lpips nor torchmetrics is installed. Use pip install lpips torchvision."
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_a_package_without_weights_is_not_made(at_hand, caplog, tmp_path):
    caplog.set_level(logging.INFO, "gmvq")
    made = at_hand("lpips", network="vgg")
    assert load_lpips("alex") is None
    assert made == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in message
    assert str(tmp_path / "checkpoints" / FILES["alex"]) in message


def test_another_checkpoint_of_the_network_does_not_count(at_hand, tmp_path):
    made = at_hand("lpips")
    (tmp_path / "checkpoints" / FILES["alex"]).rename(tmp_path / "checkpoints" / "alexnet-owt-4df8aa71.pth")
    assert load_lpips() is None
    assert made == []


@pytest.mark.parametrize("broken", ["torchvision", "lpips"])
def test_what_does_not_load_is_as_if_absent(at_hand, monkeypatch, caplog, broken):
    caplog.set_level(logging.INFO, "gmvq")
    at_hand("lpips")
    if broken == "torchvision":
        monkeypatch.delitem(sys.modules, "torchvision.models")
    else:

        def fail(**options):
            raise RuntimeError("PytorchStreamReader failed")

        monkeypatch.setattr(sys.modules["lpips"], "LPIPS", fail)
    assert load_lpips() is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("LPIPS is not measured: lpips does not load (")


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"'network' must be one of alex, vgg, squeeze, got 'resnet'\. Use 'alex'"):
        load_lpips("resnet")


@pytest.mark.parametrize(
    ("images", "targets", "reason"),
    [
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32), "one shape"),
        (torch.zeros(3, 32, 32), torch.zeros(3, 32, 32), "one shape"),
        (torch.zeros(2, 4, 32, 32), torch.zeros(2, 4, 32, 32), "1 or 3 channels"),
        (torch.zeros(2, 3, 30, 32), torch.zeros(2, 3, 30, 32), "at least 31 pixels"),
        (torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), 1.1), r"'targets' must be finite floats in \[0, 1\]"),
        (torch.full((2, 3, 32, 32), torch.nan), torch.zeros(2, 3, 32, 32), r"'images' must be finite floats"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 32, 32), "Divide 8-bit values by 255"),
    ],
)
def test_images_that_do_not_fit_are_refused(at_hand, images, targets, reason):
    at_hand("lpips")
    with pytest.raises(ValueError, match=reason):
        load_lpips()(images, targets)


# kernel, stride, padding and, of a pooling, whether a window may end outside: all that shrinks a map in the layers used
ALEX = [(11, 4, 2), (3, 2, None), (3, 2, None)]
VGG = [(2, 2, None)] * 4
SQUEEZE = [(3, 2, 0), (3, 2, True), (3, 2, True), (3, 2, True)]


@pytest.mark.parametrize(("network", "shrinking"), [("alex", ALEX), ("vgg", VGG), ("squeeze", SQUEEZE)])
def test_the_smallest_side_is_the_least_that_pooling_leaves(network, shrinking):
    layers = [
        nn.MaxPool2d(size, stride, ceil_mode=bool(rest)) if rest is None or rest is True else
        nn.Conv2d(1, 1, size, stride, rest)
        for size, stride, rest in shrinking
    ]  # fmt: skip
    least = next(side for side in range(1, 64) if passes(nn.Sequential(*layers), side))
    for side, fits in ((least - 1, False), (least, True)):
        assert perceptual.can_compare(torch.Size((1, 3, side, 64)), network) is fits
        assert perceptual.can_compare(torch.Size((1, 1, 64, side)), network) is fits


def passes(layers, side):
    try:
        return layers(torch.zeros(1, 1, side, 64)).numel() > 0
    except RuntimeError:
        return False
