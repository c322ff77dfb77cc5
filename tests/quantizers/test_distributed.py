"""Two processes with half of the batch each give the codebook of one process with the whole."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gmvq.quantizers import GaussianMixtureQuantizer, VectorQuantizer

MAKE = {
    "mixture": lambda: GaussianMixtureQuantizer(3, 8, variance="code", decay=0.8),
    "mixture-weights": lambda: GaussianMixtureQuantizer(3, 8, learned=("mixture_weights",), decay=0.8),
    "vector-ema": lambda: VectorQuantizer(3, 8, decay=0.8),
    "vector": lambda: VectorQuantizer(3, 8, decay=None),
}


def run(name: str, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    for batch in batches:
        batch = batch.clone().requires_grad_()
        out = quantizer(batch)
        (out.loss + out.values.square().mean()).backward()
    assert batch.grad is not None
    return {**quantizer.state_dict(), "gradient": batch.grad, "loss": out.loss.detach()}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in MAKE:
        torch.save(run(name, [half.chunk(2)[rank] for half in data()]), f"{folder}/{name}-{rank}")
    dist.destroy_process_group()


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 3, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, str(folder)), nprocs=2, start_method="spawn")
    return {name: [torch.load(folder / f"{name}-{rank}") for rank in range(2)] for name in MAKE}


@pytest.mark.parametrize("name", MAKE)
def test_two_ranks_equal_one(ranks, name):
    expected, (first, second) = run(name, data()), ranks[name]
    for key in expected.keys() - {"gradient", "loss"}:
        torch.testing.assert_close(first[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")
        torch.testing.assert_close(second[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")
    # each rank's gradient is of the mean over its own half; DDP averages ranks
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, expected["gradient"])
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, expected["loss"])
