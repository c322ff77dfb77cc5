"""Two processes with half of the batch each learn what one process with the whole learns.

Models are of float64: Adam divides by the size of a gradient, so in float32 a bias before a batch normalization, whose
gradient is 0, would take steps of rounding errors.
"""

import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp

from gmvq import Autoencoder, AutoencoderConfig
from gmvq.data import ArrayItems, ListItems
from gmvq.modalities import Audio, Data, Image, Series
from gmvq.models import AdversarialConfig
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.training import Training, train
from gmvq.training.journal import read_log
from gmvq.training.tasks import ClassifierTask
from gmvq.training.trainer import learn

TRAINING = Training(steps=12, batch_size=8, warmup_steps=2, evaluate_every=6, checkpoint_every=6, log_every=4)


def images():
    """37 to learn from, so that epochs end within batches, and 9 held out."""
    coarse = torch.rand(46, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    array = (torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear") * 255).round().byte()
    labels = torch.arange(46) % 3
    return Data("noise", ArrayItems(array[:37], 2, labels[:37]), ArrayItems(array[37:], 2, labels[37:]), Image(1))


def sequences(modality, scale):
    """Half of them of one length, so that some batches of a rank have one length alone; others as short as 5."""
    generator = torch.Generator().manual_seed(0)
    lengths = [40, 21, 40, 5] * 5
    items = [scale * torch.randn(modality.signal.channels, length, generator=generator).sin() for length in lengths]
    items = ListItems(items, 1, [str(place) for place in range(20)])
    return Data("noise", items.subset(range(16)), items.subset(range(16, 20)), modality)


def tokenizer(data, training, out, **changes):
    sizes = {"codebook_size": 16, "width": 8, "downsampling": 4, "blocks": 1, "quantizer": "vector-ema"}
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(modality=data.modality, **{**sizes, **changes})).double()
    if "quantizer" not in changes:  # no code dies, in whose place others would be drawn
        model.bottleneck.moving.place(torch.randn(16, 4), torch.full((16,), 100.0))
    model.standardize(data.train[index][None] for index in range(len(data.train)))
    return train(model, data, training, out).model


def opposed(data, training, out):
    how = AdversarialConfig(width=8, layers=2, discriminator_start=0.1, start=0.2, warmup=0.1)
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig("finite-scalar", data.modality, codebook_size=16, width=8, blocks=1))
    return train(model, data, training, out, adversarial=how).model


def classifier(data, training, out):
    torch.manual_seed(0)
    made = Classifier(ClassifierConfig(data.signal, 3, width=8, features=8, halvings=1, blocks=1)).double()
    made.prepared = lambda items: Classifier.prepared(made, items).double()
    return learn(ClassifierTask(made, data), replace(training, keep_best=True), out).model


NOISE = {"images": images(), "series": sequences(Series(("x", "y")), 3.0), "sounds": sequences(Audio(8000, 1), 0.5)}
CASES = {
    "batch": lambda *how: tokenizer(NOISE["images"], *how, normalization="batch"),
    "sq-vae": lambda *how: tokenizer(NOISE["images"], *how, network="sq-vae", likelihood="laplace"),
    "mixture": lambda *how: tokenizer(NOISE["images"], *how, quantizer="gaussian-mixture"),
    "series": lambda *how: tokenizer(NOISE["series"], *how, normalization="batch"),
    "sounds": lambda *how: tokenizer(NOISE["sounds"], *how, normalization="group"),
    "adversarial": lambda *how: opposed(NOISE["images"], *how),
    "classifier": lambda *how: classifier(NOISE["images"], *how),
}


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ["LOCAL_RANK"] = str(rank)
    for name, learned in CASES.items():
        model = learned(replace(TRAINING, batch_size=4), folder / name)
        torch.save(model.state_dict(), folder / f"{name}-{rank}")
    torch.distributed.destroy_process_group()
    # threads of gloo may still drop their tensors, which aborts an interpreter that is being taken down
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, folder), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.xdist_group("two-ranks")
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_as_one(ranks, name, tmp_path):
    expected = CASES[name](TRAINING, tmp_path).state_dict()
    first, second = (torch.load(ranks / f"{name}-{rank}") for rank in range(2))
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        # the scale of the likelihood is that of draws, for which ranks have other random numbers
        rtol = 1e-3 if key.startswith("likelihood") else 1e-5
        torch.testing.assert_close(first[key], value, rtol=rtol, atol=1e-6, msg=f"{key}: {first[key]}, not {value}")
    one, two = ([line for line in read_log(out) if line["kind"] == "train"] for out in (tmp_path, ranks / name))
    left_out = ("kind", "seconds", "items_per_second")
    for line, other in zip(one, two, strict=True):
        same = {key: value for key, value in line.items() if key not in left_out}
        assert {key: value for key, value in other.items() if key not in left_out} == pytest.approx(same, rel=1e-4)
