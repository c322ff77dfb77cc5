"""Two processes with half of the batch each give codes, codebook, statistics and gradients of one with the whole."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from exceptions import EXCEPTIONS
from members import COMPOSITES, QUANTIZERS, latents

MAKE = {name: make for name, make in QUANTIZERS.items() if name not in EXCEPTIONS["masks"]}


def run(name, rank=None):
    torch.manual_seed(0)
    quantizer = MAKE[name]()
    losses, codes = [], []
    for step in range(5):
        batch = latents(64, seed=step, dim=quantizer.dim)
        # of the first batch ten rows repeat, so that some codes wait for the second one
        batch = batch[torch.arange(64) % (64 if step else 10)]
        # of the first rank's half all count, of the second one's a few
        mask = torch.arange(64) < (64 if step % 2 else 40)
        # ranks draw from other states of their generators, and still take part alike
        torch.manual_seed(100 + step if rank == 1 else step)
        batch, mask = (batch, mask) if rank is None else (batch.chunk(2)[rank], mask.chunk(2)[rank])
        batch = batch.clone().requires_grad_()
        quantizer.zero_grad()
        out = quantizer(batch, mask)
        (out.loss + out.values.square().mean()).backward()
        losses.append(out.loss.detach())
        codes.append(out.codes)
    gradients = {f"gradient of {key}": value.grad for key, value in quantizer.named_parameters()}
    rows = {"codes": torch.stack(codes, 1), "latents": batch.grad}
    return {"state": quantizer.state_dict(), "means": {**gradients, "loss": torch.stack(losses)}, "rows": rows}


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in MAKE:
        torch.save(run(name, rank), f"{folder}/{name}-{rank}")
    dist.destroy_process_group()
    # threads of gloo may still drop their tensors, which aborts an interpreter that is being taken down
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, str(folder)), nprocs=2, start_method="spawn")
    return {name: [torch.load(folder / f"{name}-{rank}") for rank in range(2)] for name in MAKE}


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", MAKE)
def test_two_ranks_equal_one(ranks, name):
    expected, (first, second) = run(name), ranks[name]
    for key, value in expected["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        close(first["state"][key], value, key)
    for key, value in expected["means"].items():
        parts = first["means"][key], second["means"][key]
        assert all((part is None) == (value is None) for part in parts), key
        if value is not None:
            close(sum(parts) / 2, value, key)  # DDP averages over ranks
    assert torch.equal(torch.cat([first["rows"]["codes"], second["rows"]["codes"]]), expected["rows"]["codes"])
    # each rank's loss is the mean over its own half
    close(torch.cat([first["rows"]["latents"], second["rows"]["latents"]]) / 2, expected["rows"]["latents"], "latents")


def close(given, expected, key):
    # sums over halves round differently, and a codebook keeps what rounding did to it
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{key}: {text}")


@pytest.mark.xdist_group("ranks")
def test_ranks_drop_the_same_levels(ranks):
    kept = [part["rows"]["codes"][0] >= 0 for part in ranks["residual-dropout"]]  # (steps, levels)
    assert torch.equal(*kept)
    assert kept[0][0].all()
    assert not kept[0].all()


def test_composites_are_among_them():
    assert set(COMPOSITES) <= set(MAKE)
