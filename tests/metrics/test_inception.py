"""Features for FID by the package of others: what goes in, what comes out, and what is said where it is not there."""

import logging
import sys
import types

import pytest
import torch
from torch import nn

from gmvq.metrics import inception, load_inception


class Fake(nn.Module):
    """Stands for torch-fidelity's network: the means of what it sees, 2,048 times."""

    def __init__(self, name, layers, feature_extractor_weights_path):
        super().__init__()
        assert layers == ["2048"]
        self.scale = nn.Parameter(torch.load(feature_extractor_weights_path, weights_only=True)["scale"])

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        assert not self.training
        return (self.scale * images.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    for name, module in (("torch_fidelity", types.ModuleType("torch_fidelity")), (inception.PACKAGE, None)):
        if module is None:
            module = types.SimpleNamespace(FeatureExtractorInceptionV3=Fake)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


def test_images_go_in_as_8_bits_and_three_channels(installed):
    torch.save({"scale": torch.tensor(2.0)}, installed)
    features = load_inception()
    for channels in (1, 3):
        found = features(torch.full((4, channels, 8, 8), 0.5))
        assert found.shape == (4, 2048)
        assert found.unique().tolist() == [2 * 128.0]
    assert features(torch.zeros(0, 3, 8, 8)).shape == (0, 2048)
    for wrong in (torch.zeros(1, 2, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="must be floats"):
            features(wrong)
    for wrong in (torch.full((1, 3, 8, 8), 1.5), torch.full((1, 3, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match=r"must be finite and in \[0, 1\]"):
            features(wrong)


def test_what_is_missing_is_said_once(installed, caplog, monkeypatch):
    inception._say.cache_clear()
    with caplog.at_level(logging.INFO, "gmvq"):
        assert load_inception() is None
        assert load_inception() is None
    assert [record.message for record in caplog.records if "its weights are not here" in record.message] != []
    assert len(caplog.records) == 1
    torch.save({"scale": torch.tensor(2.0)}, installed)
    monkeypatch.delitem(sys.modules, "torch_fidelity")
    monkeypatch.setattr(inception.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "gmvq"):
        assert load_inception() is None
    assert "torch-fidelity is not installed" in caplog.text
    with pytest.raises(ValueError, match="need the package torch-fidelity"):  # what was asked for is not left out
        load_inception(installed)


def test_a_file_that_is_not_there_or_not_of_it_gets_a_reason(installed, tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no weights at"):
        load_inception(tmp_path / "none.pth")
    (tmp_path / "wrong.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception network"):
        load_inception(tmp_path / "wrong.pth")
