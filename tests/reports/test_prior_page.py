"""The page of a prior: what it draws, what is nearest to that, and real images beside."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from rich.console import Console

from gmvq import stages
from gmvq.data import ArrayItems
from gmvq.generation import Generator
from gmvq.modalities import Image
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.priors import CodeShape
from gmvq.priors.counting import Frequencies
from gmvq.reports.prior_page import nearest_items
from gmvq.stages import PriorRun, fit_prior

QUIET = Console(quiet=True)


def page_of(run, prior="autoregressive", *, overwrite=False, **changes):
    training = replace(PriorRun().training, steps=6, batch_size=8, warmup_steps=2, evaluate_every=3, log_every=2)
    options = {} if prior == "n-gram" else {"width": 16, "depth": 1, "heads": 2}
    fit_prior(run, PriorRun(prior, options, training, **changes), console=QUIET, overwrite=overwrite)
    return (run / "prior/report.html").read_text(encoding="utf-8"), run / "prior"


def pictures(page, text):
    found = re.findall(rf'<img src="data:image/png;base64,([^"]+)"[^>]*alt="{text}"', page)
    return [np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_drawn_images_stand_beside_the_nearest_and_the_real_ones(run):
    page, folder = page_of(run)
    drawn, nearest = pictures(page, r"drawn \d+"), pictures(page, "nearest")
    assert len(drawn) == len(nearest) == 24
    data = stages.load_data(stages.read_run(folder.parent).data)
    real = np.stack([data.train[index][0].numpy() for index in range(len(data.train))]).astype(float)
    for one, other in zip(drawn[:5], nearest, strict=False):
        distances = ((real - one.astype(float)) ** 2).mean((1, 2))
        assert ((other.astype(float) - one) ** 2).mean() == pytest.approx(distances.min(), rel=0.01)
    assert [int(label) for label in re.findall(r"asked for class (\d)", page)] == [index % 10 for index in range(24)]
    originals = pictures(page, r"class \d")
    assert len(originals) == 24
    labels = data.held_out.labels.tolist()
    images = [data.held_out[index][0].numpy() for index in range(len(data.held_out))]
    assert np.array_equal(originals[3], images[labels.index(3)])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['bits_per_code']:.3f}" in page
    assert f"{metrics['n_gram_bits_per_code']:.2f} by n-grams" in page
    assert "nats/dim" not in page  # the loss of an image's dimensions is another one
    assert "<script" not in page


@pytest.mark.parametrize("prior", ["n-gram", "code-flow"])
def test_a_prior_without_classes_curves_or_likelihood_has_a_page(run, prior):
    page, _ = page_of(run, prior, classes=False)
    assert "asked for class" not in page
    assert len(pictures(page, r"drawn \d+")) == 24
    assert ("Loss on items held back" in page) == (prior == "code-flow")
    assert ("No curves" in page) == (prior == "n-gram")


@pytest.fixture
def generator():
    """A tokenizer of tiny images and a prior over its codes, neither of them trained."""
    torch.manual_seed(0)
    sizes = {"codebook_size": 4, "width": 8, "blocks": 1, "downsampling": 2}
    tokenizer = Autoencoder(AutoencoderConfig("vector", Image(1), **sizes)).eval()
    return Generator(tokenizer, Frequencies(CodeShape((2, 2), (4,))))


def test_a_copy_is_found_among_many(generator):
    chance = torch.Generator().manual_seed(0)
    images = ArrayItems(torch.randint(256, (5000, 1, 4, 4), dtype=torch.uint8, generator=chance), 2)
    drawn = torch.stack([images[index] for index in (4999, 17, 2048)]).float() / 255
    places, distances = nearest_items(generator, drawn, images)
    assert places.tolist() == [4999, 17, 2048]
    assert float(distances.max()) == 0.0
    _, distances = nearest_items(generator, (drawn + 0.01).clamp(0, 1), images)
    assert float(distances.max()) == pytest.approx(0.01, rel=0.1)


def test_a_page_shows_nothing_of_the_prior_that_was_there_before(run):
    page_of(run)
    page, folder = page_of(run, "n-gram", overwrite=True)
    assert "No curves" in page
    assert not (folder / "log.jsonl").exists()


def test_a_class_without_held_out_images_is_left_out(run):
    data = stages.load_data(stages.read_run(run).data)
    some = (data.held_out.labels != 3).nonzero().flatten().tolist()
    fewer = data._replace(held_out=data.held_out.subset(some))
    fit_prior(run, PriorRun("n-gram"), data=fewer, console=QUIET)
    page = (run / "prior/report.html").read_text()
    assert len(pictures(page, r"drawn \d+")) == 24
    shown = re.findall(r"<figcaption><b>class (\d)", page)
    assert len(shown) == 21
    assert "3" not in shown
