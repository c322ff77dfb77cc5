"""Small models on small images: a step takes milliseconds."""

import pytest
import torch

from gmvq import Autoencoder, AutoencoderConfig
from gmvq.data import ArrayItems
from gmvq.modalities import Data, Image
from gmvq.training import Training


@pytest.fixture(autouse=True)
def _one_thread():
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture
def data():
    """Items of 8x8 pixels: 37 to learn from, so that epochs end within batches, and 9 held out."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(46, 1, 4, 4, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear") * 255).round().byte()
    return Data("noise", ArrayItems(images[:37], 2), ArrayItems(images[37:], 2), Image(1))


@pytest.fixture
def make_model():
    """Makes a model; the same arguments give the same weights."""

    def make(quantizer="gaussian-mixture", **changes):
        sizes = {"modality": Image(1), "codebook_size": 16, "width": 8, "downsampling": 2, "blocks": 1}
        torch.manual_seed(0)
        return Autoencoder(AutoencoderConfig(quantizer=quantizer, **{**sizes, **changes}))

    return make


@pytest.fixture
def make_training():
    """Makes a short training."""

    def make(**changes):
        small = {
            "steps": 20,
            "batch_size": 8,
            "warmup_steps": 4,
            "evaluate_every": 6,
            "checkpoint_every": 10,
            "log_every": 4,
        }
        return Training(**{**small, **changes})

    return make
