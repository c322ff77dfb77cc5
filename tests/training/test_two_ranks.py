"""Two processes with half of the batch each learn what one process with the whole learns.

Models are of float64: Adam divides by the size of a gradient, so in float32 a bias before a batch normalization, whose
gradient is 0, would take steps of rounding errors.
"""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import replace

import pytest
import torch

from gmvq import Autoencoder, AutoencoderConfig
from gmvq.data import ArrayItems, ListItems
from gmvq.modalities import Audio, Data, Image, Series
from gmvq.models import AdversarialConfig
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.training import Training, train
from gmvq.training.journal import read_log
from gmvq.training.ranks import LostProcessError
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


def tokenizer_of(data, **changes):
    sizes = {"codebook_size": 16, "width": 8, "downsampling": 4, "blocks": 1, "quantizer": "vector-ema"}
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(modality=data.modality, **{**sizes, **changes})).double()
    if "quantizer" not in changes:  # no code dies, in whose place others would be drawn
        model.bottleneck.moving.place(torch.randn(16, 4), torch.full((16,), 100.0))
    model.standardize(data.train[index][None] for index in range(len(data.train)))
    return model


def tokenizer(data, training, out, **changes):
    return train(tokenizer_of(data, **changes), data, training, out).model


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


def straight(folder, **how):
    """A run whose checkpoint of step 6 lies within an epoch."""
    data, training = NOISE["images"], replace(TRAINING, batch_size=4)
    model = tokenizer_of(data, quantizer="gaussian-mixture", normalization="batch")
    return train(model, data, training, folder, mirror=True, **how)


def meet(rank, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ["LOCAL_RANK"] = str(rank)


def killed(rank, port, folder):
    """Trains once to the end, and once until the second rank is killed in step 9."""
    meet(rank, port)
    straight(folder / "straight")
    forward, calls = Autoencoder.forward, 0

    def counted(self, *inputs):
        nonlocal calls
        calls += self.training
        if rank == 1 and calls == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, *inputs)

    Autoencoder.forward = counted
    try:
        straight(folder / "killed")
    except LostProcessError as error:
        (folder / "said").write_text(str(error))
    os._exit(3)


def worker(rank, port, folder):
    """Resumes the run whose second rank was killed, and trains all cases."""
    meet(rank, port)
    straight(folder / "killed", resume=True)
    for name, learned in CASES.items():
        model = learned(replace(TRAINING, batch_size=4), folder / name)
        torch.save(model.state_dict(), folder / f"{name}-{rank}")
    torch.distributed.destroy_process_group()
    # threads of gloo may still drop their tensors, which aborts an interpreter that is being taken down
    os._exit(0)


def start(work, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        multiprocessing.get_context("spawn").Process(target=work, args=(rank, port, folder)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    return processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    first, second = start(killed, folder)
    try:
        second.join(120)
        begin = time.monotonic()
        first.join(60)
        (folder / "seconds").write_text(str(time.monotonic() - begin))
        assert (first.exitcode, second.exitcode) == (3, -signal.SIGKILL)
    finally:
        first.kill()
        second.kill()
    processes = start(worker, folder)
    try:
        for process in processes:
            process.join(180)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.xdist_group("two-ranks")
def test_a_killed_rank_ends_the_run(ranks):
    assert float((ranks / "seconds").read_text()) < 60
    said = (ranks / "said").read_text()
    assert said.startswith("Another process of this run has ended")
    assert f"The checkpoint of step 6 in {ranks / 'killed'} is valid" in said


@pytest.mark.xdist_group("two-ranks")
def test_a_run_with_a_killed_rank_resumes_bit_for_bit(ranks):
    one, two = ranks / "straight", ranks / "killed"
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert [same(line) for line in read_log(one)] == [same(line) for line in read_log(two)]


@pytest.mark.xdist_group("two-ranks")
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_as_one(ranks, name, tmp_path):
    expected = CASES[name](TRAINING, tmp_path).state_dict()
    first, second = (torch.load(ranks / f"{name}-{rank}") for rank in range(2))
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        if key.endswith("revivals_distinct"):
            continue  # which rows are equal to the last bit: batches of another size round differently
        # the scale of the likelihood is that of draws, for which ranks have other random numbers
        rtol = 1e-3 if key.startswith("likelihood") else 1e-5
        torch.testing.assert_close(first[key], value, rtol=rtol, atol=1e-5, msg=f"{key}: {first[key]}, not {value}")
    one, two = ([line for line in read_log(out) if line["kind"] == "train"] for out in (tmp_path, ranks / name))
    for line, other in zip(one, two, strict=True):
        assert same(other) == pytest.approx(same(line), rel=1e-4)


def same(line):
    """What a line of the log says of the steps, without their times."""
    return {key: value for key, value in line.items() if key not in ("kind", "seconds", "items_per_second")}
