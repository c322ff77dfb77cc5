"""``benchmarks/leaderboard/pictures.py``: a sheet of reconstructions."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmvq import hub, modalities
from gmvq.models import Autoencoder, AutoencoderConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/leaderboard"))

import pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_stand_below_the_originals(tmp_path, channels):
    torch.manual_seed(0)
    modality = modalities.Image(channels)
    model = Autoencoder(
        AutoencoderConfig(modality=modality, width=8, blocks=1, codebook_size=16, downsampling=2)
    ).eval()
    folder = hub.save(model, tmp_path / "run")
    images = torch.randint(256, (5, channels, 16, 16), dtype=torch.uint8)
    (tmp_path / "a.jpg").write_bytes(pictures.reconstructions({"GM-VQ": folder, "of many words": folder}, images))
    with Image.open(tmp_path / "a.jpg") as sheet:
        assert sheet.format == "JPEG"
        sheet = sheet.convert("RGB")
    side, step = 96, 100
    assert sheet.height == 2 * 12 + 3 * step - 4
    left = pictures.MARGIN + pictures.LABELS
    original = torch.tensor(np.asarray(sheet.crop((left, 12, left + side, 12 + side)))) / 255
    shown = original.movedim(-1, 0).reshape(3, 16, 6, 16, 6).mean((2, 4))
    torch.testing.assert_close(
        shown, modality.signal.checked(images)[0].expand(3, 16, 16), atol=0.06, rtol=0
    )  # JPEG's loss
    assert len(pictures.reconstructions({"GM-VQ": folder}, images, most_bytes=40_000)) <= 40_000
    with pytest.raises(ValueError, match="must fit 100 bytes"):
        pictures.reconstructions({"GM-VQ": folder}, images, most_bytes=100)
